"""The CLIP towers as sequence encoders, which return all of their output tokens and not only the pooled vector.

Letters of shapes: B batch, T text tokens, P patches, N tokens of either, D width of a tower, H x W pixels.

Any open_clip architecture works if its towers give a token sequence. ViTs do; ResNets and timm models give their last
feature map instead. A text tower of Hugging Face `transformers` does not work: it cannot be rebuilt without a download.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.transformer import TextTransformer, VisionTransformer
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from cma_clip_core.config import BackboneConfig, ModelConfig
from cma_clip_core.errors import ModelError
from cma_clip_core.model import tower_files
from cma_clip_core.model.stem import ConvolutionStem


class Sequence(NamedTuple):
    """A tower's output: T_cls and T_1..T_n, or I_cls and I_1..I_m."""

    cls: Tensor  # [B, D of cls]
    tokens: Tensor  # [B, N, D of tokens]
    mask: Tensor | None  # [B, N] bool, False at padding; None: no padding


class TextSequence(nn.Module):
    """A text tower of open_clip. T_cls is the output that its pooling selects (CLIP: the end-of-text token)."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        if not all(hasattr(tower, name) for name in ("token_embedding", "positional_embedding", "ln_final")):
            raise ModelError(
                f"a text tower of type {type(tower).__name__} is not supported: it does not give its token sequence "
                "without a download; choose an architecture with CLIP's own text transformer, such as ViT-B-32"
            )
        self.tower = tower
        self.pool = str(getattr(tower, "pool_type", None) or getattr(tower, "text_pool_type", "argmax"))
        self.width = int(tower.token_embedding.weight.shape[1])
        self.appends_cls = getattr(tower, "cls_emb", None) is not None
        if self.pool not in ("argmax", "eos", "first", "last"):
            raise ModelError(f"text pooling {self.pool!r} is not supported: it names no token that could be T_cls")

    @property
    def projection(self) -> nn.Parameter | nn.Module | None:
        """CLIP's projection of T_cls."""
        return getattr(self.tower, "text_projection", None)

    def forward(self, ids: Tensor, lengths: Tensor) -> Sequence:
        """Encode `ids` [B, T]: the first `lengths` [B] of each row are real tokens, and the last of these ends the text."""
        tower, seen = self.tower, ids.shape[1]
        if isinstance(tower, TextTransformer):
            x, mask = tower._embeds(ids)
            if mask is not None and mask.shape[-1] > x.shape[1]:
                mask = mask[: x.shape[1], : x.shape[1]]
        else:  # the unpacked text tower of open_clip.CLIP
            x = tower.token_embedding(ids) + tower.positional_embedding[:seen]
            mask = None if tower.attn_mask is None else tower.attn_mask[:seen, :seen]
        x = tower.ln_final(tower.transformer(x, attn_mask=mask))
        position = torch.arange(seen, device=ids.device)
        real = position < lengths[:, None]
        if self.appends_cls:  # CoCa: a class token after the text
            return Sequence(x[:, -1], x[:, :-1], real)
        if self.pool in ("argmax", "eos"):
            pooled = lengths - 1
        else:
            pooled = torch.zeros_like(lengths) if self.pool == "first" else torch.full_like(lengths, seen - 1)
        cls = x.gather(1, pooled[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        return Sequence(cls, x, real & (position != pooled[:, None]))


class ImageSequence(nn.Module):
    """A VisionTransformer of open_clip. I_cls is its pooled token (CLIP: the class token)."""

    def __init__(self, tower: VisionTransformer) -> None:
        super().__init__()
        if tower.attn_pool is not None and tower.attn_pool_contrastive is not None:
            raise ModelError(f"attentional pooling {tower.attn_pool_type!r} is not supported: it gives no I_cls")
        self.tower = tower
        self.width = self.cls_width = int(tower.ln_post.weight.shape[0])

    @property
    def projection(self) -> nn.Parameter | None:
        """CLIP's projection of I_cls."""
        return self.tower.proj  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor) -> Sequence:
        """Encode normalised `pixels` [B, 3, H, W]."""
        tower = self.tower
        x = tower.transformer(tower._embeds(pixels))
        if tower.attn_pool is not None:
            x = tower.attn_pool(x)
        x = tower.ln_post(x)
        if tower.pool_type == "avg":
            return Sequence(x[:, 1:].mean(dim=1), x[:, 1:], None)
        return Sequence(x[:, 0], x[:, 1:], None)


class FeatureMapSequence(nn.Module):
    """Any other image tower. I_1..I_m is its last feature map and I_cls the pooled vector (our choice: the paper has a ViT)."""

    projection: None = None  # the pooled vector is projected already

    def __init__(self, tower: Any, height: int, width: int) -> None:
        super().__init__()
        if not hasattr(tower, "forward_intermediates"):
            raise ModelError(f"an image tower of type {type(tower).__name__} is not supported: it gives no feature map")
        self.tower = tower
        was_training = tower.training
        with torch.no_grad():
            seen = self._run(tower.eval(), torch.zeros(1, 3, height, width))
        tower.train(was_training)
        self.cls_width, self.width = int(seen.cls.shape[1]), int(seen.tokens.shape[2])

    def forward(self, pixels: Tensor) -> Sequence:
        """Encode normalised `pixels` [B, 3, H, W]."""
        return self._run(self.tower, pixels)

    @staticmethod
    def _run(tower: Any, pixels: Tensor) -> Sequence:
        output = tower.forward_intermediates(pixels, indices=1, output_fmt="NCHW")
        return Sequence(output["image_features"], output["image_intermediates"][-1].flatten(2).transpose(1, 2), None)


class Backbone(nn.Module):
    """Both towers, and the pixel normalisation that the image tower expects."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, *, pretrained: bool) -> None:
        """Build the towers; with `pretrained` False no weights are read or downloaded. Raises ModelError."""
        super().__init__()
        clip = _create(config, pretrained=pretrained)
        text = getattr(clip, "text", clip)
        self.text = TextSequence(_text_parts(text) if text is clip else text)
        if isinstance(clip.visual, VisionTransformer):
            self.image: ImageSequence | FeatureMapSequence = ImageSequence(clip.visual)
        else:
            self.image = FeatureMapSequence(clip.visual, config.picture.height, config.picture.width)
        mean = getattr(clip.visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
        std = getattr(clip.visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
        # Buffers, so that the weights file holds the normalisation that the model was trained with.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        scale = getattr(clip, "logit_scale", None)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)) if scale is None else scale.detach().clone())
        self.train_projections(False)
        if pretrained and (folder := _towers_folder(config.backbone)) is not None:
            tower_files.load(self, folder, config)

    def train_projections(self, wanted: bool) -> None:
        """Make CLIP's projections of the pooled vectors and its temperature trainable, or freeze them: CMA-CLIP uses neither."""
        self.logit_scale.requires_grad_(wanted)
        for part in (self.text.projection, self.image.projection):
            for parameter in (
                [part] if isinstance(part, nn.Parameter) else part.parameters() if part is not None else []
            ):
                parameter.requires_grad_(wanted)

    def text_features(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return CLIP's text vectors [B, E], of length 1, for the arguments of `encode_text`."""
        return _project(self.text(ids, lengths).cls, self.text.projection)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return CLIP's picture vectors [B, E], of length 1, for the arguments of `encode_image`."""
        return _project(self.encode_image(pixels).cls, self.image.projection)

    def encode_text(self, ids: Tensor, lengths: Tensor) -> Sequence:
        """`ids` [B, T] int64 and `lengths` [B] -> the text sequence."""
        return self.text(ids, lengths)  # type: ignore[no-any-return]

    def encode_image(self, pixels: Tensor) -> Sequence:
        """`pixels` [B, H, W, 3] uint8 RGB -> the image sequence."""
        x = pixels.permute(0, 3, 1, 2).to(self.mean.dtype)
        return self.image((x / 255 - self.mean) / self.std)  # type: ignore[no-any-return]


def _project(cls: Tensor, projection: nn.Parameter | nn.Module | None) -> Tensor:
    if isinstance(projection, nn.Parameter):
        cls = cls @ projection
    elif projection is not None:
        cls = projection(cls)
    return F.normalize(cls, dim=-1)


class _TextParts(nn.Module):
    """The text tower of open_clip.CLIP, which keeps its parts as attributes of the whole model."""


def _text_parts(clip: Any) -> nn.Module:
    parts = _TextParts()
    for name in ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection"):
        setattr(parts, name, getattr(clip, name))
    parts.register_buffer("attn_mask", clip.attn_mask, persistent=False)
    parts.pool_type = clip.text_pool_type
    return parts


def _create(config: ModelConfig, *, pretrained: bool) -> Any:
    backbone = config.backbone
    size = (config.picture.height, config.picture.width)
    if backbone.custom is not None:
        return _create_custom(backbone, size, config.text.context_length)
    assert backbone.architecture is not None
    check_architecture(backbone.architecture)
    # The weights of a folder of pretrained towers are loaded later, over those that are created here.
    weights = backbone.pretrained if pretrained and _towers_folder(backbone) is None else None
    if weights is not None and ("/" in weights or "." in weights) and not Path(weights).is_file():
        raise ModelError(f"backbone.pretrained: no such checkpoint file, nor a folder of towers: {weights}")
    try:
        return open_clip.create_model(
            backbone.architecture,
            pretrained=weights,
            pretrained_text=False,
            # open_clip's ResNets accept only square pictures, given as one number.
            force_image_size=size[0] if size[0] == size[1] else size,
            force_context_length=config.text.context_length,
            force_patch_dropout=backbone.patch_dropout,
        )
    except (pickle.UnpicklingError, EOFError, SafetensorError) as error:
        # open_clip loads only tensors and plain values; torch's own message advises switching that protection off.
        raise ModelError(
            f"backbone.pretrained: {weights}: broken, or not a file of weights alone ({type(error).__name__}); no code in it "
            "was run"
        ) from error
    except (RuntimeError, AssertionError, ValueError, TypeError, OSError) as error:
        raise ModelError(
            f"open_clip cannot build {backbone.architecture!r} (pretrained: {weights}) for pictures of "
            f"{size[0]}x{size[1]}: {error}"
        ) from error


def _towers_folder(backbone: BackboneConfig) -> Path | None:
    """Return the folder of `python -m jobs pretrain` that the towers start from; None for a tag, a file, or nothing."""
    if backbone.pretrained is None:
        return None
    folder = Path(backbone.pretrained)
    # A tag has no slash, but a folder of the same name may exist in the current directory.
    return folder if backbone.custom is not None or ("/" in backbone.pretrained and folder.is_dir()) else None


def _create_custom(backbone: BackboneConfig, size: tuple[int, int], context_length: int) -> Any:
    assert backbone.custom is not None
    vision, text = backbone.custom.vision, backbone.custom.text
    try:
        clip = open_clip.CLIP(
            embed_dim=vision.width,
            vision_cfg=open_clip.CLIPVisionCfg(
                image_size=size,
                patch_size=vision.patch_size,
                width=vision.width,
                layers=vision.layers,
                head_width=vision.head_width,
                mlp_ratio=vision.mlp_ratio,
                patch_dropout=backbone.patch_dropout,
                pool_type="avg" if vision.pool == "mean" else "tok",
            ),
            text_cfg=open_clip.CLIPTextCfg(
                context_length=context_length,
                width=text.width,
                layers=text.layers,
                heads=text.heads,
                mlp_ratio=text.mlp_ratio,
            ),
        )
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(f"backbone.custom: open_clip cannot build these towers: {error}") from error
    if vision.stem is not None:
        clip.visual.conv1 = ConvolutionStem(vision.patch_size, vision.width, vision.stem)
    return clip


def text_settings(architecture: str) -> dict[str, Any]:
    """Return open_clip's settings of an architecture's text tower. Raises ModelError for an unknown name."""
    settings = open_clip.get_model_config(architecture)
    if settings is None:
        raise ModelError(
            f"backbone.architecture: open_clip does not know {architecture!r}; see open_clip.list_models()"
        )
    return dict(settings["text_cfg"])


def check_architecture(architecture: str) -> None:
    """Raise ModelError if `architecture` is unknown, or cannot be rebuilt from its name alone."""
    if ":" in architecture:
        raise ModelError(
            f"backbone.architecture: {architecture!r} is an address; give an open_clip name, and the file of the weights as "
            "`pretrained`, so that a saved model can be rebuilt without it"
        )
    settings = text_settings(architecture)
    if "hf_model_name" in settings:
        raise ModelError(
            f"backbone.architecture: {architecture!r} has a Hugging Face text tower, which cannot be rebuilt without a "
            "download; choose an architecture with CLIP's own text transformer, such as ViT-B-32"
        )
    if "hf_tokenizer_name" in settings:
        raise ModelError(
            f"backbone.architecture: {architecture!r} reads its texts with a Hugging Face tokenizer "
            f"({settings['hf_tokenizer_name']}), which needs a download; choose an architecture with CLIP's "
            "own tokenizer, such as ViT-B-32"
        )
