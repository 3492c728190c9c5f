"""`pytest tests/cma_clip_core/model/test_cma_clip.py`"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from torch import nn

from cma_clip_core.config import BackboneConfig, ModelConfig
from cma_clip_core.errors import ModelError
from cma_clip_core.inputs.batches import Inputs, prepare
from cma_clip_core.model.backbone import Backbone
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.cma_clip import CmaClip, Output
from cma_clip_core.model.tokenizer import Tokenizer
from schemas.tables import EXAMPLES
from schemas.taxonomy import Taxonomy
from tests.cma_clip_core import drawn


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return drawn.config()


@pytest.fixture(scope="module")
def model(config: ModelConfig) -> CmaClip:
    torch.manual_seed(0)
    return CmaClip(config, drawn.taxonomy()).eval()


@pytest.fixture
def inputs(config: ModelConfig) -> Inputs:
    """Twelve products; the tenth has no picture, the eleventh no text."""
    tokenizer = Tokenizer(config)
    return prepare(drawn.batch(12), config, tokenizer).inputs(np.arange(12), tokenizer)


def rows(inputs: Inputs, at: list[int]) -> Inputs:
    return Inputs(*(part[at] for part in inputs))


@torch.inference_mode()
def run(model: CmaClip, inputs: Inputs) -> Output:
    return model(*inputs)  # type: ignore[no-any-return]


def test_every_attribute_gets_its_scores_and_weights(model: CmaClip, inputs: Inputs) -> None:
    output = run(model, inputs)
    assert output.logits.shape == (12, 2 + 3 + 3 + 3)
    assert output.lambdas.shape == (12, 4, 2)
    torch.testing.assert_close(output.lambdas.sum(dim=2), torch.ones(12, 4))
    assert output.lambdas[9].tolist() == [[1.0, 0.0]] * 4
    assert output.lambdas[10].tolist() == [[0.0, 1.0]] * 4


def test_absent_picture_is_never_looked_at(model: CmaClip, inputs: Inputs) -> None:
    pixels = inputs.pixels.clone()
    pixels[9] = torch.randint(0, 256, pixels[9].shape, dtype=torch.uint8)
    torch.testing.assert_close(run(model, replace(inputs, pixels=pixels)), run(model, inputs), rtol=0, atol=0)
    # Where there is one, it is looked at.
    pixels[8] = 255 - pixels[8]
    assert not torch.equal(run(model, replace(inputs, pixels=pixels)).logits[8], run(model, inputs).logits[8])


def test_empty_text_is_never_looked_at(model: CmaClip, inputs: Inputs) -> None:
    ids, lengths = inputs.ids.clone(), inputs.lengths.clone()
    ids[10, 1], ids[10, 2], lengths[10] = 320, 49407, 3
    changed = run(model, replace(inputs, ids=ids, lengths=lengths))
    torch.testing.assert_close(changed, run(model, inputs), rtol=0, atol=0)


def test_what_is_absent_in_a_batch_is_as_absent_as_alone(model: CmaClip, inputs: Inputs) -> None:
    """The output of a product does not depend on the modalities of the other products in its batch."""
    together = run(model, inputs)
    for row in (0, 9, 10):
        alone = run(model, rows(inputs, [row]))
        torch.testing.assert_close(alone.logits[0], together.logits[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.lambdas[0], together.lambdas[row], rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing(model: CmaClip, inputs: Inputs) -> None:
    short = inputs.lengths.argmin().item()
    wide = torch.cat([inputs.ids, torch.full((12, 16 - inputs.ids.shape[1]), 7)], dim=1)
    ids = torch.where(torch.arange(16) < inputs.lengths[:, None], wide, 11)
    assert inputs.lengths[short] < 16
    torch.testing.assert_close(run(model, replace(inputs, ids=ids)), run(model, inputs), rtol=1e-4, atol=1e-5)


def test_neither_text_nor_picture_gives_no_weights_and_no_nan(model: CmaClip, inputs: Inputs) -> None:
    nothing = torch.zeros(12, dtype=torch.bool)
    output = run(model, replace(inputs, text_present=nothing, image_present=nothing))
    assert not output.lambdas.any()
    assert output.logits.isfinite().all()
    mixed = torch.tensor([False] + [True] * 11)
    output = run(
        model, replace(inputs, text_present=inputs.text_present & mixed, image_present=inputs.image_present & mixed)
    )
    assert not output.lambdas[0].any()
    assert output.logits.isfinite().all()


def test_gradients_stay_finite_where_modalities_are_absent(model: CmaClip, inputs: Inputs) -> None:
    present = torch.arange(12) > 3
    model(*replace(inputs, text_present=present, image_present=inputs.image_present & present)).logits.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    assert gradients
    assert all(g.isfinite().all() for g in gradients)


def test_every_patch_attends_to_every_text_token_and_the_reverse(model: CmaClip, config: ModelConfig) -> None:
    assert model.sequence_attention is not None
    text, patches = 1 + 6, 1 + 12
    torch.manual_seed(0)
    x = torch.randn(1, text + patches, config.fusion.width)
    with torch.inference_mode():
        before = model.sequence_attention(x, None)
        for at in range(x.shape[1]):
            moved = x.clone()
            moved[0, at] = torch.randn(config.fusion.width)
            change = (model.sequence_attention(moved, None) - before).abs().amax(dim=2)[0]
            assert change.min() > 1e-5, f"token {at} is not seen by token {change.argmin()}"


def test_one_patch_moves_the_text_class_and_one_word_the_image_class(model: CmaClip, inputs: Inputs) -> None:
    pixels, ids = inputs.pixels.clone(), inputs.ids.clone()
    pixels[:, 8:16, 8:16] = 255 - pixels[:, 8:16, 8:16]
    ids[:, 1] = 1000
    with torch.inference_mode():
        before = model._cls(*inputs)[0]
        by_patch = (model._cls(*replace(inputs, pixels=pixels))[0] - before).abs().amax(dim=2)
        by_word = (model._cls(*replace(inputs, ids=ids))[0] - before).abs().amax(dim=2)
    both = inputs.text_present & inputs.image_present
    assert (by_patch[both, 0] > 1e-5).all()
    assert (by_word[both, 1] > 1e-5).all()


def test_t_cls_is_the_end_of_text_token_and_i_cls_the_class_token(config: ModelConfig, inputs: Inputs) -> None:
    """The pooled vector is that of open_clip before its projection."""
    torch.manual_seed(0)
    backbone = Backbone(config, pretrained=False).eval()
    towers = config.backbone.custom
    assert towers is not None
    clip = open_clip.CLIP(
        towers.vision.width,
        open_clip.CLIPVisionCfg(
            image_size=(32, 24), patch_size=8, width=towers.vision.width, layers=1, head_width=towers.vision.head_width
        ),
        open_clip.CLIPTextCfg(context_length=16, width=towers.text.width, layers=1, heads=towers.text.heads),
    ).eval()
    clip.visual.load_state_dict(backbone.image.tower.state_dict())
    clip.load_state_dict({f"{k}": v for k, v in backbone.text.tower.state_dict().items()}, strict=False)
    with torch.inference_mode():
        text = backbone.encode_text(inputs.ids, inputs.lengths)
        padded = torch.zeros(12, 16, dtype=torch.long)
        padded[:, : inputs.ids.shape[1]] = inputs.ids
        torch.testing.assert_close(text.cls @ clip.text_projection, clip.encode_text(padded), rtol=1e-4, atol=1e-5)
        image = backbone.encode_image(inputs.pixels)
        mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
        std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)
        normalised = (inputs.pixels.permute(0, 3, 1, 2) / 255 - mean) / std
        torch.testing.assert_close(image.cls @ clip.visual.proj, clip.encode_image(normalised), rtol=1e-4, atol=1e-5)
    assert image.tokens.shape == (12, 4 * 3, towers.vision.width)
    # T_1..T_n are the tokens before the end of text: T_cls is not there twice, and padding not at all.
    assert text.mask is not None
    assert text.mask.sum(dim=1).tolist() == (inputs.lengths - 1).tolist()


@pytest.mark.parametrize(("switch", "value"), [("sequence_attention", False), ("modality_mixing", "concatenation")])
def test_ablations(config: ModelConfig, inputs: Inputs, switch: str, value: object) -> None:
    document = config.model_dump()
    document["fusion"][switch] = value
    ablated = CmaClip(ModelConfig.model_validate(document), drawn.taxonomy()).eval()
    output = run(ablated, inputs)
    assert output.logits.isfinite().all()
    assert output.lambdas[9].tolist() == [[1.0, 0.0]] * 4
    if switch == "modality_mixing":
        assert output.lambdas[0].tolist() == [[0.5, 0.5]] * 4


def test_a_document_from_before_mixers_had_names_is_read_as_it_was_meant(config: ModelConfig) -> None:
    document = config.model_dump()
    del document["fusion"]["modality_mixing"]
    for attention, name in ((True, "attention"), (False, "concatenation")):
        old = document | {"fusion": document["fusion"] | {"modality_attention": attention}}
        assert ModelConfig.model_validate(old).fusion.modality_mixing == name


def test_a_mixer_that_nobody_knows_is_named(config: ModelConfig) -> None:
    document = config.model_dump()
    document["fusion"]["modality_mixing"] = "gated"
    with pytest.raises(ModelError, match="no mixer is called 'gated'; choose one of attention, concatenation"):
        CmaClip(ModelConfig.model_validate(document), drawn.taxonomy())


TAKEN = [
    name for name in dir(nn.ModuleDict()) if re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name)
]  # of what a taxonomy allows


def named_like(names: list[str]) -> Taxonomy:
    attributes = [{"name": n, "label": n, "field": n, "values": ["One", "Two"]} for n in names]
    return Taxonomy.model_validate({"name": "named", "article_type": names[0], "attributes": attributes})


def test_an_attribute_may_be_named_like_a_method_of_torch(config: ModelConfig, inputs: Inputs) -> None:
    assert {"type", "values", "items", "keys", "half", "training"} <= set(TAKEN)
    taxonomy = named_like([*TAKEN, "neck"])
    torch.manual_seed(0)
    model, other = (CmaClip(config, taxonomy).eval() for _ in range(2))
    output = run(model, inputs)
    assert output.logits.shape == (12, 2 * len(taxonomy.attributes))
    assert not torch.equal(run(other, inputs).logits, output.logits)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(run(other, inputs).logits, output.logits, rtol=0, atol=0)
    assert model.double().state_dict()["heads.type.3.weight"].dtype == torch.float64
    named = {name for name, _ in model.train().named_parameters()}
    assert {f"heads.{a.name}.{layer}.weight" for a in taxonomy.attributes for layer in (0, 3)} <= named
    assert all(module.training for module in model.modules())
    assert copy.deepcopy(model).heads.keys() == model.heads.keys()


def test_weights_have_the_names_that_saved_models_have(config: ModelConfig, model: CmaClip) -> None:
    def head(attribute: str) -> nn.Module:
        old = model.heads[attribute]
        return nn.Sequential(
            nn.Linear(*old[0].weight.shape[::-1]), nn.GELU(), nn.Dropout(), nn.Linear(*old[3].weight.shape[::-1])
        )

    saved = nn.ModuleDict({name: head(name) for name in drawn.taxonomy().names}).state_dict(prefix="heads.")
    rest = {name: value for name, value in model.state_dict().items() if not name.startswith("heads.")}
    loaded = CmaClip(config, drawn.taxonomy())
    loaded.load_state_dict(rest | saved)  # strict: neither more nor fewer
    for name, value in saved.items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_each_tower_is_asked_alone(inputs: Inputs) -> None:
    """The single-modality loss reaches the tower even if the fused model leaves it nothing to learn."""
    asking = CmaClip(drawn.config(alone_loss=0.5), drawn.taxonomy())
    assert len(CmaClip(drawn.config(), drawn.taxonomy()).alone) == 0
    output = asking.train()(*inputs)
    (text, has_text), (image, has_image) = output.alone["text"], output.alone["image"]
    assert text.shape == image.shape == output.logits.shape
    assert has_text.tolist() == inputs.text_present.tolist()
    assert has_image.tolist() == inputs.image_present.tolist()
    image[has_image].sum().backward()
    assert asking.backbone.image.tower.class_embedding.grad.abs().sum() > 0
    assert asking.backbone.text.tower.token_embedding.weight.grad is None


def test_the_picture_alone_is_heard_after_training_where_there_is_one(inputs: Inputs) -> None:
    asking = CmaClip(drawn.config(alone_loss=0.5), drawn.taxonomy()).eval()
    assert asking.picture_evidence is not None
    before = run(asking, inputs)
    picture, there = before.alone["image"]
    assert 0 < there.sum() < len(there)
    weights = torch.linspace(0, 1, picture.shape[1])
    asking.picture_evidence.copy_(weights)
    torch.testing.assert_close(run(asking, inputs).logits, before.logits + weights * picture * there[:, None])
    assert torch.equal(run(asking, inputs).logits[~there], before.logits[~there])
    torch.manual_seed(0)
    heard = asking.train()(*inputs).logits
    asking.picture_evidence.zero_()
    torch.manual_seed(0)
    assert torch.equal(asking(*inputs).logits, heard)


def named(architecture: str, height: int, width: int, pretrained: str | None = None) -> ModelConfig:
    document = drawn.config().model_dump() | {
        "picture": {"height": height, "width": width},
        "backbone": {"architecture": architecture, "pretrained": pretrained},
    }
    return ModelConfig.model_validate(document)


TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
ARCHITECTURES: dict[str, dict[str, object]] = {
    "small-resnet": {"vision_cfg": {"image_size": 224, "layers": [1, 1, 1, 1], "width": 8}, "text_cfg": TEXT},
    "small-vit": {"vision_cfg": VIT, "text_cfg": TEXT},
    "small-averaging": {"vision_cfg": VIT | {"pool_type": "avg"}, "text_cfg": TEXT},
    # Not causal, so what follows a text is part of what it was trained with.
    "small-both-ways": {
        "vision_cfg": VIT,
        "text_cfg": TEXT | {"no_causal_mask": True, "pool_type": "last"},
        "custom_text": True,
    },
    "small-appended-class": {"vision_cfg": VIT, "text_cfg": TEXT | {"embed_cls": True}, "custom_text": True},
}


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Register one small architecture for each kind in open_clip, so that it can be built by name."""
    folder = tmp_path_factory.mktemp("architectures")
    for name, document in ARCHITECTURES.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 24, **document}))
    open_clip.add_model_config(folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_open_clip_architectures_by_name(architecture: str) -> None:
    """Each kind is built for another picture size and, if the tower allows it, for another aspect ratio."""
    height, width = (64, 64) if "resnet" in architecture else (64, 32)
    config = named(architecture, height, width)
    tokenizer = Tokenizer(config)
    assert tokenizer.trims == (architecture in ("small-resnet", "small-vit", "small-averaging"))
    torch.manual_seed(0)
    model = CmaClip(config, drawn.taxonomy()).eval()
    rng = np.random.default_rng(0)
    examples = pa.RecordBatch.from_pylist([drawn.example(i, rng, height, width) for i in range(4)], schema=EXAMPLES)
    prepared = prepare(examples, config, tokenizer)
    together = run(model, prepared.inputs(np.arange(4), tokenizer))
    assert together.logits.isfinite().all()
    assert (together.lambdas > 0).all()
    alone = run(model, prepared.inputs(np.array([2]), tokenizer))
    torch.testing.assert_close(alone.logits[0], together.logits[2], rtol=1e-4, atol=1e-5)


def test_a_resnet_refuses_what_is_not_square() -> None:
    with pytest.raises(ModelError, match=r"cannot build 'small-resnet'.*64x32"):
        Backbone(named("small-resnet", 64, 32), pretrained=False)


def test_a_local_checkpoint_is_loaded_in_training_and_never_in_loading(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    torch.manual_seed(1)
    clip = open_clip.create_model("small-vit", force_image_size=(64, 32), force_context_length=16)
    torch.save(clip.state_dict(), path)
    config = named("small-vit", 64, 32, str(path))
    torch.manual_seed(2)
    loaded = Backbone(config, pretrained=True)
    torch.testing.assert_close(loaded.image.tower.conv1.weight, clip.visual.conv1.weight)
    torch.testing.assert_close(loaded.text.tower.token_embedding.weight, clip.token_embedding.weight)
    path.unlink()
    Backbone(config, pretrained=False)
    with pytest.raises(ModelError, match="no such checkpoint"):
        Backbone(config, pretrained=True)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("ViT-Z-99", "open_clip does not know"),
        ("roberta-ViT-B-32", "'roberta-ViT-B-32' has a Hugging Face text tower"),
        ("hf-hub:a/b", "is an address"),
        ("ViT-B-16-SigLIP", "'ViT-B-16-SigLIP' reads its texts with a Hugging Face tokenizer"),
        ("ViT-B-16-SigLIP2", "Hugging Face tokenizer"),
        ("ViT-L-14-CLIPA", r"Hugging Face tokenizer \(bert-base-uncased\)"),
    ],
)
def test_architectures_that_cannot_be_had_say_so(architecture: str, words: str) -> None:
    config = named(architecture, 64, 64)
    with pytest.raises(ModelError, match=words):
        Backbone(config, pretrained=False)
    with pytest.raises(ModelError, match=words):
        Tokenizer(config)


