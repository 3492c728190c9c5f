"""Training from end to end, the registry and the tagger: `pytest tests/cma_clip_core/test_training.py`"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cma_clip_core
from cma_clip_core import registry
from cma_clip_core.config import ModelConfig, load_config
from cma_clip_core.errors import DataError, ModelError
from cma_clip_core.examples import ExampleIndex
from cma_clip_core.model import CmaClip
from cma_clip_core.optimizer import learning_rate_scale, parameter_groups
from cma_clip_core.training import Trained, train
from schemas.loading import ContractError
from tests.cma_clip_core import drawn

CPU = torch.device("cpu")
CONFIG = drawn.config()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ExampleIndex:
    folder = drawn.write(tmp_path_factory.mktemp("examples"), drawn.examples(600))
    return drawn.index(folder, selection=CONFIG.selection)


@pytest.fixture(scope="module")
def trained(index: ExampleIndex) -> Trained:
    return train(CONFIG, drawn.taxonomy(), index, CPU, progress=False)


@pytest.fixture(scope="module")
def version(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    return models / registry.save(trained, CONFIG, drawn.taxonomy(), models, drawn.NOW)


def test_it_learns_colour_from_the_picture_and_pattern_from_the_text(trained: Trained) -> None:
    test = trained.metrics.test
    assert test["colour"].accuracy is not None
    assert test["pattern"].accuracy is not None
    assert test["colour"].accuracy > 0.7  # chance: a third; a tenth have no picture
    assert test["pattern"].accuracy > 0.7
    assert test["colour"].image_weight > 0.5 > test["colour"].text_weight
    assert test["pattern"].text_weight > 0.5 > test["pattern"].image_weight
    assert trained.metrics.epochs[-1].loss < trained.metrics.epochs[0].loss


def test_thresholds_are_chosen_on_validation_and_keep_its_promise(trained: Trained) -> None:
    for name, chosen in trained.thresholds.items():
        shown = trained.metrics.validation[name]
        assert chosen.precision == shown.precision
        if chosen.lowest() is not None:
            assert chosen.accepted >= 29  # 0.9^28 > 0.05: fewer prove nothing
            assert chosen.precision is not None
            assert chosen.precision > 0.9
        assert chosen.temperature != 1
    assert any(t.threshold is not None for t in trained.thresholds.values())
    assert trained.metrics.test["colour"].recall_at_90_interval is not None


def test_the_best_epoch_is_kept(trained: Trained) -> None:
    accuracies = [epoch.validation for epoch in trained.metrics.epochs]
    assert trained.metrics.best_epoch == int(np.argmax(accuracies)) + 1
    validation = [m.accuracy for m in trained.metrics.validation.values()]
    assert np.mean(validation) == pytest.approx(max(accuracies))  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_weights(index: ExampleIndex) -> None:
    config = drawn.config(epochs=1, word_dropout=0.2, shift=2, flip=True)
    first, second = (train(config, drawn.taxonomy(), index, CPU, progress=False).model for _ in range(2))
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    other_seed = config.model_copy(update={"training": config.training.model_copy(update={"seed": 1})})
    third = train(other_seed, drawn.taxonomy(), index, CPU, progress=False).model
    assert not torch.equal(first.kind, third.kind)


def test_too_few_products_say_so(tmp_path: Path) -> None:
    few = drawn.index(drawn.write(tmp_path, drawn.examples(2)))
    with pytest.raises(DataError, match="needs more products"):
        train(CONFIG, drawn.taxonomy(), few, CPU, progress=False)


def test_warm_up_then_cosine() -> None:
    assert learning_rate_scale(0.0, 0.1) == 0.01
    assert learning_rate_scale(0.05, 0.1) == pytest.approx(0.5)
    assert learning_rate_scale(0.1, 0.1) == pytest.approx(1.0)
    assert learning_rate_scale(0.55, 0.1) == pytest.approx(0.5)
    assert learning_rate_scale(1.0, 0.1) == pytest.approx(0.0)


def test_towers_and_new_layers_have_their_own_rates_and_norms_no_decay() -> None:
    config = drawn.config(
        learning_rate=0.1, backbone_learning_rate=0.001, embedding_learning_rate=0.01, weight_decay=0.5
    )
    model = CmaClip(config, drawn.taxonomy())
    groups = {
        id(p): (group["peak"], group["weight_decay"])
        for group in parameter_groups(model, config.training)
        for p in group["params"]
    }
    assert groups[id(model.backbone.image.tower.transformer.resblocks[0].mlp.c_fc.weight)] == (0.001, 0.5)
    assert groups[id(model.backbone.text.tower.ln_final.weight)] == (0.001, 0.0)
    assert groups[id(model.backbone.text.tower.token_embedding.weight)] == (0.01, 0.0)
    assert groups[id(model.text_projection.weight)] == (0.1, 0.5)
    assert groups[id(model.modality_attention.weight)] == (0.1, 0.0)
    # CLIP's own projections of the pooled vectors are no part of this model.
    assert id(model.backbone.image.tower.proj) not in groups
    assert len(groups) == sum(p.requires_grad for p in model.parameters())


def test_a_saved_version_predicts_the_same(trained: Trained, version: Path) -> None:
    loaded = registry.load_model(version)
    for (name, one), other in zip(trained.model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert registry.read_config(version) == CONFIG
    assert registry.read_taxonomy(version) == drawn.taxonomy()
    assert registry.read_taxonomy(version).fingerprint == drawn.taxonomy().fingerprint
    assert registry.read_thresholds(version) == trained.thresholds
    assert registry.list_versions(version.parent) == [version.name]
    assert version.name.startswith("20261120-")
    assert {path.name for path in version.parent.iterdir()} == {version.name}
    assert {path.name for path in version.iterdir()} == {
        "model.safetensors", "config.json", "taxonomy.yaml", "thresholds.json", "metrics.json", "MODEL_CARD.md",
    }  # fmt: skip


def test_the_card_says_what_the_model_is_worth(trained: Trained, version: Path) -> None:
    card = (version / "MODEL_CARD.md").read_text()
    for name, metrics in trained.metrics.test.items():
        assert f"| {name} | {metrics.n} | {metrics.n_silent} | {metrics.accuracy:.3f} |" in card
    never = [name for name, t in trained.thresholds.items() if t.lowest() is None]
    assert all(f"- {name}: nothing is ever accepted" in card for name in never)
    assert "## Not to be used" in card


def test_a_version_is_immutable(trained: Trained, version: Path) -> None:
    before = (version / "metrics.json").read_bytes()
    changed = dataclasses.replace(trained, metrics=trained.metrics.model_copy(update={"seconds": 0.0}))
    again = registry.save(changed, CONFIG, drawn.taxonomy(), version.parent, drawn.NOW)
    assert again == version.name
    assert (version / "metrics.json").read_bytes() == before
    tomorrow = registry.save(trained, CONFIG, drawn.taxonomy(), version.parent, drawn.NOW + timedelta(days=1))
    assert tomorrow == version.name.replace("20261120", "20261121")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.safetensors", None, "hash"),
        ("config.json", b"{}", r"config\.json: broken"),
        ("thresholds.json", b'{"colour": 1}', r"thresholds\.json: broken"),
    ],
)
def test_a_changed_version_is_refused(
    version: Path, tmp_path: Path, file: str, content: bytes | None, words: str
) -> None:
    copy = tmp_path / version.name
    copy.mkdir()
    for path in version.iterdir():
        data = path.read_bytes()
        if path.name == file:
            data = content if content is not None else data[:-1] + bytes([data[-1] ^ 1])
        (copy / path.name).write_bytes(data)
    with pytest.raises(ModelError, match=words):
        cma_clip_core.load(copy, device="cpu")


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is .* a model version"):
        cma_clip_core.load(tmp_path, device="cpu")


def test_the_library_tags(version: Path) -> None:
    tagger = cma_clip_core.load(version, device="cpu")
    picture = Image.new("RGB", (24, 32), "white")
    picture.paste(drawn.COLOURS["Blue"], (4, 4, 20, 28))
    both, text, image, nothing, broken = tagger.tag(
        [
            {"title": "classic Striped Shirt", "description": "soft Wool", "image": picture},
            {"title": "modern Checked Shirt"},
            {"image": picture},
            {"title": "NA"},
            {"title": "fine Watch", "image": b"no picture at all"},
        ]
    )
    found = {p["attribute"]: p for p in both["predictions"]}
    assert (found["article_type"]["value"], found["colour"]["value"]) == ("Shirt", "Blue")
    assert found["pattern"]["value"] == "Striped"
    assert found["colour"]["image_weight"] > 0.5
    assert [m["modality"] for m in (both, text, image, nothing, broken)] == ["both", "text", "image", "none", "text"]
    assert broken["image_status"] == "broken"
    assert nothing["predictions"] == []
    with pytest.raises(DataError, match=r"unknown fields \['titel'\]"):
        tagger.tag([{"titel": "Shirt"}])


def test_any_pil_image_will_do(version: Path) -> None:
    tagger = cma_clip_core.load(version, device="cpu")
    found = tagger.tag([{"image": Image.new(mode, (30, 30))} for mode in ("RGB", "RGBA", "L", "CMYK", "P", "F")])
    assert [f["image_status"] for f in found] == ["ok"] * 6


def test_importing_the_package_loads_no_torch() -> None:
    code = (
        "import sys, cma_clip_core, cma_clip_core.pictures, cma_clip_core.text, cma_clip_core.config\n"
        "import cma_clip_core.registry, jobs.train, jobs.tag\n"
        "assert not {'torch', 'open_clip', 'pyspark'} & sys.modules.keys()\n"
        "assert callable(cma_clip_core.load)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(cma_clip_core.__file__).parents[1])


@pytest.mark.parametrize("name", ["sample", "fashion", "tiny"])
def test_shipped_configurations(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    CmaClip(config, drawn.taxonomy())


def test_wrong_configurations_say_where(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="no such model configuration"):
        load_config("large")
    document = json.loads(CONFIG.model_dump_json())
    document["picture"]["width"] = 25
    document["training"]["epoch"] = 3
    path = tmp_path / "model.yaml"
    path.write_text(json.dumps(document))
    with pytest.raises(ContractError, match=r"training\.epoch"):
        load_config(path)
    del document["training"]["epoch"]
    path.write_text(json.dumps(document))
    with pytest.raises(ContractError, match="32x25 is no whole number of patches of 8"):
        load_config(path)
