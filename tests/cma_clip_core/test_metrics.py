"""`pytest tests/cma_clip_core/test_metrics.py`; every expected number is worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cma_clip_core.metrics import Outcomes, choose_threshold, judge, outcomes
from cma_clip_core.thresholds import accepts, lowest_threshold, recall_at_precision
from tests.cma_clip_core import drawn


def scores(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def marks(text: str) -> np.ndarray:
    """'rrw' -> right, right, wrong."""
    return np.array([c == "r" for c in text])


@pytest.mark.parametrize(
    ("confidences", "right", "target", "least", "threshold"),
    [
        # precision from the top: 1, 1, 2/3, 3/4, 3/5
        ((0.9, 0.8, 0.7, 0.6, 0.5), "rrwrw", 0.75, 1, 0.6),  # falls below 3/4 at 0.7 and comes back at 0.6
        ((0.9, 0.8, 0.7, 0.6, 0.5), "rrwrw", 0.76, 1, 0.8),
        ((0.9, 0.8, 0.7, 0.6, 0.5), "rrwrw", 0.5, 1, 0.5),
        ((0.5, 0.9, 0.7, 0.8, 0.6), "wrwrr", 0.75, 1, 0.6),  # the same, out of order
        ((0.9, 0.8, 0.7, 0.6, 0.5), "rrwrw", 0.76, 3, None),  # two accepted are too few to mean anything
        ((0.9, 0.8), "wr", 0.9, 1, None),
        # 0.8 twice: a threshold takes both or none, so 2/3 at 0.8
        ((0.9, 0.8, 0.8), "rrw", 0.9, 1, 0.9),
        ((), "", 0.9, 1, None),
    ],
)
def test_lowest_threshold(
    confidences: tuple[float, ...], right: str, target: float, least: int, threshold: float | None
) -> None:
    found = lowest_threshold(scores(*confidences), marks(right), target, least)
    assert found == (None if threshold is None else pytest.approx(threshold))


def test_a_threshold_accepts_the_row_it_was_taken_from() -> None:
    """Through JSON and back: a float32 written as a number accepts itself."""
    confidences = np.random.default_rng(0).random(1000).astype(np.float32)
    threshold = lowest_threshold(confidences, confidences > 0.3, 0.9)
    assert threshold is not None
    assert accepts(confidences, float(repr(threshold))).sum() == (confidences >= np.float32(threshold)).sum() > 0
    assert not accepts(confidences, None).any()


def test_recall_at_precision() -> None:
    confidences, right = scores(0.9, 0.8, 0.7, 0.6, 0.5), marks("rrwrw")
    assert recall_at_precision(confidences, right, 5, 0.75) == pytest.approx(3 / 5)
    assert recall_at_precision(confidences, right, 5, 0.9) == pytest.approx(2 / 5)
    assert recall_at_precision(confidences, ~right, 5, 0.99) == 0
    assert recall_at_precision(scores(), marks(""), 0, 0.9) is None


def test_single_valued() -> None:
    pattern = drawn.taxonomy()["pattern"]
    found = outcomes(
        pattern,
        scores(0.7, 0.2, 0.1, 0.3, 0.6, 0.1, 0.2, 0.3, 0.5).reshape(3, 3),
        marks("rwwrwwwwr").reshape(3, 3),  # truth: the first, the first, the third value
        scores(1.0, 0.0, 0.5, 0.5, 0.0, 1.0).reshape(3, 2),
    )
    assert found.confidence.tolist() == pytest.approx([0.7, 0.6, 0.5])
    assert found.right.tolist() == [True, False, True]
    assert (found.labelled, found.positives, found.best_right) == (3, 3, 2)
    metrics = judge(pattern, found, 0.6)
    assert metrics.accuracy == pytest.approx(2 / 3)
    assert metrics.coverage == pytest.approx(2 / 3)
    assert metrics.precision == pytest.approx(1 / 2)
    assert metrics.recall == pytest.approx(1 / 3)
    assert metrics.recall_at_target == pytest.approx(1 / 3)
    assert (metrics.text_weight, metrics.image_weight) == (pytest.approx(0.5), pytest.approx(0.5))


def test_multi_valued_counts_pairs() -> None:
    material = drawn.taxonomy()["material"]
    found = outcomes(
        material,
        scores(0.9, 0.8, 0.1, 0.2, 0.3, 0.7).reshape(2, 3),
        marks("rrwrww").reshape(2, 3),  # product 0 has two materials, product 1 one, which is ranked last
        np.ones((2, 2), np.float32) / 2,
    )
    assert (found.labelled, found.positives, found.best_right) == (2, 3, 1)
    metrics = judge(material, found, 0.7)
    assert metrics.accuracy == pytest.approx(1 / 2)
    assert metrics.precision == pytest.approx(2 / 3)
    assert metrics.recall == pytest.approx(2 / 3)
    assert metrics.coverage == pytest.approx(3 / 3)


def test_choose_threshold() -> None:
    pattern = drawn.taxonomy()["pattern"]
    found = Outcomes(
        labelled=5, best_right=4, confidence=scores(0.9, 0.8, 0.7, 0.6, 0.5), right=marks("rrrrw"), positives=5,
        text_weight=0.5, image_weight=0.5,
    )  # fmt: skip
    chosen = choose_threshold(pattern, found, min_accepted=4)
    assert chosen.threshold == pytest.approx(0.6)
    assert (chosen.precision, chosen.accepted, chosen.candidates) == (1.0, 4, 5)
    nothing = choose_threshold(pattern, found, min_accepted=5)
    assert (nothing.threshold, nothing.precision, nothing.accepted) == (None, None, 0)


def test_an_attribute_without_labels_has_no_metrics() -> None:
    pattern = drawn.taxonomy()["pattern"]
    none = outcomes(pattern, np.zeros((0, 3), np.float32), np.zeros((0, 3), np.bool_), np.zeros((0, 2), np.float32))
    metrics = judge(pattern, none, None)
    assert (metrics.n, metrics.accuracy, metrics.recall_at_target, metrics.precision) == (0, None, None, None)
