"""The next day of any catalog: some products changed, some are new, some are gone."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import logging
import os
import random
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias, cast

from cma_clip_core.content.pictures import PictureError
from jobs.errors import JobError
from jobs.importing.columns import get_column
from jobs.importing.files.record_files import find_records
from jobs.importing.files.unpacking import Bounds
from jobs.importing.formats.csv_dialect import Dialect
from jobs.importing.formats.csv_rows import CsvRows
from jobs.importing.formats.format_registry import format_of
from jobs.importing.formats.observations import Observations, StructureError
from jobs.importing.formats.sources import Source, open_source
from jobs.importing.mapper import Mapper
from jobs.importing.pictures.picture_names import is_unsafe
from jobs.importing.pictures.picture_sources import find_picture_paths, open_sources
from schemas.mapping import Mapping, load_mapping

log = logging.getLogger(__name__)

Json: TypeAlias = Any

_NEWS: Final = ("New Season", "Limited Edition", "Online Only", "Special Edition")
_MARKER: Final = ".next-day"  # only a folder that has this file is ever replaced


def next_day(
    src: Path,
    dst: Path,
    mapping: str,
    seed: int = 7,
    changed: float = 0.01,
    new: float = 0.005,
    removed: float = 0.003,
) -> None:
    """Write the catalog in `src`, as it might look a day later, to `dst` in the same layout. Streams; only reads `src`.

    * A changed product gets another title, or the picture of another product.
    * A new product is a copy of an old one with its own id and title.
    * Zips of pictures are linked. New pictures go into the mapping's folder of loose pictures, which is read first. If the
      mapping has no such folder, the zip is copied and new pictures are added to the copy.

    Args:
        src: an export in the layout of `mapping`: the generated catalog or a real one.
        dst: folder to write. The output of an earlier call is replaced.
        mapping: name of a shipped mapping, or path of a YAML file.
        seed: the same seed gives the same next day.
        changed: share of products to change, 0 to 1.
        new: share of products to add, 0 to 1.
        removed: share of products to remove, 0 to 1.

    Raises:
        JobError: `src` holds no such export, or `dst` holds files that no earlier call wrote.
    """
    layout = load_mapping(mapping)
    files, _ = find_records(src, layout)
    if dst.exists() and any(dst.iterdir()):
        if not (dst / _MARKER).exists():
            raise JobError(f"{dst} has files that no earlier call wrote; name another folder")
        shutil.rmtree(dst)
    dst.mkdir(parents=True, exist_ok=True)
    (dst / _MARKER).touch()
    with contextlib.ExitStack() as stack:
        pictures = _NextPictures(src, dst, layout, stack) if layout.pictures else None
        editor = _Editor(layout, pictures, random.Random(seed))
        for file in files:
            target = dst / file.relative_to(src)
            target.parent.mkdir(parents=True, exist_ok=True)
            source = open_source(file, layout, Bounds())
            if source.packing not in ("", "gzip"):
                raise JobError(f"{file}: packed by {source.packing}; the next day is made of plain and gzip files only")
            with source.open() as before, target.open("wb") as raw, _packed_like(source, raw) as after:
                try:
                    after.write(source.mark)
                    for row in editor.rewrite(before, source, changed, new, removed):
                        after.write(row)
                except StructureError as error:
                    raise JobError(f"{file}: {error}") from error
    log.info("next day: %s -> %s: %s", src, dst, dict(editor.counts))


def _packed_like(source: Source, raw: BinaryIO) -> contextlib.AbstractContextManager[BinaryIO]:
    if source.packing != "gzip":
        return contextlib.nullcontext(raw)
    return cast(
        "contextlib.AbstractContextManager[BinaryIO]", gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0)
    )


class _NextPictures:
    """The next day's pictures: links to those of `src`, and new files."""

    def __init__(self, src: Path, dst: Path, layout: Mapping, stack: contextlib.ExitStack) -> None:
        self._sources = open_sources(src, layout, Bounds(), stack)
        self._zip: zipfile.ZipFile | None = None
        present = [str(path.relative_to(src)) for path in find_picture_paths(src, layout)]
        same = (name for name in present if name.casefold() == layout.pictures[0].casefold())
        self._loose = dst / next(same, layout.pictures[0])
        loose = not layout.pictures[0].lower().endswith(".zip")
        for name in present:
            if (src / name).is_dir():
                # Hard links: the import follows no symlink out of the export.
                shutil.copytree(src / name, dst / name, copy_function=_link_or_copy)
            elif loose or name != present[0]:
                _link_or_copy(str(src / name), str(dst / name))
            else:
                shutil.copyfile(src / name, dst / name)
                self._zip = stack.enter_context(zipfile.ZipFile(dst / name, "a"))

    def read(self, name: str) -> bytes | None:
        """Return the picture `name` of the day before, or None if it cannot be read."""
        for source in () if is_unsafe(name) else self._sources:
            with contextlib.suppress(PictureError):
                if (data := source.read(name)) is not None:
                    return data
        return None

    def write(self, name: str, data: bytes) -> None:
        """Write `data` as the next day's picture `name`."""
        if self._zip is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about a duplicate name: readers take the later file
                self._zip.writestr(zipfile.ZipInfo(name, (2026, 11, 21, 0, 0, 0)), data)
            return
        path = self._loose / name.removeprefix(f"{self._loose.name}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # it may be a hard link to the file of the day before
        path.write_bytes(data)


def _link_or_copy(src: str, dst: str) -> None:
    try:
        os.link(src, dst, follow_symlinks=False)
    except OSError:
        shutil.copyfile(src, dst, follow_symlinks=False)


class _Editor:
    """An editor of records that leaves most of them unchanged, byte for byte."""

    def __init__(self, layout: Mapping, pictures: _NextPictures | None, choose: random.Random) -> None:
        self._layout = layout
        self._pictures = pictures
        self._choose = choose
        self._namer = Mapper(layout, None, Observations())
        self._other: bytes | None = None  # the picture of an earlier product
        self.counts = {"changed": 0, "new": 0, "removed": 0}

    def rewrite(self, file: BinaryIO, source: Source, changed: float, new: float, removed: float) -> Iterator[bytes]:
        """Yield the file's lines for the next day. Raises StructureError if the file is not made of records."""
        name = format_of(source, self._layout)
        if name == "csv":
            return self._rewrite_csv(file, source, changed, new, removed)
        if name != "jsonl":
            raise StructureError(f"{name}; the next day is made of CSV and JSON lines only")
        return self._rewrite_json_lines(file, changed, new, removed)

    def _rewrite_json_lines(self, file: BinaryIO, changed: float, new: float, removed: float) -> Iterator[bytes]:
        for line in file:
            fate = self._fate(changed, new, removed)
            if fate == "removed":
                continue
            row = None
            if fate != "kept":
                with contextlib.suppress(ValueError, RecursionError):
                    row = json.loads(line)
            if not isinstance(row, dict):  # kept, or not a record
                yield line
                continue
            if fate == "new":
                yield line if line.endswith(b"\n") else line + b"\n"
            yield json.dumps(self._edited(row, fate)).encode() + b"\n"

    def _rewrite_csv(
        self, file: BinaryIO, source: Source, changed: float, new: float, removed: float
    ) -> Iterator[bytes]:
        rows = CsvRows(file, source, self._layout)
        yield _encoded(rows.heading, source)
        for row in rows:
            fate = self._fate(changed, new, removed)
            if fate == "removed":
                continue
            line = _encoded(row.text, source)
            if fate == "kept" or row.cells is None or len(row.cells) != len(rows.header):  # kept, or not a record
                yield line
                continue
            if fate == "new":
                yield line if row.text.endswith(("\r", "\n")) else line + _encoded("\n", source)
            record = self._edited(dict(zip(rows.header, row.cells, strict=True)), fate)
            yield _encoded(_csv_line([record[name] for name in rows.header], rows.dialect), source)
        rows.close()

    def _fate(self, changed: float, new: float, removed: float) -> str:
        draw = self._choose.random()
        for fate, share in (("removed", removed), ("changed", changed), ("new", new)):
            if draw < share:
                self.counts[fate] += 1
                return fate
            draw -= share
        return "kept"

    def _edited(self, row: dict[str, Json], fate: str) -> dict[str, Json]:
        before = self._picture(row)
        if fate == "new":
            self._renew_id(row)
            after = self._picture_name(row)
            if self._pictures and before and isinstance(after, str) and after != before[0]:
                self._pictures.write(after, before[1])
        if (updated := get_column(row, self._layout.updated_at)) and isinstance(updated, str):
            with contextlib.suppress(ValueError):
                later = datetime.fromisoformat(updated) + timedelta(days=1)
                _set_column(row, self._layout.updated_at, later.isoformat().replace("+00:00", "Z"))
        swap = fate == "changed" and self._choose.random() < 0.5
        if swap and self._pictures and before and self._other not in (None, before[1]):
            self._pictures.write(before[0], self._other)
        else:
            for column in self._layout.title:
                title = get_column(row, column)
                if title is None or isinstance(title, str):
                    _set_column(row, column, f"{title or ''} {self._choose.choice(_NEWS)}".strip())
                    break
        self._other = before[1] if before else self._other
        return row

    def _picture_name(self, row: dict[str, Json]) -> Json:
        names = self._namer.picture_names(row)
        return next(iter(names), None) if isinstance(names, list) else names

    def _picture(self, row: dict[str, Json]) -> tuple[str, bytes] | None:
        name = self._picture_name(row) if self._pictures else None
        data = self._pictures.read(name) if self._pictures and isinstance(name, str) else None
        return (name, data) if isinstance(name, str) and data else None

    def _renew_id(self, row: dict[str, Json]) -> None:
        old = get_column(row, self._layout.product_id)
        suffix = self._choose.randrange(10_000)
        if isinstance(old, int) or (isinstance(old, str) and old.isdecimal()):
            _set_column(row, self._layout.product_id, type(old)(int(old) * 10_000 + suffix))
        elif isinstance(old, str):
            _set_column(row, self._layout.product_id, f"{old}-{suffix:04d}")


def _csv_line(cells: Sequence[str], dialect: Dialect) -> str:
    line = io.StringIO()
    if dialect.quote is None:
        return dialect.delimiter.join(cells) + "\r\n"
    escape = dialect.escape
    csv.writer(line, **dialect.reader_options()).writerow(
        [cell.replace(escape, 2 * escape) for cell in cells] if escape else cells
    )
    return line.getvalue()


def _encoded(text: str, source: Source) -> bytes:
    return text.encode(source.encoding, errors="surrogateescape")


def _set_column(row: dict[str, Json], column: str, value: Json) -> None:
    node: Json = row
    if column not in row:
        *path, column = column.split(".")
        for step in path:
            node = node.setdefault(step, {})
            if not isinstance(node, dict):
                return  # a dirty record: leave it unchanged
    node[column] = value
