"""`pytest tests/cma_clip_core/evaluation/test_bootstrap.py`"""

from __future__ import annotations

import time

import numpy as np
import pytest

from cma_clip_core.evaluation.bootstrap import (
    Drawn,
    RankedCandidates,
    difference,
    draw_recalls,
    interval,
    judge_with_intervals,
)
from cma_clip_core.evaluation.candidates import candidates
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.evaluation.recall_at_precision import recall_at_precision
from cma_clip_core.model_documents import Threshold
from tests.cma_clip_core.scored import MATERIAL, marks, several, single

SHIPPED = Threshold(threshold=None, target_precision=0.9, precision=None, accepted=0, candidates=0)


def noisy(n: int, seed: int = 0, families: int | None = None, sharper: float = 0.0) -> Predictions:
    """Products whose confidence is calibrated; some of them alike, half of the labels named by the title."""
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.uniform(0.4, 0.99, n), 2)  # many equals
    right = rng.random(n) < confidence + sharper * (1 - confidence)
    return single(confidence, right, rng.integers(0, 3, n), rng.integers(0, families or n, n), rng.integers(0, 2, n))


def naive(p: Predictions, chosen: np.ndarray, silent_in: tuple[str, ...] | None) -> float:
    """Return the recall of the products of the drawn families, with repetitions, without weights."""
    rows = np.concatenate([np.flatnonzero(p.families == family) for family in chosen])
    found = candidates(p.take(rows), 1.0, silent_in)
    recall = recall_at_precision(found.confidence, found.right, found.positives, 0.9)
    return np.nan if recall is None else recall


