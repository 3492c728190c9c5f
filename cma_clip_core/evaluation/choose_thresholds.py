"""Thresholds that keep their promise of precision on products never seen, with 95 % confidence.

The rule, for one group of candidates ranked by confidence:

1. *Test of one threshold.* Of the k candidates at or above it r are right on validation. It passes where the one-sided
   Clopper-Pearson lower bound of the precision (Clopper and Pearson 1934) reaches the target.
2. *Families.* Products of a family are right and wrong together, so k counts for less: r and k are divided by Kish's
   design effect 1 + rho (sum m^2 / sum m - 1) (Kish 1965, "Survey Sampling"), m the sizes of families among
   the k; Clopper-Pearson with an effective size is Korn and Graubard's interval (1998). rho, the correlation within
   families of what confidence leaves unexplained, is estimated from all candidates of the attribute.
3. *Many thresholds.* The lowest of all that pass would be the luckiest: where hundreds are tried, some pass by chance.
   So they are tested in a sequence that the confidences alone fix, growing by a tenth, and the first failure ends it:
   fixed-sequence testing, which needs no correction (Angelopoulos et al. 2021, "Learn then Test", arXiv 2110.01052).
   From the very top a single error ends it too early; so it starts where the confidences themselves, taken
   at their word, make passing surest. If they lie, it fails there and nothing is accepted: the promise holds anyway.
   Of the labels only the temperature, one number, rho, and the weight of the picture alone, one of nine
   (cma_clip_core.evaluation.picture_evidence), go into it; that does no harm (last numbers below). The same labels chose the
   epoch, too, which the simulation leaves out: the last one, but where an earlier one is clearly better.

How rules fare (`python -m benchmarks.threshold_promise`: 6 kinds of attributes, of 100, 300, 1,000 and 3,000 validation
products, 500 draws of each, target 0.9): share of draws in which precision reaches the target in truth, in the worst of
the 24 cases, on a test side of twice the size, and there in the worst case (nothing accepted breaks no promise); mean
recall; all in %. The first rule looks at no bound, only at 20 products or more.

    lowest that reaches the target      57.8   42.2   58.8   43.8   66.4
    lowest that passes                  96.8   94.8   94.4   91.0   52.8
    sequence from the top               99.6   98.0   98.8   97.2   33.5
    the same, room for two errors       99.4   98.0   98.3   96.2   41.0
    Bonferroni over a grid             100.0   99.6   99.8   99.4   37.0
    sequence from the surest (ours)     99.3   97.6   98.2   95.8   46.4

At target 0.95 ours keeps 99.4, 98.0, 98.0 and 95.4 at recall 18.8, the lowest that passes 96.5, 94.6, 93.3 and 86.4 at
25.1. With families of 4 the design effect brings 97.3, 94.2, 95.3 and 91.0 to 99.1, 98.0, 97.9 and 95.8; recall falls
from 35.2 to 29.5.

Of 12 values of which one is bad, at 3,000 validation products one threshold for all accepts 7.9 % of its values where
precision is below 0.85, at recall 55.3; own thresholds from 300 predictions on 0.8 % at 50.3, from 200 on 0.3 % at 47.9, from
100 on 0.0 % at 39.5. The promise for the whole attribute is kept by all (98 to 99 % in truth). So 300 is the default.

With a temperature fitted on the same products, of models up to twice too sure, it is kept for 98.4 to
100 % of attributes, by size, at more recall than without one (51.8 instead of 48.3 % at 3,000 products). With the weight
of the picture alone chosen there too, for 99.6, 99.2 and 100.0 % at 400, 1,000 and 3,000 products (without: 99.6, 99.0 and
99.8 %), at recall 74.1, 81.0 and 62.3 instead of 60.4, 76.1 and 45.2 (at 3,000 each value has a threshold of its own).

Letters of shapes: m candidates.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from scipy.special import betainc

from cma_clip_core.arrays import Bools, Doubles, Floats, Integers
from cma_clip_core.config import SelectionConfig
from cma_clip_core.evaluation.candidates import candidates
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.evaluation.recall_at_precision import ends_of_equals
from cma_clip_core.model_documents import Threshold

GROWTH: Final = 1.1  # of the number accepted from one test to the next


def lower_bound_reaches(right: Doubles, accepted: Doubles, target: float, confidence: float) -> Bools:
    """Return where the one-sided Clopper-Pearson lower bound of right / accepted is at least `target`.

    The bound b of r of k is where P(X >= r; k, b) = 1 - confidence, that is the quantile 1 - confidence of
    Beta(r, k - r + 1); it is at least the target where that distribution's mass below the target is at most
    1 - confidence, which costs a hundredth of the quantile.

    Args:
        right: [...] effective numbers, not always whole.
        accepted: [...] the same.
        target: precision, 0 to 1.
        confidence: 0 to 1.
    """
    return np.asarray(_below(right, accepted, target) <= 1 - confidence)


def fewest_right(target: float, level: float) -> int:
    """Return how many candidates, all right and of different families, are the fewest that can pass a test.

    The bound of k of k is where target ** k = 1 - level.
    """
    return math.ceil(math.log(1 - level) / math.log(target) - 1e-9)


def _below(right: Doubles, accepted: Doubles, target: float) -> Doubles:
    mass: Doubles = betainc(np.maximum(right, 1e-9), accepted - right + 1, target)
    return mass


def correlation_within(residual: Doubles, cluster: Integers) -> float:
    """Return the correlation of `residual` within clusters, 0 to 1: the one-way ANOVA estimator.

    (MSB - MSW) / (MSB + (m0 - 1) MSW); Ridout, Demétrio and Firth 1999, "Estimating Intraclass Correlation for Binary
    Data", Biometrics 55. 0 where no cluster has two members.

    Args:
        residual: [m] right (1 or 0) less confidence.
        cluster: [m] the cluster of each, any numbers.
    """
    _, at, sizes = np.unique(cluster, return_inverse=True, return_counts=True)
    n, groups = len(cluster), len(sizes)
    if n == groups or groups < 2:
        return 0.0
    sums = np.bincount(at, residual)
    between = (np.sum(sums**2 / sizes) - residual.sum() ** 2 / n) / (groups - 1)
    within = (np.sum(residual**2) - np.sum(sums**2 / sizes)) / (n - groups)
    size = (n - np.sum(sizes**2) / n) / (groups - 1)
    whole = between + (size - 1) * within
    return float(np.clip((between - within) / whole, 0, 1)) if whole > 0 else 0.0


def design_effect(ranked_cluster: Integers, correlation: float) -> Doubles:
    """Return Kish's design effect of each first k of ranked candidates, [m], at least 1.

    Args:
        ranked_cluster: [m] the cluster of each candidate, by falling confidence.
        correlation: within clusters.
    """
    order = np.argsort(ranked_cluster, kind="stable")
    grouped = ranked_cluster[order]
    first = np.append(True, grouped[1:] != grouped[:-1])[: len(grouped)]
    start = np.maximum.accumulate(np.where(first, np.arange(len(grouped)), 0))
    before = np.empty(len(grouped), dtype=np.int64)  # members of its cluster ranked above
    before[order] = np.arange(len(grouped)) - start
    # A cluster that grows from c to c + 1 adds (c + 1)^2 - c^2 to the sum of squares.
    mean_size = np.cumsum(2 * before + 1) / np.arange(1, len(grouped) + 1)
    effect: Doubles = 1 + correlation * (mean_size - 1)
    return effect


def promised_threshold(
    confidence: Floats, right: Bools, cluster: Integers, target: float, level: float, correlation: float = 0.0
) -> float | None:
    """Return the threshold of the rule above, or None where none keeps the promise.

    Args:
        confidence: [m] calibrated.
        right: [m].
        cluster: [m] candidates that are right and wrong together.
        target: precision, 0 to 1.
        level: confidence of the promise, 0 to 1.
        correlation: within clusters.
    """
    if not len(confidence):
        return None
    order = np.argsort(-confidence, kind="stable")
    ranked, number = confidence[order], np.arange(1, len(order) + 1)
    effective = number / design_effect(cluster[order], correlation)
    last = ends_of_equals(ranked)
    expected = np.cumsum(ranked, dtype=np.float64)[last] / number[last]
    start = int(np.argmin(_below(effective[last] * expected, effective[last], target)))
    tested = last[start + _growing(number[last][start:])]
    share = np.cumsum(right[order])[tested] / number[tested]
    passed = lower_bound_reaches(effective[tested] * share, effective[tested], target, level)
    passes = len(passed) if passed.all() else int(np.argmin(passed))
    return float(ranked[tested[passes - 1]]) if passes else None


def _growing(counts: Integers) -> Integers:
    """Return places in rising `counts`: the first, then each that has grown by `GROWTH`, and the last."""
    steps = int(np.log(counts[-1] / counts[0]) / np.log(GROWTH)) + 1
    wanted = counts[0] * GROWTH ** np.arange(steps)
    places = np.append(np.searchsorted(counts, wanted), len(counts) - 1)
    return np.unique(np.minimum(places, len(counts) - 1)).astype(np.int64)


def choose_threshold(predictions: Predictions, temperature: float, selection: SelectionConfig) -> Threshold:
    """Choose the thresholds of an attribute on validation products.

    A value that is predicted at least `selection.value_predictions` times has a threshold of its own, so that a bad value
    does not hide behind good ones; all others share one.
    """
    attribute = predictions.attribute
    found = candidates(predictions, temperature)
    classes = len(attribute.values)
    cluster = found.family
    if attribute.multi_valued:  # siblings share a value's fate; values of one product do not share each other's
        cluster = np.unique(found.family, return_inverse=True)[1] * classes + found.value
    correlation = correlation_within(found.right - found.confidence.astype(np.float64), cluster)

    def choose(chosen: Bools) -> float | None:
        return promised_threshold(
            found.confidence[chosen], found.right[chosen], cluster[chosen], attribute.target_precision,
            selection.promise_confidence, correlation,
        )  # fmt: skip

    often = np.bincount(found.value[found.predicted], minlength=classes) >= selection.value_predictions
    own = {attribute.value_names[c]: choose(found.value == c) for c in np.flatnonzero(often)}
    threshold = Threshold(
        threshold=choose(~often[found.value]),
        values=own,
        temperature=temperature,
        target_precision=attribute.target_precision,
        precision=None,
        accepted=0,
        candidates=len(found),
    )
    accepted = found.accepted(threshold.limits(attribute))
    if not accepted.any():
        return threshold
    precision = float(found.right[accepted].mean())
    return threshold.model_copy(update={"precision": precision, "accepted": int(accepted.sum())})
