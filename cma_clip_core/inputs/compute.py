"""The device and the processes that a computation runs on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from cma_clip_core.inputs.distributed import World


@dataclass(frozen=True, slots=True)
class Compute:
    """Device and processes of a computation, and whether it shows its progress.

    Attributes:
        device: the device of the model and its batches.
        world: the processes that train together; the default is this process alone.
        progress: show progress bars.
    """

    device: torch.device
    world: World = field(default_factory=World)
    progress: bool = True
