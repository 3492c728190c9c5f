"""The split into training, validation and test sides, by product family (`cma_clip_core.catalog.families`).

All of a family is on one side, so that a model is not judged on the sibling of what it was trained on. The side follows
from the family's number alone, so it is the same for every model and machine.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import numpy.typing as npt

from cma_clip_core.config import SelectionConfig

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")


def side_of(family: int, config: SelectionConfig) -> Side:
    """Return the side that a family is on; `family` is a signed 64-bit number."""
    # Hashed again: the number is the smallest digest of a family's products, which is no even draw.
    digest = hashlib.blake2b(family.to_bytes(8, signed=True), digest_size=8).digest()
    place = int.from_bytes(digest) / 2**64
    if place < config.test_share:
        return "test"
    return "validation" if place < config.test_share + config.validation_share else "train"


def sides_of(families: npt.NDArray[np.int64], config: SelectionConfig) -> npt.NDArray[np.int8]:
    """Return the side of each family of `families` [N], as an index into SIDES."""
    distinct, places = np.unique(families, return_inverse=True)
    sides: npt.NDArray[np.int8] = np.array(
        [SIDES.index(side_of(family, config)) for family in distinct.tolist()], dtype=np.int8
    )[places]
    return sides
