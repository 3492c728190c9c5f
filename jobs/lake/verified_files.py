"""Files that later steps build on: what they are when they are written, and whether they still are that.

A disk may lose the end of a file or flip a bit of it, and people copy lakes halfway. Parquet's readers skip an empty file without
a word, and a footer has no checksum. So what is written is told in a document (`StoredFile`), and compared before it is read.
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

_AT_ONCE = min(16, 2 * (os.cpu_count() or 1))  # files: to hash one leaves the interpreter free


def describe(lake: Lake, folders: Iterable[AnyPath]) -> tuple[StoredFile, ...]:
    """Return what the Parquet files in `folders` are, for tables that Spark has written; on a disk they are there for good."""
    files = [file for folder in folders for file in parquet_files(folder)]
    for folder in {file.parent for file in files}:
        storage.settle_folder(folder)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return tuple(pool.map(lambda file: _describe(lake, file), files))


def _describe(lake: Lake, file: AnyPath) -> StoredFile:
    return StoredFile(
        path=lake.relative(file), rows=parquet.count([file]), bytes=storage.size(file) or 0, sha256=storage.sha256(file)
    )


def damage(lake: Lake, files: Sequence[StoredFile], *, digest: bool = True) -> str | None:
    """Return which of `files` is not what was written, and how, in words; None where all are.

    Args:
        lake: theirs.
        files: as they were written.
        digest: whether each is read and its SHA-256 compared, beside its size.
    """

    def of(file: StoredFile) -> str | None:
        path = lake.root / file.path
        problem = storage.difference(path, file.bytes, file.sha256 if digest else "")
        return None if problem is None else f"{path} {problem}"

    if not files:
        return None
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return next((found for found in pool.map(of, files) if found is not None), None)


def check(lake: Lake, files: Sequence[StoredFile], remedy: str, *, digest: bool = True) -> None:
    """Raise JobError, with the `remedy`, where one of `files` is not what was written."""
    if (problem := damage(lake, files, digest=digest)) is not None:
        raise JobError(f"{problem}; {remedy}")


def check_records(lake: Lake, validation: Validation) -> None:
    """Raise JobError where the valid or the quarantined records that a plan is made from are not what was written."""
    current = lake.read_validation(validation.ds)
    # Made again after it was damaged, the same version has other files.
    files = current.files if current.version == validation.version else validation.files
    check(lake, files, f"`python -m jobs validate --ds {validation.ds}` makes it again from the day's raw records")


def check_plan(lake: Lake, plan: Plan, shard: int | None = None) -> None:
    """Raise JobError where the products of a plan, or of one of its shards, are not what was written."""
    only = None if shard is None else lake.relative(lake.plan_file(plan.run_id, shard))
    check(lake, [file for file in plan.files if only in (None, file.path)], replan(plan.ds))
