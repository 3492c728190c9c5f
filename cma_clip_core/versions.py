"""The names of the model versions in a folder. Loads nothing: forms ask it."""

from __future__ import annotations

import re
from typing import Final

from cma_clip_core.content.paths import AnyPath, names

TAXONOMY: Final = "taxonomy.yaml"  # in a version's folder: the attributes and values it predicts


def is_version(name: str) -> bool:
    """Whether `name` could name a model version: the day it was made and eight hex digits of the hash of its hashes."""
    return re.fullmatch(r"\d{8}-[0-9a-f]{8}", name) is not None


def list_versions(models: AnyPath) -> list[str]:
    """Return the versions in the folder `models`, oldest first."""
    return [name for name in names(models) if is_version(name)]
