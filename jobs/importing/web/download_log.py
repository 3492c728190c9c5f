"""The record of downloaded pictures by address, with what a later day needs to ask for changes only.

The lake holds it as Parquet files in ``catalog/picture_addresses``. An import reads them into an SQLite file of its own.
It adds a small file every few seconds, so that a killed import is resumed. At the end one file replaces them all.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.lake import s3_files, storage
from jobs.lake.storage import AnyPath

log = logging.getLogger(__name__)

_SCHEMA: Final = pa.schema(
    [
        pa.field("address", pa.string(), nullable=False, metadata={"comment": "web address, as the export names it"}),
        pa.field("path", pa.string(), nullable=False, metadata={"comment": "path of the picture below catalog/pictures"}),
        pa.field("digest", pa.string(), nullable=False, metadata={"comment": "SHA-1 of the picture"}),
        pa.field("bytes", pa.int64(), nullable=False, metadata={"comment": "size of the picture"}),
        pa.field("etag", pa.string(), nullable=False, metadata={"comment": "the server's ETag; '' if none"}),
        pa.field("modified", pa.string(), nullable=False, metadata={"comment": "the server's Last-Modified; '' if none"}),
        pa.field("fresh_until", pa.float64(), nullable=False, metadata={"comment": "Unix time until which nobody asks again"}),
        pa.field("ds", pa.string(), nullable=False, metadata={"comment": "last day of the catalog that named the address"}),
    ]
)  # fmt: skip
_BATCH: Final = 50_000  # rows read or written at once


@dataclass(frozen=True, slots=True)
class Download:
    """A downloaded picture; the fields are those of `_SCHEMA`."""

    address: str
    path: str
    digest: str
    bytes: int
    etag: str
    modified: str
    fresh_until: float
    ds: str


_COLUMNS: Final = ", ".join(field.name for field in fields(Download))
_UPSERT: Final = f"insert or replace into downloads ({_COLUMNS}) values ({', '.join('?' * len(fields(Download)))})"


class DownloadLog:
    """The downloads by address. Only one thread at a time may use it."""

    def __init__(self, folder: AnyPath, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="import-")))
        self._database = sqlite3.connect(
            self._scratch / "downloads.sqlite", isolation_level=None, check_same_thread=False
        )
        stack.callback(self._database.close)
        for pragma in ("journal_mode = off", "synchronous = off"):
            self._database.execute(f"pragma {pragma}")
        self._database.execute(
            "create table downloads (address text primary key, path text, digest text, bytes integer, etag text, "
            "modified text, fresh_until real, ds text) without rowid"
        )
        self._files = sorted(
            (path for path in storage.children(folder) if path.name.endswith(".parquet")), key=lambda path: path.name
        )
        for file in self._files:
            self._load(file)
        self._new: list[Download] = []

    def find(self, address: str) -> Download | None:
        """Return the last download of `address`; None if there is none."""
        row = self._database.execute(f"select {_COLUMNS} from downloads where address = ?", (address,)).fetchone()
        return None if row is None else Download(*row)

    def add(self, download: Download) -> int:
        """Add a download, or replace that of the same address. Return the number of those that `flush` will write."""
        self._database.execute(_UPSERT, astuple(download))
        self._new.append(download)
        return len(self._new)

    def flush(self) -> None:
        """Write the new downloads to the lake. Their pictures must be there already."""
        new, self._new = self._new, []
        if new:
            self._files.append(self._write(astuple(each) for each in new))

    def finish(self) -> None:
        """Replace the files of the lake by one with all downloads."""
        if not self._new and len(self._files) <= 1:
            return
        self._new = []
        whole = self._write(self._database.execute(f"select {_COLUMNS} from downloads order by address"))
        for file in self._files:
            if storage.on_disk(file):
                storage.remove(file)
        storage.remove_objects([file for file in self._files if not storage.on_disk(file)])
        self._files = [whole]

    def _load(self, file: AnyPath) -> None:
        """Add the downloads of a file. The pictures of a damaged one are asked for again, which loses nothing."""
        if storage.on_disk(file):
            self._load_local(file, file)
            return
        local = self._scratch / file.name
        s3_files.download(file, local)
        self._load_local(local, file)
        local.unlink()

    def _load_local(self, local: Path, file: AnyPath) -> None:
        """Add the downloads of the file at `local`, which is a copy of `file` or the file itself."""
        try:
            with pq.ParquetFile(local) as parquet:
                if missing := set(_SCHEMA.names).difference(parquet.schema_arrow.names):
                    raise pa.ArrowInvalid(f"it lacks {', '.join(sorted(missing))}")
                for batch in parquet.iter_batches(_BATCH, columns=_SCHEMA.names):
                    rows = zip(*(batch.column(name).to_pylist() for name in _SCHEMA.names), strict=True)
                    self._database.execute("begin")
                    self._database.executemany(_UPSERT, rows)
                    self._database.execute("commit")
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk
                raise
            log.warning("%s: it is damaged, so its pictures are asked for again: %s", file, error)

    def _write(self, rows: Iterable[tuple[object, ...]]) -> AnyPath:
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
        local, target = self._scratch / name, self._folder / name
        with pq.ParquetWriter(local, _SCHEMA, compression="zstd") as writer:
            for batch in _batches(rows):
                writer.write_batch(pa.RecordBatch.from_arrays(
                    [pa.array(column, field.type) for column, field in zip(zip(*batch, strict=True), _SCHEMA, strict=True)],
                    schema=_SCHEMA,
                ))  # fmt: skip
        if storage.on_disk(target):
            with storage.whole_file(target) as temporary:
                shutil.move(local, temporary)
        else:
            s3_files.upload(local, target)
            local.unlink()
        return target


def _batches(rows: Iterable[tuple[object, ...]]) -> Iterator[list[tuple[object, ...]]]:
    batch: list[tuple[object, ...]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
