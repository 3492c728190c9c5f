"""Step 4, tag: predict the attributes of a run's products. Each shard becomes one file, whole or not at all."""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from cma_clip_core.errors import CoreError
from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from jobs.nightly.reuse_predictions import take_known
from jobs.nightly.shards import Wanted, choose, is_finished, metadata, wanted_products
from jobs.runtime.step_metrics import measure
from jobs.settings import Settings
from schemas.documents import Plan, Shard
from schemas.tables import PREDICTIONS

if TYPE_CHECKING:
    from cma_clip_core.engine import Engine, Timings

log = logging.getLogger(__name__)


def tag(settings: Settings, run_id: str, selection: str | None = None) -> int:
    """Tag shards of a run, and return the number of products in their files. Finished shards are skipped.

    Args:
        settings: the lake and the device.
        run_id: the run, already planned and preprocessed.
        selection: its shards in the syntax of `jobs.nightly.shards.choose`; None means all.

    Raises:
        JobError: no such plan or shard exists, the plan is not for tagging, its model or an example is missing, or
            the device does not exist.
    """
    lake = Lake(settings.root)
    plan = lake.read_plan(run_id)
    if plan.prepare_only or plan.model_version is None:
        raise JobError(f"{run_id}: this plan only makes examples to train on; plan a night: `python -m jobs plan`")
    shards = list(plan.shards) if selection is None else choose(plan, selection)
    todo: list[Shard] = []
    for shard in shards:
        if is_finished(lake.prediction_file(run_id, shard.id), plan, shard):
            log.info("tag-%05d: finished already, skipped", shard.id)
        else:
            todo.append(shard)
    if todo:
        # Made only when a product needs it: if other runs have made all predictions, torch is not loaded.
        engine = functools.cache(functools.partial(_engine, settings, lake, plan.model_version))
        try:
            for each in todo:
                _tag_shard(lake, plan, each, engine, settings.progress)
        except CoreError as error:
            raise JobError(str(error)) from error
    return sum(s.rows for s in shards)


def _engine(settings: Settings, lake: Lake, version: str) -> Engine:
    from cma_clip_core.tagger import load_engine

    return load_engine(lake.local_model(version), settings.device, settings.batch_size)


def _tag_shard(lake: Lake, plan: Plan, shard: Shard, engine: Callable[[], Engine], progress: bool) -> None:
    name = f"tag-{shard.id:05d}"
    with measure("tag", lake.reports(plan.run_id), name=name) as measured:
        wanted = wanted_products(lake, plan, shard)
        modalities, write = Counter[str](), 0.0
        schema = PREDICTIONS.with_metadata({**(PREDICTIONS.metadata or {}), **metadata(plan, shard)})
        with (
            storage.whole_file(lake.prediction_file(plan.run_id, shard.id)) as path,
            pq.ParquetWriter(
                path, schema, compression="zstd", write_page_index=True, write_page_checksum=True
            ) as writer,
            tqdm(total=shard.rows, desc=name, unit="product", disable=not progress, delay=1) as bar,
        ):

            def keep(batch: pa.RecordBatch) -> None:
                nonlocal write
                start = time.perf_counter()
                writer.write_batch(batch)
                write += time.perf_counter() - start
                modalities.update(batch.column("modality").to_pylist())
                bar.update(batch.num_rows)

            with storage.locked(lake.all_examples, shared=True):  # keeps the files of other runs from being removed
                for batch in take_known(lake, plan, wanted):
                    keep(batch)
            known = sum(modalities.values())
            if known:
                log.info("%s: %s of %s predictions are reused from other runs of the day", name, known, shard.rows)
            if known < shard.rows:
                from cma_clip_core.engine import Timings

                timings = Timings()
                for batch in engine().predict(_examples(lake, shard, wanted), datetime.now(UTC), timings):
                    keep(batch)
                measured.details |= {"device": str(engine().device), **timings.as_dict()}
                _log_rates(name, engine(), timings, write)
        measured.rows = shard.rows - known
        measured.details |= {"model_version": str(plan.model_version), "known": known, "write": round(write, 3)}
        measured.details |= modalities


def _log_rates(name: str, engine: Engine, timings: Timings, write: float) -> None:
    def rate(seconds: float) -> str:
        return f"{timings.rows / seconds:,.0f}/s" if seconds else "-"

    log.info(
        "%s: on %s, products per second: read %s, prepare %s, forward %s, assemble %s, write %s; waited %.1f s for input",
        name, engine.device, rate(timings.read), rate(timings.prepare), rate(timings.forward), rate(timings.assemble),
        rate(write), timings.wait,
    )  # fmt: skip


def _examples(lake: Lake, shard: Shard, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """Yield the example of each wanted product exactly once. Raises JobError if one is missing or duplicated."""
    from cma_clip_core.catalog.examples import example_files, read_examples

    files = example_files(dict.fromkeys(lake.root / path for path in shard.example_paths))
    seen: dict[AnyPath, set[str]] = {source: set() for source in wanted}
    for path in files:
        for source, products in wanted.items():
            # A folder may hold more products than the shard wants, and another folder may hold an older state of a
            # product.
            if storage.is_below(path, source):
                for batch in read_examples([path], products):
                    ids = batch.column("product_id").to_pylist()
                    if len(set(ids)) < len(ids) or not seen[source].isdisjoint(ids):
                        duplicate = next(p for p, n in Counter([*ids, *(seen[source] & set(ids))]).items() if n > 1)
                        raise JobError(f"{path}: product {duplicate!r} has two examples")
                    seen[source].update(ids)
                    yield batch
    missing = [product for source, products in wanted.items() for product in products.keys() - seen[source]]
    if missing:
        raise JobError(
            f"shard {shard.id}: no example of {len(missing)} of {shard.rows} products, such as {_few(sorted(missing))}, "
            f"in {_few(shard.example_paths)}; run `python -m jobs preprocess` for this run first"
        )


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
