"""Temperature scaling, which calibrates confidences on products with a listed value; others have no target to fit to.

Letters of shapes: n products with a value, C values of one attribute.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from cma_clip_core.arrays import Doubles
from cma_clip_core.evaluation.predictions import Predictions

LEAST_LABELS: Final = 20  # with fewer, a fitted temperature is mostly chance
RANGE: Final = (0.05, 20.0)  # the best temperature of a model that is never wrong would be zero


def losses(predictions: Predictions, temperature: float) -> Doubles:
    """Return the negative log likelihood [n] of each product's label; all products must have a listed value.

    For a multi-valued attribute it is the mean over the values.
    """
    scaled = predictions.logits.astype(np.float64) / temperature
    targets = predictions.targets
    if predictions.attribute.multi_valued:
        return np.asarray(-log_expit(np.where(targets, scaled, -scaled)).mean(axis=1))
    return np.asarray(-log_softmax(scaled, axis=1)[targets])


def log_loss(predictions: Predictions, temperature: float) -> float:
    """Return the mean of `losses` over the products with a listed value."""
    return float(losses(predictions.with_target(), temperature).mean())


def fit_temperature(predictions: Predictions) -> float:
    """Return the temperature of an attribute, in `RANGE`; 1 if there are fewer than `LEAST_LABELS` products.

    The temperature minimises the negative log likelihood on validation products (Guo et al. 2017, "On Calibration of
    Modern Neural Networks", section 4.2). This is convex in 1 / T, so it has one minimum in log T.
    """
    predictions = predictions.with_target()
    if len(predictions) < LEAST_LABELS:
        return 1.0
    low, high = np.log(RANGE)
    minimum = minimize_scalar(
        lambda log_t: log_loss(predictions, float(np.exp(log_t))), bounds=(low, high), method="bounded"
    )
    return float(np.exp(minimum.x))
