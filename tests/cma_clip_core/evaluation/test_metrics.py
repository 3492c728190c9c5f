"""`pytest tests/cma_clip_core/evaluation/test_metrics.py`; every expected number is worked out by hand."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from cma_clip_core.evaluation.candidates import candidates
from cma_clip_core.evaluation.metrics import (
    accuracy_error,
    average_precision,
    calibration_error,
    judge,
    judge_all,
    judge_values,
    macro_f1,
    mean_accuracy,
    mean_of,
    method_metrics,
    promise_kept,
    reliability,
)
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.evaluation.recall_at_precision import lowest_threshold, recall_at_precision
from cma_clip_core.model_documents import Threshold
from tests.cma_clip_core.scored import MATERIAL, PATTERN, TITLE, marks, several, single


def scores(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def threshold(limit: float | None, temperature: float = 1.0, **values: float | None) -> Threshold:
    return Threshold(
        threshold=limit, values=values, temperature=temperature, target_precision=0.9, precision=None, accepted=0,
        candidates=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("confidences", "right", "target", "threshold"),
    [
        # precision from the top: 1, 1, 2/3, 3/4, 3/5
        ((0.9, 0.8, 0.7, 0.6, 0.5), "rrwrw", 0.75, 0.6),  # falls below 3/4 at 0.7 and comes back at 0.6
        ((0.9, 0.8, 0.7, 0.6, 0.5), "rrwrw", 0.76, 0.8),
        ((0.9, 0.8, 0.7, 0.6, 0.5), "rrwrw", 0.5, 0.5),
        ((0.5, 0.9, 0.7, 0.8, 0.6), "wrwrr", 0.75, 0.6),  # the same, out of order
        ((0.9, 0.8), "wr", 0.9, None),
        # 0.8 twice: a threshold takes both or none, so 2/3 at 0.8
        ((0.9, 0.8, 0.8), "rrw", 0.9, 0.9),
        ((), "", 0.9, None),
    ],
)
def test_lowest_threshold(
    confidences: tuple[float, ...], right: str, target: float, threshold: float | None
) -> None:  # fmt: skip
    found = lowest_threshold(scores(*confidences), marks(right), target)
    assert found == (None if threshold is None else pytest.approx(threshold))


def test_a_threshold_accepts_the_row_it_was_taken_from() -> None:
    """Through JSON and back: a float32 written as a number accepts itself."""
    confidence = np.random.default_rng(0).random(1000).astype(np.float32)
    lowest = lowest_threshold(confidence, confidence > 0.3, 0.9)
    read = Threshold.model_validate_json(threshold(lowest).model_dump_json())
    accepted = confidence >= read.limits(PATTERN)[0]
    assert accepted.sum() == (confidence >= np.float32(lowest)).sum() > 0
    assert lowest in confidence[accepted]


def test_recall_at_precision() -> None:
    confidences, right = scores(0.9, 0.8, 0.7, 0.6, 0.5), marks("rrwrw")
    assert recall_at_precision(confidences, right, 5, 0.75) == pytest.approx(3 / 5)
    assert recall_at_precision(confidences, right, 5, 0.9) == pytest.approx(2 / 5)
    assert recall_at_precision(confidences, ~right, 5, 0.99) == 0
    assert recall_at_precision(scores(), marks(""), 0, 0.9) is None


def test_single_valued() -> None:
    #        best value:   0    0    1    1    2; wrong means that the next is true: 0, 0, 1, 2, 0
    found = single([0.9, 0.8, 0.7, 0.6, 0.5], marks("rrrww"), [0, 0, 1, 1, 2], named=[TITLE, 0, 0, 0, TITLE])
    metrics = judge(found, threshold(0.75, Striped=0.59, Checked=None), ("title",))
    assert (metrics.n, metrics.n_silent) == (5, 3)
    assert metrics.accuracy == pytest.approx(3 / 5)
    # Solid: 2 of 2 predicted, 3 true: 4/5. Striped: 1 of 2, 1 true: 2/3. Checked: 0.
    assert metrics.macro_f1 == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert metrics.average_precision == pytest.approx(3 / 5)  # precision is 1 up to recall 3/5
    assert metrics.recall_at_90 == metrics.recall_at_target == pytest.approx(3 / 5)
    assert metrics.silent_recall_at_90 == pytest.approx(2 / 3)  # 0.8 and 0.7 right, 0.6 wrong
    # One product a bin: |1 - 0.9|, |1 - 0.8|, |1 - 0.7|, 0.6, 0.5
    assert metrics.calibration_error == pytest.approx((0.1 + 0.2 + 0.3 + 0.6 + 0.5) / 5)
    # Accepted: Solid from 0.75 (two right), Striped from 0.59 (one right, one wrong), Checked never.
    assert metrics.coverage == pytest.approx(4 / 5)
    assert metrics.precision == pytest.approx(3 / 4)
    assert metrics.recall == pytest.approx(3 / 5)
    assert (metrics.text_weight, metrics.image_weight) == (pytest.approx(0.75), pytest.approx(0.25))
    assert judge(found, threshold(None), ("title",)).precision is None


def test_a_label_is_silent_for_those_who_do_not_read_its_field() -> None:
    found = single([0.9, 0.8], marks("rr"), named=[TITLE, 0])
    assert judge(found, threshold(None), ("description",)).n_silent == 2
    assert judge(found.take(np.array([0])), threshold(None), ("title",)).silent_recall_at_90 is None


def test_the_target_may_be_another_than_the_papers() -> None:
    found = single([0.9, 0.8, 0.7], marks("rrw"), attribute=PATTERN.model_copy(update={"target_precision": 0.6}))
    metrics = judge(found, threshold(None), ("title",))
    assert (metrics.recall_at_90, metrics.recall_at_target) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    found = single([0.9, 0.8, 0.7], marks("rwr"), attribute=PATTERN.model_copy(update={"target_precision": 0.6}))
    metrics = judge(found, threshold(None), ("title",))
    assert (metrics.recall_at_90, metrics.recall_at_target) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_multi_valued_counts_pairs() -> None:
    # Product 0 has two materials, one of them named; product 1 has one, which is ranked last.
    found = several([[0.9, 0.8, 0.1], [0.2, 0.3, 0.7]], ["rrw", "rww"], ["rww", "www"])
    metrics = judge(found, threshold(0.7), ("title",))
    assert (metrics.n, metrics.n_silent) == (2, 2)
    assert metrics.accuracy == pytest.approx(1 / 2)
    assert metrics.precision == pytest.approx(2 / 3)
    assert metrics.recall == pytest.approx(2 / 3)
    assert metrics.coverage == pytest.approx(3 / 3)
    # Ranked: 0.9 r, 0.8 r, 0.7 w, 0.3 w, 0.2 r, 0.1 w: areas 1/3 * (1 + 1 + 3/5)
    assert metrics.average_precision == pytest.approx((1 + 1 + 3 / 5) / 3)
    assert metrics.recall_at_90 == pytest.approx(2 / 3)
    # Silent: the pair 0.9 is named and left out; 0.8 r, 0.7 w, ..., and two are to be found.
    silent = candidates(found, silent_in=("title",))
    assert (len(silent), silent.positives, silent.positive_family.tolist()) == (5, 2, [0, 1])
    assert metrics.silent_recall_at_90 == pytest.approx(1 / 2)
    # Cotton: predicted for 0, true for 0 and 1: 2/3. Linen: right. Wool: never true, so it does not count.
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 1) / 2)


def test_the_best_value_is_predicted_though_unlikely() -> None:
    assert macro_f1(several([[0.3, 0.2, 0.1]], ["rww"], ["www"])) == 1.0


def test_average_precision_counts_what_is_never_found() -> None:
    # w at 0.9, r at 0.8, r at 0.7, w at 0.6: of four positives, 1/4 at precision 1/2 and 1/4 at 2/3.
    found = candidates(single([0.9, 0.8, 0.7, 0.6], marks("wrrw")))
    assert average_precision(found) == pytest.approx((1 / 2 + 2 / 3) / 4)
    assert average_precision(candidates(single([0.9], marks("w")))) == 0


def test_metrics_are_of_calibrated_confidences() -> None:
    found = single([0.8, 0.6], marks("rr"))
    cold = judge(found, threshold(None, temperature=0.5), ("title",))
    # Squared and normalised: 0.64 / (0.64 + 2 * 0.01), 0.36 / (0.36 + 2 * 0.04)
    assert cold.calibration_error == pytest.approx(1 - (0.64 / 0.66 + 0.36 / 0.44) / 2, abs=1e-6)


def test_bins_of_equal_mass() -> None:
    bins = reliability(scores(0.1, 0.4, 0.3, 0.2, 0.9), marks("wrwwr"), bins=2)
    assert bins.count.tolist() == [2, 3]
    assert bins.confidence.tolist() == pytest.approx([0.15, 1.6 / 3])
    assert bins.accuracy.tolist() == pytest.approx([0, 2 / 3])
    assert reliability(scores(0.5), marks("r")).count.tolist() == [1]
    assert calibration_error(scores(), marks("")) is None


def test_an_attribute_without_labels_has_no_metrics() -> None:
    for attribute in (PATTERN, MATERIAL):
        metrics = judge(Predictions.empty(attribute), threshold(None), ("title",))
        assert (metrics.n, metrics.n_silent) == (0, 0)
        assert {metrics.accuracy, metrics.macro_f1, metrics.average_precision, metrics.calibration_error} == {None}
        assert {metrics.recall_at_90, metrics.silent_recall_at_90, metrics.precision, metrics.recall} == {None}


def test_value_by_value_and_what_is_taken_for_what() -> None:
    # Solid: 3 of 5 predicted are so, two are Striped; Striped: 1 of 3, two are Checked; Checked is never predicted.
    found = judge_values(single([0.9] * 8, marks("rrrwwrww"), [0, 0, 0, 0, 0, 1, 1, 1]))
    assert list(found.values) == ["Solid", "Striped", "Checked"]
    shown = {name: (v.support, v.predicted, v.precision, v.recall) for name, v in found.values.items()}
    assert shown == {"Solid": (3, 5, 0.6, 1.0), "Striped": (3, 3, 1 / 3, 1 / 3), "Checked": (2, 0, None, 0.0)}
    assert [(c.true, c.predicted, c.count) for c in found.confusions] == [
        ("Striped", "Solid", 2), ("Checked", "Striped", 2),
    ]  # fmt: skip


def test_of_several_values_what_is_missed_is_confused_with_what_is_wrong() -> None:
    # Cotton is found; Linen is missed where Wool is predicted. In the second product Wool is missed, and nothing is wrong.
    found = judge_values(several([[0.9, 0.2, 0.8], [0.9, 0.1, 0.3]], ["rrw", "rwr"], ["www", "www"]))
    shown = {name: (v.support, v.predicted, v.precision, v.recall) for name, v in found.values.items()}
    assert shown == {"Cotton": (2, 2, 1.0, 1.0), "Linen": (1, 0, None, 0.0), "Wool": (1, 1, 0.0, 0.0)}
    assert [(c.true, c.predicted, c.count) for c in found.confusions] == [("Linen", "Wool", 1)]


def test_the_three_commonest_confusions_are_kept_the_most_products_first() -> None:
    found = judge_values(single([0.9] * 6, marks("wwwwww"), [0, 1, 1, 1, 2, 2]))
    assert [(c.true, c.predicted, c.count) for c in found.confusions] == [
        ("Checked", "Striped", 3), ("Solid", "Checked", 2), ("Striped", "Solid", 1),
    ]  # fmt: skip


def test_values_of_no_products() -> None:
    for attribute in (PATTERN, MATERIAL):
        found = judge_values(Predictions.empty(attribute))
        assert all((v.support, v.precision, v.recall) == (0, None, None) for v in found.values.values())
        assert found.confusions == ()


def test_means_leave_out_what_has_no_labels() -> None:
    sides = {
        "one": single([0.9, 0.8], marks("rw")), "two": single([0.9], marks("r")), "none": Predictions.empty(PATTERN),
    }  # fmt: skip
    metrics = judge_all(sides, dict.fromkeys(sides, threshold(None)), ("title",))
    method = method_metrics("ours", metrics)
    assert method.mean_recall_at_90 == mean_of(metrics, "recall_at_90") == pytest.approx((1 / 2 + 1) / 2)
    assert mean_accuracy(sides) == pytest.approx(3 / 4)
    assert accuracy_error(sides) == pytest.approx(math.sqrt(1 / 2 * 1 / 2 / 2 + 0) / 2)
    assert accuracy_error({"none": sides["none"]}) == 0
    assert type(method).model_validate_json(method.model_dump_json()) == method


def test_whether_the_promise_is_kept() -> None:
    sides = {
        "kept": single([0.95] * 9 + [0.94, 0.3], marks("rrrrrrrrrwr")),  # 9 of 10 accepted ones
        "broken": single([0.95, 0.94, 0.93, 0.3], marks("rwrr")),  # 2 of 3
        "silent": single([0.5, 0.4], marks("rr")),
        "unlabelled": Predictions.empty(PATTERN),
    }
    promise = promise_kept(judge_all(sides, dict.fromkeys(sides, threshold(0.9)), ("title",)))
    assert promise.kept == ("kept",)
    assert promise.broken == {"broken": pytest.approx(2 / 3)}
    assert promise.nothing == ("silent", "unlabelled")
    assert (
        promise.words() == "kept by 1 of 2 attributes; broken: broken (0.667); nothing is accepted: silent, unlabelled"
    )
    kept = promise_kept(judge_all({"kept": sides["kept"]}, {"kept": threshold(0.9)}, ("title",)))
    assert kept.words() == "kept by 1 of 1 attributes"
    assert method_metrics("ours", judge_all(sides, dict.fromkeys(sides, threshold(0.9)), ())).promise == promise


def test_a_large_side_is_judged_in_seconds() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.4, 0.999, 200_000)
    large = single(confidence, rng.random(200_000) < confidence, rng.integers(0, 3, 200_000))
    start = time.process_time()
    metrics = judge(large, threshold(0.9), ("title",))
    assert time.process_time() - start < 20  # product by product it takes minutes
    assert metrics.calibration_error == pytest.approx(0, abs=0.01)
