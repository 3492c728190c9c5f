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
from jobs.lake.storage import AnyPath
from schemas.documents import RawFile, RawManifest

PART_ROWS: Final = 10_000


class DayWriter:
    """A day's raw files beside those that it had before, until the manifest names them.

    The manifest is swapped whole, so that whatever instant an import is killed at, the day is as it was or as it is to be.
    An import that fails removes what it wrote, and nothing else: a day whose manifest is lost keeps its records. What a
    killed one left goes with the day's next import.
    """

    def __init__(self, day: AnyPath, stack: contextlib.ExitStack) -> None:
        self._day = day
        self._new: set[str] = set()  # files that the day did not have before
        self._named: set[str] | None = None  # by the manifest, once it is written
        stack.callback(self._remove_others)

    def add(self, name: str, written: Path, digest: str) -> str:
        """Take over a file; return its name, by its content: none that the day has is written over."""
        stem, _, ending = name.partition(".")
        target = self._day / f"{stem}-{digest[:12]}.{ending}"
        if not storage.exists(target):
            self._new.add(target.name)
        if storage.on_disk(target):
            with storage.whole_file(target) as temporary:
                shutil.move(written, temporary)
        else:
            from jobs.lake import s3_files

            s3_files.upload(written, target)
        return target.name

    def publish(self, manifest: RawManifest) -> None:
        """Make the files that `manifest` names the day's."""
        path = self._day / "_manifest.json"
        storage.write_document(path, manifest)
        self._named = {path.name, *(file.name for file in manifest.files)}

    def _remove_others(self) -> None:
        """Remove what the manifest does not name; of an import that failed, what it wrote."""

        def stays(path: AnyPath) -> bool:
            return path.name not in self._new if self._named is None else path.name in self._named

        others = [path for path in storage.children(self._day) if not stays(path)]
        if not storage.on_disk(self._day):
            storage.remove_objects([path for path in others if not storage.on_disk(path)])
            return
        for path in others:
            if storage.on_disk(path):
                storage.remove(path)
        if self._named is None:
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
