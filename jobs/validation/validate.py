"""Step 1, validate: sort a day's raw records into `valid` and `quarantine`; stop the night if the batch cannot be trusted.

The step reads text only, no pictures.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cma_clip_core.content.paths import parquet_files
from jobs.errors import CriticalDataError, JobError
from jobs.lake import parquet, storage, verified_files
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from jobs.pages.display_text import plain
from jobs.runtime.step_metrics import measure
from jobs.settings import Settings
from jobs.spark import sessions
from jobs.startup.background_import import preload
from jobs.validation import batch_rules, duplicate_ids, parse_records, row_rules
from jobs.validation.failed_rules import failure_text
from jobs.validation.field_rules import field_rules
from jobs.validation.rule_examples import DayTables
from jobs.validation.rules_page import render_rules
from schemas import tables
from schemas.documents import RawManifest, Validation
from schemas.rules import PicturesFound, PicturesNamed, RuleTable, load_rules

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

# Part of a validation's version: raise it when the parser or the filter changes its output.
_LOGIC = "4"
_DAYS = 60  # days before a day whose validations the batch rules may compare with


def validate(settings: Settings, ds: str) -> Validation:
    """Validate the raw catalog of `ds`, unless the same rules have validated it already.

    Raises:
        JobError: the day is missing, incomplete or broken.
        CriticalDataError: the batch breaks a critical rule.
    """
    lake, table = Lake(settings.root), load_rules(settings.rules)
    roots = settings.all_picture_roots
    manifest = check_raw(lake, ds)
    version = _version(manifest, table, roots)
    docs = lake.root / "reports" / f"ds={ds}" / f"validation-{version}"
    with storage.locked(lake.valid(ds)), measure("validate", docs) as measured:
        validation = storage.find_document(lake.valid(ds) / "current.json", Validation, "the day is validated again")
        if validation is None or validation.version != version or not _is_whole(lake, validation):
            preload("great_expectations.expectations")
            with sessions.session(settings, manifest.rows) as session:
                validation = _validate(session, settings, lake, manifest, table, roots, version, docs)
        else:
            log.info("validate: the same rules have validated %s already", ds)
            measured.folder = None  # keeps the cost of the real validation on record
        measured.rows = validation.raw
    log.info(
        "validate: %s raw = %s unparsable + %s quarantined + %s superseded + %s valid; rules: %s",
        *(
            f"{n:,}"
            for n in (
                validation.raw,
                validation.unparsable,
                validation.quarantined,
                validation.superseded,
                validation.valid,
            )
        ),
        lake.root / validation.data_docs_path,
    )
    if validation.notes:
        log.info("validate: unused fields: %s", ", ".join(f"{n:,} {name}" for name, n in validation.notes.items()))
    for name, count in validation.unread_labels.items():
        log.warning("validate: %s labels of %r have an unknown form and cannot be read", f"{count:,}", plain(name, 60))
    if not validation.passed:
        raise CriticalDataError(
            "\n  ".join(
                [
                    f"the catalog of {ds} breaks critical rules; nothing is published from it:",
                    *validation.failures,
                    f"See {lake.root / validation.data_docs_path}. Repair the export and import it again, or change the "
                    f"rules ({settings.rules}).",
                ]
            )
        )
    return validation


def _is_whole(lake: Lake, validation: Validation) -> bool:
    """Return whether the files of a validated day are as they were written."""
    damage = verified_files.damage(lake, validation.files)
    if damage is not None:
        log.warning("validate: %s; the day is validated again", damage)
    return damage is None and storage.exists(lake.root / validation.valid_path)


def check_raw(lake: Lake, ds: str) -> RawManifest:
    """Return the manifest of a day's raw catalog, after a check of every byte of its files.

    Raises:
        JobError: the day is missing, or one of its files is missing or differs from its manifest.
    """
    folder = lake.raw(ds)
    manifest = lake.read_raw_manifest(ds)
    if manifest is None:
        problem = "is not complete (no _manifest.json)" if storage.exists(folder) else "does not exist"
        raise JobError(f"{folder} {problem}: run `python -m jobs import-catalog FOLDER --ds {ds}`")
    for file in manifest.files:
        path = folder / file.name
        if (difference := storage.difference(path, file.bytes, file.sha256)) is not None:
            raise JobError(
                f"{path} {difference}; import the day again: `python -m jobs import-catalog FOLDER --ds {ds}`"
            )
    return manifest


def _version(manifest: RawManifest, table: RuleTable, roots: Sequence[AnyPath]) -> str:
    parts = [
        _LOGIC,
        table.model_dump_json(),
        *(str(r) for r in roots),
        *(f"{f.name} {f.sha256}" for f in manifest.files),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def last_days(lake: Lake, ds: str) -> list[Validation]:
    """Return the validations of the days before `ds` that passed, oldest first."""
    days = [path.name for path in storage.children(lake.valid("-").parent, "ds=") if path.name < f"ds={ds}"]
    validations = (
        storage.find_document(
            lake.valid("-").parent / day / "current.json",
            Validation,
            f"{day} does not count; `python -m jobs validate --ds {day.removeprefix('ds=')}` makes it again",
        )
        for day in days[-_DAYS:]
    )
    return [validation for validation in validations if validation is not None and validation.passed]


def _validate(
    session: SparkSession,
    settings: Settings,
    lake: Lake,
    manifest: RawManifest,
    table: RuleTable,
    roots: Sequence[AnyPath],
    version: str,
    docs: AnyPath,
) -> Validation:
    from pyspark.sql import functions as F

    ds = manifest.ds
    if manifest.rows == 0:
        raise CriticalDataError(
            f"{lake.raw(ds)}: the catalog of {ds} is empty. Publishing it would remove every product; nothing is done."
        )
    lines = parse_records.read_lines(session, [lake.raw(ds) / file.name for file in manifest.files])
    # The queries below read Parquet, a column at a time; Spark's cache would hold whole texts in the heap.
    scratch = sessions.scratch(settings, lake) / f"validate-{ds}-{version}"
    valid_path, quarantine_path = lake.valid(ds) / version, lake.quarantine(ds) / version
    try:
        parsed = parse_records.parse(lines, scratch / "parsed", field_rules(table, roots))
        judged = parsed.withColumn("reasons", row_rules.reasons(table, roots))
        has_duplicates = duplicate_ids.has_duplicate_ids(scratch / "parsed", lake.work / "scratch")
        resolved = duplicate_ids.resolve(judged, scratch / "duplicates", has_duplicates=has_duplicates)
        # Great Expectations' query leaves cores idle; the writes use them.
        with ThreadPoolExecutor(1) as pool:
            checked = pool.submit(
                batch_rules.check, resolved, table, roots, last_days(lake, ds), ds=ds, has_duplicates=has_duplicates
            )
            marked = duplicate_ids.mark(resolved, table).withColumn("ds", F.lit(ds))
            parquet.write(marked.where("kind is null"), valid_path, tables.VALID)
            parquet.write(marked.where("kind is not null"), quarantine_path, tables.QUARANTINE)
            outcomes = checked.result()
    finally:
        storage.remove_folder(scratch)
    with DayTables(valid_path, quarantine_path, lake.work / "scratch") as day:
        kinds, reasons, line_errors, notes = day.kinds(), day.reasons(), day.line_errors(), day.notes()
        unread = day.unread_labels()
        examples = {outcome.rule.name: day.examples(outcome) for outcome in outcomes}
    counts = {kind: kinds.get(kind, 0) for kind in ("unparsable", "quarantined", "superseded")}
    n_valid = parquet.count(parquet_files(valid_path))
    if manifest.rows != n_valid + sum(counts.values()):
        raise JobError(
            f"{lake.raw(ds)}: {manifest.rows:,} lines were imported, but {n_valid:,} valid and {counts} came out; "
            "this is a bug of the validation, nothing is published"
        )
    failures = tuple(
        failure_text(outcome, examples[outcome.rule.name], line_errors, manifest.missing_pictures)
        for outcome in outcomes
        if not outcome.passed
    )
    pictures = {type(outcome.rule): outcome for outcome in outcomes}
    named, present = pictures.get(PicturesNamed), pictures.get(PicturesFound)
    result = Validation(
        ds=ds,
        version=version,
        passed=not failures,
        failures=failures,
        raw=manifest.rows,
        valid=n_valid,
        **counts,
        reasons=reasons,
        line_errors=line_errors,
        notes=notes,
        unread_labels=unread,
        pictures_named=named.rows - named.failed if named else None,
        pictures_missing=present.failed if present else None,
        valid_path=lake.relative(valid_path),
        quarantine_path=lake.relative(quarantine_path),
        data_docs_path=lake.relative(docs / "index.html"),
        files=verified_files.describe(lake, (valid_path, quarantine_path)),
        created_at=datetime.now(UTC),
    )
    storage.write_bytes(docs / "index.html", render_rules(result, outcomes, examples).encode())
    storage.write_document(lake.valid(ds) / "current.json", result)
    return result
