"""Model configuration, read from YAML: inputs, architecture, training and threshold selection. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from schemas.loading import Strict, load_shipped

BUILT_IN = Path(__file__).parent / "configs"


class PictureConfig(Strict):
    """The size that every picture is resized to."""

    height: int = Field(ge=8, le=1024, description="pixels")
    width: int = Field(ge=8, le=1024, description="pixels")


class TextConfig(Strict):
    """The text fields that the model reads, their order, and the length of the text."""

    fields: tuple[Literal["title", "brand", "description"], ...] = Field(
        default=("title", "brand", "description"), min_length=1
    )
    context_length: int = Field(default=77, ge=4, le=512, description="tokens, start and end tokens included")


class VisionTower(Strict):
    """A custom image tower: open_clip's VisionTransformer at any size."""

    patch_size: int = Field(ge=2, description="pixels, the side of a square patch")
    stem: int | None = Field(
        default=None,
        ge=4,
        description="channels of the first 3 x 3 convolution of the stem, which turns pixels into patches "
        "(cma_clip_core.model.stem); null: one convolution with the size of a patch, as in CLIP",
    )
    pool: Literal["class", "mean"] = Field(
        default="class", description="I_cls: the class token, or the mean of the patches"
    )
    width: int
    layers: int = Field(ge=1)
    head_width: int = 32
    mlp_ratio: float = 4.0


class TextTower(Strict):
    """A custom text tower: open_clip's causal text transformer with CLIP's vocabulary."""

    width: int
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    mlp_ratio: float = 4.0


class CustomTowers(Strict):
    """Towers of any size, trained on your own catalog: for tests, and for machines without a GPU."""

    vision: VisionTower
    text: TextTower


class BackboneConfig(Strict):
    """The two CLIP towers: a named open_clip architecture, or custom towers."""

    architecture: str | None = Field(default=None, description="open_clip name, such as ViT-B-32")
    pretrained: str | None = Field(
        default=None,
        description="an open_clip tag, the path of an open_clip checkpoint, or a folder written by `python -m jobs pretrain`; "
        "used in training only",
    )
    custom: CustomTowers | None = None
    patch_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of patches dropped in training")

    @model_validator(mode="after")
    def _one_kind(self) -> BackboneConfig:
        if (self.architecture is None) == (self.custom is None):
            raise ValueError(
                "give either `architecture` (an open_clip name) or `custom` (towers of any size), not both"
            )
        return self


class FusionConfig(Strict):
    """Sequence-wise attention (SA), modality-wise attention (MA) and the heads. The paper gives no sizes; these are ours."""

    width: int = Field(ge=8, description="width that both sequences are projected to")
    layers: int = Field(default=2, ge=1, description="depth of SA")
    heads: int = Field(default=4, ge=1, description="attention heads of SA")
    mlp_ratio: float = Field(default=4.0, gt=0, description="inner width of SA's MLPs, as a multiple of `width`")
    hidden: int = Field(default=128, ge=1, description="inner width of each attribute's MLP")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    sequence_attention: bool = Field(default=True, description="False: an ablation without SA")
    modality_mixing: str = Field(
        default="attention",
        description="how text and picture become one vector: a key of `cma_clip_core.model.attention.MODALITY_MIXERS`; "
        "`attention` is the paper's method, `concatenation` an ablation",
    )
    modalities: tuple[Literal["text", "image"], ...] = Field(
        default=("text", "image"), min_length=1, description="a single modality is an ablation that sees nothing else"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_boolean(cls, data: Any) -> Any:
        """Accept documents from before version 0.2, which have `modality_attention: true` or `false`."""
        if isinstance(data, dict) and isinstance(attention := data.get("modality_attention"), bool):
            others = {name: value for name, value in data.items() if name != "modality_attention"}
            return {"modality_mixing": "attention" if attention else "concatenation"} | others
        return data

    @model_validator(mode="after")
    def _divides(self) -> FusionConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class TrainingConfig(Strict):
    """Training settings."""

    epochs: int = Field(ge=0, description="0: keep the initial weights, as raw CLIP does")
    patience: int | None = Field(
        default=None, ge=1, description="stop after this many epochs without improvement; null: train all epochs"
    )
    batch_size: int = Field(default=128, ge=2, description="products per step, over all processes")
    micro_batch: int | None = Field(
        default=None, ge=1, description="products per forward pass; gradients are accumulated; null: the whole batch"
    )
    freeze: tuple[Literal["text", "image"], ...] = Field(
        default=(),
        description="towers that are not trained. With method cma_clip they run once per product, without augmentation: "
        "flip, shift and patch_dropout do not apply to a frozen image tower; word_dropout, name_dropout and title_only do "
        "not apply to a frozen text tower",
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate of the new layers")
    backbone_learning_rate: float = Field(
        default=1e-3,
        gt=0,
        description="peak learning rate of the towers; for pretrained towers, 10 to 100 times lower than `learning_rate`",
    )
    embedding_learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="peak learning rate of the token embeddings: a rare word is seen in few steps; null: that of the towers",
    )
    warmup: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="share of all steps with a rising learning rate; then it falls as a cosine",
    )
    weight_decay: float = Field(default=0.05, ge=0, description="for matrices; never for biases, norms and embeddings")
    clip_norm: float = Field(default=1.0, gt=0, description="the gradient is clipped to this norm")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_balance: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="weight of a label in the loss: the count of its value to the power of minus this number, scaled to a "
        "mean of 1 within each attribute; 0: all labels weigh the same",
    )
    alone_loss: float = Field(
        default=0.0,
        ge=0,
        description="weight of the text-only and the picture-only loss: each tower learns as much as it can, even where the "
        "other one does better; 0: there are no single-modality heads, and so no picture evidence "
        "(cma_clip_core.evaluation.picture_evidence)",
    )
    title_only: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of products trained with the title as their only text, so that the model learns from the "
        "picture what the description says",
    )
    name_dropout: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of labels whose name is removed from the text of a product with a picture: the model must learn "
        "them from the picture and the rest of the text; not in pretraining",
    )
    word_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of text tokens dropped in training")
    text_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of products trained without their text")
    image_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of products trained without their picture. A product loses its text or its picture, never both",
    )
    flip: bool = Field(default=True, description="mirror half of the pictures in training")
    shift: int = Field(default=0, ge=0, description="largest shift of a picture in training, in pixels each way")
    shuffle_buffer: int = Field(default=4096, ge=1, description="examples in memory that batches are drawn from")
    seed: int = 0


