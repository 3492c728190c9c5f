"""Candidates: the values that a method proposes for an attribute, each with its confidence, and right or wrong.

All thresholds and recalls are computed from candidates. A product with an unlisted value gives a wrong candidate, and is not
a positive.

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
    """The best value of each product; for a multi-valued attribute, every pair of a product and a value."""

    confidence: Floats  # [m], calibrated
    right: Bools  # [m]
    value: Integers  # [m], class of the attribute
    product: Integers  # [m], row of the predictions
    family: Integers  # [m], family of the product
    positives: int  # products with a listed value; for a multi-valued attribute, true pairs of a product and a value
    positive_family: Integers  # [positives], the family of each positive
    multi_valued: bool
    unlisted: int = 0  # products with unlisted values only

    def __len__(self) -> int:
        return len(self.confidence)

    def accepted(self, limits: Floats) -> Bools:
        """Return which candidates [m] reach the limit of their value; `limits` [C] are those of `Threshold.limits`."""
        return np.asarray(self.confidence >= limits[self.value])

    @property
    def predicted(self) -> Bools:
        """The predicted candidates [m] bool: all best values, or the likely values of a multi-valued attribute."""
        return np.asarray(self.confidence >= LIKELY) if self.multi_valued else np.ones(len(self), np.bool_)


def candidates(
    predictions: Predictions, temperature: float = 1.0, silent_in: Sequence[str] | None = None
) -> Candidates:
    """Return the candidates of an attribute.

    Args:
        predictions: predictions for the products that have a value.
        temperature: the attribute's temperature (cma_clip_core.evaluation.calibration).
        silent_in: text fields. If given, only products with a silent label count: a listed label that none of these fields names.
            For a multi-valued attribute, true pairs that a field names are left out too.
    """
    if silent_in is not None:
        silent = predictions.silent(silent_in)
        keep = np.asarray(silent.any(axis=1))
        silent_ones = candidates(predictions.take(keep), temperature)
        if not predictions.attribute.multi_valued:
            return silent_ones
        kept = ~(predictions.targets & ~silent)[keep].ravel()
        return Candidates(
            silent_ones.confidence[kept], silent_ones.right[kept], silent_ones.value[kept], silent_ones.product[kept],
            silent_ones.family[kept],
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
