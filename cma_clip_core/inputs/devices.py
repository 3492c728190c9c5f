"""The device and the precision that the model runs in."""

from __future__ import annotations

import contextlib
import logging
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import nn

from cma_clip_core.errors import DeviceError

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)


def resolve_device(name: str) -> torch.device:
    """Return the device `name`, and log it: auto (a GPU if there is one), cpu, or cuda.

    Raises:
        DeviceError: the name is cuda and there is no GPU, or it is not one of the three.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device {name!r}: it must be auto, cpu or cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise DeviceError("device cuda was requested, but torch finds no GPU here; use --device cpu, or auto")
    if available and name != "cpu":
        log.info("device: cuda, %s, bfloat16", torch.cuda.get_device_name())
        return torch.device("cuda")
    log.info("device: cpu, %d threads, float32", torch.get_num_threads())
    return torch.device("cpu")


def move_to(model: M, device: torch.device) -> M:
    """Return the model, moved to `device`. Raises DeviceError if it does not fit into the device's memory."""
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"{device}: the model does not fit into its memory; stop other programs there, or use a smaller model"
        ) from error


def precision(device: torch.device) -> AbstractContextManager[object]:
    """Return the context the model runs in: bfloat16 on a GPU; float32 on a CPU, where bfloat16 is slower."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()
