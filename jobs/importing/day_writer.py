"""Write a day's raw files so that the day appears in one step, whole, in place of what it was."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, cast

from jobs.lake import storage
from jobs.lake.storage import Place
from schemas.documents import RawFile, RawManifest

PART_ROWS: Final = 10_000


class DayWriter:
    """A day's raw files beside those that it had before, until the manifest names them.

    The manifest is swapped whole, so that whatever instant an import is killed at, the day is as it was or as it is to be.
    What the manifest does not name is removed afterwards, or by the day's next import.
    """

    def __init__(self, day: Place, stack: contextlib.ExitStack) -> None:
        self._day = day
        stack.callback(self._remove_others)

    def add(self, name: str, written: Path, digest: str) -> str:
        """Take over a file; return its name, by its content: none that the day has is written over."""
        stem, _, ending = name.partition(".")
        target = self._day / f"{stem}-{digest[:12]}.{ending}"
        if storage.on_disk(target):
            with storage.whole_file(target) as temporary:
                shutil.move(written, temporary)
        else:
            from jobs.lake import s3_files

            s3_files.upload(written, target)
        return target.name

    def publish(self, manifest: RawManifest) -> None:
        """Make the files that `manifest` names the day's."""
        storage.write_document(self._day / "_manifest.json", manifest)

    def _remove_others(self) -> None:
        """Remove what the manifest does not name: what the day had before, or what a failed import wrote."""
        found = storage.read_document(self._day / "_manifest.json", RawManifest)
        named = {"_manifest.json", *(file.name for file in (found.files if found else ()))}
        if not storage.on_disk(self._day):
            from jobs.lake import s3_files

            storage.remove_objects([path for path in s3_files.children(self._day) if path.name not in named])
            return
        for path in storage.children(self._day):
            if path.name not in named and storage.on_disk(path):
                storage.remove(path)
        if found is None:
            with contextlib.suppress(OSError):  # there was no day before either
                self._day.rmdir()


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
