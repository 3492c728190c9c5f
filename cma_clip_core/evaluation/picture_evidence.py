"""Per-attribute weight of the image-only logits that are added to the fused logits.

A text that names a value is nearly always right, so the fused answer learns to follow it. It is just as confident where
the text errs. The image-only head (`CmaClip.alone`) does not see the text: where it disagrees, confidence should fall. The
two are pooled by a weighted sum of logits, a logarithmic opinion pool (Genest and Zidek 1986, "Combining Probability
Distributions", Statistical Science 1). The weight of each attribute is chosen on validation.

Letters of shapes: n products with a value, C values of one attribute.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from torch import nn

from cma_clip_core.evaluation.calibration import fit_temperature
from cma_clip_core.evaluation.candidates import candidates
from cma_clip_core.evaluation.metrics import recall_at
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.cma_clip import CmaClip

WEIGHTS: Final = tuple(eighths / 8 for eighths in range(9))
COST: Final = 0.0025  # largest loss of recall at the target precision, on validation
LEAST_PRODUCTS: Final = round(1 / COST)  # with fewer, a single product would decide


def pool(fused: Predictions, alone: Predictions, weight: float) -> Predictions:
    """Return the predictions [n, C] whose logits are the fused ones and `weight` times those of the picture alone."""
    return replace(fused, logits=fused.logits + np.float32(weight) * alone.logits)


def choose_weight(fused: Predictions, alone: Predictions) -> float:
    """Return the largest of `WEIGHTS` whose recall at the target precision is within `COST` of the best recall.

    It is not the best weight itself. The text names most labels, and for these the fused answer is as good as it can be. The
    picture helps where the text is silent, on too few products to show in the mean.

    Args:
        fused: predictions for the validation products that have a value, with the fused logits [n, C].
        alone: for the same products in the same order, with the image-only logits [n, C], zeros without a picture.

    Returns:
        The weight; 0 if fewer than `LEAST_PRODUCTS` have a listed value, or if no weight reaches the target.
    """
    if fused.has_target.sum() < LEAST_PRODUCTS:
        return 0.0
    recalls = []
    for weight in WEIGHTS:
        pooled = pool(fused, alone, weight)
        recalls.append(recall_at(candidates(pooled, fit_temperature(pooled)), fused.attribute.target_precision) or 0.0)
    if not max(recalls):
        return 0.0
    return max(weight for weight, recall in zip(WEIGHTS, recalls, strict=True) if recall >= max(recalls) - COST)


def weigh_picture(
    model: nn.Module,
    layout: ClassLayout,
    fused: Mapping[str, Predictions],
    alone: Mapping[str, Predictions],
    not_learnt: Collection[str] = (),
) -> dict[str, Predictions]:
    """Set the weight of the image-only logits for each attribute of the model; return its predictions with these weights.

    Args:
        model: the trained model; one without an image-only head is not changed.
        layout: its classes.
        fused: its predictions on the validation side, by attribute.
        alone: the predictions of its image-only head for the same products.
        not_learnt: attributes that it did not learn.
    """
    if not isinstance(model, CmaClip) or model.picture_evidence is None:
        return dict(fused)
    weights = {name: 0.0 if name in not_learnt else choose_weight(p, alone[name]) for name, p in fused.items()}
    for attribute, part in zip(layout.attributes, layout.slices, strict=True):
        model.picture_evidence[part] = weights[attribute.name]
    return {name: pool(p, alone[name], weights[name]) for name, p in fused.items()}


def weights_of(model: nn.Module, layout: ClassLayout) -> dict[str, float]:
    """Return the weight of the image-only logits by attribute; empty for a model without an image-only head."""
    if not isinstance(model, CmaClip) or model.picture_evidence is None:
        return {}
    chosen = model.picture_evidence
    return {a.name: float(chosen[part.start]) for a, part in zip(layout.attributes, layout.slices, strict=True)}
