"""Temperature scaling, which calibrates confidences on products with a listed value; others have no target to fit to.

Letters of shapes: n products with a value, C values of one attribute.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from cma_clip_core.evaluation.predictions import Predictions

LEAST_LABELS: Final = 20  # with fewer, a fitted temperature is mostly chance
RANGE: Final = (0.05, 20.0)  # the best temperature of a model that is never wrong would be zero


def log_loss(predictions: Predictions, temperature: float) -> float:
    """Return the mean negative log likelihood of the labels.

    The mean is over products; for a multi-valued attribute, over pairs of a product and a value.
    """
    predictions = predictions.with_target()
    scaled = predictions.logits.astype(np.float64) / temperature
    targets = predictions.targets
    if predictions.attribute.multi_valued:
        return float(-np.mean(log_expit(np.where(targets, scaled, -scaled))))
    return float(-np.mean(log_softmax(scaled, axis=1)[targets]))


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
