"""Every kind of bad record and picture, by name: `DIRTY["picture_truncated"]`. See jobs/demo/dirty_records.py."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from jobs.demo.dirty_records import Dirty, build

__all__ = ["DIRTY", "Dirty", "write_pictures"]

DIRTY: Final[dict[str, Dirty]] = build()


def write_pictures(root: Path) -> None:
    """Write each kind's picture to its `image_uri` under `root`."""
    for dirty in DIRTY.values():
        record = dirty.records[0]
        if dirty.picture is not None and isinstance(record, dict):
            path = root / record["image_uri"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(dirty.picture)
