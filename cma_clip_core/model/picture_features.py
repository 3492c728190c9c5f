"""Picture features of a network that was trained on ImageNet and stays as it is: EfficientNet-Lite0.

Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019; the Lite variant is
TensorFlow's (Apache-2.0). The architecture is timm's `tf_efficientnet_lite0`.

Letters of shapes: B batch, H x W pixels, F features.
"""

from __future__ import annotations

from typing import Final

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ARCHITECTURE: Final = "tf_efficientnet_lite0"
WIDTH: Final = 1280  # F
# The network expects pictures of 224 x 224. Smaller ones are enlarged to the first number, larger ones reduced to the second.
_LEAST_SIDE: Final = 128
_MOST_SIDE: Final = 224


class PictureFeatures(nn.Module):
    """The network without its classifier."""

    def __init__(self) -> None:
        """Build the network with random weights; no weights are read or downloaded."""
        super().__init__()
        self.network = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> PictureFeatures:  # noqa: ARG002
        """Keep the network in the mode of inference, because nothing trains it."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features [B, F] float32 of pictures [B, H, W, 3] uint8."""
        scaled = (pixels.permute(0, 3, 1, 2).float() - 127) / 128  # as the network was trained
        height, width = scaled.shape[2:]
        longest = max(height, width)
        if (target := min(max(longest, _LEAST_SIDE), _MOST_SIDE)) != longest:
            size = [max(1, round(side * target / longest)) for side in (height, width)]
            scaled = F.interpolate(scaled, size=size, mode="bilinear", antialias=target < longest)
        features: Tensor = self.network(scaled)
        return features.float()


def encode_present(network: PictureFeatures, pixels: Tensor, present: Tensor) -> Tensor:
    """Return the features [B, F] of the pictures that exist [B] bool; the other rows are zeros."""
    features = torch.zeros(len(pixels), WIDTH, device=pixels.device)
    rows = present.nonzero().squeeze(1)
    return features.index_copy(0, rows, network(pixels.index_select(0, rows))) if len(rows) else features
