"""Forward passes split into parts that fit into the device's memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from cma_clip_core.errors import DeviceError
from cma_clip_core.inputs.batches import Inputs

log = logging.getLogger(__name__)


class Halving:
    """Runner of batches through a model in eval mode that halves the rows at a time whenever memory runs out."""

    def __init__(self, device: torch.device, most: int) -> None:
        """Start with `most` rows at a time."""
        self.device, self.most = device, most

    def run(self, forward: Callable[[Inputs], tuple[Tensor, ...]], inputs: Inputs) -> tuple[Tensor, ...]:
        """Return the outputs of `forward` for the rows of `inputs`, on the CPU.

        Raises:
            DeviceError: not even one row fits into the device's memory.
        """
        while True:
            try:
                parts = [
                    tuple(
                        output.float().cpu()
                        for output in forward(inputs.rows(slice(start, start + self.most)).to(self.device))
                    )
                    for start in range(0, len(inputs), self.most)
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
            torch.cuda.empty_cache()  # not inside the handler, where the error still holds the tensors
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
