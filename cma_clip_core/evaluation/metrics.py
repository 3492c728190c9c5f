"""Metrics of a method, attribute by attribute. Pure functions on numpy; loads no torch.

All metrics use calibrated confidences. Precision counts any answer for a product with an unlisted value as wrong; all other
metrics use only products with a listed value. scikit-learn is slow to import, so functions import it where they need it.

Letters of shapes: n products with a value, C values of one attribute, m candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cma_clip_core.arrays import Bools, Doubles, Floats
from cma_clip_core.evaluation.candidates import Candidates, candidates
from cma_clip_core.evaluation.predictions import LIKELY, Predictions
from cma_clip_core.evaluation.recall_at_precision import recall_at_precision
from cma_clip_core.model_documents import (
    AttributeMetrics,
    Confusion,
    MethodMetrics,
    Metrics,
    Promise,
    Threshold,
    ValueMetrics,
    ValuesMetrics,
)

PAPER_PRECISION: Final = 0.9  # arXiv 2112.03562 reports recall at this precision
BINS: Final = 15
CONFUSIONS: Final = 3


def judge(predictions: Predictions, threshold: Threshold, text_fields: Sequence[str]) -> AttributeMetrics:
    """Return the metrics of an attribute at the thresholds that ship.

    Args:
        predictions: predictions for the products of the judged side that have a value.
        threshold: the attribute's thresholds and temperature, chosen on another side.
        text_fields: the fields that the method reads; a label that they name is not silent.
    """
    attribute, temperature = predictions.attribute, threshold.temperature
    every = candidates(predictions, temperature)
    silent = candidates(predictions, temperature, silent_in=text_fields)
    accepted = every.accepted(threshold.limits(attribute))
    right = (accepted & every.right).sum()
    listed = predictions.with_target()
    confidence, best_right = best_values(listed, temperature)
    text_weight, image_weight = predictions.lambdas.mean(axis=0) if len(predictions) else (0.0, 0.0)
    return AttributeMetrics(
        n=len(listed),
        n_unlisted=every.unlisted,
        n_silent=int(predictions.silent(text_fields).any(axis=1).sum()),
        accuracy=share(best_right.sum(), len(listed)),
        macro_f1=macro_f1(listed, temperature),
        average_precision=average_precision(every),
        calibration_error=calibration_error(confidence, best_right),
        target_precision=attribute.target_precision,
        recall_at_target=recall_at(every, attribute.target_precision),
        recall_at_90=recall_at(every, PAPER_PRECISION),
        silent_recall_at_target=recall_at(silent, attribute.target_precision),
        silent_recall_at_90=recall_at(silent, PAPER_PRECISION),
        coverage=share(accepted.sum(), every.positives + every.unlisted),
        precision=share(right, accepted.sum()),
        recall=share(right, every.positives),
        text_weight=float(text_weight),
        image_weight=float(image_weight),
    )


def coverage(predictions: Predictions, threshold: Threshold) -> float | None:
    """Return the accepted values, right or wrong, as a share of the values that the catalog gives; None if it gives none."""
    every = candidates(predictions, threshold.temperature)
    return share(every.accepted(threshold.limits(predictions.attribute)).sum(), every.positives + every.unlisted)


def judge_all(
    predictions: Mapping[str, Predictions], thresholds: Mapping[str, Threshold], text_fields: Sequence[str]
) -> dict[str, AttributeMetrics]:
    """Return the metrics of every attribute. The arguments are those of `judge`, by attribute name."""
    return {name: judge(p, thresholds[name], text_fields) for name, p in predictions.items()}


def method_metrics(method: str, attributes: Mapping[str, AttributeMetrics]) -> MethodMetrics:
    """Return a method's metrics and their means, without intervals (`cma_clip_core.evaluation.bootstrap` adds them)."""
    return MethodMetrics(
        method=method,
        attributes=dict(attributes),
        mean_recall_at_90=_mean(m.recall_at_90 for m in attributes.values()),
        mean_silent_recall_at_90=_mean(m.silent_recall_at_90 for m in attributes.values()),
        promise=promise_kept(attributes),
    )


