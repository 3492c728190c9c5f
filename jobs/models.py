"""The champion: which model version the nights use. One small file, swapped whole; loads no torch."""

from __future__ import annotations

from pathlib import Path

from cma_clip_core import registry
from jobs import storage
from jobs.errors import JobError
from jobs.lake import Lake
from jobs.settings import Settings


def champion_pointer(lake: Lake) -> Path:
    """Return the file that names the champion: its version and a line end."""
    return lake.models / "champion"


def champion(settings: Settings) -> str | None:
    """Return the champion's version, or None where no model was promoted yet."""
    try:
        return champion_pointer(Lake(settings.root)).read_text().strip() or None
    except FileNotFoundError:
        return None


def promote(settings: Settings, version: str) -> None:
    """Make a model version the champion.

    Raises:
        JobError: there is no such version.
        SwapLostError: someone else promoted a version in the same instant.
    """
    lake = Lake(settings.root)
    versions = registry.list_versions(lake.models)
    if version not in versions:
        raise JobError(f"{version!r} is no model version in {lake.models}; there are {versions or 'none'}")
    pointer = champion_pointer(lake)
    before = pointer.read_bytes() if pointer.exists() else None
    storage.compare_and_swap(pointer, before, f"{version}\n".encode())
