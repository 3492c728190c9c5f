"""Step 5, publish: turn a run's predictions into the tables.

1. Write: the new tables and the changes of the day go into the run's own folders.
2. Audit: the files are read again and counted. The manifest is written last.
3. Publish: one swap makes both live, if the run's base is still current (`jobs.lake.publication`).
4. Write the ledger. If the run was killed before this, the next start resumes here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from cma_clip_core.content.paths import AnyPath, open_parquet
from jobs.errors import JobError, LedgerError
from jobs.lake import history, parquet, publication, storage, table_files, verified_files
from jobs.lake.layout import PRODUCTS, Lake, check_run
from jobs.nightly import attribute_rows
from jobs.nightly.replaced_rows import ReplacedProducts, count_replaced
from jobs.nightly.shards import read_modalities
from jobs.runtime.step_metrics import measure
from jobs.settings import Settings
from jobs.spark import sessions
from schemas import tables
from schemas.documents import HistoryDay, HistoryIndex, Ledger, Plan, PublishedFile, RowCounts, RunManifest
from schemas.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

_ROWS_PER_BATCH = 2**17  # read at a time by the audit


def publish(settings: Settings, run_id: str) -> Ledger:
    """Publish a run whose shards are all tagged, and return its ledger. A second start does only the missing work.

    Raises:
        JobError: a shard is not tagged, a written file fails the audit, or the run has expired unfinished.
        LedgerError: the rows do not add up; nothing is published.
        StalePlanError: the base of the plan is no longer current; plan the day again.
    """
    lake = Lake(settings.root)
    if (finished := _ledger_of_expired(lake, check_run(run_id))) is not None:
        log.info("publish: run %s is finished already, and has expired", run_id)
        return finished
    plan = lake.read_plan(run_id)
    if plan.prepare_only or plan.model_version is None:
        raise JobError(f"{run_id} only makes examples to train on; plan a night: `python -m jobs plan --ds {plan.ds}`")
    with storage.locked(lake.run(run_id)):
        return _publish(settings, lake, plan)


def _publish(settings: Settings, lake: Lake, plan: Plan) -> Ledger:
    run_id, index = plan.run_id, lake.read_history_index()
    ledger, manifest = lake.find_ledger(run_id), _whole_manifest(lake, index, plan)
    is_written = manifest is not None or not plan.to_tag + plan.removed
    if ledger is not None and is_written and not _is_due(lake, index, plan):
        log.info("publish: run %s is finished already", run_id)
        return ledger
    with measure("publish", lake.reports(run_id)) as measured:
        if not _is_entered(lake, index, plan):
            publication.check_base(lake, index, plan)
        if manifest is None and not plan.backfill and plan.base_run is not None:
            publication.check_tables(lake, publication.manifest_of(lake, plan.base_run))
        verified_files.check_plan(lake, plan)
        modalities = check_predictions(lake, plan, whole=not is_written)
        if not is_written:
            manifest = _write(settings, lake, plan, _before(lake, index, plan))
        ledger = _ledger(lake, plan, modalities, manifest, index)
        if differences := ledger.differences():
            raise LedgerError(f"run {run_id} does not add up; nothing is published:\n  " + "\n  ".join(differences))
        if manifest is None:
            log.info("publish: nothing changed; the tables stay as they are")
        publication.swap(lake, lambda newest: _enter(lake, newest, plan, manifest))
        storage.write_document(lake.reports(run_id) / "ledger.json", ledger)
        measured.rows = plan.to_tag
        measured.details |= {"published_rows": ledger.published_rows, "published_products": ledger.published_products}
    for line in ledger.lines():
        log.info("publish: %s", line)
    return ledger


def _whole_manifest(lake: Lake, index: HistoryIndex, plan: Plan) -> RunManifest | None:
    """Return the manifest of a run if all its files are intact, or None if they must be written again."""
    remedy = f"run {plan.run_id} is written again"
    path = lake.run(plan.run_id) / "manifest.json"
    manifest = storage.find_document(path, RunManifest, remedy)
    if manifest is None:
        return None
    # Another run may have replaced the changes of a day since.
    entered = _is_entered(lake, index, plan)
    others = [day.path for ds, day in manifest.history.items() if entered and index.days.get(ds) != day]
    changes = [
        file for file in manifest.history_files if not any(file.path.startswith(f"{other}/") for other in others)
    ]
    damage = verified_files.damage(lake, [*manifest.files, *changes])
    if damage is not None:
        log.warning("publish: %s; %s", damage, remedy)
    return manifest if damage is None else None


def _before(lake: Lake, index: HistoryIndex, plan: Plan) -> HistoryIndex:
    """Return the index as it was before a run was entered, the base for writing the changes of its days again.

    Raises:
        JobError: another run has changed one of these days since.
    """
    days = dict(index.days)
    for ds, base in plan.history_base.items():
        run_id = history.run_of(index, ds)
        if run_id == base:
            continue
        if run_id != plan.run_id:
            raise JobError(
                f"{lake.run(plan.run_id)}: it cannot be written again: run {run_id} has changed the history of {ds} since; "
                f"{storage.RESTORE}"
            )
        record = lake.read_record(base) if base is not None else None
        if record is None:
            del days[ds]  # the day had no run before, or its run changed nothing
        else:
            days[ds] = record.history[ds]
    return index.model_copy(update={"days": days})


def _ledger_of_expired(lake: Lake, run_id: str) -> Ledger | None:
    """Return the ledger of a run that has expired but is part of the history, or None."""
    ledger = lake.find_ledger(run_id) if lake.has_expired(run_id) else None
    entered = ledger is not None and history.own_run(lake, lake.read_history_index(), ledger.ds) == run_id
    return ledger if entered else None


def _is_entered(lake: Lake, index: HistoryIndex, plan: Plan) -> bool:
    return history.own_run(lake, index, plan.ds) == plan.run_id


def _is_due(lake: Lake, index: HistoryIndex, plan: Plan) -> bool:
    """Return whether a finished run must be published again: a rollback removed it, and its base is still current."""
    return not _is_entered(lake, index, plan) and publication.base(lake, index, plan.ds) == publication.Base.from_plan(
        plan
    )


def _enter(lake: Lake, index: HistoryIndex, plan: Plan, manifest: RunManifest | None) -> HistoryIndex:
    """Return the index with the run entered. A day without changes is entered too, so that backfills keep it."""
    if _is_entered(lake, index, plan):
        return index
    lake.check_not_expired(plan.run_id)  # holds from here on: no run expires while the index is locked
    publication.check_base(lake, index, plan)
    if manifest is None:
        days = {plan.ds: HistoryDay(run_id=plan.run_id, path="", rows=0)} | index.days
    else:
        days = index.days | manifest.history
    replaced = manifest is not None and not plan.backfill
    return HistoryIndex(live=plan.run_id if replaced else index.live, days=dict(sorted(days.items())))


def check_predictions(lake: Lake, plan: Plan, *, whole: bool = True) -> Counter[str]:
    """Return the number of products of a run by modality, from the files of its predictions.

    Args:
        lake: the lake.
        plan: the plan of the run.
        whole: require all columns, including the shop's unlisted values, because tables are still to be made.

    Raises:
        JobError: a shard's file is missing, unreadable, of another run, or lacks a column.
    """
    modalities = Counter[str]()
    for shard in plan.shards:
        path = lake.prediction_file(plan.run_id, shard.id)
        try:
            modalities.update(read_modalities(path, plan, shard, whole=whole))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise JobError(
                f"{path}: shard {shard.id} is not tagged, or its file is damaged ({error}); run `python -m jobs tag "
                f"--run {plan.run_id} --shard {shard.id}`, which makes it"
            ) from error
    return modalities


@dataclass(frozen=True, slots=True)
class _Frames:
    """The states of one table that publish works with."""

    kind: str  # "attributes" or "products"
    before: DataFrame  # the whole table that this run is based on
    fresh: DataFrame  # the rows that this run makes
    replaced: ReplacedProducts  # the products whose rows `fresh` replaces
    width: int  # the maximum number of rows per product

    @property
    def after(self) -> DataFrame:
        """The whole table after this run."""
        return self.replaced.select_kept(self.before).unionByName(self.fresh)


def _write(settings: Settings, lake: Lake, plan: Plan, index: HistoryIndex) -> RunManifest:
    """Write the run's tables and history, audit them, and write the manifest."""
    taxonomy = lake.read_taxonomy(plan.taxonomy_path, plan.taxonomy_fingerprint)
    with sessions.session(settings, plan.validation.raw) as session:
        frames = _frames(session, lake, plan, index, taxonomy)
        folder = lake.run(plan.run_id)
        storage.remove_folder(folder)
        # The writes run in parallel, because each is a chain of small jobs that does not use all cores.
        with ThreadPoolExecutor() as pool:
            writes = [] if plan.backfill else _write_tables(lake, plan, taxonomy, frames, pool)
            rows = None if plan.backfill else pool.submit(count_replaced, lake, plan, _base_files(lake, plan))
            days, history_files, fresh = _write_history(session, lake, plan, index, frames, pool)
            files = [file for write in writes for file in write.result()]
            counts = rows.result() if rows else {}
    audit(lake, files, unique=True)
    audit(lake, history_files, unique=False)
    manifest = RunManifest(
        run_id=plan.run_id,
        ds=plan.ds,
        parent=plan.base_run,
        model_version=str(plan.model_version),
        taxonomy_fingerprint=plan.taxonomy_fingerprint,
        raw_version=plan.validation.version,
        files=tuple(files),
        rows=sum(f.rows for f in files if f.table != PRODUCTS),
        products=sum(f.rows for f in files if f.table == PRODUCTS),
        history=days,
        history_files=tuple(history_files),
        history_base=plan.history_base,
        # The run that a backfilled day started from may have expired; no table is made from it.
        attribute_rows={} if plan.backfill else _attribute_rows(lake, plan, counts, fresh, files),
        created_at=datetime.now(UTC),
    )
    storage.write_document(folder / "manifest.json", manifest)
    return manifest


