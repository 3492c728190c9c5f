"""A convolution stem, which turns pixels into patch tokens in a custom image tower without pretrained weights.

Sources:
- Xiao et al., "Early Convolutions Help Transformers See Better", NeurIPS 2021. 3 x 3 convolutions of stride 2 replace one
  convolution with the size of a patch. They learn from fewer pictures at less cost.
- Brock et al., "Characterizing signal propagation to close the performance gap in unnormalized ResNets", ICLR 2021.
  Weights are standardised (timm's `ScaledStdConv2d`), activations are not.

The widths and the positions of the residual convolutions are our choice.

Activations are not normalised, for two reasons. With batch statistics, a product's output would depend on the rest of its
batch. Neither micro-batches nor several processes would then take the step of the whole batch. Statistics of a single picture
would remove its colour, the attribute that shops need most.

Letters of shapes: B batch, W width, C channels, H x W' pixels.
"""

from __future__ import annotations

import math

import torch
from timm.layers import ScaledStdConv2d
from torch import Tensor, nn
from torch.nn import functional as F

GELU_GAIN = 1.7015043497085571  # restores variance 1 after GELU of a standard normal (Brock et al. 2021, appendix D)


class _Activation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x) * GELU_GAIN


class _Residual(nn.Module):
    """A residual layer on [B, C, H, W']: the input plus a learned share of its convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_Activation(), ScaledStdConv2d(channels, channels, 3, padding=1))
        self.share = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.share * self.branch(x)  # type: ignore[no-any-return]


class ConvolutionStem(nn.Module):
    """A stem of 3 x 3 convolutions: [B, 3, H, W'] -> [B, W, H / patch, W' / patch]."""

    def __init__(self, patch_size: int, width: int, first: int) -> None:
        """Build the stem.

        Args:
            patch_size: pixels, a power of two.
            width: output channels.
            first: channels of the first convolution; each further one doubles them.
        """
        super().__init__()
        halvings = int(math.log2(patch_size))
        layers: list[nn.Module] = []
        inputs, channels = 3, first
        for halving in range(halvings):
            layers += [_Activation()] if halving else []
            layers += [ScaledStdConv2d(inputs, channels, 3, stride=2, padding=1)]
            # No residual on the first map, which is large and says little, nor on the last, whose pixels are the tokens.
            layers += [_Residual(channels)] if 0 < halving < halvings - 1 else []
            inputs, channels = channels, 2 * channels
        self.layers = nn.Sequential(*layers)
        self.out = nn.Conv2d(inputs, width, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the patch tokens of `pixels`."""
        # Channels last is the faster layout on a CPU.
        x = self.layers(pixels.contiguous(memory_format=torch.channels_last))
        return self.out(x)  # type: ignore[no-any-return]
