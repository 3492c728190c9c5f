"""Training from end to end, the registry and the tagger: `pytest tests/cma_clip_core/training/test_fit.py`"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image

import cma_clip_core
from cma_clip_core import registry
from cma_clip_core.catalog.examples import ExampleIndex
from cma_clip_core.config import ModelConfig, load_config
from cma_clip_core.errors import DataError, ModelError
from cma_clip_core.evaluation.metrics import promise_kept
from cma_clip_core.model.cma_clip import CmaClip
from cma_clip_core.model_documents import Metrics
from cma_clip_core.training.fit import Trained, train
from cma_clip_core.training.optimizer import learning_rate_scale, parameter_groups
from schemas.loading import ContractError
from schemas.taxonomy import Taxonomy
from tests.cma_clip_core import drawn
from tests.cma_clip_core.drawn import QUIET

CPU = torch.device("cpu")
CONFIG = drawn.config()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ExampleIndex:
    folder = drawn.write(tmp_path_factory.mktemp("examples"), drawn.examples(600))
    return drawn.index(folder, selection=CONFIG.selection)


@pytest.fixture(scope="module")
def trained(index: ExampleIndex) -> Trained:
    return train(drawn.problem(CONFIG, index), QUIET)


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


def test_the_weights_are_those_of_the_epoch_that_is_kept(trained: Trained) -> None:
    accuracies = [epoch.validation for epoch in trained.metrics.epochs]
    validation = [m.accuracy for m in trained.metrics.validation.values()]
    assert np.mean(validation) == pytest.approx(accuracies[trained.metrics.best_epoch - 1])  # type: ignore[arg-type]
    assert len(set(accuracies)) > 1


def test_the_same_seed_gives_the_same_weights(index: ExampleIndex) -> None:
    config = drawn.config(epochs=1, word_dropout=0.2, shift=2, flip=True)
    first, second = (train(drawn.problem(config, index), QUIET).model for _ in range(2))
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    other_seed = config.model_copy(update={"training": config.training.model_copy(update={"seed": 1})})
    third = train(drawn.problem(other_seed, index), QUIET).model
    assert not torch.equal(first.kind, third.kind)


def test_too_few_products_say_so(tmp_path: Path) -> None:
    few = drawn.index(drawn.write(tmp_path, drawn.examples(2)))
    with pytest.raises(DataError, match="needs more products"):
        train(drawn.problem(CONFIG, few), QUIET)


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


def test_heads_decay_whatever_their_attributes_are_called() -> None:
    config = drawn.config(learning_rate=0.1, embedding_learning_rate=0.01, weight_decay=0.5)
    names = ["kind", "kind_of_neck", "embedding", "token_embedding", "class_embedding", "logit_scale", "neck"]
    attributes = [{"name": n, "label": n, "field": n, "values": ["One", "Two"]} for n in names]
    taxonomy = Taxonomy.model_validate({"name": "named", "article_type": "kind", "attributes": attributes})
    model = CmaClip(config, taxonomy)
    groups = {
        id(p): (group["peak"], group["weight_decay"])
        for group in parameter_groups(model, config.training)
        for p in group["params"]
    }
    for name in names:
        for layer in (0, 3):
            assert groups[id(model.heads[name][layer].weight)] == (0.1, 0.5), name
            assert groups[id(model.heads[name][layer].bias)] == (0.1, 0.0), name
    towers = (model.backbone.text.tower.positional_embedding, model.backbone.image.tower.positional_embedding)
    assert [groups[id(p)][1] for p in (model.kind, *towers)] == [0.0, 0.0, 0.0]


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
        "precision_recall.svg", "calibration.svg", "modality_weights.svg", "SHA256SUMS",
    }  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in version.iterdir()} == {0o644}
    listed = [line.split()[1] for line in (version / "SHA256SUMS").read_text().splitlines()]
    assert sorted([*listed, "SHA256SUMS"]) == sorted(path.name for path in version.iterdir())
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=version, check=True)


def test_the_card_says_what_the_model_is_worth(trained: Trained, version: Path) -> None:
    card = (version / "MODEL_CARD.md").read_text()
    for name, metrics in trained.metrics.test.items():
        assert f"| {name} | {metrics.n} | {metrics.n_silent} | {metrics.accuracy:.3f} |" in card
    never = [name for name, t in trained.thresholds.items() if t.lowest() is None]
    assert all(f"- {name}: nothing is ever accepted" in card for name in never)
    for name, found in trained.metrics.test_values.items():
        assert sum(v.support for v in found.values.values()) >= trained.metrics.test[name].n
        assert all(f"| {value} | {v.support} | {v.predicted} | " in card for value, v in found.values.items())
    assert registry.read_json(version / registry.METRICS, Metrics) == trained.metrics
    assert "## Not to be used" in card
    assert trained.metrics.promise is not None
    assert trained.metrics.promise == promise_kept(trained.metrics.test)
    assert f"The promised precision is {trained.metrics.promise.words()} " in card
    linked = re.findall(r"!\[.*\]\((.*)\)", card)
    assert sorted(linked) == sorted(path.name for path in version.glob("*.svg"))
    assert len(linked) == 3


def test_metrics_of_before_values_were_counted_are_read(trained: Trained) -> None:
    document = trained.metrics.model_dump(mode="json")
    assert document.pop("test_values").keys() == trained.metrics.test.keys()
    assert Metrics.model_validate(document) == trained.metrics.model_copy(update={"test_values": {}})


def test_an_attribute_that_cannot_be_learnt_is_named_with_the_reason(tmp_path: Path) -> None:
    rows = drawn.examples(200).to_pylist()
    for row in rows:
        row["labels"] = [(name, ["Red"] if name == "colour" else values) for name, values in row["labels"]]
    table = pa.Table.from_pylist(rows, schema=drawn.examples(1).schema)
    found = train(drawn.problem(drawn.config(epochs=1), drawn.index(drawn.write(tmp_path, table))), QUIET)
    assert found.metrics.not_learnt.keys() == {"colour"}
    assert "are 'Red'" in found.metrics.not_learnt["colour"]
    assert found.metrics.promise is not None
    assert "colour" in found.metrics.promise.nothing
    models = tmp_path / "models"
    card = (models / registry.save(found, CONFIG, drawn.taxonomy(), models, drawn.NOW) / registry.CARD).read_text()
    assert f"- colour: nothing is ever accepted: it was not learnt, as {found.metrics.not_learnt['colour']}." in card


def test_a_version_is_immutable(trained: Trained, version: Path) -> None:
    before = {path.name: path.read_bytes() for path in version.iterdir()}
    again = registry.save(trained, CONFIG, drawn.taxonomy(), version.parent, drawn.NOW + timedelta(hours=1))
    assert again == version.name
    assert {path.name: path.read_bytes() for path in version.iterdir()} == before
    tomorrow = registry.save(trained, CONFIG, drawn.taxonomy(), version.parent, drawn.NOW + timedelta(days=1))
    assert re.fullmatch(r"20261121-[0-9a-f]{8}", tomorrow)


def test_the_same_weights_with_anything_else_changed_are_another_version(trained: Trained, tmp_path: Path) -> None:
    document = drawn.taxonomy().model_dump(mode="json")
    document["attributes"][1]["target_precision"] = 0.95
    taxonomy = Taxonomy.model_validate(document)
    thresholds = trained.thresholds | {"colour": trained.thresholds["colour"].model_copy(update={"threshold": 0.123})}
    config = CONFIG.model_copy(update={"name": "renamed"})
    found = [
        registry.save(made, made_with, predicts, tmp_path, drawn.NOW)
        for made, made_with, predicts in (
            (trained, CONFIG, drawn.taxonomy()),
            (dataclasses.replace(trained, thresholds=thresholds), CONFIG, drawn.taxonomy()),
            (trained, CONFIG, taxonomy),
            (trained, config, drawn.taxonomy()),
            (dataclasses.replace(trained, metrics=trained.metrics.model_copy(update={"seconds": 0.0})), CONFIG, drawn.taxonomy()),
        )
    ]  # fmt: skip
    assert sorted(set(found)) == sorted(found) == registry.list_versions(tmp_path)
    assert registry.read_thresholds(tmp_path / found[1])["colour"].threshold == 0.123
    assert registry.read_taxonomy(tmp_path / found[2])["colour"].target_precision == 0.95


def copy_of(version: Path, folder: Path) -> Path:
    return Path(shutil.copytree(version, folder))


def one_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "model.safetensors": one_bit,
    "config.json": lambda data: data.replace(b'"tiny"', b'"vast"'),
    "taxonomy.yaml": lambda data: data.replace(b"name: Red", b"name: Rot"),
    "thresholds.json": lambda data: data.replace(b'"target_precision": 0.9', b'"target_precision": 0.5'),
    "metrics.json": lambda data: data.replace(b'"device": "cpu"', b'"device": "tpu"'),
    "MODEL_CARD.md": lambda data: data.replace(b"## Limits", b"## No limits"),
    "calibration.svg": lambda data: data + b"\n",
}


@pytest.mark.parametrize("file", EDITS)
@pytest.mark.parametrize("listed", [False, True])
def test_a_changed_version_is_refused(version: Path, tmp_path: Path, file: str, listed: bool) -> None:
    copy = copy_of(version, tmp_path / version.name)
    before = (copy / file).read_bytes()
    after = EDITS[file](before)
    assert after != before
    (copy / file).write_bytes(after)
    words = rf"{file}: its hash is not that in SHA256SUMS: the file was changed"
    if listed:  # the list is changed too: then it is not the one that the version is named after
        sums = (copy / "SHA256SUMS").read_text()
        digests = [hashlib.sha256(data).hexdigest() for data in (before, after)]
        assert digests[0] in sums
        (copy / "SHA256SUMS").write_text(sums.replace(*digests))
        words = rf"SHA256SUMS: its hash is [0-9a-f]{{8}}, not that of version {version.name}"
    with pytest.raises(ModelError, match=words):
        cma_clip_core.load(copy, device="cpu")
    # The documents that are read without the weights are looked at too.
    read: dict[str, Callable[[], object]] = {
        "config.json": lambda: registry.read_config(copy),
        "taxonomy.yaml": lambda: registry.read_taxonomy(copy),
        "thresholds.json": lambda: registry.read_thresholds(copy),
        "metrics.json": lambda: registry.read_json(copy / registry.METRICS, Metrics),
        "MODEL_CARD.md": lambda: registry.read_card(copy),
    }
    with pytest.raises(ModelError, match=words):
        read.get(file, lambda: registry.check(copy))()


@pytest.mark.parametrize("file", ["SHA256SUMS", "thresholds.json", "precision_recall.svg", "MODEL_CARD.md"])
def test_a_version_of_which_a_file_is_gone_is_refused(version: Path, tmp_path: Path, file: str) -> None:
    copy = copy_of(version, tmp_path / version.name)
    (copy / file).unlink()
    with pytest.raises(ModelError, match=rf"{file}: cannot be read" if file != "SHA256SUMS" else "hash"):
        cma_clip_core.load(copy, device="cpu")


def test_a_version_of_before_its_card_was_listed(version: Path, tmp_path: Path) -> None:
    lines = (version / registry.SUMS).read_text().splitlines(keepends=True)
    sums = "".join(line for line in lines if registry.CARD not in line)
    old = copy_of(version, tmp_path / f"20261101-{hashlib.sha256(sums.encode()).hexdigest()[:8]}")
    (old / registry.SUMS).write_text(sums)
    registry.load_model(old)
    (old / "notes.txt").write_text("nothing reads this")
    registry.check(old)
    assert registry.read_card(old) == (version / registry.CARD).read_text()
    (old / registry.CONFIG).write_bytes(EDITS[registry.CONFIG]((old / registry.CONFIG).read_bytes()))
    with pytest.raises(ModelError, match=r"config\.json: its hash is not"):
        registry.load_model(old)


def test_a_list_that_leaves_out_the_weights_is_refused(version: Path, tmp_path: Path) -> None:
    lines = (version / registry.SUMS).read_text().splitlines(keepends=True)
    sums = "".join(line for line in lines if registry.WEIGHTS not in line)
    copy = copy_of(version, tmp_path / f"20261101-{hashlib.sha256(sums.encode()).hexdigest()[:8]}")
    (copy / registry.SUMS).write_text(sums)
    with pytest.raises(ModelError, match=r"model\.safetensors: its hash is not"):
        registry.load_model(copy)


def test_a_version_of_before_the_list_was_named_after_its_weights(version: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256((version / registry.WEIGHTS).read_bytes()).hexdigest()
    old = copy_of(version, tmp_path / f"20261101-{digest[:8]}")
    (old / registry.SUMS).unlink()
    registry.load_model(old)
    (old / registry.WEIGHTS).write_bytes(one_bit((old / registry.WEIGHTS).read_bytes()))
    with pytest.raises(ModelError, match=r"the file was changed\. Put it back from a copy, or train the model again"):
        registry.load_model(old)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", b"{}", r"config\.json: broken"),
        ("taxonomy.yaml", b"name: \xff", r"taxonomy\.yaml: broken"),
        ("thresholds.json", b'{"colour": 1}', r"thresholds\.json: broken"),
    ],
)
def test_a_folder_that_nobody_saved_says_what_is_broken(
    version: Path, tmp_path: Path, file: str, content: bytes, words: str
) -> None:
    copy = copy_of(version, tmp_path / "by-hand")
    (copy / registry.SUMS).unlink()
    (copy / file).write_bytes(content)
    with pytest.raises(ModelError, match=words):
        cma_clip_core.load(copy, device="cpu")


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is .* a model version\? Put it back from a copy, or train the model again"):
        cma_clip_core.load(tmp_path, device="cpu")


def test_the_library_tags(version: Path) -> None:
    tagger = cma_clip_core.load(version, device="cpu")
    picture = Image.new("RGB", (24, 32), "white")
    picture.paste(drawn.COLOURS["Blue"], (4, 4, 20, 28))
    both, text, image, nothing, broken = tagger.tag(
        [
            {"title": "classic Striped Shirt 601", "description": "soft Wool", "image": picture},
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


def test_nobody_waits_for_torch_or_matplotlib_who_needs_none() -> None:
    code = (
        "import sys, cma_clip_core, cma_clip_core.content.pictures, cma_clip_core.content.product_text, cma_clip_core.config\n"
        "import cma_clip_core.registry, jobs.models.list_models, jobs.nightly.tag\n"
        "assert not {'torch', 'open_clip', 'pyspark'} & sys.modules.keys()\n"
        "assert callable(cma_clip_core.load)\n"
        "import cma_clip_core.model_card.plots, cma_clip_core.model_card.write_card\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(cma_clip_core.__file__).parents[2])


@pytest.mark.parametrize("name", ["sample", "fashion", "tiny"])
def test_shipped_configurations(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    CmaClip(config, drawn.taxonomy())


def test_the_shipped_configuration_of_pretrained_towers() -> None:
    config = load_config("clip-vit-b-32")
    assert (config.backbone.architecture, config.backbone.pretrained) in open_clip.list_pretrained()
    size = open_clip.get_model_config(config.backbone.architecture)["vision_cfg"]["image_size"]
    assert config.picture.height == config.picture.width == size
    assert config.training.learning_rate >= 10 * config.training.backbone_learning_rate


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
    with pytest.raises(ContractError, match="32x25 is not a whole number of patches of 8"):
        load_config(path)