def several_noisy(n: int) -> Predictions:
    rng = np.random.default_rng(5)
    p = np.round(rng.uniform(0.05, 0.95, (n, 3)), 2)
    targets = rng.random((n, 3)) < p
    targets[~targets.any(axis=1), 0] = True
    named = targets & (rng.random((n, 3)) < 0.5)
    words = [["".join("r" if x else "w" for x in row) for row in array] for array in (targets, named)]
    found = several(p.tolist(), *words)
    found.families = rng.integers(0, n // 3, n)
    return found


@pytest.mark.parametrize("silent_in", [None, ("title",)])
@pytest.mark.parametrize("multi_valued", [False, True])
def test_weights_give_what_a_resample_gives(multi_valued: bool, silent_in: tuple[str, ...] | None) -> None:
    p = several_noisy(90) if multi_valued else noisy(150, families=50)
    families = np.unique(p.families)
    ranked = RankedCandidates(candidates(p, 1.0, silent_in), families, 0.9)
    rng = np.random.default_rng(1)
    found, expected = [], []
    for _ in range(100):
        at = rng.integers(len(families), size=len(families))
        found.append(ranked.recall(np.bincount(at, minlength=len(families)).astype(float)))
        expected.append(naive(p, families[at], silent_in))
    assert found == pytest.approx(expected, nan_ok=True)
    assert len(set(found)) > 20


def test_by_hand() -> None:
    found = candidates(single([0.9, 0.8, 0.7], marks("rwr"), families=[5, 6, 7]))
    ranked = RankedCandidates(found, np.array([5, 6, 7]), 0.9)
    assert ranked.recall(np.array([1.0, 1, 1])) == pytest.approx(1 / 3)
    assert ranked.recall(np.array([2.0, 0, 1])) == 1
    assert ranked.recall(np.array([0.0, 1, 2])) == 0
    assert ranked.recall(np.array([9.0, 1, 0])) == pytest.approx(9 / 10)  # 9 of 10 is the target, not less
    assert np.isnan(ranked.recall(np.zeros(3)))


def test_intervals_widen_with_families() -> None:
    alone = noisy(2000)
    together = Predictions(*(getattr(alone, name) for name in alone.__slots__))
    order = np.argsort(-candidates(alone).confidence, kind="stable")
    together.families = np.empty(2000, np.int64)
    together.families[order] = np.arange(2000) // 20  # families alike in confidence
    widths = []
    for p in (alone, together):
        metrics = judge_with_intervals("ours", {"pattern": p}, {"pattern": SHIPPED}, ("title",))
        found, shown = metrics.mean_recall_at_90_interval, metrics.attributes["pattern"]
        assert found is not None
        assert shown.recall_at_90 is not None
        assert found.low < shown.recall_at_90 < found.high
        assert shown.recall_at_90_interval == found  # one attribute: its own mean
        assert shown.silent_recall_at_90_interval == metrics.mean_silent_recall_at_90_interval != found
        widths.append(found.high - found.low)
    assert widths[1] > 1.2 * widths[0]


def test_paired_differences_are_narrower_than_those_of_strangers() -> None:
    first = {"pattern": noisy(1500, families=700)}
    better = Predictions(*(getattr(first["pattern"], name) for name in first["pattern"].__slots__))
    rng = np.random.default_rng(3)
    wrong = np.flatnonzero(~candidates(better).right)
    mended = rng.choice(wrong, len(wrong) // 5, replace=False)
    better.targets = better.targets.copy()
    better.targets[mended] = False
    better.targets[mended, better.logits[mended].argmax(axis=1)] = True
    drawn = draw_recalls(
        {"better": {"pattern": better}, "first": first},
        {"better": {"pattern": SHIPPED}, "first": {"pattern": SHIPPED}},
        ("title",),
        draws=400,
    )
    found = difference(drawn["better"].mean_all(), drawn["first"].mean_all())
    assert found is not None
    assert 0 < found.interval.low < found.mean < found.interval.high
    assert found.below_zero == 0
    other = draw_recalls({"first": first}, {"first": {"pattern": SHIPPED}}, ("title",), draws=400, seed=9)["first"]
    unpaired = difference(drawn["better"].mean_all(), other.mean_all())
    assert unpaired is not None
    assert unpaired.interval.high - unpaired.interval.low > 1.2 * (found.interval.high - found.interval.low)


def test_the_same_seed_gives_the_same_draws() -> None:
    sides, shipped = {"ours": {"pattern": noisy(50)}}, {"ours": {"pattern": SHIPPED}}
    one, same, other = (draw_recalls(sides, shipped, ("title",), 20, seed)["ours"].all for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_differences_by_hand() -> None:
    found = difference(Drawn(0.6, np.array([0.5, 0.7, np.nan, 0.4])), Drawn(0.5, np.array([0.4, 0.8, 0.1, 0.2])))
    assert found is not None
    assert found.mean == pytest.approx(0.1)  # as measured, whatever the draws' mean
    assert found.below_zero == pytest.approx(1 / 3)
    assert difference(Drawn(np.nan, np.array([np.nan])), Drawn(0.1, np.array([0.1]))) is None
    with pytest.raises(ValueError, match="cannot be paired"):
        difference(Drawn(0, np.zeros(2)), Drawn(0, np.zeros(3)))
    pooled = Drawn.pool([Drawn(0.6, np.zeros(2)), Drawn(0.2, np.ones(3))])
    assert pooled.measured == pytest.approx(0.4)
    assert pooled.draws.tolist() == [0, 0, 1, 1, 1]
    spread = interval(np.arange(101) / 100)
    assert spread is not None
    assert (spread.low, spread.high) == (pytest.approx(0.025), pytest.approx(0.975))


def test_methods_must_be_of_the_same_products() -> None:
    one, two = noisy(20), noisy(19)
    shipped = {"a": {"pattern": SHIPPED}, "b": {"pattern": SHIPPED}}
    with pytest.raises(ValueError, match="other products than a"):
        draw_recalls({"a": {"pattern": one}, "b": {"pattern": two}}, shipped, ("title",), 1)
    with pytest.raises(ValueError, match="other attributes than a"):
        draw_recalls({"a": {"pattern": one}, "b": {}}, shipped, ("title",), 1)


def test_no_products_no_intervals() -> None:
    metrics = judge_with_intervals("ours", {"m": Predictions.empty(MATERIAL)}, {"m": SHIPPED}, ("title",))
    assert (metrics.mean_recall_at_90, metrics.mean_recall_at_90_interval) == (None, None)


def test_a_large_side_is_not_drawn_product_by_product() -> None:
    """A hundred draws of 100,000 products cost seconds, not minutes; the limit leaves room for a busy machine."""
    large = {"ours": {"pattern": noisy(100_000)}}
    start = time.process_time()
    draw_recalls(large, {"ours": {"pattern": SHIPPED}}, ("title",), draws=100)
    assert time.process_time() - start < 20
