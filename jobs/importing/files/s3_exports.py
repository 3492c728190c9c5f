"""Copy an export from S3 to a temporary folder, with only the objects that its mapping names."""

from __future__ import annotations

import contextlib
import fnmatch
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from botocore.exceptions import BotoCoreError
from tqdm import tqdm

from jobs.errors import JobError
from jobs.lake import s3_files, storage
from jobs.lake.storage import AnyPath
from schemas.mapping import Mapping

_AT_ONCE: Final = 16  # downloads


@contextlib.contextmanager
def local_export(folder: AnyPath, mapping: Mapping, progress: bool) -> Iterator[Path]:
    """Give the export in `folder` as a local folder: itself, or a copy of its records and pictures that are on S3.

    Raises:
        JobError: the objects on S3 cannot be read, none matches the mapping, or the disk is too small for them.
    """
    if storage.on_disk(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="export-") as temporary:
        copy = Path(temporary)
        index = mapping.picture_index.file if mapping.picture_index else ()
        try:
            objects = list(s3_files.below(folder))
            names = [storage.relative(each.path, folder) for each in objects]
            wanted = [name for name in names if _matches(name, (*mapping.records, *mapping.pictures, *index))]
            if not wanted:
                raise JobError(f"{folder}: no records; looked for {', '.join(mapping.records)}; it has {names[:20]}")
            for name in wanted:
                _check_name(name, folder)
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                downloads = pool.map(lambda name: s3_files.download(folder / name, copy / name), wanted)
                list(tqdm(downloads, desc="download", total=len(wanted), unit=" files", disable=not progress))
        except (OSError, BotoCoreError) as error:
            raise JobError(
                f"{folder} could not be copied to {copy.parent} ({error}); nothing was imported: check the bucket, the "
                "credentials and the disk, or set TMPDIR to a folder with more room"
            ) from error
        yield copy


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a pattern matches the object's name, or a folder that the object is in."""
    parts = name.split("/")
    above = ["/".join(parts[: index + 1]) for index in range(len(parts))]
    return any(fnmatch.fnmatch(each, pattern.rstrip("/")) for pattern in patterns for each in above)


def _check_name(name: str, folder: AnyPath) -> None:
    """Raise JobError if an object's name would leave the folder that it is copied to."""
    if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")) or "\x00" in name:
        raise JobError(f"{folder}: an object named {name[:120]!r} cannot be a file; nothing was imported: rename it")
