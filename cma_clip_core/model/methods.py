"""The compared methods, each a change of one base configuration, so that they differ only in that change."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from cma_clip_core.config import ModelConfig
from cma_clip_core.model.clip_classifier import ClipClassifier
from cma_clip_core.model.cma_clip import CmaClip
from schemas.taxonomy import Taxonomy

# The changes of each method to the configuration, by section.
METHODS: Final[dict[str, dict[str, Any]]] = {
    "raw-clip": {"method": "clip", "training": {"epochs": 0}},
    "fine-tuned-clip": {"method": "clip"},
    "text-tower": {
        "fusion": {"sequence_attention": False, "modality_mixing": "concatenation", "modalities": ("text",)}
    },
    "picture-tower": {
        "fusion": {"sequence_attention": False, "modality_mixing": "concatenation", "modalities": ("image",)}
    },
    "late-concatenation": {"fusion": {"sequence_attention": False, "modality_mixing": "concatenation"}},
    "sa-without-ma": {"fusion": {"modality_mixing": "concatenation"}},
    "ma-without-sa": {"fusion": {"sequence_attention": False}},
    "cma-clip": {},
}

LABELS: Final[dict[str, str]] = {
    "raw-clip": "raw CLIP, zero-shot",
    "fine-tuned-clip": "fine-tuned CLIP",
    "text-tower": "text tower alone",
    "picture-tower": "picture tower alone",
    "late-concatenation": "CMA-CLIP without MA and SA (late concatenation)",
    "sa-without-ma": "CMA-CLIP without MA",
    "ma-without-sa": "CMA-CLIP without SA",
    "cma-clip": "CMA-CLIP",
    "tf-idf": "TF-IDF + logistic regression (text)",
}


def configure(base: ModelConfig, method: str) -> ModelConfig:
    """Return the configuration of a method, derived from a base configuration of CMA-CLIP.

    Raises:
        KeyError: there is no such method.
    """
    document = base.model_dump()
    for section, changes in METHODS[method].items():
        document[section] = document[section] | changes if isinstance(changes, dict) else changes
    if method != "cma-clip":
        document["name"] = f"{base.name}-{method}"
    modalities = document["fusion"]["modalities"]
    if len(modalities) == 1 or document["method"] == "clip":
        # The model sees one modality alone, so dropping it would leave nothing.
        document["training"] |= {"text_dropout": 0.0, "image_dropout": 0.0}
    return ModelConfig.model_validate(document)


def build_model(config: ModelConfig, taxonomy: Taxonomy, *, pretrained: bool = False) -> nn.Module:
    """Build the model of a configuration; with `pretrained` False, no weights are read or downloaded.

    Raises:
        ModelError: it cannot be built, or its pretrained weights cannot be read.
    """
    kind = ClipClassifier if config.method == "clip" else CmaClip
    return kind(config, taxonomy, pretrained=pretrained)
