"""Layout of the classes of all attributes in the model's output, and the multi-task loss over them.

Letters of shapes: B batch, K attributes, C classes of all attributes.
"""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cma_clip_core.arrays import Floats
from cma_clip_core.model.confidence import probabilities
from schemas.taxonomy import Taxonomy

_FLOOR: Final = -1e30  # the logit of padding: finite, so that zero times it is zero


class _Grid(NamedTuple):
    """The classes of single-valued attributes, one attribute per row, so that all are normalised at once.

    Letters of shapes: S single-valued attributes, V most values of one, M classes of multi-valued attributes.
    """

    columns: Tensor  # [S, V] int64: the class of each value; C as padding
    values: Tensor  # [S, 1] float32, the number of values of each attribute
    single: Tensor  # [S] int64, the indices of the single-valued attributes
    multi: Tensor  # [M] int64, the classes of multi-valued attributes
    attribute_of_multi: Tensor  # [M] int64, the attribute of each of these classes


class ClassLayout:
    """The classes of a taxonomy: its attributes in order, and within each attribute its values in class order."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy, self.attributes = taxonomy, taxonomy.attributes
        starts = np.cumsum([0, *(len(a.values) for a in self.attributes)]).tolist()
        self.slices = [slice(start, end) for start, end in itertools.pairwise(starts)]
        self.classes: int = starts[-1]
        self.position = {a.name: k for k, a in enumerate(self.attributes)}
        self.attribute_of = np.repeat(np.arange(len(self.attributes)), [len(a.values) for a in self.attributes])  # [C]
        self._grids: dict[torch.device, _Grid] = {}

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_grids": {}}  # tensors on a device cannot be sent to another process

    def probabilities(self, logits: Floats, temperature: Floats | None = None) -> Floats:
        """Return each value's probability [B, C].

        Args:
            logits: [B, C].
            temperature: [C], the temperature of each value's attribute; None: 1.
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
        """Return the multi-task loss, which is the sum over all labels. A missing label adds nothing.

        The loss of a single-valued attribute is the cross entropy over its values. That of a multi-valued one is the binary
        cross entropy, summed over its values. Every label has the same weight (our choice); the paper says only that a
        record may have labels for some of the tasks.

        Args:
            logits: [B, C].
            targets: [B, C], 1 at the values a product has.
            labelled: [B, K] bool.
            smoothing: label smoothing of single-valued attributes.
            weights: [C], the weight of each value's labels; None: all 1.
        """
        # All attributes at once, and without waiting for a number from the GPU. A loop over the attributes would take most
        # of a small model's step.
        logits, grid = logits.float(), self._grid(logits.device)
        total = logits.new_zeros(())
        if len(grid.single):
            log_p = F.pad(logits, (0, 1), value=_FLOOR)[:, grid.columns].log_softmax(dim=2)  # [B, S, V]
            wanted = F.pad(targets, (0, 1))[:, grid.columns]
            shares = wanted
            if smoothing:
                shares = (wanted * (1 - smoothing) + smoothing / grid.values) * (grid.columns < self.classes)
            losses = -(shares * log_p).sum(dim=2)  # [B, S]
            if weights is not None:
                losses = losses * (wanted * F.pad(weights, (0, 1))[grid.columns]).sum(dim=2)
            total = total + (losses * labelled[:, grid.single]).sum()
        if len(grid.multi):
            wanted = targets[:, grid.multi]
            losses = F.binary_cross_entropy_with_logits(logits[:, grid.multi], wanted, reduction="none")
            if weights is not None:  # only values that a product has are weighted
                losses = losses * torch.where(wanted > 0, weights[grid.multi], 1.0)
            total = total + (losses * labelled[:, grid.attribute_of_multi]).sum()
        return total

    def _grid(self, device: torch.device) -> _Grid:
        if device not in self._grids:
            single = [k for k, a in enumerate(self.attributes) if not a.multi_valued]
            counts = [len(self.attributes[k].values) for k in single]
            columns = np.full((len(single), max(counts, default=0)), self.classes)
            for row, k in enumerate(single):
                columns[row, : counts[row]] = np.arange(self.classes)[self.slices[k]]
            multi = np.flatnonzero([self.attributes[k].multi_valued for k in self.attribute_of])
            self._grids[device] = _Grid(
                torch.as_tensor(columns, device=device),
                torch.tensor(counts, dtype=torch.float32, device=device)[:, None],
                torch.tensor(single, dtype=torch.int64, device=device),
                torch.as_tensor(multi, device=device),
                torch.as_tensor(self.attribute_of[multi], device=device),
            )
        return self._grids[device]
