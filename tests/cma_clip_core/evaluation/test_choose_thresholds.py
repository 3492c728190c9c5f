"""`pytest tests/cma_clip_core/evaluation/test_choose_thresholds.py`"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binom

from cma_clip_core.config import SelectionConfig
from cma_clip_core.evaluation.choose_thresholds import (
    choose_threshold,
    correlation_within,
    design_effect,
    fewest_right,
    lower_bound_reaches,
    promised_threshold,
)
from tests.cma_clip_core.scored import PATTERN, several, single


def promised(confidence: np.ndarray, right: np.ndarray, target: float = 0.9) -> float | None:
    return promised_threshold(confidence.astype(np.float32), right, np.arange(len(right)), target, 0.95)


def test_clopper_pearson() -> None:
    right = np.array([28, 29, 44, 45, 60, 0, 300], float)
    accepted = np.array([28, 29, 45, 46, 61, 30, 320], float)
    # All of 28 right: 0.9^28 = 0.052 > 0.05; of 29: 0.047. With one error 46 are needed.
    assert lower_bound_reaches(right, accepted, 0.9, 0.95).tolist() == [False, True, False, True, True, False, True]
    quantile = beta.ppf(0.05, right[right > 0], accepted[right > 0] - right[right > 0] + 1)
    assert (lower_bound_reaches(right, accepted, 0.9, 0.95)[right > 0] == (quantile >= 0.9)).all()
    assert binom.sf(44, 46, 0.9) < 0.05 < binom.sf(43, 45, 0.9)


@pytest.mark.parametrize(("target", "level"), [(0.9, 0.95), (0.95, 0.95), (0.5, 0.75), (0.8, 0.9)])
def test_the_fewest_that_can_pass(target: float, level: float) -> None:
    fewest = fewest_right(target, level)
    numbers = np.array([fewest - 1, fewest], float)
    # Of 0.5 at 75 % the two sides are equal, 0.5^2 = 0.25, and that passes.
    assert lower_bound_reaches(numbers, numbers, target, level).tolist() == [False, True]


def test_correlation_within_families() -> None:
    # Families (1, 1), (-1, -1): nothing within, all between.
    assert correlation_within(np.array([1.0, 1, -1, -1]), np.array([7, 7, 3, 3])) == 1
    # (1, 0), (1, 0), (1, 1): sums 1, 1, 2. MSB = (1/2 + 1/2 + 2 - 16/6) / 2 = 1/6; MSW = (4 - 3) / 3 = 1/3: negative.
    assert correlation_within(np.array([1.0, 0, 1, 0, 1, 1]), np.array([0, 0, 1, 1, 2, 2])) == 0
    # (1, 1), (0, 0), (1, 0): MSB = (2 + 0 + 1/2 - 9/6) / 2 = 1/2; MSW = (3 - 5/2) / 3 = 1/6; m0 = 2: (1/3) / (2/3)
    assert correlation_within(np.array([1.0, 1, 0, 0, 1, 0]), np.array([0, 0, 1, 1, 2, 2])) == pytest.approx(1 / 2)
    assert correlation_within(np.array([1.0, 0]), np.array([0, 1])) == 0
    assert correlation_within(np.array([]), np.array([], int)) == 0


def test_design_effect_of_each_first_k() -> None:
    # Sizes by k: 1; 1 1; 2 1; 2 1 1; 3 1 1. Sum of squares over sum: 1, 1, 5/3, 6/4, 11/5
    found = design_effect(np.array([4, 9, 4, 1, 4]), 0.5)
    assert found == pytest.approx([1, 1, 1 + 0.5 * 2 / 3, 1.25, 1.6])


def test_all_right() -> None:
    confidence = np.linspace(0.99, 0.9, 60)
    assert promised(confidence, np.ones(60, bool)) == pytest.approx(0.9)
    assert promised(confidence[:29], np.ones(29, bool)) == pytest.approx(confidence[28])
    assert promised(confidence[:28], np.ones(28, bool)) is None  # too few to prove 0.9
    assert promised(np.array([]), np.array([], bool)) is None


def test_the_first_failure_ends_it() -> None:
    """200 confident candidates are right, then 20 wrong, then 2,000 right: the lowest that passes is the last, not ours."""
    confidence = np.concatenate(
        [np.linspace(0.999, 0.98, 200), np.linspace(0.9, 0.89, 20), np.linspace(0.5, 0.4, 2000)]
    )
    right = np.concatenate([np.ones(200, bool), np.zeros(20, bool), np.ones(2000, bool)])
    found = promised(confidence, right)
    assert found is not None
    assert found > 0.89
    assert lower_bound_reaches(np.array([2200.0]), np.array([2220.0]), 0.9, 0.95)[0]


def test_equals_are_accepted_together() -> None:
    confidence = np.concatenate([np.full(100, 0.99), np.full(100, 0.7)])
    assert promised(confidence, np.repeat([True, False], 100)) == pytest.approx(0.99)
    assert promised(np.full(100, 0.99), np.arange(100) % 2 == 0) is None


def test_families_count_for_less() -> None:
    """40 right ones prove 0.9, but not as 20 pairs of twins."""
    confidence, right = np.linspace(0.99, 0.95, 40).astype(np.float32), np.ones(40, bool)
    twins = np.repeat(np.arange(20), 2)
    assert promised_threshold(confidence, right, twins, 0.9, 0.95, correlation=0.0) is not None
    assert promised_threshold(confidence, right, twins, 0.9, 0.95, correlation=1.0) is None
    more = promised_threshold(np.tile(confidence, 2), np.tile(right, 2), np.tile(twins, 2) + 20, 0.9, 0.95, 0.1)
    assert more is not None  # 80 / (1 + 0.1 * 3) = 61


def test_the_promise_is_kept_and_the_lowest_passing_one_would_not() -> None:
    """Precision is just the target wherever a threshold is: whoever accepts anything but luck breaks the promise."""
    rng = np.random.default_rng(0)
    confidence, number = np.linspace(0.95, 0.9, 500), np.arange(1, 501)
    ours = lowest = 0
    for _ in range(400):
        right = rng.random(500) < 0.8999
        ours += promised(confidence, right) is not None
        lowest += lower_bound_reaches(np.cumsum(right) + 0.0, number + 0.0, 0.9, 0.95).any()
    assert ours / 400 <= 0.07  # 5 %, and room for chance
    assert lowest / 400 > 0.15


def test_a_bad_value_does_not_hide_behind_a_good_one() -> None:
    # Solid, 300 times, always right; Striped, 40 times, half right, just as sure; Checked 60 times.
    values = np.repeat([0, 1, 2], [300, 40, 60])
    right = np.where(values == 1, np.arange(400) % 2 == 0, True)
    confidence = np.linspace(0.99, 0.95, 400)[np.random.default_rng(0).permutation(400)]
    found = single(confidence, right, values)
    together = choose_threshold(found, 1.0, SelectionConfig(value_predictions=1000))
    assert together.values == {}
    assert together.threshold is not None  # 380 of 400 are right
    apart = choose_threshold(found, 1.0, SelectionConfig(value_predictions=40))
    assert set(apart.values) == set(PATTERN.value_names)
    assert apart.values["Striped"] is None
    assert apart.never(PATTERN) == ("Striped",)
    assert apart.threshold is None
    assert (apart.precision, apart.accepted, apart.candidates) == (1.0, 360, 400)
    assert apart.lowest() == pytest.approx(confidence[values != 1].min())
    assert apart.limits(PATTERN).tolist() == pytest.approx(
        [confidence[values == 0].min(), np.inf, confidence[values == 2].min()]
    )


def test_nothing_is_accepted_where_nothing_is_proved() -> None:
    chosen = choose_threshold(single(np.full(20, 0.99), np.ones(20, bool)), 1.0, SelectionConfig())
    assert (chosen.threshold, chosen.values, chosen.precision, chosen.accepted) == (None, {}, None, 0)
    assert chosen.lowest() is None
    assert chosen.never(PATTERN) == PATTERN.value_names


def test_the_temperature_is_kept_and_applied() -> None:
    found = single(np.full(100, 0.8), np.ones(100, bool))
    chosen = choose_threshold(found, 0.5, SelectionConfig())
    assert chosen.temperature == 0.5
    assert chosen.threshold == pytest.approx(0.64 / 0.66)


def test_several_values_are_counted_where_they_are_likely() -> None:
    found = several([[0.9, 0.4, 0.1]] * 60, ["rww"] * 60, ["www"] * 60)
    chosen = choose_threshold(found, 1.0, SelectionConfig(value_predictions=60))
    assert set(chosen.values) == {"Cotton"}
    assert chosen.values["Cotton"] == pytest.approx(0.9)
    assert chosen.threshold is None  # of Linen and Wool nothing is right
