"""Write a day's raw files so that the complete day replaces the previous one in a single step."""

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

from jobs.lake import s3_files, storage
from jobs.lake.storage import AnyPath
from schemas.documents import RawFile, RawManifest

PART_ROWS: Final = 10_000


class DayWriter:
    """Writer of a day's raw files.

    New files are stored beside the day's earlier ones until the manifest names them. The manifest is replaced in one step,
    so an import that is killed at any moment leaves either the old day or the new one.

    A failed import removes only the files that it wrote, so a day whose manifest is lost keeps its records. The day's next
    import removes the files that a killed import left.
    """

    def __init__(self, day: AnyPath, stack: contextlib.ExitStack) -> None:
        self._day = day
        self._new: set[str] = set()  # names of files that the day did not have before
        self._named: set[str] | None = None  # names in the manifest; None until it is written
        stack.callback(self._remove_others)

    def add(self, name: str, written: Path, digest: str) -> str:
        """Add the file `written` to the day and return its new name.

        The name contains the file's hash, so no existing file with other content is overwritten.
        """
        stem, _, ending = name.partition(".")
        target = self._day / f"{stem}-{digest[:12]}.{ending}"
        if not storage.exists(target):
            self._new.add(target.name)
        if storage.on_disk(target):
            with storage.whole_file(target) as temporary:
                shutil.move(written, temporary)
        else:
            s3_files.upload(written, target)
        return target.name

    def publish(self, manifest: RawManifest) -> None:
        """Write `manifest`; from then on, the files that it names are the day's files."""
        path = self._day / "_manifest.json"
        storage.write_document(path, manifest)
        self._named = {path.name, *(file.name for file in manifest.files)}

    def _remove_others(self) -> None:
        """Remove the files that the manifest does not name; after a failed import, the files that it wrote."""

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
            with contextlib.suppress(OSError):  # it holds the day's earlier files, or does not exist
                self._day.rmdir()


def write_parts(add: Callable[[str, Path, str], str], lines: Iterable[bytes]) -> tuple[RawFile, ...]:
    """Write `lines` to files ``part-00000.jsonl.gz``, ``part-00001.jsonl.gz``, ... and pass each one to `add`.

    The same lines always give the same bytes.
    """
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
