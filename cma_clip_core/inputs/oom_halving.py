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

    def __init__(self, device: torch.device, max_rows: int) -> None:
        """Start with `max_rows` rows at a time."""
        self.device, self.max_rows = device, max_rows

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
                        for output in forward(inputs.rows(slice(start, start + self.max_rows)).to(self.device))
                    )
                    for start in range(0, len(inputs), self.max_rows)
                ]
                break
            except torch.OutOfMemoryError as error:
                rows = min(self.max_rows, len(inputs))
                if rows <= 1:
                    raise DeviceError(
                        f"{self.device}: not even one example fits into its memory; use a smaller model, picture or text"
                    ) from error
                self.max_rows = rows // 2
                log.warning("out of memory: %d examples at a time from now on; nothing else changes", self.max_rows)
            torch.cuda.empty_cache()  # not inside the handler, where the error still holds the tensors
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
