"""Predict the attributes of a run's products, shard by shard. A shard is one file, written whole or not at all."""

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
from jobs.nightly.shards import Wanted, choose, finished, metadata, wanted_of
from jobs.runtime.step_metrics import measure
from jobs.settings import Settings
from schemas.documents import Plan, Shard
from schemas.tables import PREDICTIONS

if TYPE_CHECKING:
    from cma_clip_core.engine import Engine, Timings

log = logging.getLogger(__name__)


def tag(settings: Settings, run_id: str, asked: str | None = None) -> int:
    """Tag shards of a run and return the number of products in their files; finished ones are skipped.

    Args:
        settings: names the lake and the device.
        run_id: the run, which is planned and preprocessed.
        asked: its shards, as `jobs.nightly.shards.choose` reads them; None: all.

    Raises:
        JobError: no such plan or shard exists, it is not for tagging, its model or an example is missing, or the
            device is absent.
    """
    lake = Lake(settings.root)
    plan = lake.read_plan(run_id)
    if plan.prepare_only or plan.model_version is None:
        raise JobError(f"{run_id}: this plan only makes examples to train on; plan a night: `python -m jobs plan`")
    shards = list(plan.shards) if asked is None else choose(plan, asked)
    todo: list[Shard] = []
    for shard in shards:
        if finished(lake.prediction_file(run_id, shard.id), plan, shard):
            log.info("tag-%05d: already done, skipped", shard.id)
        else:
            todo.append(shard)
    if todo:
        # Made when the first product needs it: where all is known from other runs, torch is not loaded.
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
        wanted = wanted_of(lake, plan, shard)
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

            with storage.locked(lake.all_examples, shared=True):  # none of what is read is removed meanwhile
                for batch in take_known(lake, plan, wanted):
                    keep(batch)
            known = sum(modalities.values())
            if known:
                log.info("%s: %s of %s products are known from another run of the day", name, known, shard.rows)
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
        "%s: on %s, products a second: read %s, prepare %s, forward %s, assemble %s, write %s; waited %.1f s for input",
        name, engine.device, rate(timings.read), rate(timings.prepare), rate(timings.forward), rate(timings.assemble),
        rate(write), timings.wait,
    )  # fmt: skip


def _examples(lake: Lake, shard: Shard, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """Yield the example of each wanted product, exactly once. Raises JobError where one is missing or there twice."""
    from cma_clip_core.catalog.examples import example_files, read_examples

    files = example_files(dict.fromkeys(lake.root / path for path in shard.example_paths))
    found: dict[AnyPath, set[str]] = {source: set() for source in wanted}
    for path in files:
        for source, products in wanted.items():
            # A folder may hold more than the shard asks for, and an older state of a product may be in another.
            if storage.below(path, source):
                for batch in read_examples([path], products):
                    ids = batch.column("product_id").to_pylist()
                    if len(set(ids)) < len(ids) or not found[source].isdisjoint(ids):
                        twice = next(p for p, n in Counter([*ids, *(found[source] & set(ids))]).items() if n > 1)
                        raise JobError(f"{path}: there are two examples of product {twice!r}")
                    found[source].update(ids)
                    yield batch
    missing = [product for source, products in wanted.items() for product in products.keys() - found[source]]
    if missing:
        raise JobError(
            f"shard {shard.id}: no example of {len(missing)} of {shard.rows} products, such as {_few(sorted(missing))}, "
            f"in {_few(shard.example_paths)}; run `python -m jobs preprocess` for this run first"
        )


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