def test_one_kind_of_backbone() -> None:
    with pytest.raises(ValueError, match="not both"):
        BackboneConfig(architecture=None, custom=None)


def test_missing_labels_add_no_loss_and_no_gradient() -> None:
    layout = ClassLayout(drawn.taxonomy())
    torch.manual_seed(0)
    logits = torch.randn(3, layout.classes, requires_grad=True)
    targets, labelled = torch.zeros(3, layout.classes), torch.zeros(3, 4, dtype=torch.bool)
    targets[0, 1], labelled[0, 0] = 1, True  # product 0: article type alone
    targets[1, 8], targets[1, 10], labelled[1, 3] = 1, 1, True  # product 1: two materials
    loss = layout.loss(logits, targets, labelled)
    type_loss = torch.nn.functional.cross_entropy(logits[:1, :2], torch.tensor([1]))
    material_loss = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[1, 8:], torch.tensor([1.0, 0.0, 1.0]), reduction="sum"
    )
    torch.testing.assert_close(loss, type_loss + material_loss)
    loss.backward()
    assert logits.grad is not None
    touched = logits.grad != 0
    assert touched[0, :2].all()
    assert touched[1, 8:].all()
    assert int(touched.sum()) == 5
    assert layout.loss(logits, targets, torch.zeros_like(labelled)).item() == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_all_attributes_at_once_is_that_of_each_one_summed(smoothing: float, weighted: bool) -> None:
    layout, rng = ClassLayout(drawn.taxonomy()), torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(50, layout.classes, generator=rng, dtype=torch.float64)).requires_grad_()
    targets = torch.zeros(50, layout.classes)
    labelled = torch.rand(50, len(layout.attributes), generator=rng) < 0.6
    weights = 0.5 + torch.rand(layout.classes, generator=rng) if weighted else None
    expected = logits.new_zeros(())
    for k, (attribute, part) in enumerate(zip(layout.attributes, layout.slices, strict=True)):
        chosen = torch.rand(50, len(attribute.values), generator=rng)
        if attribute.multi_valued:
            targets[:, part] = (chosen < 0.4).float()
            losses = torch.nn.functional.binary_cross_entropy_with_logits(
                logits[:, part], targets[:, part].double(), reduction="none"
            )
            if weights is not None:
                losses = losses * torch.where(targets[:, part] > 0, weights[part], 1.0)
            losses = losses.sum(dim=1)
        else:
            best = chosen.argmax(dim=1)
            targets[torch.arange(50), part.start + best] = 1
            losses = torch.nn.functional.cross_entropy(
                logits[:, part], best, reduction="none", label_smoothing=smoothing
            )
            if weights is not None:
                losses = losses * weights[part][best]
        expected = expected + losses[labelled[:, k]].sum()
    loss = layout.loss(logits, targets, labelled, smoothing, weights)
    torch.testing.assert_close(loss, expected.float(), rtol=1e-5, atol=0)
    found, wanted = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_probabilities() -> None:
    layout = ClassLayout(drawn.taxonomy())
    logits = np.array([[0.0, np.log(3.0), *[0.0] * 6, 0.0, np.log(3.0), -np.log(3.0)]], np.float32)
    found = layout.probabilities(logits)
    assert found[0, :2] == pytest.approx([0.25, 0.75])
    assert found[0, 8:] == pytest.approx([0.5, 0.75, 0.25])
    temperature = np.array([0.5] * 2 + [1.0] * 6 + [0.5] * 3, np.float32)  # odds of 3 become odds of 9
    assert layout.probabilities(logits, temperature)[0, :2] == pytest.approx([0.1, 0.9])
    assert layout.probabilities(logits, temperature)[0, 8:] == pytest.approx([0.5, 0.9, 0.1])
