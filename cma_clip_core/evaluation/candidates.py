"""What a method proposes for an attribute, ranked by confidence and right or wrong: what all thresholds are about.

A product whose value is not listed is a candidate that is wrong, and no positive.

Letters of shapes: n products with a value, C values of one attribute, m candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cma_clip_core.arrays import Bools, Floats, Integers
from cma_clip_core.evaluation.predictions import LIKELY, Predictions


@dataclass(slots=True)
class Candidates:
    """A candidate is the best value of a product, or of a multi-valued attribute each (product, value)."""

    confidence: Floats  # [m], calibrated
    right: Bools  # [m]
    value: Integers  # [m], class of the attribute
    product: Integers  # [m], row of the predictions
    family: Integers  # [m], the product's
    positives: int  # right values there are: products, or of a multi-valued attribute all true (product, value) pairs
    positive_family: Integers  # [positives], the family of each of them
    multi_valued: bool
    unlisted: int = 0  # products whose value is none of the listed ones

    def __len__(self) -> int:
        return len(self.confidence)

    def accepted(self, limits: Floats) -> Bools:
        """Return which candidates [m] reach the least confidence of their value; `limits` [C] as `Threshold.limits` gives it."""
        return np.asarray(self.confidence >= limits[self.value])

    @property
    def predicted(self) -> Bools:
        """Which candidates [m] the method predicts: all best values, and of several those that are likely."""
        return np.asarray(self.confidence >= LIKELY) if self.multi_valued else np.ones(len(self), np.bool_)


def candidates(
    predictions: Predictions, temperature: float = 1.0, silent_in: Sequence[str] | None = None
) -> Candidates:
    """Return the candidates of an attribute.

    Args:
        predictions: of the products that have a value of it.
        temperature: the attribute's (cma_clip_core.evaluation.calibration).
        silent_in: text fields; given, only products with a listed label that none of them names count. Of a multi-valued
            attribute the pairs that are true and named are left out too: they are neither found nor missed.
    """
    if silent_in is not None:
        silent = predictions.silent(silent_in)
        keep = np.asarray(silent.any(axis=1))
        found = candidates(predictions.take(keep), temperature)
        if not predictions.attribute.multi_valued:
            return found
        kept = ~(predictions.targets & ~silent)[keep].ravel()
        return Candidates(
            found.confidence[kept], found.right[kept], found.value[kept], found.product[kept], found.family[kept],
            int(silent.sum()), np.repeat(predictions.families[keep], silent[keep].sum(axis=1)), True,
        )  # fmt: skip
    n, c = predictions.logits.shape
    probabilities, families = predictions.probabilities(temperature), predictions.families
    rows = np.arange(n, dtype=np.int64)
    listed = predictions.has_target
    unlisted = n - int(listed.sum())
    if predictions.attribute.multi_valued:
        pairs = np.repeat(rows, c)
        positive = np.repeat(families, predictions.targets.sum(axis=1))
        return Candidates(
            probabilities.ravel(), predictions.targets.ravel(), np.tile(np.arange(c, dtype=np.int64), n), pairs,
            families[pairs], len(positive), positive, True, unlisted,
        )  # fmt: skip
    best = probabilities.argmax(axis=1) if n else rows
    return Candidates(
        probabilities[rows, best], predictions.targets[rows, best], best, rows, families, n - unlisted, families[listed],
        False, unlisted,
    )  # fmt: skip
