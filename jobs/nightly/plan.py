"""Step 2, plan: the work of a run, frozen once, so that every later step and every retry does the same.

The cost of a night depends on the changes, not on the size of the catalog. Each valid product of the day is compared
with what is published. The plan contains only new products, changed products, and products that a new model must tag
again. They are divided into shards of similar size.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import yaml

from cma_clip_core import registry
from cma_clip_core.catalog.examples import example_files, read_examples
from cma_clip_core.config import PictureConfig, load_config
from cma_clip_core.content.paths import open_parquet, parquet_files
from cma_clip_core.errors import CoreError
from jobs.errors import CriticalDataError, JobError, RemovalsError
from jobs.lake import history, parquet, publication, storage, verified_files
from jobs.lake.layout import MISSING, PRODUCTS, Lake
from jobs.lake.storage import AnyPath
from jobs.lake.table_files import HASH_SLOTS
from jobs.models import champion_pointer
from jobs.nightly.missing_pictures import MissingPictureFinder
from jobs.runtime.step_metrics import measure
from jobs.settings import Settings
from jobs.spark import sessions
from jobs.validation import parse_records
from schemas import tables
from schemas.documents import HistoryIndex, Plan, Shard, Validation
from schemas.tables import ImageStatus, PlanReason
from schemas.taxonomy import Taxonomy, load_taxonomy

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

log = logging.getLogger(__name__)

# Examples with these statuses would not change if they were made again. Other pictures may have become usable.
_REUSABLE: Final[tuple[ImageStatus, ...]] = ("ok", "absent")
_EXAMPLE_COLUMNS = ("product_id", "source_hash", "image_status")
_REFUSED = "refused"  # stands for a picture URI that `validate` refused
_TO_TAG: Final[tuple[PlanReason, ...]] = ("new", "changed", "model_changed")
_SHOWN = 10  # products that an error names


@dataclass(frozen=True, slots=True)
class _Inputs:
    """All inputs of a plan. Their hash names the run, so that the same inputs give the same run."""

    ds: str
    validation: Validation
    index: HistoryIndex
    base: publication.Base
    prepare: bool
    retag: bool
    model_version: str | None
    taxonomy: Taxonomy
    picture: PictureConfig
    attributes: tuple[str, ...]
    share: float  # maximum share of the day's products that are tagged again only for a new model
    model_given: bool
    replaces: str | None
    allow_removals: bool = False  # not part of the run id: it only decides whether the plan is refused
    expired_runs: int = 0  # the number of expired runs with these inputs, whose ids are never used again

    @property
    def spec(self) -> str:
        return f"{self.picture.height}x{self.picture.width}-{self.taxonomy.fingerprint}"

    @property
    def run_id(self) -> str:
        base = (self.base.run, sorted(self.base.days.items()))
        inputs: tuple[object, ...] = (self.validation.version, base, self.retag, self.model_version, self.spec)
        # Added only if they are given, so that an ordinary night keeps the id of older versions.
        if self.attributes:
            inputs += (("attributes", self.attributes),)
        if self.share != 1:
            inputs += (("share", self.share),)
        if self.expired_runs:
            inputs += (self.expired_runs,)
        key = hashlib.sha256(repr(inputs).encode()).hexdigest()[:8]
        return f"{self.ds}-{'prepare-' if self.prepare else ''}{key}"


def plan(
    settings: Settings,
    ds: str,
    *,
    prepare: bool = False,
    retag: bool = False,
    model: str | None = None,
    attributes: Sequence[str] = (),
    replaces: str | None = None,
    allow_removals: bool = False,
) -> Plan:
    """Return the plan of the day `ds`: the existing one if the same run is planned already, and otherwise a new one.

    Args:
        settings: the lake, and the maximum shares of products that a night retags for a new model or removes.
        ds: the day.
        prepare: plan only examples for training; no model is needed, and nothing is tagged or published.
        retag: tag every product again, changed or not.
        model: the model version to tag with; None means the champion.
        attributes: for unchanged products that are tagged again, replace only the rows of these attributes. An empty
            sequence, or all attributes of the model, replaces all rows.
        replaces: the run with a stale plan that this one replaces.
        allow_removals: plan the run even if it removes more products than a night may by itself.

    Raises:
        JobError: one of these is wrong:

            * The day is not validated.
            * No champion exists, or the model or an attribute does not exist.
            * The taxonomy named by the user is not the model's.
        CriticalDataError: the batch of the day broke a critical rule.
        RemovalsError: the night would remove too many products.
    """
    lake = Lake(settings.root)
    validation = lake.read_validation(ds)
    if not validation.passed:
        raise CriticalDataError(f"the catalog of {ds} broke critical rules: {'; '.join(validation.failures)}")
    index = publication.settle(lake)
    unfinished = None if prepare else _unfinished(lake, index, ds)
    if unfinished is not None:
        log.info("plan: run %s is published, but has no ledger yet; it is resumed", unfinished.run_id)
        return unfinished
    inputs = _inputs(
        settings, lake, ds, validation, index, prepare=prepare, retag=retag, model=model, attributes=attributes,
        replaces=replaces, allow_removals=allow_removals,
    )  # fmt: skip
    while (result := _find_or_make(settings, lake, inputs)) is None:
        inputs = replace(inputs, expired_runs=inputs.expired_runs + 1)
    return result


def _find_or_make(settings: Settings, lake: Lake, inputs: _Inputs) -> Plan | None:
    """Return the plan of these inputs, or None if its run has expired."""
    run_id = inputs.run_id
    # The shared lock keeps existing examples from being removed before the plan refers to them.
    with storage.locked(lake.plan(run_id)), storage.locked(lake.all_examples, shared=True):
        if lake.has_expired(run_id):
            return None
        existing = storage.find_document(lake.plan(run_id) / "plan.json", Plan, "the day is planned again")
        if existing is not None and (damage := _damage(lake, existing)) is not None:
            log.warning("plan: %s; the day is planned again", damage)
            inputs = replace(inputs, allow_removals=inputs.allow_removals or existing.removals_allowed)
        elif existing is not None:
            log.info("plan: run %s is planned already", run_id)
            return existing
        rows = inputs.validation.raw
        with measure("plan", lake.reports(run_id)) as measured, sessions.session(settings, rows) as session:
            made = _plan(session, settings, lake, inputs)
            measured.rows = inputs.validation.valid
    log.info("plan: run %s: %s; %s shards", run_id, _summary(made), len(made.shards))
    return made


def _damage(lake: Lake, made: Plan) -> str | None:
    """Return a description of what is damaged in or missing from a plan, or None. A damaged plan is made again."""
    if made.prepare_only:  # it has its own copy of the taxonomy
        try:
            lake.read_taxonomy(made.taxonomy_path, made.taxonomy_fingerprint)
        except JobError as error:
            return str(error)
    if storage.exists(lake.run(made.run_id) / "manifest.json"):  # examples are no longer needed
        return verified_files.damage(lake, made.files)
    own = f"{lake.relative(lake.examples(made.run_id))}/"
    reused = {path for shard in made.shards for path in shard.example_paths if not path.startswith(own)}
    gone = next((path for path in sorted(reused) if not lake.has_examples(path)), None)
    return f"{lake.root / gone}: its examples are incomplete" if gone else verified_files.damage(lake, made.files)


def _summary(made: Plan) -> str:
    only = f" (only their {', '.join(made.attributes)})" if made.attributes else ""
    waiting = f" ({made.waiting:,} of them wait for a later night)" if made.waiting else ""
    held = f", {made.held_pictures:,} held for their pictures" if made.held_pictures else ""
    return (
        f"{made.new:,} new, {made.changed:,} changed, {made.model_changed:,} for a new model{only}, "
        f"{made.unchanged:,} unchanged{waiting}, {made.removed:,} removed, {made.held:,} held{held}"
    )


def _unfinished(lake: Lake, index: HistoryIndex, ds: str) -> Plan | None:
    """Return the plan of a run of `ds` that was killed after its publication but before its ledger existed, or None."""
    run_id = history.own_run(lake, index, ds)
    if run_id is None or lake.find_ledger(run_id) is not None or lake.has_expired(run_id):
        return None
    return lake.read_plan(run_id)


def _inputs(
    settings: Settings,
    lake: Lake,
    ds: str,
    validation: Validation,
    index: HistoryIndex,
    *,
    prepare: bool,
    retag: bool,
    model: str | None = None,
    attributes: Sequence[str] = (),
    replaces: str | None = None,
    allow_removals: bool = False,
) -> _Inputs:
    version: str | None = None
    chosen: tuple[str, ...] = ()
    if prepare:
        taxonomy, picture = load_taxonomy(settings.taxonomy), load_config(settings.model_config_name).picture
    else:
        version = _version(settings, lake, ds, model)
        name = f"the {'champion' if model is None else 'model'} {version}"
        try:
            taxonomy = registry.read_taxonomy(lake.models / version)
            picture = registry.read_config(lake.models / version).picture
        except CoreError as error:
            remedy = "; `python -m jobs models rollback`" if model is None else ""
            raise JobError(f"{name} is broken: {error}{remedy}") from error
        _check_taxonomy(settings, ds, name, taxonomy)
        chosen = _choose_attributes(taxonomy, attributes, name)
    # The share limits ordinary nights only; work that a person asks for is done completely.
    ordinary = not (prepare or retag or model is not None or chosen)
    return _Inputs(
        ds=ds,
        validation=validation,
        index=index,
        base=publication.Base(None, {}) if prepare else publication.base(lake, index, ds),
        prepare=prepare,
        retag=retag,
        model_version=version,
        taxonomy=taxonomy,
        picture=picture,
        attributes=chosen,
        share=settings.max_retag_share if ordinary else 1.0,
        model_given=model is not None,
        replaces=replaces,
        allow_removals=allow_removals,
    )


def _version(settings: Settings, lake: Lake, ds: str, model: str | None) -> str:
    """Return `model`, or the champion if it is None. Raises JobError if the version does not exist."""
    if model is not None:
        champion_pointer.check_version(lake, model)
        return model
    version = champion_pointer.champion(settings)
    if version is None:
        raise JobError(
            f"{lake.models}: no model exists yet. Make examples, `python -m jobs prepare --ds {ds}`, and "
            f"train one: `python -m jobs train --ds {ds}`"
            f"{champion_pointer.never_promoted(lake)}"
        )
    champion_pointer.check_champion(lake, version)
    return version


def _choose_attributes(taxonomy: Taxonomy, attributes: Sequence[str], model: str) -> tuple[str, ...]:
    """Return `attributes` in the taxonomy's order, or none if all are named: all rows are then replaced.

    Raises:
        JobError: the model has no such attribute.
    """
    if unknown := [name for name in attributes if name not in taxonomy.names]:
        raise JobError(f"--attributes {','.join(unknown)}: no such attribute; {model} has {', '.join(taxonomy.names)}")
    chosen = tuple(name for name in taxonomy.names if name in attributes)
    return () if chosen == taxonomy.names else chosen


def _check_taxonomy(settings: Settings, ds: str, model: str, taxonomy: Taxonomy) -> None:
    """Raise JobError if the user named another taxonomy than the model's, which every night uses.

    The default value of the setting is ignored: it does not express what the user expects.
    """
    if "taxonomy" not in settings.model_fields_set:
        return
    if differences := taxonomy.differences(load_taxonomy(settings.taxonomy)):
        raise JobError(
            f"the taxonomy {settings.taxonomy!r} is not the one that {model} was trained on: "
            f"{'; '.join(differences)}. Train a model on it (`python -m jobs prepare --ds {ds}`, `train`) and "
            "promote that one, or leave out the setting TAGGING_TAXONOMY (--taxonomy) to continue with the model's own"
        )


def _plan(session: SparkSession, settings: Settings, lake: Lake, inputs: _Inputs) -> Plan:
    from pyspark import StorageLevel
    from pyspark.sql import functions as F

    folder = lake.plan(inputs.run_id)
    scratch = sessions.scratch(settings, lake) / f"plan-{inputs.run_id}"
    compared = _classify(session, lake, inputs).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        classified, counts = _limit_retagging(compared, inputs)
        # Examples of products from an old day may have expired since. They are made again.
        gone = [path for path in counts.examples if path is not None and not lake.has_examples(path)]
        if counts.need_picture or gone:
            classified, counts = _hold_for_pictures(settings, classified, counts, gone, scratch)
        storage.remove_folder(folder)
        removed = classified.where("reason = 'removed'").select("product_id")
        in_order = removed.coalesce(1).sortWithinPartitions("product_id")
        parquet.write(in_order, lake.removed(inputs.run_id), tables.REMOVED)
        _check_removals(settings, lake, inputs, counts.reasons)
        examples = counts.examples
        fresh = sum(examples.pop(path, 0) for path in (None, *gone))
        to_tag = classified.where(F.col("reason").isin(*_TO_TAG))
        if gone:
            existing = F.when(~F.col("example_path").isin(gone), F.col("example_path"))
            to_tag = to_tag.withColumn("example_path", existing)
        if inputs.prepare:
            to_tag = to_tag.where("example_path is null")
        reused = {} if inputs.prepare else {path: n for path, n in examples.items() if path is not None}
        own = lake.relative(lake.examples(inputs.run_id))
        folders, shard_of_folder = _assign_shards(own, fresh, reused, settings.shard_rows)
        sharded = to_tag.withColumn("shard", _shard_column(shard_of_folder, fresh, settings.shard_rows))
        targets = [lake.plan_file(inputs.run_id, s) for s in range(len(folders))]
        written = (
            parquet.write_files(sharded.withColumn("target", F.col("shard")), targets, tables.PLAN) if targets else []
        )
        files = verified_files.describe(lake, (lake.plan(inputs.run_id) / "products", lake.removed(inputs.run_id)))
    finally:
        compared.unpersist()
        storage.remove_folder(scratch)
    shards = tuple(Shard(id=w.target, rows=w.rows, example_paths=tuple(folders[w.target])) for w in written if w.rows)
    taxonomy_path = _freeze_taxonomy(lake, inputs)
    made = Plan(
        run_id=inputs.run_id,
        ds=inputs.ds,
        base_run=inputs.base.run,
        history_base=inputs.base.days,
        backfill=inputs.base.backfill,
        prepare_only=inputs.prepare,
        model_version=inputs.model_version,
        retag=inputs.retag,
        model_given=inputs.model_given,
        replaces=inputs.replaces,
        attributes=inputs.attributes,
        taxonomy_path=taxonomy_path,
        taxonomy_fingerprint=inputs.taxonomy.fingerprint,
        picture_height=inputs.picture.height,
        picture_width=inputs.picture.width,
        validation=inputs.validation,
        shards=shards,
        unchanged=counts.reasons["unchanged"] + counts.reasons["waiting"],
        **{reason: counts.reasons[reason] for reason in (*_TO_TAG, "waiting", "removed", "held", "held_pictures")},
        removals_allowed=inputs.allow_removals,
        to_preprocess=fresh,
        files=files,
        created_at=datetime.now(UTC),
    )
    storage.write_document(folder / "plan.json", made)
    return made


def _classify(session: SparkSession, lake: Lake, inputs: _Inputs) -> DataFrame:
    """Return product_id, source_hash, reason, example_path and picture, one row for each product of today or published.

    `picture` is the picture URI of today's record if the product was last tagged with a picture, and otherwise null.
    """
    from pyspark.sql import functions as F

    verified_files.check_records(lake, inputs.validation)
    valid = parquet.read(session, [lake.root / inputs.validation.valid_path], tables.VALID)
    # A picture URI that `validate` refused counts as a missing picture.
    refused = F.when(F.col("notes")["image_uri"].isNotNull(), f"{MISSING}/{_REFUSED}")
    today = valid.select("product_id", "source_hash", F.coalesce("image_uri", refused).alias("named"))
    base = _published(session, lake, inputs).select(
        "product_id",
        F.col("source_hash").alias("base_hash"),
        F.col("example_path").alias("base_example"),
        F.col("example_spec").alias("base_spec"),
        F.col("image_status").alias("base_status"),
        F.col("model_version").alias("base_model"),
    )
    # A product whose record of today is, or may be, in quarantine stays as it is; it does not count as removed.
    rejected = parquet.read(session, [lake.root / inputs.validation.quarantine_path], tables.QUARANTINE)
    bad = parse_records.rejected_ids(rejected).withColumn("bad", F.lit(True))
    made_today = _find_existing_examples(session, lake, inputs)
    joined = (
        today.join(base, "product_id", "full_outer")
        .join(bad, "product_id", "left")
        .join(made_today, ["product_id", "source_hash"], "left")
    )
    same_spec = F.col("base_spec") == inputs.spec
    same_record = F.col("source_hash") == F.col("base_hash")
    same_model = F.lit(not inputs.retag) & (F.col("base_model") == F.lit(inputs.model_version))
    reason = (
        F.when(F.col("source_hash").isNull() & F.col("bad"), "held")
        .when(F.col("source_hash").isNull(), "removed")
        .when(F.col("base_hash").isNull(), "new")
        .when(~same_record, "changed")
        .when(~same_spec | ~same_model, "model_changed")
        .otherwise("unchanged")
    )
    usable = F.when(same_record & same_spec & F.col("base_status").isin(*_REUSABLE), F.col("base_example"))
    picture = F.when(F.col("base_status") == "ok", F.col("named"))
    return joined.select(
        "product_id",
        "source_hash",
        reason.alias("reason"),
        F.coalesce("made_example", usable).alias("example_path"),
        picture.alias("picture"),
    )


@dataclass(frozen=True, slots=True)
class _Counts:
    """Counts of the products of a day."""

    reasons: Counter[str]
    examples: Counter[str | None]  # products to tag by the folder of their existing example; None if none exists
    need_picture: int  # products that need a new example, and whose last one had a picture, which must exist again


def _limit_retagging(classified: DataFrame, inputs: _Inputs) -> tuple[DataFrame, _Counts]:
    """Postpone products that are due only because of a new model, if they exceed the night's share.

    A hash of product and day selects the products that wait. The same inputs therefore give the same products, and
    every night gives others. They get the reason "waiting".
    """
    from pyspark.sql import functions as F

    counts = _count(classified)
    most = math.ceil(inputs.share * inputs.validation.valid)
    if counts.reasons["model_changed"] <= most:
        return classified, counts
    hash_position = F.pmod(F.xxhash64("product_id", F.lit(inputs.ds)), F.lit(HASH_SLOTS))
    limit = HASH_SLOTS * most // counts.reasons["model_changed"]
    waits = (F.col("reason") == "model_changed") & (hash_position >= F.lit(limit))
    limited = classified.withColumn("reason", F.when(waits, "waiting").otherwise(F.col("reason")))
    return limited, _count(limited)


def _count(classified: DataFrame) -> _Counts:
    from pyspark.sql import functions as F

    examples, reasons, need_picture = Counter[str | None](), Counter[str](), 0
    to_tag = F.col("reason").isin(*_TO_TAG)
    known = F.when(to_tag, F.col("example_path")).alias("example_path")
    needs = (to_tag & F.col("example_path").isNull() & F.col("picture").isNotNull()).alias("needs")
    for row in classified.groupBy("reason", known, needs).count().collect():
        reasons[row["reason"]] += row["count"]
        if row["reason"] in _TO_TAG:
            examples[row["example_path"]] += row["count"]
        if row["needs"]:
            need_picture += row["count"]
    return _Counts(reasons, examples, need_picture)


def _hold_for_pictures(
    settings: Settings, classified: DataFrame, counts: _Counts, gone: Sequence[str], scratch: AnyPath
) -> tuple[DataFrame, _Counts]:
    """Hold products that need a new example, were last tagged with a picture, and whose picture is missing today.

    Text alone would give worse tags, so they stay as published, with the reason "held_pictures". Spark's Python workers
    look only for the pictures of products that need a new example.
    """
    from pyspark.sql import functions as F

    to_remake = F.col("example_path").isNull() | F.col("example_path").isin(gone)
    candidates = classified.where(F.col("reason").isin(*_TO_TAG) & to_remake & F.col("picture").isNotNull())
    find_missing = MissingPictureFinder(settings.all_picture_roots)
    held = parquet.write_parts(candidates.select("product_id", "picture"), scratch, tables.REMOVED, find_missing)
    number = parquet.count(parquet_files(scratch))
    if not number:
        return classified, counts
    log.warning("plan: %s products were tagged with pictures that are missing now; they are held", f"{number:,}")
    marked = classified.join(held.withColumn("lacks", F.lit(True)), "product_id", "left")
    reason = F.when(F.col("lacks"), "held_pictures").otherwise(F.col("reason"))
    held_back = marked.withColumn("reason", reason).drop("lacks")
    return held_back, _count(held_back)


def _check_removals(settings: Settings, lake: Lake, inputs: _Inputs, reasons: Counter[str]) -> None:
    """Raise RemovalsError if the night would remove more of the published products than it may by itself."""
    removed = reasons["removed"]
    published = sum(reasons.values()) - reasons["new"]
    if inputs.allow_removals or removed == 0 or removed / published <= settings.max_removed_share:
        return
    validation, ds = inputs.validation, inputs.ds
    rejected = validation.unparsable + validation.quarantined
    folder = lake.removed(inputs.run_id)
    with open_parquet(parquet_files(folder)[0]) as file:
        first = next(file.iter_batches(_SHOWN)).column("product_id").to_pylist()
    by_reason = ", ".join(f"{n:,} {reason}" for reason, n in list(validation.reasons.items())[:3])
    rejects = (
        f"{rejected:,} were rejected ({by_reason}), in {lake.root / validation.quarantine_path}; " if rejected else ""
    )
    raise RemovalsError(
        f"the night of {ds} would remove {removed:,} of {published:,} published products ({removed / published:.1%}; "
        f"{settings.max_removed_share:.0%} is allowed), such as {', '.join(repr(each[:60]) for each in first)}; all are in "
        f"{folder}. The day has {validation.raw:,} lines; {rejects}check that the export is complete and import it again. If these "
        f"products are really gone, allow it: `python -m jobs plan --ds {ds} --allow-removals`, or `night`, or trigger the DAG "
        "with allow_removals"
    )


def _published(session: SparkSession, lake: Lake, inputs: _Inputs) -> DataFrame:
    """Return the state of the published products that this day is compared with."""
    if inputs.base.backfill:
        return history.as_of(session, lake, inputs.index, "products", inputs.ds)
    files = []
    if inputs.base.run is not None:
        manifest = publication.manifest_of(lake, inputs.base.run)
        publication.check_tables(lake, manifest, PRODUCTS)
        files = [lake.root / f.path for f in manifest.files if f.table == PRODUCTS]
    return parquet.read(session, files, tables.PRODUCTS)


def _find_existing_examples(session: SparkSession, lake: Lake, inputs: _Inputs) -> DataFrame:
    """Return product_id, source_hash and made_example of the examples that other runs of this day have made already."""
    from pyspark.sql import functions as F

    folders = []
    for path in storage.children(lake.all_examples / f"ds={inputs.ds}", "run="):
        run_id = path.name.removeprefix("run=")
        manifest = lake.find_examples_manifest(run_id) if run_id != inputs.run_id else None
        if manifest is None:
            continue
        spec = f"{manifest.picture_height}x{manifest.picture_width}-{manifest.taxonomy_fingerprint}"
        if spec == inputs.spec:
            folders += [folder for folder in storage.children(path, "shard=") if _is_readable(folder)]
    examples = [
        parquet.read(session, [folder], tables.EXAMPLES)
        .where(F.col("image_status").isin(*_REUSABLE))
        .select("product_id", "source_hash", F.lit(lake.relative(folder)).alias("made_example"))
        for folder in folders
    ]
    if not examples:
        return session.createDataFrame([], "product_id string, source_hash string, made_example string")
    united = examples[0]
    for other in examples[1:]:
        united = united.unionByName(other)
    return united.groupBy("product_id", "source_hash").agg(F.min("made_example").alias("made_example"))


def _is_readable(folder: AnyPath) -> bool:
    """Return whether the files of an example folder can be opened, and their ids and hashes are intact."""
    try:
        for _ in read_examples(example_files([folder]), columns=_EXAMPLE_COLUMNS):
            pass
    except CoreError as error:
        log.warning("plan: %s; the examples in %s are made again", error, folder)
        return False
    return True


def _assign_shards(
    examples: str, fresh: int, reused: Mapping[str, int], shard_rows: int
) -> tuple[list[list[str]], dict[str, int]]:
    """Divide the work into shards.

    A hash spreads fresh examples over the minimum number of shards. Existing examples stay together with their folder,
    so that a shard opens few files. Small folders share a shard.

    Returns:
        The example folders of each shard, and the shard of each existing folder.
    """
    shards = [[f"{examples}/shard={s}"] for s in range(math.ceil(fresh / shard_rows))]
    shard_of_folder: dict[str, int] = {}
    room = 0
    for path, rows in sorted(reused.items()):
        if rows > room:
            shards.append([])
            room = max(shard_rows, rows)
        shards[-1].append(path)
        shard_of_folder[path] = len(shards) - 1
        room -= rows
    return shards, shard_of_folder


def _shard_column(shard_of_folder: Mapping[str, int], fresh: int, shard_rows: int) -> Column:
    """Return the shard of a product: by the folder of its existing example, or by a hash if it needs a fresh one."""
    from pyspark.sql import functions as F

    spread = F.pmod(F.xxhash64("product_id"), F.lit(max(1, math.ceil(fresh / shard_rows))))
    if not shard_of_folder:
        return spread.cast("int")
    lookup = F.create_map(*[F.lit(x) for pair in shard_of_folder.items() for x in pair])
    return F.when(F.col("example_path").isNull(), spread).otherwise(lookup[F.col("example_path")]).cast("int")


def _freeze_taxonomy(lake: Lake, inputs: _Inputs) -> str:
    """Return the path of the taxonomy for reading labels: the model's own, or a copy of the one for training."""
    if inputs.model_version is not None:
        return lake.relative(lake.models / inputs.model_version / registry.TAXONOMY)
    path = lake.plan(inputs.run_id) / "taxonomy.yaml"
    document = yaml.safe_dump(inputs.taxonomy.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    storage.write_bytes(path, document.encode())
    return lake.relative(path)
