"""The configuration of a model: what it sees, how it is built, how it is trained. A YAML file; loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from schemas.loading import Strict, load_shipped

BUILT_IN = Path(__file__).parent / "configs"


class PictureConfig(Strict):
    """The size every picture is brought to before the model sees it."""

    height: int = Field(ge=8, le=1024, description="pixels")
    width: int = Field(ge=8, le=1024, description="pixels")


class TextConfig(Strict):
    """Which texts the model reads, in which order, and how much of them."""

    fields: tuple[Literal["title", "brand", "description"], ...] = Field(
        default=("title", "brand", "description"), min_length=1
    )
    context_length: int = Field(default=77, ge=4, le=512, description="tokens, start and end tokens included")


class VisionTower(Strict):
    """Our own image tower: open_clip's VisionTransformer at any size."""

    patch_size: int = Field(ge=2, description="pixels, the side of a square patch")
    stem: int | None = Field(
        default=None,
        ge=4,
        description="channels of the first of the 3 x 3 convolutions that turn pixels into patches "
        "(cma_clip_core.model.stem); null: one convolution of a patch's size, as in CLIP",
    )
    pool: Literal["class", "mean"] = Field(default="class", description="I_cls: the class token, or the patches' mean")
    width: int
    layers: int = Field(ge=1)
    head_width: int = 32
    mlp_ratio: float = 4.0


class TextTower(Strict):
    """Our own text tower: open_clip's causal text transformer with CLIP's vocabulary."""

    width: int
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    mlp_ratio: float = 4.0


class CustomTowers(Strict):
    """Towers of our own size, trained on one's own catalog: for tests, and for machines without a GPU."""

    vision: VisionTower
    text: TextTower


class BackboneConfig(Strict):
    """The two CLIP towers: an open_clip architecture by name, or towers of our own size."""

    architecture: str | None = Field(default=None, description="open_clip name, such as ViT-B-32")
    pretrained: str | None = Field(
        default=None,
        description="open_clip tag, path of an open_clip checkpoint, or folder of `python -m jobs pretrain`; used in "
        "training only",
    )
    custom: CustomTowers | None = None
    patch_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of patches left out in training")

    @model_validator(mode="after")
    def _one_kind(self) -> BackboneConfig:
        if (self.architecture is None) == (self.custom is None):
            raise ValueError("give either `architecture` (an open_clip name) or `custom` (towers of our own), not both")
        return self


