"""Names of the model versions in a folder. Loads no heavy library: Airflow's forms import it."""

from __future__ import annotations

import re
from typing import Final

from cma_clip_core.content.paths import AnyPath, names

TAXONOMY: Final = "taxonomy.yaml"  # in a version's folder: the attributes and values it predicts


def is_version(name: str) -> bool:
    """Return whether `name` is of the form of a version: its day, and eight hex digits of the hash of SHA256SUMS."""
    return re.fullmatch(r"\d{8}-[0-9a-f]{8}", name) is not None


def list_versions(models: AnyPath) -> list[str]:
    """Return the versions in the folder `models`, oldest first."""
    return [name for name in names(models) if is_version(name)]
