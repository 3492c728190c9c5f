"""Recall at a precision, with the threshold chosen on the judged products themselves. Pure functions on numpy.

The definition is the paper's (arXiv 2112.03562, "recall at 90% precision"). The threshold is the lowest one at which the
precision of the candidates at or above it reaches the target. From the top, it need not be the first such threshold:
precision may fall below the target and rise again. `cma_clip_core.evaluation.choose_thresholds` chooses the thresholds
that ship, by another rule.

Letters of shapes: m candidates (cma_clip_core.evaluation.candidates).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cma_clip_core.arrays import Bools, Integers

Confidences = npt.NDArray[np.float32]


def ends_of_equals(ranked: Confidences) -> Integers:
    """Return the indices into `ranked` [m] that can be thresholds: the last of each run of equal confidences.

    A threshold accepts all candidates of equal confidence, or none.
    """
    return np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])


def lowest_threshold(confidence: Confidences, right: Bools, target: float) -> float | None:
    """Return the lowest threshold at which precision is at least `target`, or None if there is none.

    Args:
        confidence: [m], the confidence of each candidate.
        right: [m], whether each candidate is right.
        target: precision, 0 to 1.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    ends = ends_of_equals(ranked)
    reaches = np.flatnonzero(np.cumsum(right[order])[ends] / (ends + 1) >= target)
    return float(ranked[ends[reaches[-1]]]) if len(reaches) else None


def recall_at_precision(confidence: Confidences, right: Bools, positives: int, target: float) -> float | None:
    """Return the share of all `positives` that are right at or above the lowest threshold that reaches `target`.

    It is 0 if no threshold reaches the target, and None if there are no positives.
    """
    if not positives:
        return None
    threshold = lowest_threshold(confidence, right, target)
    return 0.0 if threshold is None else float((right & (confidence >= np.float32(threshold))).sum() / positives)
