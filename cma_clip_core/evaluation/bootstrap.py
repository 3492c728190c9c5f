"""Bootstrap intervals over product families, for recalls and for differences of two methods.

Whole families are drawn with replacement, because products of one family are not independent. This is the cluster
bootstrap (Davison and Hinkley 1997, "Bootstrap Methods and their Application"; Field and Welsh 2007, "Bootstrapping
Clustered Data"). Intervals are percentiles. Point estimates are the measured values, not means of draws. All methods and attributes
see the same draws, so that differences are paired.

A draw is a weight for each family. Confidences are sorted once, and each draw costs a weighted cumulative sum.

Letters of shapes: F families, K attributes, D draws, m candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from cma_clip_core.arrays import Doubles, Integers
from cma_clip_core.evaluation.candidates import Candidates, candidates
from cma_clip_core.evaluation.metrics import PAPER_PRECISION, judge_all, method_metrics
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.evaluation.recall_at_precision import ends_of_equals
from cma_clip_core.model_documents import Difference, Interval, MethodMetrics, Threshold

DRAWS: Final = 1000
_EXACT = 1e-6  # tolerance: weights times a target with few decimals sum to 0, or to more than this


class Drawn(NamedTuple):
    """A recall as measured, and its value in each draw."""

    measured: float
    draws: Doubles  # [D]

    @classmethod
    def pool(cls, several: Sequence[Drawn]) -> Drawn:
        """Return the mean of the measured recalls, and the draws of all of them."""
        return cls(float(np.mean([one.measured for one in several])), np.concatenate([one.draws for one in several]))


@dataclass(slots=True)
class RecallDraws:
    """One method's recall at 90 % precision in each draw; NaN in a draw without positives.

    The first column is the measured recall, on the products as they are. The mean of the draws differs from it, because
    recall at a precision is not a mean over products.
    """

    attributes: tuple[str, ...]
    all: Doubles  # [K, 1 + D]
    silent: Doubles  # [K, 1 + D], on the silent labels alone

    def of(self, attribute: str) -> Drawn:
        """Return the recall of one attribute."""
        return _drawn(self.all[self.attributes.index(attribute)])

    def silent_of(self, attribute: str) -> Drawn:
        """Return the recall of one attribute, on the silent labels alone."""
        return _drawn(self.silent[self.attributes.index(attribute)])

    def mean_all(self) -> Drawn:
        """Return the mean over the attributes."""
        return _drawn(_mean(self.all))

    def mean_silent(self) -> Drawn:
        """Return the mean over the attributes, on the silent labels alone."""
        return _drawn(_mean(self.silent))


class RankedCandidates:
    """Candidates that are sorted once and weighted many times."""

    def __init__(self, unsorted: Candidates, families: Integers, target: float) -> None:
        """Sort the candidates.

        Args:
            unsorted: the candidates.
            families: [F] all families, rising.
            target: precision, 0 to 1.
        """
        order = np.argsort(-unsorted.confidence, kind="stable")
        right = unsorted.right[order]
        # Below the last right candidate and those of equal confidence, recall stays the same and precision falls.
        ranked = unsorted.confidence[order]
        end = int(np.searchsorted(-ranked, -ranked[right.nonzero()[0][-1]], side="right")) if right.any() else 0
        self._right = right[:end].astype(np.float64)
        self._gain = self._right - target
        self._family = np.searchsorted(families, unsorted.family[order[:end]])
        ends = ends_of_equals(ranked[:end])
        self._ends = ends if len(ends) < end else None
        self._positives = np.bincount(
            np.searchsorted(families, unsorted.positive_family), minlength=len(families)
        ).astype(np.float64)  # fmt: skip

    def recall(self, weights: Doubles) -> float:
        """Return the recall at the lowest threshold that reaches the target; each family counts `weights` [F] times."""
        positives = float(self._positives @ weights)
        if not positives:
            return float("nan")
        weight = weights[self._family]
        above = np.cumsum(weight * self._gain)  # right - target * accepted: not negative where the target is reached
        reached = (above if self._ends is None else above[self._ends]) >= -_EXACT
        if not reached.any():
            return 0.0
        last = len(reached) - 1 - int(reached[::-1].argmax())
        accepted = (last if self._ends is None else int(self._ends[last])) + 1
        return float(weight[:accepted] @ self._right[:accepted]) / positives


def draw_recalls(
    methods: Mapping[str, Mapping[str, Predictions]],
    thresholds: Mapping[str, Mapping[str, Threshold]],
    text_fields: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
    *,
    silent: bool = True,
) -> dict[str, RecallDraws]:
    """Return each method's recalls at 90 % precision in the same draws.

    Args:
        methods: predictions by method and attribute, all of the same products.
        thresholds: by method and attribute; only their temperatures are used.
        text_fields: a label that they name is not silent; the same for all methods, so that these are comparable.
        draws: number of draws.
        seed: seed of the draws.
        silent: False: leave out the recalls of the silent labels, which are then NaN.

    Raises:
        ValueError: the methods differ in their attributes or products.
    """
    attributes = _same_attributes(methods)
    families = np.unique(np.concatenate([p.families for sides in methods.values() for p in sides.values()]))
    ranked = {
        method: [
            [
                RankedCandidates(candidates(p, temperature, silent_in), families, PAPER_PRECISION)
                for name in attributes
                for p, temperature in [(predictions[name], thresholds[method][name].temperature)]
            ]
            for silent_in in ((None, text_fields) if silent else (None,))
        ]
        for method, predictions in methods.items()
    }
    recalls = {method: np.full((2, len(attributes), 1 + draws), np.nan) for method in methods}
    rng = np.random.default_rng(seed)
    for draw in range(1 + draws if len(families) else 0):
        chosen = rng.integers(len(families), size=len(families)) if draw else np.arange(len(families))
        weights = np.bincount(chosen, minlength=len(families)).astype(np.float64)
        for method, sides in ranked.items():
            recalls[method][: len(sides), :, draw] = [[one.recall(weights) for one in side] for side in sides]
    return {method: RecallDraws(attributes, on_all, on_silent) for method, (on_all, on_silent) in recalls.items()}


def judge_with_intervals(
    method: str,
    predictions: Mapping[str, Predictions],
    thresholds: Mapping[str, Threshold],
    text_fields: Sequence[str],
) -> MethodMetrics:
    """Return all metrics of one method, with intervals. The arguments are those of `judge_all`, with the method's name."""
    metrics = method_metrics(method, judge_all(predictions, thresholds, text_fields))
    drawn = draw_recalls({method: predictions}, {method: thresholds}, text_fields)
    return with_intervals(metrics, drawn[method])


