"""How the classes of all attributes lie side by side in the model's output.

Letters of shapes: B batch, K attributes, C classes of all attributes.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cma_clip_core.predictions import Floats, probabilities
from schemas.taxonomy import Taxonomy


class ClassLayout:
    """Attribute by attribute, in the taxonomy's order; within each, its values in class order."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy, self.attributes = taxonomy, taxonomy.attributes
        starts = np.cumsum([0, *(len(a.values) for a in self.attributes)]).tolist()
        self.slices = [slice(start, end) for start, end in itertools.pairwise(starts)]
        self.classes: int = starts[-1]
        self.position = {a.name: k for k, a in enumerate(self.attributes)}
        self.attribute_of = np.repeat(np.arange(len(self.attributes)), [len(a.values) for a in self.attributes])  # [C]

    def probabilities(self, logits: Floats, temperature: Floats | None = None) -> Floats:
        """Return each value's probability [B, C].

        Args:
            logits: [B, C].
            temperature: [C], that of a value's attribute; None: 1.
        """
        divisors = np.ones(self.classes, np.float32) if temperature is None else temperature
        return np.concatenate(
            [
                probabilities(logits[:, part], attribute.multi_valued, float(divisors[part.start]))
                for attribute, part in zip(self.attributes, self.slices, strict=True)
            ],
            axis=1,
        )

    def loss(
        self, logits: Tensor, targets: Tensor, labelled: Tensor, smoothing: float = 0.0, weights: Tensor | None = None
    ) -> Tensor:
        """Return the multi-task loss: the sum over all labels. A missing label adds nothing.

        Single-valued attributes: cross entropy over the values. Multi-valued: binary cross entropy, summed over the
        values. That each label counts the same is our choice; the paper only says that a record may carry labels of
        some tasks.

        Args:
            logits: [B, C].
            targets: [B, C], 1 at the values a product has.
            labelled: [B, K] bool.
            smoothing: label smoothing of single-valued attributes.
            weights: [C], of the values' labels; None: all alike.
        """
        logits = logits.float()
        total = logits.new_zeros(())
        for k, (attribute, part) in enumerate(zip(self.attributes, self.slices, strict=True)):
            rows = labelled[:, k].nonzero().squeeze(1)
            if not len(rows):
                continue
            found, wanted = logits[rows, part], targets[rows, part]
            if attribute.multi_valued:
                losses = F.binary_cross_entropy_with_logits(found, wanted, reduction="none")
                if weights is not None:  # of the values that hold; those that do not stay as they are
                    losses = losses * torch.where(wanted > 0, weights[part], 1.0)
                total = total + losses.sum()
            else:
                losses = F.cross_entropy(found, wanted, reduction="none", label_smoothing=smoothing)
                total = total + (losses if weights is None else losses * weights[part][wanted.argmax(dim=1)]).sum()
        return total
