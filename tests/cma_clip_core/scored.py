"""Predictions made by hand, for the tests of metrics, thresholds and intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cma_clip_core.evaluation.predictions import Predictions
from schemas.taxonomy import Attribute
from tests.cma_clip_core import drawn

PATTERN, MATERIAL = drawn.taxonomy()["pattern"], drawn.taxonomy()["material"]  # one of three; several of three
TITLE = 1  # bit of the title


def marks(text: str) -> np.ndarray:
    """'rrw' -> right, right, wrong."""
    return np.array([c == "r" for c in text])


def single(
    confidence: Sequence[float] | np.ndarray,
    right: np.ndarray,
    values: Sequence[int] | np.ndarray | int = 0,
    families: Sequence[int] | np.ndarray | None = None,
    named: Sequence[int] | np.ndarray | int = 0,
    attribute: Attribute = PATTERN,
) -> Predictions:
    """Products of a single-valued attribute, the best value and its probability given; where wrong, the next is true."""
    n, c = len(right), len(attribute.values)
    value = np.broadcast_to(values, n)
    top = np.asarray(confidence, np.float64)
    logits = np.repeat(np.log((1 - top) / (c - 1))[:, None], c, axis=1)
    logits[np.arange(n), value] = np.log(top)
    targets = np.zeros((n, c), np.bool_)
    targets[np.arange(n), np.where(right, value, (value + 1) % c)] = True
    return Predictions(
        attribute, np.array([f"p{i}" for i in range(n)], object),
        np.arange(n) if families is None else np.asarray(families, np.int64), logits.astype(np.float32), targets,
        (targets * np.broadcast_to(named, n)[:, None]).astype(np.uint8), np.tile(np.float32([0.75, 0.25]), (n, 1)),
    )  # fmt: skip


def several(probabilities: Sequence[Sequence[float]], targets: Sequence[str], named: Sequence[str]) -> Predictions:
    """Products of a multi-valued attribute: 'r' marks the true values, and those that the title names."""
    p, n = np.array(probabilities, np.float64), len(probabilities)
    return Predictions(
        MATERIAL, np.array([f"p{i}" for i in range(n)], object), np.arange(n), np.log(p / (1 - p)).astype(np.float32),
        np.stack([marks(t) for t in targets]), np.stack([marks(t) for t in named]).astype(np.uint8) * TITLE,
        np.full((n, 2), 0.5, np.float32),
    )  # fmt: skip
