"""Assembly of an ensemble from fitted members and the methods chosen for each attribute.

Letters of shapes: C classes of all attributes, D classes that a linear member scores, E members, F features, K attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cma_clip_core.arrays import Floats
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.ensemble import CMA_CLIP, MEMBERS, PICTURES, WORDS, Ensemble, PictureScores, WordScores
from cma_clip_core.training.choose_methods import Choice
from cma_clip_core.training.linear_members import Member


def build_ensemble(
    layout: ClassLayout, members: Sequence[Member], cma: nn.Module | None, choices: Mapping[str, Choice]
) -> nn.Module:
    """Return the model that answers each attribute by its chosen members; CMA-CLIP itself if it answers all of them.

    Args:
        layout: the classes.
        members: the fitted linear members.
        cma: the trained CMA-CLIP, if it was trained. It answers the attributes without a choice.
        choices: the choice for each attribute that can be learnt.
    """
    users = {name: [a for a, choice in choices.items() if name in choice.coefficients] for name in MEMBERS}
    if cma is not None and not users[WORDS] and not users[PICTURES]:
        return cma
    shares = torch.zeros(len(MEMBERS), len(layout.attributes))
    coefficients = torch.zeros(len(MEMBERS), layout.classes)
    needs_cma = bool(users[CMA_CLIP]) or (cma is not None and len(choices) < len(layout.attributes))
    for k, (attribute, part) in enumerate(zip(layout.attributes, layout.slices, strict=True)):
        if (choice := choices.get(attribute.name)) is not None:
            for name, share in choice.method.weights.items():
                shares[MEMBERS.index(name), k] = share
                coefficients[MEMBERS.index(name), part] = choice.coefficients[name]
        elif cma is not None:
            shares[MEMBERS.index(CMA_CLIP), k] = 1
            coefficients[MEMBERS.index(CMA_CLIP), part] = 1
    by_name = {member.name: member for member in members}
    words = pictures = bag = None
    if users[WORDS]:
        member = by_name[WORDS]
        weight, bias, columns = _join(member, users[WORDS], layout)
        words, bag = WordScores(torch.from_numpy(weight), torch.from_numpy(bias), columns, layout.classes), member.bag
    if users[PICTURES]:
        pictures = _pictures(by_name[PICTURES], users[PICTURES], layout)
    return Ensemble(
        layout, cma=cma if needs_cma else None, words=words, pictures=pictures, bag=bag, shares=shares,
        coefficients=coefficients,
    )  # fmt: skip


def _pictures(member: Member, attributes: Sequence[str], layout: ClassLayout) -> PictureScores:
    """Return the scores of raw features: the standardisation becomes part of the weights."""
    if member.network is None or member.mean is None or member.scale is None:
        raise ValueError("picture features need a network, and the mean and the scale of its features")
    weight, bias, columns = _join(member, attributes, layout)
    scaled = weight / member.scale[:, None]
    moved = bias - member.mean @ scaled
    scores = PictureScores(
        torch.from_numpy(scaled), torch.from_numpy(moved), columns, layout.classes, torch.from_numpy(bias)
    )
    scores.network = member.network
    return scores


def _join(member: Member, attributes: Sequence[str], layout: ClassLayout) -> tuple[Floats, Floats, Tensor]:
    """Return the weights [F, D] and biases [D] of some attributes' regressions, and the class of each column [D]."""
    models = [member.models[name] for name in attributes]
    classes = np.arange(layout.classes)
    columns = np.concatenate([classes[layout.slices[layout.position[name]]] for name in attributes])
    weight = np.concatenate([model.weight for model in models], axis=1)
    return np.ascontiguousarray(weight), np.concatenate([model.bias for model in models]), torch.from_numpy(columns)
