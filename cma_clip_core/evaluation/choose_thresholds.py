"""Selection of thresholds that keep a promised precision on unseen products, with 95 % confidence.

The rule, for one group of candidates ranked by confidence:

1. *Test of one threshold.* On validation, r of the k candidates at or above the threshold are right. The threshold passes
   if the one-sided Clopper-Pearson lower bound of the precision (Clopper and Pearson 1934) reaches the target.
2. *Families.* Products of a family tend to be right or wrong together. So r and k are divided by Kish's design effect
   1 + rho (sum m^2 / sum m - 1) (Kish 1965, "Survey Sampling"). Here m are the sizes of the families among the k.
   Clopper-Pearson with an effective size is Korn and Graubard's interval (1998). rho is the correlation within families
   of the residuals, right minus confidence. It is estimated from all candidates of the attribute.
3. *Many thresholds.* Among hundreds of tested thresholds some pass by chance, and the lowest one that passes would be the
   luckiest. So thresholds are tested in a sequence that the confidences alone fix. The number of accepted candidates grows
   by a tenth at each step, and the first failure ends the sequence. Such fixed-sequence testing needs no correction
   (Angelopoulos et al. 2021, "Learn then Test", arXiv 2110.01052).
   A sequence from the very top could end too early, by a single error. So it starts where a pass is most likely according
   to the confidences. If these are wrong, the test fails there and nothing is accepted, so the promise still holds.
   The sequence depends on the labels only by three numbers: the temperature, rho, and the weight of the picture evidence
   (one of nine; cma_clip_core.evaluation.picture_evidence). The last numbers below show that this does no harm.
   The same labels also chose the epoch, which the simulation leaves out: the last one, unless an earlier one is clearly
   better.

The table compares rules by simulation (`python -m benchmarks.threshold_promise`): 6 kinds of attributes, with 100, 300,
1,000 and 3,000 validation products, 500 draws of each, target 0.9. The columns, in %:

- true: share of draws in which the true precision reaches the target; worst: the same, in the worst of the 24 cases
- test: the same with the precision on a test side of twice the size; worst: the same, in the worst of the 24 cases
- recall: mean recall

A draw in which nothing is accepted keeps the promise. The first rule uses no bound, but requires 20 products or more.

| rule | true | worst | test | worst | recall |
|---|---|---|---|---|---|
| lowest that reaches the target | 57.8 | 42.2 | 58.8 | 43.8 | 66.4 |
| lowest that passes | 96.8 | 94.8 | 94.4 | 91.0 | 52.8 |
| sequence from the top | 99.6 | 98.0 | 98.8 | 97.2 | 33.5 |
| the same, with room for two errors | 99.4 | 98.0 | 98.3 | 96.2 | 41.0 |
| Bonferroni over a grid | 100.0 | 99.6 | 99.8 | 99.4 | 37.0 |
| sequence from the likeliest pass (ours) | 99.3 | 97.6 | 98.2 | 95.8 | 46.4 |
| target 0.95: lowest that passes | 96.5 | 94.6 | 93.3 | 86.4 | 25.1 |
| target 0.95: ours | 99.4 | 98.0 | 98.0 | 95.4 | 18.8 |
| families of 4: ours without the design effect | 97.3 | 94.2 | 95.3 | 91.0 | 35.2 |
| families of 4: ours | 99.1 | 98.0 | 97.9 | 95.8 | 29.5 |

An attribute of 12 values, one of them bad, shows why frequent values have their own threshold. At 3,000 validation
products, "bad" is the share of the accepted candidates whose value has a precision below 0.85, in %:

| thresholds | bad | recall |
|---|---|---|
| one for all values | 7.9 | 55.3 |
| own, from 300 predictions | 0.8 | 50.3 |
| own, from 200 predictions | 0.3 | 47.9 |
| own, from 100 predictions | 0.0 | 39.5 |

All of these keep the promise for the whole attribute (98 to 99 % in truth), so the default is 300.

The simulated models are up to twice too confident. With a temperature fitted on the same products, the promise is kept for
98.4 to 100 % of attributes, depending on size. Recall rises with it, from 48.3 to 51.8 % at 3,000 products. With the
weight of the picture evidence chosen on the same products too (at 3,000 products each value has its own threshold), in %:

| validation products | 400 | 1,000 | 3,000 |
|---|---|---|---|
| kept, without the picture evidence | 99.6 | 99.0 | 99.8 |
| kept, with it | 99.6 | 99.2 | 100.0 |
| recall, without it | 60.4 | 76.1 | 45.2 |
| recall, with it | 74.1 | 81.0 | 62.3 |

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

GROWTH: Final = 1.1  # factor of the number of accepted candidates from one test to the next


def lower_bound_reaches(right: Doubles, accepted: Doubles, target: float, confidence: float) -> Bools:
    """Return where the one-sided Clopper-Pearson lower bound of right / accepted is at least `target`.

    The bound b for r of k satisfies P(X >= r; k, b) = 1 - confidence: it is the quantile 1 - confidence of
    Beta(r, k - r + 1). It is at least the target if that distribution's mass below the target is at most 1 - confidence.
    Computing the mass costs a hundredth of computing the quantile.

    Args:
        right: [...] effective numbers of right candidates, not always whole.
        accepted: [...] effective numbers of accepted candidates.
        target: precision, 0 to 1.
        confidence: 0 to 1.
    """
    return np.asarray(_below(right, accepted, target) <= 1 - confidence)


def fewest_right(target: float, level: float) -> int:
    """Return the smallest number of candidates, all right and of different families, that can pass a test.

    The bound for k of k right candidates reaches the target where target ** k = 1 - level.
    """
    return math.ceil(math.log(1 - level) / math.log(target) - 1e-9)


def _below(right: Doubles, accepted: Doubles, target: float) -> Doubles:
    mass: Doubles = betainc(np.maximum(right, 1e-9), accepted - right + 1, target)
    return mass


def correlation_within(residual: Doubles, cluster: Integers) -> float:
    """Return the correlation of `residual` within clusters, 0 to 1, by the one-way ANOVA estimator.

    The estimator is (MSB - MSW) / (MSB + (m0 - 1) MSW); see Ridout, Demétrio and Firth 1999, "Estimating Intraclass
    Correlation for Binary Data", Biometrics 55. It is 0 if no cluster has two members.

    Args:
        residual: [m] right (1 or 0) minus confidence.
        cluster: [m] the cluster of each candidate, any numbers.
    """
    _, group, sizes = np.unique(cluster, return_inverse=True, return_counts=True)
    n, groups = len(cluster), len(sizes)
    if n == groups or groups < 2:
        return 0.0
    sums = np.bincount(group, residual)
    between = (np.sum(sums**2 / sizes) - residual.sum() ** 2 / n) / (groups - 1)
    within = (np.sum(residual**2) - np.sum(sums**2 / sizes)) / (n - groups)
    size = (n - np.sum(sizes**2) / n) / (groups - 1)
    whole = between + (size - 1) * within
    return float(np.clip((between - within) / whole, 0, 1)) if whole > 0 else 0.0


def design_effect(ranked_cluster: Integers, correlation: float) -> Doubles:
    """Return Kish's design effect of the first k ranked candidates, for each k, [m], at least 1.

    Args:
        ranked_cluster: [m] the cluster of each candidate, by falling confidence.
        correlation: correlation within clusters.
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
    """Return the threshold of this module's rule, or None if no threshold keeps the promise.

    Args:
        confidence: [m] calibrated confidences.
        right: [m] whether each candidate is right.
        cluster: [m] the cluster of each candidate; members tend to be right or wrong together.
        target: precision, 0 to 1.
        level: confidence of the promise, 0 to 1.
        correlation: correlation within clusters.
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
    """Return indices into the rising `counts`: the first, each one that has grown by `GROWTH`, and the last."""
    steps = int(np.log(counts[-1] / counts[0]) / np.log(GROWTH)) + 1
    wanted = counts[0] * GROWTH ** np.arange(steps)
    indices = np.append(np.searchsorted(counts, wanted), len(counts) - 1)
    return np.unique(np.minimum(indices, len(counts) - 1)).astype(np.int64)


def choose_threshold(predictions: Predictions, temperature: float, selection: SelectionConfig) -> Threshold:
    """Choose the thresholds of an attribute on validation products.

    A value that is predicted at least `selection.value_predictions` times has its own threshold, so that a bad value does
    not hide behind good ones. All other values share one.
    """
    attribute = predictions.attribute
    proposed = candidates(predictions, temperature)
    classes = len(attribute.values)
    cluster = proposed.family
    if attribute.multi_valued:  # a value is right or wrong for a whole family; the values of a product are independent
        cluster = np.unique(proposed.family, return_inverse=True)[1] * classes + proposed.value
    correlation = correlation_within(proposed.right - proposed.confidence.astype(np.float64), cluster)

    def choose(group: Bools) -> float | None:
        return promised_threshold(
            proposed.confidence[group], proposed.right[group], cluster[group], attribute.target_precision,
            selection.promise_confidence, correlation,
        )  # fmt: skip

    often = np.bincount(proposed.value[proposed.predicted], minlength=classes) >= selection.value_predictions
    own = {attribute.value_names[c]: choose(proposed.value == c) for c in np.flatnonzero(often)}
    threshold = Threshold(
        threshold=choose(~often[proposed.value]),
        values=own,
        temperature=temperature,
        target_precision=attribute.target_precision,
        precision=None,
        accepted=0,
        candidates=len(proposed),
    )
    accepted = proposed.accepted(threshold.limits(attribute))
    if not accepted.any():
        return threshold
    precision = float(proposed.right[accepted].mean())
    return threshold.model_copy(update={"precision": precision, "accepted": int(accepted.sum())})