class SelectionConfig(Strict):
    """Settings of the split, of evaluation and of threshold selection."""

    validation_share: float = Field(default=0.1, gt=0, lt=1, description="share of the product families")
    test_share: float = Field(default=0.2, gt=0, lt=1, description="share of the product families")
    least_labels: int = Field(
        default=20,
        ge=2,
        description="fewest training labels of an attribute; one with fewer is not learnt, and none of its values is accepted",
    )
    promise_confidence: float = Field(
        default=0.95,
        ge=0.5,
        lt=1,
        description="confidence of a threshold's promised precision (cma_clip_core.evaluation.choose_thresholds)",
    )
    value_predictions: int = Field(
        default=300,
        ge=1,
        description="fewest validation products that a value must be predicted for to get its own threshold",
    )

    @model_validator(mode="after")
    def _leaves_training(self) -> SelectionConfig:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on")
        return self


class ModelConfig(Strict):
    """The whole configuration of a model."""

    name: str
    method: Literal["cma_clip", "clip"] = Field(
        default="cma_clip",
        description="clip: the two towers alone, which score the picture against one prompt per value",
    )
    picture: PictureConfig
    text: TextConfig = TextConfig()
    backbone: BackboneConfig
    fusion: FusionConfig
    pretraining: TrainingConfig = Field(
        default=TrainingConfig(epochs=10, batch_size=256, flip=False),
        description="training settings of the towers' pretraining",
    )
    training: TrainingConfig
    selection: SelectionConfig = SelectionConfig()

    @model_validator(mode="after")
    def _whole_patches(self) -> ModelConfig:
        if self.backbone.custom is not None:
            side = self.backbone.custom.vision.patch_size
            if self.picture.height % side or self.picture.width % side:
                raise ValueError(
                    f"picture {self.picture.height}x{self.picture.width} is not a whole number of patches of {side} pixels"
                )
            if self.backbone.custom.vision.stem is not None and side & (side - 1):
                raise ValueError(f"patch_size {side} must be a power of two for a stem of convolutions")
        return self


def load_config(path: str | Path) -> ModelConfig:
    """Return the model configuration at `path`, or the shipped one of that name.

    The shipped ones are ``sample``, ``fashion``, ``tiny`` and ``clip-vit-b-32``.

    Raises:
        ContractError: it is missing or invalid; the message says where and why.
    """
    return load_shipped(path, ModelConfig, BUILT_IN, "model configuration")
