"""Import a shop's export into the lake: records as JSON lines with our column names, pictures by the hash of their content.

Import does not validate. It keeps wrong values as they are and passes on lines that it cannot read. The validate step
quarantines those lines with a reason and their raw text.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from jobs.importing import prefetch_pictures
from jobs.importing.day_writer import DayWriter, write_parts
from jobs.importing.file_checks import FileChecks
from jobs.importing.files.record_files import find_records
from jobs.importing.files.s3_exports import local_export
from jobs.importing.files.unpacking import Bounds
from jobs.importing.formats.format_registry import Row, open_records, read_records
from jobs.importing.formats.observations import Observations
from jobs.importing.grouping import Merge, grouped
from jobs.importing.mapper import Mapper
from jobs.importing.picture_index import open_index
from jobs.importing.pictures.picture_sources import open_sources
from jobs.importing.pictures.picture_store import PictureStore, picture_writer
from jobs.importing.web.open_downloads import open_downloads
from jobs.lake import storage
from jobs.lake.layout import Lake, check_day
from jobs.lake.storage import AnyPath
from jobs.runtime.step_metrics import measure
from jobs.settings import Settings
from schemas.documents import RawManifest
from schemas.mapping import Mapping, load_mapping

log = logging.getLogger(__name__)


def import_catalog(settings: Settings, folder: AnyPath, ds: str, mapping: str) -> RawManifest:
    """Write the export in `folder` as the raw catalog of the day `ds`, replacing the day's earlier content.

    The complete day appears in a single step; a failed or killed import leaves the day unchanged. Pictures are added to
    ``catalog/pictures`` under the hash of their content.

    Args:
        settings: settings, including the root of the lake.
        folder: the shop's export, laid out as the mapping describes. From S3, its files are copied to a temporary folder.
        ds: day of the catalog, YYYY-MM-DD.
        mapping: name of a shipped mapping, or path of a YAML file.

    Returns:
        The day's manifest. Its `rows` counts the lines written: every line of the export except blank ones, and one line for
        each product whose rows the mapping groups.

    Raises:
        JobError: the export is missing or damaged, does not consist of records, or lacks columns of the mapping.
        ContractError: the mapping is wrong.
    """
    check_day(ds)
    columns = load_mapping(mapping)
    with local_export(folder, columns, settings.progress) as copy:
        return _import_folder(settings, copy, ds, columns, str(folder.resolve() if storage.on_disk(folder) else folder))


def _import_folder(settings: Settings, folder: Path, ds: str, columns: Mapping, source: str) -> RawManifest:
    lake = Lake(settings.root)
    day = lake.raw(ds)
    files, others = find_records(folder, columns)
    bounds = Bounds(int(settings.max_unpacked_gb * 1e9), settings.max_unpacked_ratio)
    for file in files:
        open_records(file, folder, columns, bounds)  # refuses files that no reader reads before pictures are copied
    day_lock = storage.locked(day, busy="another import of this day is running; wait for it")
    with measure("import-catalog") as measured, day_lock, contextlib.ExitStack() as stack:
        target = DayWriter(day, stack)
        pictures = None
        index = open_index(folder, columns, bounds, stack)
        if columns.picture_name:
            picture_sources = open_sources(folder, columns, bounds, stack) if columns.pictures else []
            counts = Counter[str]()
            writer = picture_writer(lake, day, counts, stack)
            pictures = PictureStore(
                writer, picture_sources, counts, functools.partial(open_downloads, settings, lake, ds, writer, stack)
            )
        while True:
            observations = Observations()
            if others:
                observations.note("files of later patterns, not read", len(others))
            mapper = Mapper(columns, pictures, observations, index)
            rows = product_rows(files, folder, columns, bounds, mapper, observations, settings.progress)
            parts = write_parts(target.add, prefetch_pictures.lines(rows, mapper))
            mapper.check()
            if pictures is None or pictures.settle():
                break
        lost = pictures.finish(folder) if pictures is not None else ()  # before the day's records name the pictures
        manifest = RawManifest(
            ds=ds,
            source=source,
            files=parts,
            rows=sum(part.rows for part in parts),
            notes=dict(observations.notes),
            unreadable=dict(observations.unreadable),
            pictures=dict(pictures.counts) if pictures is not None else {},
            picture_failures=_failures(pictures),
            missing_pictures=lost,
            created_at=datetime.now(UTC),
        )
        target.publish(manifest)
        measured.rows = manifest.rows
    if others:
        log.warning(
            "import-catalog: not read, because an earlier pattern of `records` matched: %s", _join_names(others)
        )
    observations.report()
    return manifest


def _failures(pictures: PictureStore | None) -> dict[str, dict[str, int]]:
    if pictures is None or pictures.downloads is None:
        return {}
    return {host: dict(reasons.most_common()) for host, reasons in pictures.downloads.failures.items()}


def product_rows(
    files: list[Path],
    folder: Path,
    columns: Mapping,
    bounds: Bounds,
    mapper: Mapper,
    observations: Observations,
    progress: bool,
    merge: Merge | None = None,
) -> Iterator[Row]:
    """Yield the rows of all files; if the mapping groups rows, one row per product.

    Args:
        files: files of records.
        folder: the export that they belong to.
        columns: the mapping.
        bounds: limits of packed files.
        mapper: filters the rows, and finds the product of each.
        observations: counts what is unusual.
        progress: whether to show a progress bar.
        merge: makes one row of the rows of a product; default: as the mapping says.

    Raises:
        JobError: a file is damaged, does not consist of records, or lacks columns of the mapping.
    """
    checks = FileChecks(columns, observations)

    def rows() -> Iterator[Row]:
        for file in files:
            for source in open_records(file, folder, columns, bounds):
                yield from checks.rows(read_records(source, columns, observations, progress), file)

    read = filter(mapper.keeps, rows()) if columns.where or columns.where_not else rows()
    if not columns.group_by:
        yield from read
    else:
        with tempfile.TemporaryDirectory(prefix="import-") as scratch:
            yield from grouped(read, mapper.key, merge or mapper.merge, Path(scratch), observations)
    checks.check(files)


def _join_names(paths: list[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:10]) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")