class FusionConfig(Strict):
    """Sequence-wise attention (SA), modality-wise attention (MA) and the heads. All sizes are our choice."""

    width: int = Field(ge=8, description="width both sequences are brought to")
    layers: int = Field(default=2, ge=1, description="depth of SA")
    heads: int = Field(default=4, ge=1, description="attention heads of SA")
    mlp_ratio: float = Field(default=4.0, gt=0, description="inner width of SA's MLPs over `width`")
    hidden: int = Field(default=128, ge=1, description="inner width of each attribute's MLP")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    sequence_attention: bool = Field(default=True, description="False: an ablation without SA")
    modality_mixing: str = Field(
        default="attention",
        description="how text and picture become one vector: a name of `cma_clip_core.model.attention.MODALITY_MIXERS`; "
        "attention is the paper's, concatenation an ablation",
    )
    modalities: tuple[Literal["text", "image"], ...] = Field(
        default=("text", "image"), min_length=1, description="one alone: an ablation that sees nothing else"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_boolean(cls, data: Any) -> Any:
        """Read the documents of versions before 0.2, which say `modality_attention: true` or `false`."""
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
    """How the model is trained."""

    epochs: int = Field(ge=0, description="0: the weights it begins with, as of raw CLIP")
    patience: int | None = Field(
        default=None, ge=1, description="stop after so many epochs without a better one; null: train them all"
    )
    batch_size: int = Field(default=128, ge=2, description="products in a step, over all processes")
    micro_batch: int | None = Field(
        default=None, ge=1, description="products in a forward pass, their gradients accumulated; null: the batch"
    )
    freeze: tuple[Literal["text", "image"], ...] = Field(
        default=(),
        description="towers that are not trained. They are run once for each product (method cma_clip), so nothing varies "
        "what they see: flip, shift and patch_dropout do not apply to the image tower then, nor word_dropout, name_dropout "
        "and title_only to the text's",
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="of the new layers, at its peak")
    backbone_learning_rate: float = Field(
        default=1e-3, gt=0, description="of the towers; for pretrained ones 10 to 100 times less than the new layers'"
    )
    embedding_learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="of the token embeddings, since a rare word is seen in few steps; null: that of the towers",
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of all steps; then a cosine down to zero")
    weight_decay: float = Field(default=0.05, ge=0, description="of matrices; never of biases, norms, embeddings")
    clip_norm: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_balance: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="weight of a label in the loss: its value's count to the power of minus this, of mean 1 in each "
        "attribute; 0: all alike",
    )
    alone_loss: float = Field(
        default=0.0,
        ge=0,
        description="weight of the losses of the text alone and of the picture alone: each tower learns all that it can "
        "tell, even where the other one knows better; 0: neither is asked alone, so that the picture's own word is not heard "
        "in the answer either (cma_clip_core.evaluation.picture_evidence)",
    )
    title_only: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of products trained with their title as their only text: the picture must answer what else a "
        "description would",
    )
    name_dropout: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of labels whose value's name is left out of the text, where there is a picture: it, and the rest of "
        "the text, must answer what a text search would; not in pretraining",
    )
    word_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of text tokens left out in training")
    text_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of products trained without their text")
    image_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share trained without their picture; never those without their text, so at most what text_dropout leaves",
    )
    flip: bool = Field(default=True, description="mirror half of the pictures in training")
    shift: int = Field(default=0, ge=0, description="pixels a picture is moved at most in training, each way")
    shuffle_buffer: int = Field(default=4096, ge=1, description="examples held in memory to draw batches from")
    seed: int = 0


class SelectionConfig(Strict):
    """How a model is judged and its thresholds are chosen."""

    validation_share: float = Field(default=0.1, gt=0, lt=1, description="of product families")
    test_share: float = Field(default=0.2, gt=0, lt=1, description="of product families")
    least_labels: int = Field(
        default=20,
        ge=2,
        description="training labels of an attribute; one with fewer is not learnt, and accepts nothing",
    )
    promise_confidence: float = Field(
        default=0.95,
        ge=0.5,
        lt=1,
        description="of a threshold's promise of precision (cma_clip_core.evaluation.choose_thresholds)",
    )
    value_predictions: int = Field(
        default=300, ge=1, description="fewest validation products a value is predicted for to get its own threshold"
    )

    @model_validator(mode="after")
    def _leaves_training(self) -> SelectionConfig:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on")
        return self


class ModelConfig(Strict):
    """All of a model's configuration."""

    name: str
    method: Literal["cma_clip", "clip"] = Field(
        default="cma_clip", description="clip: the two towers alone, the picture scored against a prompt for each value"
    )
    picture: PictureConfig
    text: TextConfig = TextConfig()
    backbone: BackboneConfig
    fusion: FusionConfig
    pretraining: TrainingConfig = Field(
        default=TrainingConfig(epochs=10, batch_size=256, flip=False), description="of the towers, on pairs alone"
    )
    training: TrainingConfig
    selection: SelectionConfig = SelectionConfig()

    @model_validator(mode="after")
    def _whole_patches(self) -> ModelConfig:
        if self.backbone.custom is not None:
            side = self.backbone.custom.vision.patch_size
            if self.picture.height % side or self.picture.width % side:
                raise ValueError(
                    f"picture {self.picture.height}x{self.picture.width} is no whole number of patches of {side} pixels"
                )
            if self.backbone.custom.vision.stem is not None and side & (side - 1):
                raise ValueError(f"patch_size {side} must be a power of two for a stem of convolutions")
        return self


def load_config(path: str | Path) -> ModelConfig:
    """Return the model configuration at `path`, or the shipped one of that name (``sample``, ``fashion``, ``tiny``,
    ``clip-vit-b-32``).

    Raises:
        ContractError: it is missing or wrong; the message says where and why.
    """
    return load_shipped(path, ModelConfig, BUILT_IN, "model configuration")
