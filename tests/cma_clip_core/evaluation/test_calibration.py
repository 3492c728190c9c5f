"""`pytest tests/cma_clip_core/evaluation/test_calibration.py`"""

from __future__ import annotations

import numpy as np
import pytest

from cma_clip_core.evaluation.calibration import LEAST_LABELS, RANGE, fit_temperature, log_loss
from cma_clip_core.evaluation.predictions import Predictions
from tests.cma_clip_core.scored import MATERIAL, PATTERN, marks, several, single


def test_log_loss() -> None:
    found = single([0.8, 0.6], marks("rw"))  # the true value of the second has 0.2
    assert log_loss(found, 1.0) == pytest.approx(-(np.log(0.8) + np.log(0.2)) / 2)
    pairs = several([[0.9, 0.2, 0.4]], ["rwr"], ["www"])
    assert log_loss(pairs, 1.0) == pytest.approx(-(np.log(0.9) + np.log(0.8) + np.log(0.4)) / 3)


def test_the_temperature_that_undoes_a_known_one() -> None:
    """The best constant confidence for three values, right 8 times in 10, is 0.8: odds of 8 to 1 against each other."""
    right = np.tile(marks("rrrrrrrrww"), 10)
    sure = single(np.full(100, 64 / 66), right)  # odds of 64 = 8^2 to 1: the wrong fifth is all on one other value,
    fitted = sure.probabilities(fit_temperature(sure)).max(axis=1)  # but likelihood of it is 1/8 of the best's
    assert fit_temperature(sure) == pytest.approx(2.0, rel=0.01)
    assert fitted == pytest.approx(0.8, abs=0.002)


def test_several_values_have_a_temperature_of_their_sigmoids() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 3))
    targets = rng.random((4000, 3)) < 1 / (1 + np.exp(-logits))
    empty = np.zeros((4000, 3), np.uint8)
    found = Predictions(
        MATERIAL, np.arange(4000).astype(object), np.arange(4000), (3 * logits).astype(np.float32), targets, empty,
        np.zeros((4000, 2), np.float32),
    )  # fmt: skip
    assert fit_temperature(found) == pytest.approx(3.0, rel=0.05)


def test_few_labels_and_a_model_that_is_never_wrong() -> None:
    assert fit_temperature(Predictions.empty(PATTERN)) == 1.0
    assert fit_temperature(single(np.full(LEAST_LABELS - 1, 0.5), np.ones(LEAST_LABELS - 1, bool))) == 1.0
    perfect = fit_temperature(single(np.full(LEAST_LABELS, 0.5), np.ones(LEAST_LABELS, bool)))
    assert RANGE[0] <= perfect < 0.1
