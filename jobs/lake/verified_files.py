"""Verification of files that later steps build on, against the size and SHA-256 recorded when they were written.

A disk may truncate a file or flip a bit, and people may copy a lake incompletely. Parquet readers silently skip an
empty file, and a footer has no checksum. So each written file is recorded in a document (`StoredFile`) and compared
before it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from cma_clip_core.content.paths import parquet_files
from jobs.errors import JobError
from jobs.lake import parquet, storage
from jobs.lake.layout import Lake, replan
from jobs.lake.storage import AnyPath
from schemas.documents import Plan, StoredFile, Validation

_AT_ONCE = min(16, 2 * (os.cpu_count() or 1))  # files hashed in parallel; hashing releases the interpreter lock


def describe(lake: Lake, folders: Iterable[AnyPath]) -> tuple[StoredFile, ...]:
    """Flush the Parquet files that Spark has written to `folders` to the disk, and return their descriptions."""
    files = [file for folder in folders for file in parquet_files(folder)]
    for folder in {file.parent for file in files}:
        storage.flush_folder(folder)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return tuple(pool.map(lambda file: _describe(lake, file), files))


def _describe(lake: Lake, file: AnyPath) -> StoredFile:
    return StoredFile(
        path=lake.relative(file), rows=parquet.count([file]), bytes=storage.size(file) or 0, sha256=storage.sha256(file)
    )


def damage(lake: Lake, files: Sequence[StoredFile], *, digest: bool = True) -> str | None:
    """Return a description of the first of `files` that differs from what was written, or None if all are intact.

    Args:
        lake: the lake of the files.
        files: the files as they were written.
        digest: whether to compare the SHA-256 too, which reads every byte.
    """

    def describe_damage(file: StoredFile) -> str | None:
        path = lake.root / file.path
        problem = storage.difference(path, file.bytes, file.sha256 if digest else "")
        return None if problem is None else f"{path} {problem}"

    if not files:
        return None
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return next((problem for problem in pool.map(describe_damage, files) if problem is not None), None)


def check(lake: Lake, files: Sequence[StoredFile], remedy: str, *, digest: bool = True) -> None:
    """Raise JobError, with the `remedy`, if one of `files` differs from what was written."""
    if (problem := damage(lake, files, digest=digest)) is not None:
        raise JobError(f"{problem}; {remedy}")


def check_records(lake: Lake, validation: Validation) -> None:
    """Raise JobError if the valid or quarantined records that a plan is made from differ from what was written."""
    current = lake.read_validation(validation.ds)
    # A validation that was made again after damage has the same version, but other files.
    files = current.files if current.version == validation.version else validation.files
    check(lake, files, f"`python -m jobs validate --ds {validation.ds}` makes it again from the day's raw records")


def check_plan(lake: Lake, plan: Plan, shard: int | None = None) -> None:
    """Raise JobError if the products of a plan, or of one of its shards, differ from what was written."""
    only = None if shard is None else lake.relative(lake.plan_file(plan.run_id, shard))
    check(lake, [file for file in plan.files if only in (None, file.path)], replan(plan.ds))