def promise_kept(attributes: Mapping[str, AttributeMetrics]) -> Promise:
    """Return which attributes keep the precision that their thresholds promise, on the judged side."""
    precisions = {name: m.precision for name, m in attributes.items() if m.precision is not None}
    reached = {name: precision >= attributes[name].target_precision for name, precision in precisions.items()}
    return Promise(
        kept=tuple(name for name in precisions if reached[name]),
        broken={name: precision for name, precision in precisions.items() if not reached[name]},
        nothing=tuple(name for name in attributes if name not in precisions),
    )


def best_values(predictions: Predictions, temperature: float = 1.0) -> tuple[Floats, Bools]:
    """Return the probability [n] of each product's best value, and whether it is right [n]; never for an unlisted value."""
    if not len(predictions):
        return np.zeros(0, np.float32), np.zeros(0, np.bool_)
    probabilities = predictions.probabilities(temperature)
    rows, best = np.arange(len(predictions)), probabilities.argmax(axis=1)
    return probabilities[rows, best], predictions.targets[rows, best]


def _accuracies(predictions: Mapping[str, Predictions]) -> list[tuple[float, int]]:
    """Return the accuracy of each labelled attribute, and the number of its products."""
    listed = (p.with_target() for p in predictions.values())
    return [(float(best_values(p)[1].mean()), len(p)) for p in listed if len(p)]


def mean_accuracy(predictions: Mapping[str, Predictions]) -> float:
    """Return the mean accuracy of the best value over the labelled attributes; 0 if there are none."""
    return _mean(rate for rate, _ in _accuracies(predictions)) or 0.0


def accuracy_error(predictions: Mapping[str, Predictions]) -> float:
    """Return the standard error of `mean_accuracy` for independent labels: sqrt(sum_k p_k (1 - p_k) / n_k) / K.

    It is 0 if no attribute is labelled.
    """
    rates = _accuracies(predictions)
    return math.sqrt(sum(rate * (1 - rate) / n for rate, n in rates)) / max(len(rates), 1)


def recall_at(every: Candidates, precision: float) -> float | None:
    """Return the recall of candidates at a precision (cma_clip_core.evaluation.recall_at_precision); None without positives."""
    return recall_at_precision(every.confidence, every.right, every.positives, precision)


def average_precision(every: Candidates) -> float | None:
    """Return the area under the precision-recall curve of candidates; None if there are no positives.

    It is scikit-learn's step-wise sum of (R_k - R_(k-1)) P_k, with the recall over all positives. A product whose best
    value is wrong is never recalled, so the area is at most the accuracy.
    """
    from sklearn.metrics import average_precision_score

    if not every.positives:
        return None
    if not every.right.any():
        return 0.0
    area = average_precision_score(every.right, every.confidence)
    return float(area * every.right.sum() / every.positives)


def macro_f1(predictions: Predictions, temperature: float = 1.0) -> float | None:
    """Return the mean F1 over the values that occur in the targets; None if no product has a target."""
    from sklearn.metrics import f1_score

    predictions = predictions.with_target()
    if not len(predictions):
        return None
    predicted, targets = predicted_values(predictions, temperature), predictions.targets
    occurs = np.flatnonzero(targets.any(axis=0))
    if not predictions.attribute.multi_valued:
        best = predicted.argmax(axis=1)
        return float(f1_score(targets.argmax(axis=1), best, labels=occurs, average="macro", zero_division=0.0))
    return float(f1_score(targets, predicted, labels=occurs, average="macro", zero_division=0.0))


def predicted_values(predictions: Predictions, temperature: float = 1.0) -> Bools:
    """Return the values [n, C] bool that the tagger reports, accepted or not.

    These are the best value and, for a multi-valued attribute, all likely ones.
    """
    probabilities = predictions.probabilities(temperature)
    several = predictions.attribute.multi_valued
    predicted = probabilities >= LIKELY if several else np.zeros(probabilities.shape, np.bool_)
    if len(predictions):
        predicted[np.arange(len(predictions)), probabilities.argmax(axis=1)] = True
    return np.asarray(predicted)


