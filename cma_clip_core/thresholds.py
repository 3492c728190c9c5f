"""From confidences to thresholds that keep a promise of precision. Pure functions on numpy.

The definition is the paper's (arXiv 2112.03562, "recall at 90% precision"): of all thresholds at which the precision of
what is at or above them reaches the target, the lowest. It need not be the first one found from the top: precision may
fall below the target and come back.

Letters of shapes: n candidates, each a (product, value) with a confidence.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Confidences = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def lowest_threshold(confidence: Confidences, right: Bools, target: float, min_accepted: int = 1) -> float | None:
    """Return the lowest threshold at which precision is at least `target`, or None where there is none.

    Args:
        confidence: [n], of each candidate.
        right: [n], whether it is right.
        target: precision, 0 to 1.
        min_accepted: fewest candidates at or above a threshold for its precision to count.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    accepted = np.arange(1, len(ranked) + 1)
    precision = np.cumsum(right[order]) / accepted
    # A threshold accepts all of equal confidence or none, so only the last of each run of equals can be one.
    last_of_equals = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
    possible = np.flatnonzero(last_of_equals & (precision >= target) & (accepted >= min_accepted))
    return float(ranked[possible[-1]]) if len(possible) else None


def accepts(confidence: Confidences, threshold: float | None) -> Bools:
    """Return which candidates a threshold accepts; None accepts none."""
    if threshold is None:
        return np.zeros(confidence.shape, dtype=np.bool_)
    return np.asarray(confidence >= np.float32(threshold))


def recall_at_precision(confidence: Confidences, right: Bools, positives: int, target: float) -> float | None:
    """Return the share of all `positives` that are right at or above the lowest threshold reaching `target`.

    0 where no threshold reaches it; None where there are no positives.
    """
    if not positives:
        return None
    threshold = lowest_threshold(confidence, right, target)
    return float((right & accepts(confidence, threshold)).sum() / positives)
