"""CMA-CLIP: two CLIP towers, sequence-wise attention, and modality-wise attention with an MLP for each attribute.

Letters of shapes: B batch, T text tokens, P patches, W width, K attributes, C classes of all attributes, M modalities
(0 text, 1 image), H x W pixels.

Source: "CMA-CLIP: Cross-Modality Attention CLIP for Image-Text Classification", arXiv 2112.03562. The paper does not
specify the following, which is our choice:
- the projections to one width;
- a learned embedding for each kind of token (none for positions: the towers' outputs already carry them);
- the form of the MLPs, and the dropout;
- the masking of an absent modality.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cma_clip_core.config import ModelConfig
from cma_clip_core.model.attention import SequenceAttention, make_mixer
from cma_clip_core.model.backbone import Backbone, Sequence
from schemas.taxonomy import Taxonomy


class Output(NamedTuple):
    """The output of a forward pass."""

    logits: Tensor  # [B, C]: one class per value, attribute by attribute in the taxonomy's order
    lambdas: Tensor  # [B, K, M]: MA's weights; 0 for an absent modality, so both are 0 if nothing was seen
    # by modality: logits [B, C] of its tower alone, and where it is present [B]
    alone: dict[str, tuple[Tensor, Tensor]]


class _Heads(nn.ModuleDict):
    """One module per attribute, even if its name is that of a method of torch: `type`, `values`, `half`."""

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Register a module under a name that torch would refuse. Nothing reads it as `self.<name>`."""
        self._modules[name] = module  # type: ignore[assignment]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a plain attribute, such as `training`, which torch would take for the module of that name."""
        object.__setattr__(self, name, value)


