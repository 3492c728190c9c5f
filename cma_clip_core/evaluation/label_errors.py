"""Detection of wrong labels, by models that never saw the labels of a product or of its family.

Families are dealt into folds, and each fold is judged by a model trained on the others (out-of-fold predictions).
Confident learning separates wrong labels from the model's own errors (Northcutt et al., "Confident Learning: Estimating
Uncertainty in Dataset Labels", JAIR 2021; implemented by cleanlab).

Letters of shapes: n labelled products, C values of one attribute.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cleanlab.filter import find_label_issues

from cma_clip_core.arrays import Floats
from cma_clip_core.catalog.examples import ExampleIndex
from cma_clip_core.catalog.hashing import family_fraction
from cma_clip_core.catalog.splits import SIDES
from cma_clip_core.evaluation.predictions import Predictions

# Share of the families outside a fold that choose the epoch and the weight of the picture evidence.
VALIDATION_SHARE = 0.1
LEAST_LABELS = 50  # fewest labels of an attribute whose noise can be estimated


def fold_index(index: ExampleIndex, fold: int, folds: int) -> ExampleIndex:
    """Return the examples with one fold of the families on the test side, and the others to train and validate on."""
    families, inverse = np.unique(index.family, return_inverse=True)
    # A different salt from the split's, so that folds and sides are drawn independently.
    fractions = np.array([family_fraction(int(family), salt=b"folds") for family in families])
    scaled = fractions[inverse] * folds
    inside = scaled - np.floor(scaled)  # spread evenly over [0, 1) within the fold
    side = np.where(inside < VALIDATION_SHARE, SIDES.index("validation"), SIDES.index("train"))
    side = np.where(scaled.astype(np.int64) == fold, SIDES.index("test"), side).astype(np.int8)
    return ExampleIndex(index.files, index.file, index.row, side, index.family)


@dataclass(frozen=True, slots=True)
class Suspect:
    """A label that is probably wrong."""

    product: str
    attribute: str
    catalog_value: str | None  # None: a value of a multi-valued attribute is missing
    model_value: str | None  # None: a value of a multi-valued attribute is wrong, and no other one replaces it
    confidence: float  # of the out-of-fold model, in its value, or that the catalog's value is wrong
    label_confidence: float  # of the out-of-fold model, in the catalog's label


def find_suspects(predictions: Predictions, temperature: float) -> list[Suspect]:
    """Return the suspected wrong labels of an attribute, the most certain first.

    Args:
        predictions: out-of-fold predictions of all products that have a value. An unlisted value is never suspected,
            because no model knows it.
        temperature: the temperature that calibrates them.
    """
    predictions = predictions.with_target()
    if len(predictions) < LEAST_LABELS:
        return []
    probabilities = predictions.probabilities(temperature)
    find = _several if predictions.attribute.multi_valued else _single
    return sorted(find(predictions, probabilities), key=lambda s: (s.label_confidence, s.product))


def _single(predictions: Predictions, probabilities: Floats) -> list[Suspect]:
    attribute, rows = predictions.attribute, np.arange(len(predictions))
    labels = predictions.targets.argmax(axis=1)
    best = probabilities.argmax(axis=1)
    return [
        Suspect(
            predictions.products[row], attribute.name, attribute.value_names[labels[row]],
            attribute.value_names[best[row]], float(probabilities[row, best[row]]), float(probabilities[row, labels[row]]),
        )
        for row in rows[_issues(labels, probabilities) & (best != labels)]
    ]  # fmt: skip


def _several(predictions: Predictions, probabilities: Floats) -> list[Suspect]:
    """Return the suspects of a multi-valued attribute, value by value: given but wrong, or missing."""
    attribute, suspects = predictions.attribute, []
    for c, value in enumerate(attribute.value_names):
        given, p = predictions.targets[:, c], probabilities[:, c].astype(np.float64)
        for row in np.flatnonzero(_issues(given.astype(np.int64), np.stack([1 - p, p], axis=1))):
            right = p[row] if given[row] else 1 - p[row]
            if right < 0.5:
                catalog, model = (value, None) if given[row] else (None, value)
                product = predictions.products[row]
                suspects.append(Suspect(product, attribute.name, catalog, model, float(1 - right), float(right)))
    return suspects


def _issues(labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Return the labels that confident learning considers wrong [n] bool."""
    seen = np.unique(labels)
    if len(seen) < 2:
        return np.zeros(len(labels), dtype=np.bool_)
    known = probabilities[:, seen].astype(np.float64)
    known = known / np.maximum(known.sum(axis=1, keepdims=True), 1e-12)
    issues = find_label_issues(np.searchsorted(seen, labels), known, filter_by="prune_by_noise_rate", n_jobs=1)
    return np.asarray(issues, dtype=np.bool_)
