"""How much an attribute's answer listens to what the picture alone says, beside what both modalities together say.

A text that names a value is nearly always right, so the fused answer learns to follow it, and is as sure where the text
errs. What the image tower's own head says (`CmaClip.alone`) knows no text: where it disagrees, confidence should fall. Both
are pooled by a weighted sum of logits, a logarithmic opinion pool (Genest and Zidek 1986, "Combining Probability
Distributions", Statistical Science 1); the weight of each attribute is chosen on validation.

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
COST: Final = 0.0025  # of recall at the target precision, on validation
LEAST_PRODUCTS: Final = round(1 / COST)  # with fewer, one product more or less would decide


def pool(fused: Predictions, alone: Predictions, weight: float) -> Predictions:
    """Return the predictions [n, C] whose logits are the fused ones and `weight` times those of the picture alone."""
    return replace(fused, logits=fused.logits + np.float32(weight) * alone.logits)


def choose_weight(fused: Predictions, alone: Predictions) -> float:
    """Return the largest of `WEIGHTS` whose recall at the target precision is within `COST` of the best one's.

    Not the best one itself: most labels are named by the text, and of those the fused answer knows all there is to know.
    What the picture adds shows where the text is silent, at products too few to be seen in the mean.

    Args:
        fused: of the validation products that have a value of an attribute; logits of both modalities together [n, C].
        alone: of the same products in the same order; logits of the picture alone, zeros where there is none [n, C].

    Returns:
        The weight; 0 where fewer than `LEAST_PRODUCTS` have a listed value, or the target is not reached with any.
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
    """Set what each attribute of the model takes of the picture alone; return what the model then says.

    Args:
        model: as it was trained; one without a head of the picture's own is left as it is.
        layout: its classes.
        fused: what it says of the validation side, by attribute.
        alone: what its picture's head says of the same products.
        not_learnt: attributes of which it knows nothing.
    """
    if not isinstance(model, CmaClip) or model.picture_evidence is None:
        return dict(fused)
    weights = {name: 0.0 if name in not_learnt else choose_weight(p, alone[name]) for name, p in fused.items()}
    for attribute, part in zip(layout.attributes, layout.slices, strict=True):
        model.picture_evidence[part] = weights[attribute.name]
    return {name: pool(p, alone[name], weights[name]) for name, p in fused.items()}


def weights_of(model: nn.Module, layout: ClassLayout) -> dict[str, float]:
    """Return what each attribute of a model takes of the picture alone; of a model without such a head nothing."""
    if not isinstance(model, CmaClip) or model.picture_evidence is None:
        return {}
    chosen = model.picture_evidence
    return {a.name: float(chosen[part.start]) for a, part in zip(layout.attributes, layout.slices, strict=True)}
