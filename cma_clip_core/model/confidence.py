"""Conversion of logits to confidences, shared by evaluation, threshold selection and tagging. Loads no torch."""

from __future__ import annotations

import numpy as np

from cma_clip_core.arrays import Floats


def probabilities(logits: Floats, multi_valued: bool, temperature: float = 1.0) -> Floats:
    """Return each value's probability: the softmax for a single-valued attribute, the sigmoid for a multi-valued one.

    Args:
        logits: [n, C] of one attribute.
        multi_valued: whether a product may have several values.
        temperature: divides the logits (cma_clip_core.evaluation.calibration).
    """
    scaled = logits / np.float32(temperature)
    if multi_valued:
        sigmoid: Floats = 0.5 * (1 + np.tanh(0.5 * scaled))
        return sigmoid
    shifted = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
    softmax: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return softmax
