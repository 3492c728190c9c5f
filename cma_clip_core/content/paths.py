"""Paths of files on a disk (`pathlib`) or in an object store (`upath`), which have the same interface."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from typing_extensions import TypeIs

if TYPE_CHECKING:
    import pyarrow.parquet as pq
    from upath import UPath

AnyPath: TypeAlias = "Path | UPath"


def on_disk(path: AnyPath) -> TypeIs[Path]:
    """Return whether `path` is on a disk of this machine, or mounted as one, and not in an object store."""
    return isinstance(path, Path)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that renamed files and new folders survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that does not need it
            raise
    finally:
        os.close(descriptor)


def names(folder: AnyPath) -> list[str]:
    """Return the sorted names of the entries of `folder`; none if it does not exist."""
    try:
        if on_disk(folder):
            return sorted(path.name for path in folder.iterdir())
        return sorted(path.rstrip("/").rpartition("/")[2] for path in folder.fs.ls(folder.path, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def open_parquet(path: AnyPath, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file; `options` are those of `pyarrow.parquet.ParquetFile`.

    Only the needed columns and row groups of an object are downloaded, each in few requests. Pages with a checksum are
    verified.

    Raises:
        OSError: the file cannot be read; FileNotFoundError if it does not exist. Reading a damaged page raises it too.
        pyarrow.ArrowInvalid: the file is not Parquet, or is truncated.
    """
    import pyarrow.parquet as pq  # Airflow's DAG files and forms only need paths

    options.setdefault("page_checksum_verification", True)
    if on_disk(path):
        return pq.ParquetFile(path, **options)
    options.pop("memory_map", None)
    return pq.ParquetFile(path.fs.open(path.path, "rb", cache_type="none"), pre_buffer=True, **options)


def parquet_files(folder: AnyPath) -> list[AnyPath]:
    """Return the Parquet files in `folder` and below, sorted, except hidden and empty ones."""
    files: list[AnyPath]
    if on_disk(folder):
        files = [path for path in folder.rglob("*.parquet") if path.stat().st_size]
    else:
        listed = folder.fs.find(folder.path, detail=True)
        sizes = {path: detail["size"] for path, detail in listed.items()}
        start = f"{folder.path.rstrip('/')}/"
        files = [
            folder / path.removeprefix(start) for path, size in sizes.items() if path.endswith(".parquet") and size
        ]
    return sorted(path for path in files if not path.name.startswith((".", "_")))
