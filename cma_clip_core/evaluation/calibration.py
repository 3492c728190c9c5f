"""Temperatures: confidences that mean what they say of products whose value is listed; others have no target to fit to.

Letters of shapes: n products with a value, C values of one attribute.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from cma_clip_core.evaluation.predictions import Predictions

LEAST_LABELS: Final = 20  # with fewer, a temperature is more chance than calibration
RANGE: Final = (0.05, 20.0)  # a model that is never wrong would ask for a temperature of zero


def log_loss(predictions: Predictions, temperature: float) -> float:
    """Return the mean negative log likelihood of the labels: over products, or of a multi-valued attribute over pairs."""
    predictions = predictions.with_target()
    scaled = predictions.logits.astype(np.float64) / temperature
    targets = predictions.targets
    if predictions.attribute.multi_valued:
        return float(-np.mean(log_expit(np.where(targets, scaled, -scaled))))
    return float(-np.mean(log_softmax(scaled, axis=1)[targets]))


def fit_temperature(predictions: Predictions) -> float:
    """Return the temperature of an attribute, in `RANGE`; 1 where there are fewer than `LEAST_LABELS` products.

    It is that of least negative log likelihood (Guo et al. 2017, "On Calibration of Modern Neural Networks", section
    4.2), on validation products. The likelihood is convex in 1 / T, so that it has one minimum in log T.
    """
    predictions = predictions.with_target()
    if len(predictions) < LEAST_LABELS:
        return 1.0
    low, high = np.log(RANGE)
    found = minimize_scalar(
        lambda log_t: log_loss(predictions, float(np.exp(log_t))), bounds=(low, high), method="bounded"
    )
    return float(np.exp(found.x))
