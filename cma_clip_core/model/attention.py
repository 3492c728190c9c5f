"""The two attentions of CMA-CLIP: sequence-wise (SA) and modality-wise (MA).

Letters of shapes: B batch, N tokens of a sequence, Q queries, W width, K attributes, M modalities (0 text, 1 image).

Sources: CMA-CLIP, arXiv 2112.03562, "sequence-wise attention" and "modality-wise attention"; keyless attention: Long
et al., "Multimodal Keyless Attention Fusion for Video Classification", AAAI 2018. The paper does not specify the depth,
the heads, the norm's position, the dropout or the masking; these are our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cma_clip_core.errors import ModelError


class AttentionBlock(nn.Module):
    """A pre-norm transformer encoder block with a key padding mask."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        inner = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, queries: Tensor | None = None) -> Tensor:
        """Return the block's output at every token, or at some of them.

        Args:
            x: [B, N, W].
            mask: [B, N] bool, False where a token must not be attended to; None: all tokens are attended to.
            queries: [Q] indices of the output tokens; None: all. The output at a token does not depend on the other
                queries, so the last block can skip the tokens that nobody reads.

        Returns:
            [B, Q, W], with Q = N if `queries` is None.
        """
        normed = self.norm_attention(x)
        if queries is None:
            selected, residual = normed, x
        else:
            selected, residual = normed.index_select(1, queries), x.index_select(1, queries)
        q = self._split(self.query(selected))
        k, v = (self._split(part) for part in self.key_value(normed).chunk(2, dim=-1))
        # No dropout on the attention weights: on a CPU it rules out the fused kernel and makes training a quarter slower.
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])
        y = residual + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        return y + self.drop(self.mlp(self.norm_mlp(y)))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        """[B, N, W] -> [B, heads, N, W / heads]."""
        rows, tokens, width = x.shape
        return x.view(rows, tokens, self.heads, width // self.heads).transpose(1, 2)


class SequenceAttention(nn.Module):
    """SA: a transformer encoder over both sequences, in which every patch attends to every text token and vice versa."""

    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AttentionBlock(width, heads, mlp_ratio, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None, queries: Tensor | None = None) -> Tensor:
        """[B, N, W] and [B, N] bool -> [B, N, W], or [B, Q, W] at the tokens of `queries` [Q]."""
        for block in self.blocks[:-1]:
            x = block(x, mask)
        return self.norm(self.blocks[-1](x, mask, queries))  # type: ignore[no-any-return]


class ModalityMixer(nn.Module):
    """A module that combines T'_cls and I'_cls into one vector for each attribute."""

    width: int  # width of a mixture

    def __init__(self, attributes: int, width: int) -> None:
        super().__init__()
        self.attributes, self.width = attributes, width

    def forward(self, h: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return each attribute's mixture of the modalities, and its weights.

        Args:
            h: [B, M, W], T'_cls and I'_cls.
            present: [B, M] bool. An absent modality has a weight of exactly 0 and does not enter the mixture.

        Returns:
            mixtures [B, K, `width`] and lambdas [B, K, M].
        """
        raise NotImplementedError


class ModalityAttention(ModalityMixer):
    """MA for all attributes: keyless attention with one learned vector w_k per attribute.

    e_m = w_k . h_m;  (lambda_text, lambda_image) = softmax(e_text, e_image);  output = sum of lambda_m h_m.
    """

    def __init__(self, attributes: int, width: int) -> None:
        super().__init__(attributes, width)
        # [K, W]: row k is w_k. It starts at zero, so that both modalities weigh the same at first (our choice). A random
        # start favours one modality for each attribute; the favoured one learns faster and stays favoured.
        self.weight = nn.Parameter(torch.zeros(attributes, width))

    def forward(self, h: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return each attribute's mixture of the modalities, and its weights.

        Args:
            h: [B, M, W], T'_cls and I'_cls.
            present: [B, M] bool. An absent modality gets a weight of exactly 0, and the other one exactly 1. If both are
                absent, both get 0.

        Returns:
            mixtures [B, K, W] and lambdas [B, K, M].
        """
        energies = torch.einsum("bmw,kw->bkm", h, self.weight)
        lambdas = masked_softmax(energies, present[:, None, :])
        return torch.einsum("bkm,bmw->bkw", lambdas, h), lambdas


class ModalityConcatenation(ModalityMixer):
    """The ablation without MA: both modalities side by side, the same for every attribute."""

    def __init__(self, attributes: int, width: int) -> None:
        super().__init__(attributes, 2 * width)

    def forward(self, h: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixtures [B, K, 2 W], with zeros for an absent modality, and lambdas [B, K, M].

        The arguments are those of `ModalityAttention`. The modalities that are present share the weight equally.
        """
        energies = h.new_zeros(h.shape[0], self.attributes, h.shape[1])
        both = (h * present[:, :, None]).flatten(1)
        return both[:, None].expand(-1, self.attributes, -1), masked_softmax(energies, present[:, None, :])


# The mixers by their names in the configuration's `fusion.modality_mixing`.
MODALITY_MIXERS: Final[Mapping[str, type[ModalityMixer]]] = {
    "attention": ModalityAttention,
    "concatenation": ModalityConcatenation,
}


def make_mixer(name: str, attributes: int, width: int) -> ModalityMixer:
    """Return the mixer `name` of MODALITY_MIXERS for K attributes and vectors of width W.

    Raises:
        ModelError: there is no such mixer.
    """
    if name not in MODALITY_MIXERS:
        raise ModelError(
            f"fusion.modality_mixing: no mixer is called {name!r}; choose one of {', '.join(MODALITY_MIXERS)}"
        )
    return MODALITY_MIXERS[name](attributes, width)


def masked_softmax(energies: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax over the last axis where `mask` is True, and exactly 0 elsewhere, even if nothing is True."""
    # A finite floor, not -inf: a row without any True would be NaN, and so would its gradient.
    weights = torch.softmax(energies.masked_fill(~mask, torch.finfo(energies.dtype).min), dim=-1)
    return weights * mask
