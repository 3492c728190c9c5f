"""How much of a recall, or of the difference of two methods, is chance: a bootstrap over product families.

Whole families are drawn with replacement, since products of one are not independent: the cluster bootstrap (Davison and
Hinkley 1997, "Bootstrap Methods and their Application"; Field and Welsh 2007, "Bootstrapping Clustered
Data"). Intervals are percentiles; what stands before them is what was measured, no mean of draws. All methods and
attributes see the same draws, so that differences are paired.

A draw is a weight for each family: confidences are sorted once, and a draw costs a weighted cumulative sum.

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
_EXACT = 1e-6  # a sum of weights times a target with few decimals is either 0 or farther from it than this


class Drawn(NamedTuple):
    """A recall of the products as they are, and in each draw."""

    measured: float
    draws: Doubles  # [D]

    @classmethod
    def pool(cls, several: Sequence[Drawn]) -> Drawn:
        """Return the mean of several that were measured, and the draws of all."""
        return cls(float(np.mean([one.measured for one in several])), np.concatenate([one.draws for one in several]))


@dataclass(slots=True)
class RecallDraws:
    """One method's recall at 90 % precision in each draw; no number where a draw has nothing to be found.

    The first column is the recall of the products as they are: what is measured. The mean of the draws is another, since
    recall at a precision is no mean over products.
    """

    attributes: tuple[str, ...]
    all: Doubles  # [K, 1 + D]
    silent: Doubles  # [K, 1 + D], on the silent labels alone

    def of(self, attribute: str) -> Drawn:
        """Return those of one attribute."""
        return _drawn(self.all[self.attributes.index(attribute)])

    def silent_of(self, attribute: str) -> Drawn:
        """Return those of one attribute, on the silent labels alone."""
        return _drawn(self.silent[self.attributes.index(attribute)])

    def mean_all(self) -> Drawn:
        """Return the mean over the attributes."""
        return _drawn(_mean(self.all))

    def mean_silent(self) -> Drawn:
        """Return the mean over the attributes, on the silent labels alone."""
        return _drawn(_mean(self.silent))


class RankedCandidates:
    """Candidates sorted once, to be weighted often."""

    def __init__(self, found: Candidates, families: Integers, target: float) -> None:
        """Sort the candidates.

        Args:
            found: the candidates.
            families: [F] all families there are, rising.
            target: precision, 0 to 1.
        """
        order = np.argsort(-found.confidence, kind="stable")
        right = found.right[order]
        # Beyond the last right candidate recall stands still and precision falls, but for its equals.
        ranked = found.confidence[order]
        end = int(np.searchsorted(-ranked, -ranked[right.nonzero()[0][-1]], side="right")) if right.any() else 0
        self._right = right[:end].astype(np.float64)
        self._gain = self._right - target
        self._family = np.searchsorted(families, found.family[order[:end]])
        ends = ends_of_equals(ranked[:end])
        self._ends = ends if len(ends) < end else None
        self._positives = np.bincount(
            np.searchsorted(families, found.positive_family), minlength=len(families)
        ).astype(np.float64)  # fmt: skip

    def recall(self, weights: Doubles) -> float:
        """Return the recall at the lowest threshold that reaches the target, families counted `weights` [F] times."""
        positives = float(self._positives @ weights)
        if not positives:
            return float("nan")
        weight = weights[self._family]
        above = np.cumsum(weight * self._gain)  # right less target times accepted: not negative where it is reached
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
        methods: predictions by attribute, by method: all of the same products.
        thresholds: of each method, whose temperatures are applied.
        text_fields: a label that they name is not silent; the same for all methods, so that they are comparable.
        draws: how many.
        seed: of the draws.
        silent: False: recalls of the silent labels are not asked for, and are no numbers.

    Raises:
        ValueError: the methods are not of the same attributes and products.
    """
    attributes = _same_attributes(methods)
    families = np.unique(np.concatenate([p.families for found in methods.values() for p in found.values()]))
    ranked = {
        method: [
            [
                RankedCandidates(candidates(p, temperature, silent_in), families, PAPER_PRECISION)
                for name in attributes
                for p, temperature in [(found[name], thresholds[method][name].temperature)]
            ]
            for silent_in in ((None, text_fields) if silent else (None,))
        ]
        for method, found in methods.items()
    }
    recalls = {method: np.full((2, len(attributes), 1 + draws), np.nan) for method in methods}
    rng = np.random.default_rng(seed)
    for draw in range(1 + draws if len(families) else 0):
        chosen = rng.integers(len(families), size=len(families)) if draw else np.arange(len(families))
        weights = np.bincount(chosen, minlength=len(families)).astype(np.float64)
        for method, sides in ranked.items():
            recalls[method][: len(sides), :, draw] = [[one.recall(weights) for one in side] for side in sides]
    return {method: RecallDraws(attributes, found[0], found[1]) for method, found in recalls.items()}


def judge_with_intervals(
    method: str,
    predictions: Mapping[str, Predictions],
    thresholds: Mapping[str, Threshold],
    text_fields: Sequence[str],
) -> MethodMetrics:
    """Return all metrics of one method, with intervals. Arguments as of `cma_clip_core.evaluation.metrics.judge`."""
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
    """Return first less second, as measured, and its interval by the same draws; None where no draw has both.

    Raises:
        ValueError: they are not of the same number of draws.
    """
    if first.draws.shape != second.draws.shape:
        raise ValueError(
            f"{len(first.draws)} and {len(second.draws)} draws cannot be paired; draw both methods in one call"
        )
    differences = first.draws - second.draws
    found = interval(differences)
    if found is None:
        return None
    known = differences[~np.isnan(differences)]
    return Difference(mean=first.measured - second.measured, interval=found, below_zero=float((known < 0).mean()))


def interval(draws: Doubles) -> Interval | None:
    """Return the middle 95 % of draws [D], those without a number aside; None where none has one."""
    known = draws[~np.isnan(draws)]
    if not len(known):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(low=float(low), high=float(high))


def _drawn(recalls: Doubles) -> Drawn:
    """Return what was measured and what was drawn of a row [1 + D]."""
    return Drawn(float(recalls[0]), recalls[1:])


def _mean(recalls: Doubles) -> Doubles:
    """Return the mean over the attributes [1 + D] of recalls [K, 1 + D], those without a number left out."""
    known = ~np.isnan(recalls)
    count = known.sum(axis=0)
    means: Doubles = np.where(count > 0, np.where(known, recalls, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
    return means


def _same_attributes(methods: Mapping[str, Mapping[str, Predictions]]) -> tuple[str, ...]:
    first_name, first = next(iter(methods.items()))
    products = {name: set(p.products.tolist()) for name, p in first.items()}
    for method, found in methods.items():
        if found.keys() != first.keys():
            raise ValueError(f"{method} has other attributes than {first_name}")
        for name, p in found.items():
            if set(p.products.tolist()) != products[name]:
                raise ValueError(f"{name}: {method} was judged on other products than {first_name}")
    return tuple(first)
