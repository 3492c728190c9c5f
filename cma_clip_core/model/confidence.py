"""Scores become confidences here alone: evaluation, thresholds and tagging all call this. Loads no torch."""

from __future__ import annotations

import numpy as np

from cma_clip_core.arrays import Floats


def probabilities(logits: Floats, multi_valued: bool, temperature: float = 1.0) -> Floats:
    """Return each value's probability: softmax where one value holds, sigmoid where several may.

    Args:
        logits: [n, C] of one attribute.
        multi_valued: whether several values may hold.
        temperature: what the logits are divided by (cma_clip_core.evaluation.calibration).
    """
    scaled = logits / np.float32(temperature)
    if multi_valued:
        sigmoid: Floats = 0.5 * (1 + np.tanh(0.5 * scaled))
        return sigmoid
    shifted = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
    softmax: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return softmax
