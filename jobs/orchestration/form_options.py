"""Options of Airflow's forms: attributes and model versions. DAG files import this module, so it loads nothing heavy."""

from __future__ import annotations

from cma_clip_core.versions import TAXONOMY, is_version, list_versions
from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.settings import Settings
from schemas.loading import ContractError
from schemas.taxonomy import load_taxonomy


def attributes(settings: Settings) -> list[str]:
    """Return the names of the champion's attributes, or of the configured taxonomy if no champion exists yet.

    Return no names if the champion or its taxonomy cannot be read: the form must open even then.
    """
    lake = Lake(settings.root)
    try:
        version = next(iter((storage.read_bytes(lake.champion) or b"").decode().split()), None)
        if version is None:
            return list(load_taxonomy(settings.taxonomy).names)
        if not is_version(version):
            return []
        return list(lake.read_taxonomy(lake.relative(lake.models / version / TAXONOMY)).names)
    except (ContractError, JobError, OSError, UnicodeDecodeError):
        return []


def model_versions(settings: Settings) -> list[str]:
    """Return the model versions, newest first; an empty list if the registry cannot be read."""
    try:
        return list(reversed(list_versions(Lake(settings.root).models)))
    except OSError:
        return []
