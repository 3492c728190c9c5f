"""A stem of convolutions: how our own image tower turns pixels into patch tokens, where it has no pretrained weights.

Sources: Xiao et al., "Early Convolutions Help Transformers See Better", NeurIPS 2021: 3 x 3 convolutions of stride 2 in
the place of the one convolution of a patch's size learn from fewer pictures at less cost. Brock et al., "Characterizing
signal propagation to close the performance gap in unnormalized ResNets", ICLR 2021: weights are standardised (timm's
`ScaledStdConv2d`), activations are not. Widths, and where the residual convolutions are, are our choice.

Activations are not normalised for two reasons. Statistics of a batch would make a product depend on who is beside it:
neither micro-batches nor several processes would then take the step of the whole batch. Statistics of a picture would
take its colour away, which is what a shop asks for first.

Letters of shapes: B batch, W width, C channels, H x W' pixels.
"""

from __future__ import annotations

import math

import torch
from timm.layers import ScaledStdConv2d
from torch import Tensor, nn
from torch.nn import functional as F

GELU_GAIN = 1.7015043497085571  # brings GELU of a standard normal back to variance 1 (Brock et al. 2021, appendix D)


class _Activation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x) * GELU_GAIN


class _Residual(nn.Module):
    """[B, C, H, W'] -> the same shape: the input and a learned share of a convolution of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_Activation(), ScaledStdConv2d(channels, channels, 3, padding=1))
        self.share = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.share * self.branch(x)  # type: ignore[no-any-return]


class ConvolutionStem(nn.Module):
    """[B, 3, H, W'] -> [B, W, H / patch, W' / patch], for a patch that is a power of two."""

    def __init__(self, patch_size: int, width: int, first: int) -> None:
        """Build the stem.

        Args:
            patch_size: pixels, a power of two.
            width: channels at the end.
            first: channels of the first convolution; each further one has twice as many.
        """
        super().__init__()
        halvings = int(math.log2(patch_size))
        layers: list[nn.Module] = []
        inputs, channels = 3, first
        for halving in range(halvings):
            layers += [_Activation()] if halving else []
            layers += [ScaledStdConv2d(inputs, channels, 3, stride=2, padding=1)]
            # The first maps are large and say little, and the last is the tokens.
            layers += [_Residual(channels)] if 0 < halving < halvings - 1 else []
            inputs, channels = channels, 2 * channels
        self.layers = nn.Sequential(*layers)
        self.out = nn.Conv2d(inputs, width, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the patches of `pixels`."""
        # Channels last: on a CPU the faster layout.
        x = self.layers(pixels.contiguous(memory_format=torch.channels_last))
        return self.out(x)  # type: ignore[no-any-return]
