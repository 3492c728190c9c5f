"""Find the files of records in an export, also in zips and in folders of Parquet files."""

from __future__ import annotations

import fnmatch
import urllib.parse
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from jobs.errors import JobError
from jobs.importing.files.unpacking import zip_members
from schemas.mapping import Mapping

_NO_RECORDS: Final = (".", "~$")  # prefixes of hidden files and of an office program's lock files
_NO_PARTS: Final = (".", "_")  # prefixes of files beside the parts of a table, such as _SUCCESS
PICTURES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif", ".bmp", ".tif", ".tiff", ".heic", ".svg")
_NULL_PARTITION: Final = "__HIVE_DEFAULT_PARTITION__"


def find_records(folder: Path, mapping: Mapping) -> tuple[list[Path], list[Path]]:
    """Return the files of the first pattern that matches, and the files that only later patterns match.

    Of a folder that a pattern matches, the Parquet files in it are returned.

    Raises:
        JobError: no pattern matches a file, or a file is a link that leads out of `folder`.
    """
    if not folder.is_dir():
        raise JobError(f"{folder}: no such folder; give the folder of the shop's export")
    by_pattern: list[list[Path]] = []
    for pattern in mapping.records:
        try:
            matches = [
                file
                for path in sorted(folder.glob(pattern))
                if not path.name.startswith(_NO_RECORDS)
                for file in parts(path)
            ]
        except (NotImplementedError, ValueError, IndexError) as error:
            raise JobError(
                f"{pattern!r} of the mapping's `records` is not a pattern within the export: {error}"
            ) from error
        if matches:
            by_pattern.append(list(dict.fromkeys(matches)))
    if not by_pattern:
        seen = sorted(path.name for path in folder.iterdir())[:20]
        raise JobError(f"{folder}: no records; looked for {', '.join(mapping.records)}; the folder has {seen}")
    files = by_pattern[0]
    root = folder.resolve()
    for path in files:
        if not path.resolve().is_relative_to(root):
            raise JobError(
                f"{path} leads out of the export, to {path.resolve()}; copy the file into the export instead"
            )
    return files, sorted({path for matches in by_pattern[1:] for path in matches} - set(files))


def parts(path: Path) -> list[Path]:
    """Return the file at `path`, or the Parquet files in the folder at `path` and below it."""
    if path.is_file():
        return [path]
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else []
    return [file for file in files if file.is_file() and not file.name.startswith(_NO_PARTS)]


def partitions_of(path: Path, folder: Path) -> dict[str, str | None]:
    """Return the columns that the folders between `folder` and the file at `path` give, as Hive names them: country=DE."""
    if not path.is_relative_to(folder):
        return {}
    pairs = (part.partition("=") for part in path.relative_to(folder).parent.parts if "=" in part[1:])
    return {
        urllib.parse.unquote(name): None if value == _NULL_PARTITION else urllib.parse.unquote(value)
        for name, _, value in pairs
    }


def members_of(path: Path, patterns: Sequence[str]) -> list[str]:
    """Return the files of records in a zip: its only file, or those that match one of `patterns`, in the zip's order.

    Raises:
        JobError: no file is recognised, or the zip is damaged.
    """
    names = zip_members(path)
    for pattern in patterns:
        matches = [
            name
            for name in names
            if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(PurePosixPath(name).name, pattern)
        ]
        if matches:
            return matches
    others = [name for name in names if not name.lower().endswith(PICTURES)]
    if len(others) != 1:
        raise JobError(
            f"{path}: a zip of {len(names):,} files, of which none matches the mapping's `records` ({', '.join(patterns)}); "
            f"the files are {others[:20] or names[:20]}; nothing was imported: name the file in the zip under `records`, too"
        )
    return others
