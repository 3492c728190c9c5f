"""Bring a shop's export into the lake: its records as JSON lines in our names, its pictures by their content.

Nothing is judged here. What a record says wrongly is kept as it is, and a line that cannot be read is passed on byte
for byte, so that validate can quarantine it with its reason and its raw text.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from jobs import storage
from jobs.importing.day_writer import DayWriter, write_parts
from jobs.importing.formats import find_records, read_records
from jobs.importing.mapper import Mapper
from jobs.importing.picture_sources import open_sources
from jobs.importing.picture_store import PictureStore, picture_writer
from jobs.lake import Lake, check_day
from jobs.settings import Settings
from jobs.steps import measure
from schemas.documents import RawManifest
from schemas.mapping import load_mapping


def import_catalog(settings: Settings, folder: Path, ds: str, mapping: str) -> RawManifest:
    """Write the export in `folder` as the raw catalog of the day `ds`, in place of what the day had before.

    The day appears in one step, whole: a failure or a kill leaves the day as it was. Pictures are added to
    ``catalog/pictures`` under the hash of their content.

    Args:
        settings: where the lake is.
        folder: the shop's export, laid out as the mapping says.
        ds: day of the catalog, YYYY-MM-DD.
        mapping: a shipped mapping's name, or the path of a YAML file.

    Returns:
        The day's manifest; its `rows` counts the lines written, which are all of the export but blank ones.

    Raises:
        JobError: the export is missing or damaged, or its columns are not those of the mapping.
        ContractError: the mapping is wrong.
    """
    lake = Lake(settings.root)
    day, columns = lake.raw(check_day(ds)), load_mapping(mapping)
    files, is_csv = find_records(folder, columns)
    alone = storage.locked(day, busy="another import of this day is running; wait for it")
    with measure("import-catalog") as measured, alone, contextlib.ExitStack() as stack:
        target = DayWriter(day, stack)
        pictures = None
        if columns.pictures:
            sources, counts = open_sources(folder, columns, stack), Counter[str]()
            pictures = PictureStore(picture_writer(lake, day, counts, stack), sources, counts)
        while True:
            mapper = Mapper(columns, pictures, numbers_are_text=is_csv)
            rows = itertools.chain.from_iterable(read_records(file, is_csv, settings.progress) for file in files)
            parts = write_parts(target.add, (line for row in rows if (line := mapper.line(row))))
            mapper.check(files)
            if pictures is None or pictures.settled():
                break
        lost = pictures.finish(folder) if pictures is not None else ()  # the day may name only what is there
        manifest = RawManifest(
            ds=ds,
            source=str(folder.resolve()),
            files=parts,
            rows=sum(part.rows for part in parts),
            pictures=dict(pictures.counts) if pictures is not None else {},
            missing_pictures=lost,
            created_at=datetime.now(UTC),
        )
        target.publish(manifest)
        measured.rows = manifest.rows
    return manifest
