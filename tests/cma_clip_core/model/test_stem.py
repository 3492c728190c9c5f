"""`pytest tests/cma_clip_core/model/test_stem.py`"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cma_clip_core.config import ModelConfig
from cma_clip_core.model.backbone import Backbone
from cma_clip_core.model.stem import ConvolutionStem
from tests.cma_clip_core import drawn


def config(**vision: object) -> ModelConfig:
    document = drawn.config().model_dump()
    document["backbone"]["custom"]["vision"] |= vision
    return ModelConfig.model_validate(document)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 32, 24, 3), dtype=np.uint8))


def test_the_stem_gives_as_many_patches_as_one_convolution() -> None:
    assert ConvolutionStem(8, 48, 16)(torch.zeros(2, 3, 32, 24)).shape == (2, 48, 4, 3)


@torch.inference_mode()
def test_a_picture_is_the_same_whoever_is_beside_it(pixels: torch.Tensor) -> None:
    backbone = Backbone(config(stem=16), pretrained=False).train()
    together, alone = backbone.encode_image(pixels), backbone.encode_image(pixels[3:4])
    torch.testing.assert_close(together.tokens[3], alone.tokens[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together.tokens[3], together.tokens[2], atol=1e-2)


@torch.inference_mode()
def test_i_cls_is_the_mean_of_the_patches_where_that_is_asked_for(pixels: torch.Tensor) -> None:
    found = Backbone(config(pool="mean"), pretrained=False).eval().encode_image(pixels)
    torch.testing.assert_close(found.cls, found.tokens.mean(dim=1))
    assert found.tokens.shape == (5, 12, 32)


def test_a_patch_that_halving_does_not_reach_is_refused() -> None:
    document = config().model_dump() | {"picture": {"height": 48, "width": 24}}
    document["backbone"]["custom"]["vision"] |= {"patch_size": 6, "stem": 16}
    with pytest.raises(ValidationError, match="power of two"):
        ModelConfig.model_validate(document)


@torch.inference_mode()
def test_signals_keep_their_size_on_the_way() -> None:
    """Activations are not normalised, so their variance follows from the initial weights."""
    torch.manual_seed(0)
    found = ConvolutionStem(16, 64, 32).layers(torch.randn(8, 3, 64, 64))
    assert 0.3 < found.std() < 3