def _frames(
    session: SparkSession, lake: Lake, plan: Plan, index: HistoryIndex, taxonomy: Taxonomy
) -> tuple[_Frames, _Frames]:
    paths = [lake.prediction_file(plan.run_id, shard.id) for shard in plan.shards]
    predictions = parquet.read(session, paths, tables.PREDICTIONS)
    planned = attribute_rows.read_plan(session, lake, plan)
    replaced = ReplacedProducts.from_plan(
        plan, planned, parquet.read(session, [lake.removed(plan.run_id)], tables.REMOVED)
    )
    attributes = attribute_rows.attributes(predictions, plan, taxonomy)
    products = attribute_rows.products(predictions, planned, plan)
    if plan.attributes:  # some products keep the rows of the other attributes, and therefore their state
        attributes, products = replaced.select_replaced(attributes), replaced.fully_replaced().select_replaced(products)
    if plan.backfill:
        before_attributes = history.as_of(session, lake, index, "attributes", plan.ds)
        before_products = history.as_of(session, lake, index, "products", plan.ds)
    else:
        base_files = _base_files(lake, plan)
        before_attributes = parquet.read(
            session, [lake.root / f.path for f in base_files if f.table != PRODUCTS], tables.ATTRIBUTES
        )
        before_products = parquet.read(
            session, [lake.root / f.path for f in base_files if f.table == PRODUCTS], tables.PRODUCTS
        )
    return (
        _Frames("attributes", before_attributes, attributes, replaced, attribute_rows.most(taxonomy)),
        _Frames("products", before_products, products, replaced.fully_replaced(), 1),
    )


