"""Recall at a precision, after the fact: on the products that are judged. Pure functions on numpy.

The definition is the paper's (arXiv 2112.03562, "recall at 90% precision"): of all thresholds at which the precision of
what is at or above them reaches the target, the lowest. It need not be the first one found from the top: precision may
fall below the target and come back. Thresholds that ship are chosen otherwise: `cma_clip_core.evaluation.choose_thresholds`.

Letters of shapes: m candidates (cma_clip_core.evaluation.candidates).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cma_clip_core.arrays import Bools, Integers

Confidences = npt.NDArray[np.float32]


def ends_of_equals(ranked: Confidences) -> Integers:
    """Return the places in `ranked` [m] that can be thresholds: of each run of equals the last.

    A threshold accepts all of equal confidence or none.
    """
    return np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])


def lowest_threshold(confidence: Confidences, right: Bools, target: float) -> float | None:
    """Return the lowest threshold at which precision is at least `target`, or None where there is none.

    Args:
        confidence: [m], of each candidate.
        right: [m], whether it is right.
        target: precision, 0 to 1.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    ends = ends_of_equals(ranked)
    reaches = np.flatnonzero(np.cumsum(right[order])[ends] / (ends + 1) >= target)
    return float(ranked[ends[reaches[-1]]]) if len(reaches) else None


def recall_at_precision(confidence: Confidences, right: Bools, positives: int, target: float) -> float | None:
    """Return the share of all `positives` that are right at or above the lowest threshold reaching `target`.

    0 where no threshold reaches it; None where there are no positives.
    """
    if not positives:
        return None
    threshold = lowest_threshold(confidence, right, target)
    return 0.0 if threshold is None else float((right & (confidence >= np.float32(threshold))).sum() / positives)