def with_intervals(metrics: MethodMetrics, draws: RecallDraws) -> MethodMetrics:
    """Return a method's metrics with the intervals of its recalls at 90 % precision."""
    attributes = dict(metrics.attributes)
    for name in draws.attributes:
        intervals = {
            "recall_at_90_interval": interval(draws.of(name).draws),
            "silent_recall_at_90_interval": interval(draws.silent_of(name).draws),
        }
        attributes[name] = attributes[name].model_copy(update=intervals)
    return metrics.model_copy(
        update={
            "attributes": attributes,
            "mean_recall_at_90_interval": interval(draws.mean_all().draws),
            "mean_silent_recall_at_90_interval": interval(draws.mean_silent().draws),
        }
    )


def difference(first: Drawn, second: Drawn) -> Difference | None:
    """Return first minus second, as measured, and its interval from the same draws; None if no draw has both.

    Raises:
        ValueError: the numbers of draws differ.
    """
    if first.draws.shape != second.draws.shape:
        raise ValueError(
            f"{len(first.draws)} and {len(second.draws)} draws cannot be paired; draw both methods in one call"
        )
    differences = first.draws - second.draws
    middle = interval(differences)
    if middle is None:
        return None
    known = differences[~np.isnan(differences)]
    return Difference(mean=first.measured - second.measured, interval=middle, below_zero=float((known < 0).mean()))


def interval(draws: Doubles) -> Interval | None:
    """Return the middle 95 % of the draws [D] that are numbers; None if none is."""
    known = draws[~np.isnan(draws)]
    if not len(known):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(low=float(low), high=float(high))


def _drawn(recalls: Doubles) -> Drawn:
    """Return the measured recall and the draws of a row [1 + D]."""
    return Drawn(float(recalls[0]), recalls[1:])


def _mean(recalls: Doubles) -> Doubles:
    """Return the mean over the attributes [1 + D] of the recalls [K, 1 + D] that are numbers."""
    known = ~np.isnan(recalls)
    count = known.sum(axis=0)
    means: Doubles = np.where(count > 0, np.where(known, recalls, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
    return means


def _same_attributes(methods: Mapping[str, Mapping[str, Predictions]]) -> tuple[str, ...]:
    first_name, first = next(iter(methods.items()))
    products = {name: set(p.products.tolist()) for name, p in first.items()}
    for method, predictions in methods.items():
        if predictions.keys() != first.keys():
            raise ValueError(f"{method} has other attributes than {first_name}")
        for name, p in predictions.items():
            if set(p.products.tolist()) != products[name]:
                raise ValueError(f"{name}: {method} was judged on other products than {first_name}")
    return tuple(first)