def _attribute_rows(
    lake: Lake,
    plan: Plan,
    gone: Mapping[tuple[str, bool], int],
    fresh: Mapping[str, int],
    files: Sequence[PublishedFile],
) -> dict[str, RowCounts]:
    """Return the row counts of each attribute before and after. They come from independent sources and must add up."""
    before, after = Counter[str](), Counter[str]()
    for row_counts, published in ((before, _base_files(lake, plan)), (after, files)):
        for file in published:
            if file.table != PRODUCTS:
                row_counts[file.table] += file.rows
    return {
        name: RowCounts(
            before=before[name],
            replaced=gone.get((name, False), 0),
            removed=gone.get((name, True), 0),
            fresh=fresh.get(name, 0),
            after=after[name],
        )
        for name in sorted(after)
    }


def _base_files(lake: Lake, plan: Plan) -> tuple[PublishedFile, ...]:
    """Return the files of the tables that a run is based on. Raises JobError if they are gone."""
    return publication.manifest_of(lake, plan.base_run).files if plan.base_run else ()


def _write_tables(
    lake: Lake, plan: Plan, taxonomy: Taxonomy, frames: tuple[_Frames, _Frames], pool: Executor
) -> list[Future[list[PublishedFile]]]:
    """Start to write the whole tables, and return the futures of their files.

    The tables are those of the taxonomy's attributes, of attributes of earlier models that products still have, and of
    the products.
    """
    from pyspark.sql import functions as F

    attributes, products = frames
    before = Counter[str]()
    for file in _base_files(lake, plan):
        before[file.table] += file.rows
    states = before.pop(PRODUCTS, 0)
    earlier = {name for name, rows in before.items() if rows}
    names = [*taxonomy.names, *sorted(earlier - set(taxonomy.names))]
    writes = (
        (attributes, tables.ATTRIBUTES, names, F.col("attribute"), before.total()),
        (products, tables.PRODUCTS, [PRODUCTS], F.lit(PRODUCTS), states),
    )
    return [
        pool.submit(
            table_files.write,
            lake,
            table.after,
            lake.run(plan.run_id),
            schema,
            table_names,
            column,
            rows + plan.to_tag * table.width,
        )
        for table, schema, table_names, column, rows in writes
    ]


