"""Rewriting of a day's raw catalog, to make it larger or give it other pictures."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jobs.importing.day_writer import write_parts
from jobs.lake.layout import Lake
from jobs.lake.storage import write_document

Record = dict[str, Any]


def rewrite(lake: Lake, ds: str, change: Callable[[Iterable[Record]], Iterator[Record]]) -> int:
    """Replace the records of a day with the output of `change`; return the new number of records."""
    manifest = lake.read_raw_manifest(ds)
    assert manifest is not None
    folder = Path(str(lake.raw(ds)))
    kept = folder.with_name("kept")
    folder.rename(kept)
    folder.mkdir()

    def take(name: str, written: Path, _: str) -> str:
        shutil.move(written, folder / name)
        return name

    files = write_parts(take, (json.dumps(record).encode() + b"\n" for record in change(_Records(kept))))
    shutil.rmtree(kept)
    rows = sum(file.rows for file in files)
    write_document(folder / "_manifest.json", manifest.model_copy(update={"files": files, "rows": rows}))
    return rows


class _Records:
    """The records in a folder, read again by each iteration."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __iter__(self) -> Iterator[Record]:
        for path in sorted(self._folder.glob("*.jsonl.gz")):
            with gzip.open(path, "rb") as file:
                for line in file:
                    yield json.loads(line)
