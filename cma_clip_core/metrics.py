"""How good a model is, attribute by attribute. Pure functions on numpy; loads no torch.

Letters of shapes: n labelled products, C values of one attribute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cma_clip_core.predictions import Predictions
from cma_clip_core.thresholds import accepts, lowest_threshold, recall_at_precision
from schemas.loading import Strict
from schemas.taxonomy import Attribute, Taxonomy

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Outcomes:
    """What a model said on the labelled products of one attribute.

    A candidate is the best value of a product, or of a multi-valued attribute each (product, value).
    """

    labelled: int  # n
    best_right: int  # products whose best value is right
    confidence: Floats  # [candidates]
    right: Bools  # [candidates]
    positives: int  # right values there are: n, or of a multi-valued attribute all true (product, value) pairs
    text_weight: float  # mean over the products
    image_weight: float  # mean over the products


def outcomes(attribute: Attribute, probabilities: Floats, targets: Bools, lambdas: Floats) -> Outcomes:
    """Compare a model with the labels.

    Args:
        attribute: the attribute.
        probabilities: [n, C], of its labelled products.
        targets: [n, C], True at the values a product has.
        lambdas: [n, 2], modality-wise attention on text and picture.
    """
    rows = np.arange(len(probabilities))
    best = probabilities.argmax(axis=1) if len(rows) else rows
    best_right = targets[rows, best]
    text_weight, image_weight = lambdas.mean(axis=0) if len(rows) else (0.0, 0.0)
    return Outcomes(
        labelled=len(rows),
        best_right=int(best_right.sum()),
        confidence=probabilities.ravel() if attribute.multi_valued else probabilities[rows, best],
        right=targets.ravel() if attribute.multi_valued else best_right,
        positives=int(targets.sum()) if attribute.multi_valued else len(rows),
        text_weight=float(text_weight),
        image_weight=float(image_weight),
    )


def outcomes_of(predictions: Mapping[str, Predictions]) -> dict[str, Outcomes]:
    """Return the outcomes of every attribute."""
    return {name: outcomes(p.attribute, p.probabilities(), p.targets, p.lambdas) for name, p in predictions.items()}


class Threshold(Strict):
    """The threshold of one attribute, and what it did on the validation products it was chosen on."""

    threshold: float | None  # None: no threshold keeps the promise, so nothing is accepted
    target_precision: float
    precision: float | None
    accepted: int
    candidates: int


class AttributeMetrics(Strict):
    """One attribute on one side of the split."""

    n: int  # labelled products
    accuracy: float | None  # share of them whose best value is right
    target_precision: float
    recall_at_target: float | None  # the paper's: at the lowest threshold, on these products, that reaches the target
    coverage: float | None  # at the threshold that ships: accepted right and wrong, over all true values
    precision: float | None  # at the threshold that ships
    recall: float | None  # at the threshold that ships
    text_weight: float
    image_weight: float


def choose_threshold(attribute: Attribute, found: Outcomes, min_accepted: int) -> Threshold:
    """Choose the threshold of an attribute from its validation outcomes."""
    threshold = lowest_threshold(found.confidence, found.right, attribute.target_precision, min_accepted)
    accepted = accepts(found.confidence, threshold)
    return Threshold(
        threshold=threshold,
        target_precision=attribute.target_precision,
        precision=share(found.right[accepted].sum(), accepted.sum()),
        accepted=int(accepted.sum()),
        candidates=len(found.confidence),
    )


def judge(attribute: Attribute, found: Outcomes, threshold: float | None) -> AttributeMetrics:
    """Return the metrics of an attribute at the threshold that ships."""
    accepted = accepts(found.confidence, threshold)
    right = (accepted & found.right).sum()
    target = attribute.target_precision
    return AttributeMetrics(
        n=found.labelled,
        accuracy=share(found.best_right, found.labelled),
        target_precision=target,
        recall_at_target=recall_at_precision(found.confidence, found.right, found.positives, target),
        coverage=share(accepted.sum(), found.positives),
        precision=share(right, accepted.sum()),
        recall=share(right, found.positives),
        text_weight=found.text_weight,
        image_weight=found.image_weight,
    )


def judge_all(
    taxonomy: Taxonomy, found: Mapping[str, Outcomes], thresholds: Mapping[str, Threshold]
) -> dict[str, AttributeMetrics]:
    """Return the metrics of every attribute."""
    return {a.name: judge(a, found[a.name], thresholds[a.name].threshold) for a in taxonomy.attributes}


def mean_of(metrics: Mapping[str, AttributeMetrics], name: str) -> float:
    """Return the mean of one metric over the attributes that have it; 0 where none has."""
    values = [value for m in metrics.values() if (value := getattr(m, name)) is not None]
    return float(np.mean(values)) if values else 0.0


def share(part: Any, whole: Any) -> float | None:
    """Return part / whole, or None where there is nothing to divide by."""
    return float(part) / float(whole) if whole else None