def _write_history(
    session: SparkSession,
    lake: Lake,
    plan: Plan,
    index: HistoryIndex,
    frames: Sequence[_Frames],
    pool: Executor,
) -> tuple[dict[str, HistoryDay], list[PublishedFile], Counter[str]]:
    """Write the changes of this day and, in a backfill, of the next day in the history, so that later days stay.

    Returns:
        The days, their files, and the number of written rows that this run has made, by attribute.
    """
    from pyspark.sql import functions as F

    changes: dict[str, list[tuple[_Frames, DataFrame]]] = {day: [] for day in plan.history_base}
    following = next((day for day in plan.history_base if day != plan.ds), None)
    for table in frames:
        own = history.changes(table.kind, table.replaced.select_replaced(table.before), table.fresh, plan.ds)
        changes[plan.ds].append((table, _merged(session, lake, index, table.kind, own, plan.ds)))
        if following is not None:
            later = history.as_of(session, lake, index, table.kind, following)
            stay = table.replaced.select_replaced(later)
            repair = history.changes(table.kind, table.fresh, stay, following)
            changes[following].append((table, _merged(session, lake, index, table.kind, repair, following)))
    replaced_products, fresh, run_id = plan.to_tag + plan.removed, Counter[str](), plan.run_id

    def count(batch: pa.RecordBatch) -> dict[str, int]:
        made = pc.and_kleene(pc.equal(batch["change"], "upsert"), pc.equal(batch["run_id"], run_id))
        return {
            entry["values"]: entry["counts"] for entry in pc.value_counts(batch["attribute"].filter(made)).to_pylist()
        }

    writes: dict[str, list[Future[list[PublishedFile]]]] = {}
    for ds, by_table in changes.items():
        folder = lake.history_run(ds, plan.run_id)
        storage.remove_folder(folder)
        older = index.days[ds].rows if ds in index.days else 0
        writes[ds] = [
            pool.submit(
                table_files.write, lake, frame, folder, history.SCHEMAS[table.kind], [table.kind], F.lit(table.kind),
                older + 2 * replaced_products * table.width,  # removed rows and new rows
                count=count if table.kind == "attributes" and ds == plan.ds else None,
                counted=fresh if table.kind == "attributes" and ds == plan.ds else None,
            )
            for table, frame in by_table
        ]  # fmt: skip
    days, files = {}, []
    for ds, written in writes.items():
        own_files = [file for write in written for file in write.result()]
        path = lake.relative(lake.history_run(ds, plan.run_id))
        days[ds] = HistoryDay(
            run_id=plan.run_id,
            path=path,
            rows=sum(file.rows for file in own_files),
            files=dict(Counter(file.table for file in own_files)),
        )
        files += own_files
    return days, files, fresh


