"""Tests of the split: `pytest tests/cma_clip_core/catalog/test_splits.py`."""

from __future__ import annotations

import numpy as np

from cma_clip_core.catalog.splits import SIDES, side_of, sides_of
from cma_clip_core.config import SelectionConfig

SELECTION = SelectionConfig()


def test_sides_have_their_shares() -> None:
    # Like families' numbers, which are the smallest of several digests and mostly far below zero.
    families = np.random.default_rng(0).integers(-(2**63), 2**63, size=(20_000, 4)).min(axis=1)
    shares = np.bincount(sides_of(families, SELECTION)) / len(families)
    assert np.abs(shares - [0.7, 0.1, 0.2]).max() < 0.01


def test_sides_never_change() -> None:
    # Fixed values, since a changed split would put yesterday's test products into today's training.
    families = [-9_201_728_630_538_571_388, -17, 0, 1, 2, 3, 4, 9_000_000_000_000_000_000]
    sides = [side_of(family, SELECTION) for family in families]
    assert sides == ["train", "train", "train", "train", "train", "train", "test", "train"]
    assert [SIDES[side] for side in sides_of(np.array([*families, -17]), SELECTION)] == [*sides, sides[1]]
