"""`pytest tests/cma_clip_core/training/test_train_candidates.py`: real training on drawn products."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from cma_clip_core import registry
from cma_clip_core.engine import Engine
from cma_clip_core.errors import DataError, ModelError
from cma_clip_core.evaluation.evaluate import evaluate
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.model.ensemble import Ensemble
from cma_clip_core.model.picture_features import PictureFeatures
from cma_clip_core.tagger import load, load_engine
from cma_clip_core.training import train_candidates as module
from cma_clip_core.training.fit import Trained
from cma_clip_core.training.train_candidates import train_candidates
from tests.cma_clip_core import drawn

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> LearningProblem:
    folder = drawn.write(tmp_path_factory.mktemp("examples"), drawn.examples(500))
    return drawn.problem(drawn.config(epochs=1), drawn.index(folder))


@pytest.fixture(scope="module")
def trained(problem: LearningProblem) -> Trained:
    """CMA-CLIP after one epoch, which has learnt little, and both linear members."""
    if module.find_weights() is None:
        pytest.skip("the extra `picture-features` is not installed")
    return train_candidates(problem, drawn.QUIET)


@pytest.fixture
def saved(trained: Trained, problem: LearningProblem, tmp_path: Path) -> Path:
    return tmp_path / registry.save(trained, problem.config, problem.taxonomy, tmp_path, drawn.NOW)


def predict(engine: Engine, count: int = 60) -> pa.RecordBatch:
    (rows,) = engine.predict([drawn.batch(count, seed=5)], drawn.NOW)
    return rows


def without_time(rows: pa.RecordBatch) -> list[dict[str, object]]:
    return rows.drop_columns(["tagged_at"]).to_pylist()


def test_what_the_text_alone_tells_is_answered_by_the_bag_of_words(trained: Trained) -> None:
    assert trained.methods is not None
    names = {name: method.name for name, method in trained.methods.attributes.items()}
    assert names["pattern"] == names["article_type"] == "bag-of-words"
    assert "picture-features" in names["colour"]
    test = trained.metrics.test
    assert (test["pattern"].text_weight, test["pattern"].image_weight) == (pytest.approx(0.9, abs=0.1), 0)
    assert test["colour"].image_weight > 0.5
    for name in ("pattern", "colour"):
        assert (test[name].coverage or 0) > 0.5
        assert (test[name].precision or 0) >= 0.9
    assert trained.metrics.promise is not None
    assert not trained.metrics.promise.broken


def test_each_candidate_is_named_with_what_it_reached(
    problem: LearningProblem, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = train_candidates(problem, drawn.QUIET, candidates=["bag-of-words"])
    assert found.methods is not None
    assert set(found.methods.left_out) == {"picture-features", "cma-clip"}
    assert {m.name for m in found.methods.attributes.values()} == {"bag-of-words"}
    early = [line for line in caplog.messages if "pattern: bag-of-words accepts" in line]
    assert "cross-fitted" in early[0]
    assert isinstance(found.model, Ensemble)
    assert found.model.cma is None
    assert found.metrics.epochs == ()


def test_a_version_is_read_back_bit_for_bit(trained: Trained, problem: LearningProblem, saved: Path) -> None:
    assert not [path for path in saved.iterdir() if path.suffix in (".pkl", ".pth", ".joblib")]
    read = registry.load_model(saved)
    before, after = trained.model.state_dict(), read.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    expected, actual = (evaluate(model, problem, "test", CPU) for model in (trained.model, read))
    assert all(np.array_equal(expected[name].logits, actual[name].logits) for name in expected)
    assert registry.read_methods(saved) == trained.methods
    again = registry.save(replace(trained, model=read), problem.config, problem.taxonomy, saved.parent, drawn.NOW)
    assert again == saved.name


def test_the_answers_do_not_depend_on_the_batch(saved: Path) -> None:
    whole, single = (without_time(predict(load_engine(saved, "cpu", size))) for size in (256, 1))
    for one, other in zip(whole, single, strict=True):
        assert one.keys() == other.keys()
        pairs = zip(one.pop("predictions"), other.pop("predictions"), strict=True)  # type: ignore[call-overload]
        assert one == other
        for a, b in pairs:
            assert (a["attribute"], a["value"], a["method"]) == (b["attribute"], b["value"], b["method"])
            assert a["confidence"] == pytest.approx(b["confidence"], abs=1e-4)


def test_the_tagger_says_which_method_answered(saved: Path) -> None:
    row, unknown = load(saved, "cpu").tag([{"title": "soft Striped Shirt 7"}, {"title": "Zzz"}])
    by_attribute = {p["attribute"]: p for p in row["predictions"]}
    pattern = by_attribute["pattern"]
    assert (pattern["value"], pattern["method"], pattern["accepted"]) == ("Striped", "bag-of-words", True)
    assert (pattern["text_weight"], pattern["image_weight"]) == (1, 0)
    colour = by_attribute["colour"]  # told by the picture, and there is none
    assert "picture-features" in colour["method"]
    assert colour["confidence"] < 0.5
    assert colour["image_weight"] == 0
    for guess in unknown["predictions"]:  # no member knows a word of the text
        if "cma-clip" not in guess["method"]:
            assert not guess["accepted"]
            assert guess["text_weight"] == guess["image_weight"] == 0
            assert guess["confidence"] < 0.51


def test_the_card_says_which_method_answers(saved: Path) -> None:
    card = (saved / registry.CARD).read_text()
    assert "## Methods" in card
    assert "A bag of words (TF-IDF and logistic regression)" in card
    assert "cross-fitting" in card


def test_a_version_without_methods_is_read_as_before(problem: LearningProblem, tmp_path: Path) -> None:
    from cma_clip_core.training.fit import train

    plain = train(problem, drawn.QUIET)
    folder = tmp_path / registry.save(plain, problem.config, problem.taxonomy, tmp_path, drawn.NOW)
    assert not (folder / registry.METHODS).exists()
    assert registry.read_methods(folder) is None
    (folder / registry.METHODS).write_text('{"attributes": {}}')  # not in SHA256SUMS: ignored
    rows = predict(load_engine(folder, "cpu"), 5).to_pylist()
    assert {p["method"] for row in rows for p in row["predictions"]} == {"cma-clip"}


def test_a_changed_vocabulary_is_refused(saved: Path) -> None:
    terms = json.loads((saved / registry.VOCABULARY).read_text())
    (saved / registry.VOCABULARY).write_text(json.dumps(terms[::-1]))
    with pytest.raises(ModelError, match=r"vocabulary\.json: its hash is not"):
        registry.load_model(saved)


def test_weights_that_lack_a_member_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = load_file(saved / registry.WEIGHTS)
    del state["words.weight"]
    save_file(state, saved / registry.WEIGHTS)
    monkeypatch.setattr(registry, "check", lambda _: None)
    with pytest.raises(ModelError, match=r"'words\.weight' is missing"):
        registry.load_model(saved)


def test_without_the_extra_the_candidate_is_left_out_and_the_card_says_so(
    problem: LearningProblem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "find_weights", lambda: None)
    with caplog.at_level(logging.INFO):
        found = train_candidates(problem, drawn.QUIET, candidates=["bag-of-words", "picture-features"])
    assert "picture-features is left out: the extra `picture-features` is not installed" in caplog.text
    folder = tmp_path / registry.save(found, problem.config, problem.taxonomy, tmp_path, datetime(2026, 1, 1))
    card = (folder / registry.CARD).read_text()
    assert "- picture-features is left out: the extra `picture-features` is not installed." in card
    assert "CMA-CLIP is not a part of this version." in card
    engine = load_engine(folder, "cpu")
    assert not any(isinstance(part, PictureFeatures) for part in engine.model.modules())
    rows = predict(engine).to_pylist()
    assert {p["method"] for row in rows for p in row["predictions"]} == {"bag-of-words"}


def test_nothing_to_learn_from_is_an_error_with_its_reasons(tmp_path: Path) -> None:
    table = drawn.examples(200)
    for name in ("title", "description"):
        table = table.set_column(
            table.schema.get_field_index(name), table.schema.field(name), pa.array([""] * len(table))
        )
    problem = drawn.problem(drawn.config(epochs=1), drawn.index(drawn.write(tmp_path, table)))
    with pytest.raises(
        DataError, match=r"no candidate has anything to learn from: .*no two training products have a word"
    ):
        train_candidates(problem, drawn.QUIET, candidates=["bag-of-words"])
