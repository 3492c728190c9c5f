"""A forward pass in as many parts as the device's memory asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from cma_clip_core.errors import DeviceError
from cma_clip_core.inputs.batches import Inputs

log = logging.getLogger(__name__)


class Halving:
    """Runs batches through a model in eval mode; where memory runs out, half as many rows at a time from then on."""

    def __init__(self, device: torch.device, most: int) -> None:
        """Begin with `most` rows at a time."""
        self.device, self.most = device, most

    def run(self, forward: Callable[[Inputs], tuple[Tensor, ...]], inputs: Inputs) -> tuple[Tensor, ...]:
        """Return what `forward` gives for the rows of `inputs`, on the CPU.

        Raises:
            DeviceError: not even one row fits into the device's memory.
        """
        while True:
            try:
                parts = [
                    tuple(
                        found.float().cpu() for found in forward(inputs.rows(slice(at, at + self.most)).to(self.device))
                    )
                    for at in range(0, len(inputs), self.most)
                ]
                break
            except torch.OutOfMemoryError as error:
                rows = min(self.most, len(inputs))
                if rows <= 1:
                    raise DeviceError(
                        f"{self.device}: not even one example fits into its memory; use a smaller model, picture or text"
                    ) from error
                self.most = rows // 2
                log.warning("out of memory: %d examples at a time from now on; nothing else changes", self.most)
            torch.cuda.empty_cache()  # outside of the handler, where the error still holds the tensors
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
