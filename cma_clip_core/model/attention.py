"""The two attentions of CMA-CLIP: sequence-wise (SA) and modality-wise (MA).

Letters of shapes: B batch, N tokens of a sequence, Q queries, W width, K attributes, M modalities (0 text, 1 image).

Sources: CMA-CLIP, arXiv 2112.03562, "sequence-wise attention" and "modality-wise attention"; keyless attention: Long
et al., "Multimodal Keyless Attention Fusion for Video Classification", AAAI 2018. Depth, heads, the pre-norm form, the
dropout and all masking are our choice: the paper is silent on them.
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
        """Return the block's output at every token, or only at some.

        Args:
            x: [B, N, W].
            mask: [B, N] bool, False where a token must not be attended to; None: all are.
            queries: [Q] indices of the tokens wanted; None: all. What is returned at a token does not depend on which
                others are wanted, so that the last block need not compute what nobody reads.

        Returns:
            [B, Q, W], with Q = N where `queries` is None.
        """
        normed = self.norm_attention(x)
        if queries is None:
            wanted, residual = normed, x
        else:
            wanted, residual = normed.index_select(1, queries), x.index_select(1, queries)
        q = self._split(self.query(wanted))
        k, v = (self._split(part) for part in self.key_value(normed).chunk(2, dim=-1))
        # No dropout on the attention weights: on a CPU that gives up the fused kernel, and training is a quarter slower.
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])
        y = residual + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        return y + self.drop(self.mlp(self.norm_mlp(y)))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        """[B, N, W] -> [B, heads, N, W / heads]."""
        rows, tokens, width = x.shape
        return x.view(rows, tokens, self.heads, width // self.heads).transpose(1, 2)


class SequenceAttention(nn.Module):
    """SA: a transformer encoder over both sequences, so that every patch attends to every text token and the reverse."""

    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AttentionBlock(width, heads, mlp_ratio, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None, queries: Tensor | None = None) -> Tensor:
        """[B, N, W] and [B, N] bool -> [B, N, W], or at `queries` [Q] alone [B, Q, W]."""
        for block in self.blocks[:-1]:
            x = block(x, mask)
        return self.norm(self.blocks[-1](x, mask, queries))  # type: ignore[no-any-return]


class ModalityMixer(nn.Module):
    """Makes one vector for each attribute of T'_cls and I'_cls."""

    width: int  # of a mixture

    def __init__(self, attributes: int, width: int) -> None:
        super().__init__()
        self.attributes, self.width = attributes, width

    def forward(self, h: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return each attribute's mixture of the modalities, and its weights.

        Args:
            h: [B, M, W], T'_cls and I'_cls.
            present: [B, M] bool. An absent modality has a weight of exactly 0 and no part in the mixture.

        Returns:
            mixtures [B, K, `width`] and lambdas [B, K, M].
        """
        raise NotImplementedError


class ModalityAttention(ModalityMixer):
    """MA of all attributes: keyless attention, one learned vector w_k for each attribute.

    e_m = w_k . h_m;  (lambda_text, lambda_image) = softmax(e_text, e_image);  output = sum of lambda_m h_m.
    """

    def __init__(self, attributes: int, width: int) -> None:
        super().__init__(attributes, width)
        # [K, W]: row k is w_k. Zeros, so that both modalities count alike until there is a reason (our choice): a random
        # start favours one for each attribute, and what is favoured learns, and stays so.
        self.weight = nn.Parameter(torch.zeros(attributes, width))

    def forward(self, h: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return each attribute's mixture of the modalities, and its weights.

        Args:
            h: [B, M, W], T'_cls and I'_cls.
            present: [B, M] bool. An absent modality gets a weight of exactly 0 and the other exactly 1; where both are
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
        """As in `ModalityAttention`, but the mixtures are [B, K, 2 W], zeros for an absent modality.

        The weights say only which modalities were there: an equal share for each.
        """
        energies = h.new_zeros(h.shape[0], self.attributes, h.shape[1])
        both = (h * present[:, :, None]).flatten(1)
        return both[:, None].expand(-1, self.attributes, -1), masked_softmax(energies, present[:, None, :])


# By the name that `fusion.modality_mixing` has in a configuration.
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
        raise ModelError(f"fusion.modality_mixing: no mixer is called {name!r}; choose of {', '.join(MODALITY_MIXERS)}")
    return MODALITY_MIXERS[name](attributes, width)


def masked_softmax(energies: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis where `mask` is True, exactly 0 elsewhere; all 0 where nothing is True."""
    # A finite floor, not -inf: a row without any True would be NaN, and its gradient too.
    weights = torch.softmax(energies.masked_fill(~mask, torch.finfo(energies.dtype).min), dim=-1)
    return weights * mask