class CmaClip(nn.Module):
    """CMA-CLIP for one taxonomy."""

    def __init__(self, config: ModelConfig, taxonomy: Taxonomy, *, pretrained: bool = False) -> None:
        """Build the model; with `pretrained` False, no weights are read or downloaded. Raises ModelError."""
        super().__init__()
        fusion = config.fusion
        attributes = taxonomy.attributes
        self.backbone = Backbone(config, pretrained=pretrained)
        text, image = self.backbone.text, self.backbone.image
        self.text_projection = nn.Linear(text.width, fusion.width)
        self.image_projection = nn.Linear(image.width, fusion.width)
        # The pooled vector of a feature-map tower differs in width from its tokens.
        self.image_cls_projection = None if image.cls_width == image.width else nn.Linear(image.cls_width, fusion.width)
        self.kind = nn.Parameter(torch.empty(4, fusion.width))  # T_cls, T_i, I_cls, I_i
        nn.init.normal_(self.kind, std=0.02)
        self.norm = nn.LayerNorm(fusion.width)
        self.sequence_attention = (
            SequenceAttention(fusion.width, fusion.layers, fusion.heads, fusion.mlp_ratio, fusion.dropout)
            if fusion.sequence_attention
            else None
        )
        self.modality_attention = make_mixer(fusion.modality_mixing, len(attributes), fusion.width)
        self.sees_text, self.sees_image = ("text" in fusion.modalities, "image" in fusion.modalities)
        self.heads = _Heads(
            {
                a.name: nn.Sequential(
                    nn.Linear(self.modality_attention.width, fusion.hidden),
                    nn.GELU(),
                    nn.Dropout(fusion.dropout),
                    nn.Linear(fusion.hidden, len(a.values)),
                )
                for a in attributes
            }
        )
        # Not in the paper: each tower also has a head and a loss of its own in training. Otherwise the text tower, which
        # learns faster, leaves the image tower little to gain, so that it learns little. See Wang et al., "What Makes
        # Training Multi-modal Classification Networks Hard?", CVPR 2020, which also has a loss for each modality.
        has_heads = config.training.alone_loss > 0 and self.sees_text and self.sees_image
        classes = sum(len(a.values) for a in attributes)
        self.alone = nn.ModuleDict(
            {"text": nn.Linear(text.width, classes), "image": nn.Linear(image.cls_width, classes)} if has_heads else {}
        )
        # Not in the paper either: chosen after training, 0 until then (cma_clip_core.evaluation.picture_evidence).
        self.picture_evidence: Tensor | None
        self.register_buffer("picture_evidence", torch.zeros(classes) if has_heads else None)

    def forward(
        self,
        ids: Tensor,
        lengths: Tensor,
        text_present: Tensor,
        pixels: Tensor,
        image_present: Tensor,
        text: Sequence | None = None,
        image: Sequence | None = None,
    ) -> Output:
        """Classify a batch.

        Args:
            ids: [B, T] int64, token ids; those after the end of a text are ignored.
            lengths: [B] int64, tokens of each text, including the start and end tokens.
            text_present: [B] bool; False: the text is empty, and SA and MA mask it out.
            pixels: [B, H, W, 3] uint8, RGB; ignored where there is no picture.
            image_present: [B] bool; False: there is no picture, and SA and MA mask it out.
            text: the cached output of the text tower for these texts; None: run the tower.
            image: the cached output of the image tower, zeros where there is no picture; None: run the tower.
        """
        text_present = text_present & self.sees_text
        image_present = image_present & self.sees_image
        h, alone = self._cls(ids, lengths, text_present, pixels, image_present, text, image)
        mixtures, lambdas = self.modality_attention(h, torch.stack([text_present, image_present], dim=1))
        logits = torch.cat([head(mixtures[:, k]) for k, head in enumerate(self.heads.values())], dim=1)
        if not self.training and self.picture_evidence is not None and "image" in alone:
            picture, present = alone["image"]
            logits = logits + self.picture_evidence * picture * present[:, None]
        return Output(logits, lambdas, alone)

    def _cls(
        self,
        ids: Tensor,
        lengths: Tensor,
        text_present: Tensor,
        pixels: Tensor,
        image_present: Tensor,
        text: Sequence | None = None,
        image: Sequence | None = None,
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Return T'_cls and I'_cls [B, M, W], zeros for a modality that no product of the batch has; and `Output.alone`."""
        rows = len(ids)
        has_text, has_image = bool(text_present.any()), bool(image_present.any())
        parts: list[Tensor] = []
        masks: list[Tensor] = []
        alone: dict[str, tuple[Tensor, Tensor]] = {}
        if has_text:
            text = _trimmed(self.backbone.encode_text(ids, lengths) if text is None else text, int(lengths.max()))
            if "text" in self.alone:
                alone["text"] = self.alone["text"](text.cls), text_present
            parts += [self.text_projection(text.cls)[:, None] + self.kind[0]]
            parts += [self.text_projection(text.tokens) + self.kind[1]]
            masks += _masks(text, text_present)
        image_at = sum(part.shape[1] for part in parts)
        if has_image:
            image = self._encode_images(pixels, image_present) if image is None else image
            if "image" in self.alone:
                alone["image"] = self.alone["image"](image.cls), image_present
            project_cls = self.image_cls_projection or self.image_projection
            parts += [project_cls(image.cls)[:, None] + self.kind[2]]
            parts += [self.image_projection(image.tokens) + self.kind[3]]
            masks += _masks(image, image_present)
        if not parts:
            return self.kind.new_zeros(rows, 2, self.kind.shape[1]), alone
        x, mask = self.norm(torch.cat(parts, dim=1)), torch.cat(masks, dim=1)
        queries = torch.tensor([0] * has_text + [image_at] * has_image, device=x.device)
        h: Tensor
        if self.sequence_attention is None:
            h = x.index_select(1, queries)
        else:
            # A row with nothing to attend to would be NaN. It may see everything, because MA gives it no weight.
            mask = mask | ~mask.any(dim=1, keepdim=True)
            h = self.sequence_attention(x, None if bool(mask.all()) else mask, queries)
        if not (has_text and has_image):
            zeros = torch.zeros_like(h)
            h = torch.cat([h, zeros] if has_text else [zeros, h], dim=1)
        return h, alone

    def _encode_images(self, pixels: Tensor, present: Tensor) -> Sequence:
        """Run the image tower on the existing pictures; the other rows are zeros, which SA masks out."""
        if bool(present.all()):
            return self.backbone.encode_image(pixels)
        rows = present.nonzero().squeeze(1)
        encoded = self.backbone.encode_image(pixels.index_select(0, rows))
        cls = encoded.cls.new_zeros(len(pixels), encoded.cls.shape[1]).index_copy(0, rows, encoded.cls)
        tokens = encoded.tokens.new_zeros(len(pixels), *encoded.tokens.shape[1:]).index_copy(0, rows, encoded.tokens)
        return Sequence(cls, tokens, None)


def _trimmed(text: Sequence, longest: int) -> Sequence:
    """Return a text sequence without the padding beyond the longest text, which is never attended to."""
    # Contiguous, because other memory layouts are summed in another order.
    tokens = text.tokens[:, :longest].contiguous()
    return Sequence(text.cls, tokens, None if text.mask is None else text.mask[:, :longest])


def _masks(sequence: Sequence, present: Tensor) -> list[Tensor]:
    """Return the masks of cls and of the tokens, [B, 1] and [B, N] bool, True where attention is allowed."""
    tokens = present[:, None].expand(-1, sequence.tokens.shape[1])
    return [present[:, None], tokens if sequence.mask is None else tokens & sequence.mask]