def _merged(session: SparkSession, lake: Lake, index: HistoryIndex, kind: str, newer: DataFrame, ds: str) -> DataFrame:
    older = history.day_files(lake, index, kind, ds)
    return history.merged(kind, newer, parquet.read(session, older, history.SCHEMAS[kind])) if older else newer


def audit(
    lake: Lake,
    files: Sequence[PublishedFile],
    *,
    unique: bool,
    digest: bool = False,
    remedy: str = "run the step again: it writes the file again",
) -> None:
    """Verify written files by their sizes and by the row counts in their footers.

    Args:
        lake: the lake.
        files: the files as they were written.
        unique: whether to check that the keys of each table are sorted and unique.
        digest: whether to compare the SHA-256, which reads every byte.
        remedy: what the user can do if a file differs from what was written.

    Raises:
        JobError: a file differs from what was written. Nothing is published.
    """
    by_table: dict[str, list[AnyPath]] = {}
    for file in files:
        path = lake.root / file.path
        problem = storage.difference(path, file.bytes, file.sha256 if digest else "")
        if problem is None and (rows := parquet.count([path])) != file.rows:
            problem = f"has {rows} rows, {file.rows} were written"
        if problem is not None:
            raise JobError(f"{path} {problem}; {remedy}")
        by_table.setdefault(file.table, []).append(path)
    for paths in by_table.values() if unique else ():
        _check_keys(paths)


def _check_keys(paths: Sequence[AnyPath]) -> None:
    """Check, in bounded memory, that a table's consecutive files are sorted by product_id without duplicate keys.

    The key is product_id and, if the table has them, catalog_value and model_value.
    """
    held: pa.Table | None = None  # the rows of the last product, of which more may follow
    for path in paths:
        with open_parquet(path) as file:
            keys = ["product_id", *(n for n in ("catalog_value", "model_value") if n in file.schema_arrow.names)]
            held = file.schema_arrow.empty_table().select(keys) if held is None else held
            for batch in file.iter_batches(_ROWS_PER_BATCH, columns=keys):
                rows = pa.concat_tables([held, pa.Table.from_batches([batch]).select(keys).cast(held.schema)])
                ids = rows["product_id"].combine_chunks()
                for row in pc.indices_nonzero(pc.greater(ids[:-1], ids[1:]))[:1].to_pylist():
                    raise JobError(f"{path}: not sorted: {ids[row + 1].as_py()!r} comes after {ids[row].as_py()!r}")
                counts = rows.group_by(keys, use_threads=False).aggregate([([], "count_all")])
                for duplicate in counts.filter(pc.field("count_all") > 1).slice(0, 1).to_pylist():
                    raise JobError(
                        f"{path}: product {duplicate['product_id']!r} occurs {duplicate['count_all']} times with {duplicate}"
                    )
                held = rows.filter(pc.equal(ids, ids[-1]))


def _ledger(
    lake: Lake, plan: Plan, modalities: Mapping[str, int], manifest: RunManifest | None, index: HistoryIndex
) -> Ledger:
    if manifest is None or plan.backfill:  # the published tables then stay as they are
        published = index.live if plan.backfill else plan.base_run
        manifest = lake.read_record(published) if published is not None else None
    validation = plan.validation
    return Ledger(
        run_id=plan.run_id,
        ds=plan.ds,
        model_version=str(plan.model_version),
        backfill=plan.backfill,
        raw=validation.raw,
        unparsable=validation.unparsable,
        quarantined=validation.quarantined,
        superseded=validation.superseded,
        valid=validation.valid,
        unchanged=plan.unchanged,
        waiting=plan.waiting,
        tagged_both=modalities.get("both", 0),
        tagged_text=modalities.get("text", 0),
        tagged_image=modalities.get("image", 0),
        untaggable=modalities.get("none", 0),
        new=plan.new,
        changed=plan.changed,
        model_changed=plan.model_changed,
        removed=plan.removed,
        held=plan.held,
        held_pictures=plan.held_pictures,
        published_products=manifest.products if manifest else 0,
        published_rows=manifest.rows if manifest else 0,
        attribute_rows=manifest.attribute_rows if manifest and manifest.run_id == plan.run_id else {},
        created_at=datetime.now(UTC),
    )
