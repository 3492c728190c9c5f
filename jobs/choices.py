"""What a form may offer: the attributes and the model versions there are. Loads nothing heavy: DAG files ask it."""

from __future__ import annotations

from cma_clip_core.versions import TAXONOMY, list_versions
from jobs.lake import Lake
from jobs.settings import Settings
from schemas.loading import ContractError
from schemas.taxonomy import load_taxonomy


def attributes(settings: Settings) -> list[str]:
    """Return the names of the champion's attributes, or of the settings' taxonomy where there is no champion yet.

    A form must open whatever is broken in the lake: then it offers none.
    """
    lake = Lake(settings.root)
    try:
        version = next(iter(lake.champion.read_text().split()), None) if lake.champion.exists() else None
        path = settings.taxonomy if version is None else lake.models / version / TAXONOMY
        return list(load_taxonomy(path).names)
    except (ContractError, OSError, UnicodeDecodeError):
        return []


def model_versions(settings: Settings) -> list[str]:
    """Return the model versions, newest first; none where the registry cannot be read."""
    try:
        return list(reversed(list_versions(Lake(settings.root).models)))
    except OSError:
        return []
