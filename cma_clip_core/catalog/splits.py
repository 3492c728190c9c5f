"""The split into training, validation and test sides, by product family (`cma_clip_core.catalog.families`).

A whole family is on one side, so that no model is judged on a sibling of a product it was trained on. The side depends
on the family's number alone, so it is the same for every model and machine.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from cma_clip_core.catalog.hashing import family_fraction
from cma_clip_core.config import SelectionConfig

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")


def side_of(family: int, config: SelectionConfig) -> Side:
    """Return the side of `family`, a signed 64-bit number."""
    fraction = family_fraction(family, digest_size=8)
    if fraction < config.test_share:
        return "test"
    return "validation" if fraction < config.test_share + config.validation_share else "train"


def sides_of(families: npt.NDArray[np.int64], config: SelectionConfig) -> npt.NDArray[np.int8]:
    """Return the side [N] of each of `families` [N], as an index into SIDES."""
    distinct, inverse = np.unique(families, return_inverse=True)
    sides: npt.NDArray[np.int8] = np.array(
        [SIDES.index(side_of(family, config)) for family in distinct.tolist()], dtype=np.int8
    )[inverse]
    return sides
