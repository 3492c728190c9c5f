"""Places of files: on a disk, `pathlib`'s paths; in an object store, `upath`'s, which are used alike."""

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
    """Whether a place is on a disk of this machine, or mounted as one; else it is in an object store."""
    return isinstance(path, Path)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder survive a loss of power: those of files that were renamed, and of folders that were made."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of a file system whose folders are always in order
            raise
    finally:
        os.close(descriptor)


def names(folder: AnyPath) -> list[str]:
    """Return the names of what is in `folder`, in order; none where it is not there."""
    try:
        if on_disk(folder):
            return sorted(path.name for path in folder.iterdir())
        return sorted(path.rstrip("/").rpartition("/")[2] for path in folder.fs.ls(folder.path, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def open_parquet(path: AnyPath, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file; `options` are those of `pyarrow.parquet.ParquetFile`.

    Of an object the parts that are asked for are fetched, and no more: columns and row groups in few requests each. Pages
    that have a checksum are compared with it.

    Raises:
        OSError: it cannot be read; FileNotFoundError where there is none. Reading raises it where a page is damaged.
        pyarrow.ArrowInvalid: it is not Parquet, or cut off.
    """
    import pyarrow.parquet as pq  # not by who only names places: forms, Airflow's DAG files

    options.setdefault("page_checksum_verification", True)
    if on_disk(path):
        return pq.ParquetFile(path, **options)
    options.pop("memory_map", None)
    return pq.ParquetFile(path.fs.open(path.path, "rb", cache_type="none"), pre_buffer=True, **options)


def parquet_files(folder: AnyPath) -> list[AnyPath]:
    """Return the Parquet files in `folder` and below, in order, but for hidden and empty ones."""
    found: list[AnyPath]
    if on_disk(folder):
        found = [path for path in folder.rglob("*.parquet") if path.stat().st_size]
    else:
        listed = folder.fs.find(folder.path, detail=True)
        sizes = {path: detail["size"] for path, detail in listed.items()}
        start = f"{folder.path.rstrip('/')}/"
        found = [
            folder / path.removeprefix(start) for path, size in sizes.items() if path.endswith(".parquet") and size
        ]
    return sorted(path for path in found if not path.name.startswith((".", "_")))
