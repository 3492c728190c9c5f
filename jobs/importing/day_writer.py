"""Write a day's raw files so that the day appears in one step, whole."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from jobs import object_store, storage
from schemas.documents import RawFile, RawManifest

if TYPE_CHECKING:
    from upath import UPath

PART_ROWS: Final = 10_000


class DayOnDisk:
    """A day's raw files in a folder that takes the day's place in one step."""

    def __init__(self, day: Path, stack: contextlib.ExitStack) -> None:
        self._day = day
        self._fresh, self._old = (day.with_name(f".{day.name}.{what}") for what in ("fresh", "old"))
        for leftover in (self._fresh, self._old):
            storage.remove_folder(leftover)  # of a killed import
            stack.callback(storage.remove_folder, leftover)  # of this one, where it fails
        self._fresh.mkdir(parents=True)

    def add(self, name: str, written: Path, digest: str) -> str:  # noqa: ARG002 - of `DayOnS3`
        """Take over a file; return its name."""
        with storage.whole_file(self._fresh / name) as temporary:
            shutil.move(written, temporary)
        return name

    def publish(self, manifest: RawManifest) -> None:
        storage.write_document(self._fresh / "_manifest.json", manifest)
        if self._day.exists():
            self._day.rename(self._old)
        self._fresh.rename(self._day)


class DayOnS3:
    """A day's raw files beside those that it had before, until the manifest names them."""

    def __init__(self, day: UPath, stack: contextlib.ExitStack) -> None:
        self._day, self._names = day, set[str]()
        stack.callback(self._remove_others)

    def add(self, name: str, written: Path, digest: str) -> str:
        """Take over a file; return its name, by its content: none that the day has is written over."""
        stem, _, ending = name.partition(".")
        own = f"{stem}-{digest[:12]}.{ending}"
        object_store.upload(written, self._day / own)
        return own

    def publish(self, manifest: RawManifest) -> None:
        storage.write_document(self._day / "_manifest.json", manifest)

    def _remove_others(self) -> None:
        """Remove what the manifest does not name: what the day had before, or what a failed import wrote."""
        found = storage.read_document(self._day / "_manifest.json", RawManifest)
        named = {"_manifest.json", *(file.name for file in (found.files if found else ()))}
        storage.remove_objects([path for path in object_store.children(self._day) if path.name not in named])


def write_parts(add: Callable[[str, Path, str], str], lines: Iterable[bytes]) -> tuple[RawFile, ...]:
    """Write `lines` to files ``part-00000.jsonl.gz`` and so on, and `add` each; the same lines give the same bytes."""
    source = iter(lines)
    parts: list[RawFile] = []
    with tempfile.TemporaryDirectory(prefix="import-") as folder:
        while (first := next(source, None)) is not None:
            path, rows = Path(folder) / f"part-{len(parts):05d}.jsonl.gz", 0
            with (
                path.open("wb") as file,
                gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
                io.BufferedWriter(cast(io.RawIOBase, packed), 2**18) as buffer,
            ):
                for line in itertools.chain([first], itertools.islice(source, PART_ROWS - 1)):
                    buffer.write(line)
                    rows += 1
            size, digest = path.stat().st_size, storage.sha256(path)
            parts.append(RawFile(name=add(path.name, path, digest), bytes=size, rows=rows, sha256=digest))
            path.unlink(missing_ok=True)
    return tuple(parts)