def judge_values(predictions: Predictions, temperature: float = 1.0) -> ValuesMetrics:
    """Return the precision and recall of each value of an attribute, and the most common confusions.

    A confusion is a product with a true value that is not predicted and a wrong value that is. With a multi-valued attribute,
    a product may count for several confusions.

    Args:
        predictions: predictions for the products of the judged side that have a value.
        temperature: the attribute's temperature (cma_clip_core.evaluation.calibration).
    """
    names, targets = predictions.attribute.value_names, predictions.targets
    predicted = predicted_values(predictions, temperature)
    support, answers, right = (values.sum(axis=0) for values in (targets, predicted, targets & predicted))
    metrics = {
        name: ValueMetrics(
            support=int(support[c]),
            predicted=int(answers[c]),
            precision=share(right[c], answers[c]),
            recall=share(right[c], support[c]),
        )
        for c, name in enumerate(names)
    }
    counts = (targets & ~predicted).T.astype(np.int64) @ (predicted & ~targets).astype(np.int64)  # [C, C]
    commonest = np.argsort(-counts, axis=None, kind="stable")[:CONFUSIONS]
    pairs = zip(*np.unravel_index(commonest, counts.shape), strict=True)
    confusions = (Confusion(true=names[t], predicted=names[p], count=int(counts[t, p])) for t, p in pairs)
    return ValuesMetrics(values=metrics, confusions=tuple(c for c in confusions if c.count))


@dataclass(slots=True)
class Reliability:
    """A reliability diagram: bins of equal mass, by rising confidence."""

    confidence: Doubles  # [bins], mean confidence
    accuracy: Doubles  # [bins], share that is right
    count: npt.NDArray[np.int64]  # [bins]


def reliability(confidence: Floats, right: Bools, bins: int = BINS) -> Reliability:
    """Return the reliability diagram of confidences [n], right or wrong [n], in at most `bins` bins.

    The bins have equal mass, because bins of equal width put most products of a confident model into one bin (Nixon et
    al. 2019, "Measuring Calibration in Deep Learning"). scikit-learn's curve has such bins too, but no counts.
    """
    order = np.argsort(confidence, kind="stable")
    edges = np.unique(np.linspace(0, len(order), bins + 1).round().astype(np.int64))
    starts, count = edges[:-1], np.diff(edges)
    if not len(starts):
        return Reliability(np.zeros(0), np.zeros(0), count)
    means = [
        np.add.reduceat(values[order].astype(np.float64), starts) / count for values in (confidence, right)
    ]  # fmt: skip
    return Reliability(means[0], means[1], count)


def calibration_error(confidence: Floats, right: Bools) -> float | None:
    """Return the expected calibration error of confidences [n], right or wrong [n]; None if there are none.

    It is the mean over products of |accuracy - confidence| of their bin, in `BINS` bins of equal mass (Guo et al. 2017,
    equation 3).
    """
    bins = reliability(confidence, right)
    if not len(bins.count):
        return None
    return float(np.average(np.abs(bins.accuracy - bins.confidence), weights=bins.count))


def mean_of(metrics: Mapping[str, AttributeMetrics], name: str) -> float:
    """Return the mean of one metric over the attributes that have it; 0 if none has."""
    return _mean(getattr(m, name) for m in metrics.values()) or 0.0


def mean_recall(metrics: Metrics) -> float:
    """Return the mean over the learnt attributes of the recall at the target precision, on test."""
    return mean_of(learnt(metrics), "recall_at_target")


def learnt(metrics: Metrics) -> dict[str, AttributeMetrics]:
    """Return the metrics on test of the attributes that were learnt; means are over these."""
    return {name: m for name, m in metrics.test.items() if name not in metrics.not_learnt}


def share(part: Any, whole: Any) -> float | None:
    """Return part / whole, or None if the whole is 0."""
    return float(part) / float(whole) if whole else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
