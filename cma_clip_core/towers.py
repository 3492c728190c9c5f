"""Pretrained towers of our own: a folder with the weights of both CLIP towers and the configuration they fit.

towers.safetensors  the weights of `Backbone`
config.json         the configuration they were trained with
metrics.json        how they were trained and how well picture and text find each other
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from cma_clip_core.config import ModelConfig
from cma_clip_core.errors import ModelError

WEIGHTS, CONFIG, METRICS = "towers.safetensors", "config.json", "metrics.json"


def load(backbone: nn.Module, folder: Path, config: ModelConfig) -> None:
    """Load a folder's weights into both towers.

    Raises:
        ModelError: the folder holds no towers, they are broken, or they were trained with other sizes: names these.
    """
    try:
        trained = ModelConfig.model_validate_json((folder / CONFIG).read_bytes())
        state = load_file(folder / WEIGHTS)
    except OSError as error:
        raise ModelError(
            f"{folder}: not a folder of pretrained towers: {error.strerror or error}; make one with "
            "`python -m jobs pretrain`"
        ) from error
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{folder}: the pretrained towers are broken: {error}") from error
    if different := differences(trained, config):
        raise ModelError(f"{folder}: the towers were trained with another configuration: {'; '.join(different)}")
    backbone.load_state_dict(state)


def differences(trained: ModelConfig, wanted: ModelConfig) -> list[str]:
    """Return what keeps towers trained with one configuration from another one, in words."""

    def shape(config: ModelConfig) -> dict[str, Any]:
        return {
            "picture": config.picture.model_dump(),
            "text.context_length": config.text.context_length,
            "backbone.architecture": config.backbone.architecture,
            "backbone.custom": None if config.backbone.custom is None else config.backbone.custom.model_dump(),
        }

    one, other = shape(trained), shape(wanted)
    return [f"{name} is {one[name]} there and {other[name]} here" for name in one if one[name] != other[name]]
