"""Tests of training on poor labels and modalities: `pytest tests/cma_clip_core/inputs/test_training_data.py`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cma_clip_core.catalog.splits import SIDES, Side
from cma_clip_core.errors import DataError, NothingToLearnError
from cma_clip_core.evaluation.evaluate import evaluate
from cma_clip_core.evaluation.learnable import find_unlearnable
from cma_clip_core.evaluation.metrics import mean_accuracy, mean_recall
from cma_clip_core.evaluation.tfidf_baseline import fit_text_baseline
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.training.fit import train
from cma_clip_core.training.loop import Loop
from cma_clip_core.training.pretraining import pretrain
from tests.cma_clip_core import drawn
from tests.cma_clip_core.drawn import QUIET

CPU = torch.device("cpu")


def changed(count: int, change: Any) -> pa.Table:
    """Return drawn examples, each row changed in place by `change(row, labels)`."""
    rows = drawn.examples(count).to_pylist()
    for row in rows:
        labels = dict(row["labels"])
        change(row, labels)
        row["labels"] = list(labels.items())
    return pa.Table.from_pylist(rows, schema=drawn.examples(1).schema)


def test_an_attribute_of_one_value_or_few_labels_is_skipped_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = iter(range(1000))

    def change(_: dict[str, Any], labels: dict[str, list[str]]) -> None:
        if "pattern" in labels:
            labels["pattern"] = ["Solid"]
        if "material" in labels and next(kept) >= 12:
            del labels["material"]

    index = drawn.index(drawn.write(tmp_path, changed(300, change)))
    with caplog.at_level(logging.INFO):
        trained = train(drawn.problem(drawn.config(epochs=1), index), QUIET)
    before, after = caplog.text.split("epoch 1/1")  # a person who waits for hours sees the warning first
    assert "pattern is not learnt, accepted or counted in a mean: all of its" in before
    assert "training labels are 'Solid'" in before
    assert "material is not learnt" in before
    assert "colour is not learnt" not in before
    assert "is not learnt" not in after
    assert list(trained.metrics.not_learnt) == ["pattern", "material"]
    judged = [trained.metrics.validation[name].accuracy or 0 for name in ("article_type", "colour")]
    assert trained.metrics.epochs[0].validation == pytest.approx(np.mean(judged))
    recalls = [trained.metrics.test[name].recall_at_target or 0 for name in ("article_type", "colour")]
    assert mean_recall(trained.metrics) == pytest.approx(np.mean(recalls))
    for name in ("pattern", "material"):
        assert trained.thresholds[name].lowest() is None
        assert trained.metrics.test[name].coverage in (0, None)
    # The head of an attribute that is not learnt keeps its initial weights, except for weight decay.
    fresh = train(drawn.problem(drawn.config(epochs=0), index), QUIET).model
    for name, same in (("pattern", True), ("colour", False)):
        one, other = (m.get_submodule(f"heads.{name}.3").weight for m in (trained.model, fresh))
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4) is same


def test_a_value_of_several_that_all_products_have(tmp_path: Path) -> None:
    """A value that all products have cannot be learnt alone; beside other values, the baseline always predicts it."""

    def only(_: dict[str, Any], labels: dict[str, list[str]]) -> None:
        if "material" in labels:
            labels["material"] = ["Cotton"]

    def also(_: dict[str, Any], labels: dict[str, list[str]]) -> None:
        if "material" in labels:
            labels["material"] = ["Cotton", *({"Wool"} & set(labels["material"]))]

    layout = ClassLayout(drawn.taxonomy())
    index = drawn.index(drawn.write(tmp_path / "only", changed(300, only)))
    said = find_unlearnable(index, layout, 20)
    assert list(said) == ["material"]
    assert said["material"].endswith("training labels are 'Cotton'")
    index = drawn.index(drawn.write(tmp_path / "also", changed(300, also)))
    assert find_unlearnable(index, layout, 20) == {}
    baseline = fit_text_baseline(index, layout, drawn.config().text, progress=False)
    found = baseline.predict(index, "test")["material"]
    at = drawn.taxonomy()["material"].index["Cotton"]
    assert found.targets[:, at].all()
    assert (found.logits[:, at] > 10).all()


def test_the_baseline_is_held_back_as_much_as_serves_it_on_validation(tmp_path: Path) -> None:
    """No text names colours: a regularised regression predicts the commonest colour, another one follows chance."""

    def change(row: dict[str, Any], labels: dict[str, list[str]]) -> None:
        if hash_of(row["product_id"]) % 3:
            labels["colour"] = ["Red"]

    def hash_of(product: str) -> int:
        return int(product[1:]) * 2654435761 % 2**32 >> 7

    index = drawn.index(drawn.write(tmp_path, changed(600, change)))
    layout, text = ClassLayout(drawn.taxonomy()), drawn.config().text

    def accuracy(side: Side, *c: float) -> dict[str, float]:
        found = fit_text_baseline(index, layout, text, inverse_regularisations=c, progress=False).predict(index, side)
        return {name: mean_accuracy({name: p}) for name, p in found.items()}

    weak, strong, chosen = accuracy("validation", 0.01), accuracy("validation", 1e4), accuracy("validation", 0.01, 1e4)
    assert chosen == {name: max(weak[name], strong[name]) for name in weak}
    assert weak["colour"] > strong["colour"]
    assert weak["pattern"] < strong["pattern"]


def test_nothing_that_can_be_learnt_is_an_error_with_its_reasons(tmp_path: Path) -> None:
    index = drawn.index(drawn.write(tmp_path, drawn.examples(25)))
    with pytest.raises(
        DataError, match=r"no attribute can be learnt: article_type: it has \d+ training labels.*; colour"
    ):
        train(drawn.problem(drawn.config(epochs=1), index), QUIET)


def test_a_label_never_seen_in_training_is_an_error_of_the_model_and_no_more(tmp_path: Path) -> None:
    index = drawn.index(drawn.write(tmp_path, drawn.examples(400)))
    checked = {
        row["product_id"]
        for row in drawn.examples(400).to_pylist()
        if dict(row["labels"]).get("pattern") == ["Checked"]
    }
    ids = drawn.examples(400).column("product_id").to_pylist()
    index.side[[i for i, row in enumerate(index.row) if ids[row] in checked]] = SIDES.index("test")
    config = drawn.config(epochs=4)
    trained = train(drawn.problem(config, index), QUIET)
    found = evaluate(trained.model, drawn.problem(config, index), "test", CPU)["pattern"]
    unseen = found.targets[:, drawn.PATTERNS.index("Checked")]
    assert unseen.sum() > 50
    assert found.probabilities()[unseen].argmax(axis=1).tolist().count(drawn.PATTERNS.index("Checked")) == 0
    assert trained.metrics.test["pattern"].accuracy == pytest.approx(
        np.mean([t[p] for t, p in zip(found.targets, found.probabilities().argmax(axis=1), strict=True)])
    )


def test_a_catalog_without_any_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(row: dict[str, Any], _: object) -> None:
        row["image"], row["image_status"] = None, "absent"

    index = drawn.index(drawn.write(tmp_path, changed(400, change)))
    trained = train(drawn.problem(drawn.config(epochs=4), index), QUIET)
    test = trained.metrics.test["pattern"]
    assert (test.image_weight, test.text_weight) == (0, 1)
    assert test.accuracy is not None
    assert test.accuracy > 0.6
    monkeypatch.setattr(Loop, "step", lambda *_: pytest.fail("it is known before an epoch is trained in vain"))
    with pytest.raises(NothingToLearnError, match=r"no two products on the train side .* nothing to pretrain on"):
        pretrain(drawn.problem(drawn.config(), index), QUIET)


def test_a_catalog_without_any_text(tmp_path: Path) -> None:
    def change(row: dict[str, Any], _: object) -> None:
        row["title"] = row["description"] = ""

    index = drawn.index(drawn.write(tmp_path, changed(400, change)))
    trained = train(drawn.problem(drawn.config(epochs=4), index), QUIET)
    test = trained.metrics.test["colour"]
    assert (test.image_weight, test.text_weight) == (1, 0)
    assert test.accuracy is not None
    assert test.accuracy > 0.6
    with pytest.raises(NothingToLearnError, match="no two training products have a word in common in title, brand"):
        fit_text_baseline(index, ClassLayout(drawn.taxonomy()), drawn.config().text, progress=False)
