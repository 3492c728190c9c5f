"""Values that the taxonomy does not list: wrong whatever a method says, not positives, never learnt.

`pytest tests/cma_clip_core/catalog/test_unlisted.py`
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cma_clip_core.catalog.labelled_set import scan_examples
from cma_clip_core.catalog.labels import LabelReader
from cma_clip_core.catalog.splits import SIDES
from cma_clip_core.catalog.unlisted_values import GivenCounter
from cma_clip_core.config import SelectionConfig
from cma_clip_core.engine import Engine
from cma_clip_core.evaluation.bootstrap import draw_recalls
from cma_clip_core.evaluation.calibration import fit_temperature, log_loss
from cma_clip_core.evaluation.candidates import candidates
from cma_clip_core.evaluation.choose_thresholds import choose_threshold
from cma_clip_core.evaluation.evaluate import evaluate
from cma_clip_core.evaluation.label_errors import find_suspects
from cma_clip_core.evaluation.metrics import judge, judge_values, mean_accuracy
from cma_clip_core.evaluation.picture_evidence import LEAST_PRODUCTS, choose_weight
from cma_clip_core.evaluation.predictions import Predictions, join
from cma_clip_core.evaluation.tfidf_baseline import fit_text_baseline
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.cma_clip import CmaClip
from cma_clip_core.model_documents import Threshold
from schemas.tables import EXAMPLES
from tests.cma_clip_core import drawn
from tests.cma_clip_core.scored import marks, several, single

CPU = torch.device("cpu")


def unlisted(found: Predictions) -> Predictions:
    """Return the predictions as if their products had only unlisted values."""
    none = np.zeros_like(found.targets)
    names = np.array([f"u{i}" for i in range(len(found))], object)
    return replace(found, products=names, families=found.families + 10**6, targets=none, named=none.astype(np.uint8))


def accepted_from(limit: float) -> Threshold:
    return Threshold(threshold=limit, target_precision=0.9, precision=None, accepted=0, candidates=0)


LISTED = single([0.9, 0.8, 0.7, 0.6], marks("rrrw"))
MIXED = join([LISTED, unlisted(single([0.95, 0.5], marks("rr")))])


def test_an_answer_for_an_unlisted_value_is_wrong_and_no_positive() -> None:
    found = candidates(MIXED)
    assert (len(found), found.positives, found.unlisted, len(found.positive_family)) == (6, 4, 2, 4)
    assert found.right.tolist() == [True, True, True, False, False, False]
    pairs = candidates(
        join([several([[0.9, 0.1, 0.6]], ["rwr"], ["www"]), unlisted(several([[0.9, 0.1, 0.1]], ["rww"], ["www"]))])
    )
    assert (pairs.positives, pairs.unlisted, int(pairs.right.sum())) == (2, 1, 2)


def test_precision_counts_unlisted_values_and_all_else_the_listed_ones() -> None:
    before, after = (judge(p, accepted_from(0.65), ["title"]) for p in (LISTED, MIXED))
    assert (before.precision, after.precision) == (1.0, pytest.approx(3 / 4))
    assert (before.n, before.n_unlisted, after.n, after.n_unlisted) == (4, 0, 4, 2)
    for name in ("accuracy", "macro_f1", "calibration_error", "recall", "n_silent", "silent_recall_at_90"):
        assert getattr(before, name) == getattr(after, name), name
    assert (before.coverage, after.coverage) == (3 / 4, 4 / 6)
    assert before.recall_at_target == 0.75
    assert after.recall_at_target == 0.0  # the surest answer of all is wrong
    assert mean_accuracy({"pattern": MIXED}) == mean_accuracy({"pattern": LISTED})
    assert judge_values(MIXED).values["Solid"].precision == pytest.approx(3 / 6)


def test_a_temperature_is_fitted_to_listed_values_alone() -> None:
    rng = np.random.default_rng(0)
    for found in (
        single(rng.uniform(0.4, 0.99, 60), rng.random(60) < 0.7),
        several(rng.uniform(0.02, 0.98, (60, 3)).tolist(), ["rwr", "wwr", "rww"] * 20, ["www"] * 60),
    ):
        mixed = join([found, unlisted(found)])
        assert log_loss(mixed, 1.3) == log_loss(found, 1.3)
        assert fit_temperature(mixed) == fit_temperature(found)
        assert fit_temperature(unlisted(found)) == 1.0  # too few to fit


def test_a_threshold_keeps_its_promise_where_a_tenth_is_unlisted() -> None:
    rng = np.random.default_rng(3)
    confidence = rng.uniform(0.5, 1, 4000)
    found = single(confidence, rng.random(4000) < confidence)
    sure = unlisted(single(rng.uniform(0.5, 0.95, 400), marks("r" * 400)))
    selection = SelectionConfig()
    blind, seen = choose_threshold(found, 1.0, selection), choose_threshold(join([found, sure]), 1.0, selection)
    low, high = blind.lowest(), seen.lowest()
    assert low is not None
    assert high is not None
    assert high > low
    assert seen.precision is not None
    assert seen.precision > 0.9
    assert judge(join([found, sure]), blind, []).precision < 0.9  # type: ignore[operator]


def test_recalls_are_drawn_with_unlisted_values_as_errors() -> None:
    threshold = {"pattern": accepted_from(0.5)}
    recalls = [
        draw_recalls({"m": {"pattern": p}}, {"m": threshold}, [], draws=3)["m"].of("pattern") for p in (LISTED, MIXED)
    ]
    assert [recall.measured for recall in recalls] == [0.75, 0.0]


def test_the_picture_s_weight_is_chosen_on_enough_listed_values() -> None:
    found = single([0.9] * (LEAST_PRODUCTS - 1), marks("r" * (LEAST_PRODUCTS - 1)))
    assert choose_weight(join([found, unlisted(found)]), join([found, unlisted(found)])) == 0.0
    enough = join([found, single([0.9], marks("r"))])
    assert choose_weight(enough, enough) == 1.0


@pytest.mark.parametrize("kind", ["single", "several"])
def test_an_unlisted_value_is_never_a_suspect(kind: str) -> None:
    found = (
        single([0.99] * 120, marks("r" * 110 + "w" * 10), values=np.arange(120) % 3)
        if kind == "single"
        else several([[0.99, 0.01, 0.01]] * 60 + [[0.01, 0.99, 0.01]] * 60, ["rww"] * 57 + ["wrw"] * 63, ["www"] * 120)
    )
    suspects = find_suspects(found, 1.0)
    assert suspects
    assert find_suspects(join([found, unlisted(found)]), 1.0) == suspects


def changed(number: int, unknown: dict[str, list[str]], listed: dict[str, list[str]]) -> dict[str, Any]:
    example = drawn.example(number, np.random.default_rng(number))
    return example | {"labels": list(listed.items()), "unknown_labels": list(unknown.items())}


def test_labels_are_listed_unlisted_or_gaps() -> None:
    reader = LabelReader(drawn.taxonomy())
    rows = reader.read(
        [[("article_type", ["Shirt"]), ("material", ["Wool"])], [("colour", ["Red"])], []],
        [
            [("colour", ["Teal"]), ("material", ["Hemp"])],
            [("article_type", ["Hat"]), ("pattern", ["Wavy"])],
            [("colour", ["Teal"])],
        ],
    )
    assert rows.labelled.tolist() == [[True, False, False, True], [False, True, False, False], [False] * 4]
    assert rows.unlisted.tolist() == [
        [False, True, False, False],
        [True, False, False, False],
        [False, True, False, False],
    ]
    assert rows.gaps.tolist() == [[False, False, True, False], [False] * 4, [True, False, False, False]]
    assert rows.left_out.tolist() == [[False] * 4, [False, False, True, False], [False] * 4]


def test_products_of_unlisted_values_alone_are_judged_on_and_not_learnt_from(tmp_path: Path) -> None:
    rows = drawn.examples(300).to_pylist()
    for number in range(0, 300, 3):
        rows[number] |= {"labels": [], "unknown_labels": [("colour", [f"Teal {number}"])]}
    rows[299] |= {"labels": [], "unknown_labels": []}
    folder = drawn.write(tmp_path / "a", pa.Table.from_pylist(rows, schema=EXAMPLES))
    scan = scan_examples([folder], drawn.taxonomy(), drawn.config().picture, SelectionConfig())
    index = scan.index
    by_side = {side: {int(row) for row in index.row[index.side == at]} for at, side in enumerate(SIDES)}
    taken = {side: {row for row in found if row % 3 == 0} for side, found in by_side.items()}
    assert not taken["train"]
    assert taken["validation"]
    assert taken["test"]
    assert len(index.row) + scan.unlabelled + scan.empty + scan.superseded == 300
    given = scan.given["colour"]
    assert (given.listed, given.unlisted, given.gaps, given.words) == (199, 100, 1, 100)
    layout = ClassLayout(drawn.taxonomy())
    model = CmaClip(drawn.config(), drawn.taxonomy())
    found = evaluate(model, drawn.problem(drawn.config(), index), "test", CPU)["colour"]
    assert {product for product, listed in zip(found.products, found.has_target, strict=True) if not listed} == {
        f"p{row:05d}" for row in taken["test"]
    }
    baseline = fit_text_baseline(index, layout, drawn.config().text, progress=False)
    assert len(baseline.predict(index, "test")["colour"]) == len(found)


def test_the_engine_passes_unlisted_values_on_and_takes_no_model_s_type_for_the_shop_s() -> None:
    torch.manual_seed(0)
    engine = Engine(CmaClip(drawn.config(), drawn.taxonomy()), drawn.config(), drawn.taxonomy(), {}, CPU)
    rows = [
        changed(0, {"colour": ["Teal"]}, {"article_type": ["Shirt"]}),
        changed(1, {"article_type": ["Hat"]}, {"colour": ["Red"]}),
        changed(2, {"article_type": ["Hat"], "pattern": ["Wavy"]}, {"material": ["Wool"]}),
    ]
    (found,) = engine.predict([pa.RecordBatch.from_pylist(rows, schema=EXAMPLES)], drawn.NOW)
    said = found.to_pylist()
    assert [dict(row["unlisted"]) for row in said] == [dict(row["unknown_labels"]) for row in rows]
    assert said[0]["applicable"] == ["article_type", "colour", "pattern", "material"]
    assert said[1]["applicable"] == ["article_type", "colour"]
    assert said[2]["applicable"] == ["article_type", "colour", "pattern", "material"]  # as the catalog gives them


def test_words_are_counted_once_a_product_with_the_nearest_value(monkeypatch: pytest.MonkeyPatch) -> None:
    taxonomy = drawn.taxonomy()
    counter, reader = GivenCounter(taxonomy), LabelReader(taxonomy)
    unknown: list[list[tuple[str, list[str]]]] = [
        [("colour", ["Geen"])], [("colour", [" Geen "])], [("colour", ["Red|Blue"])], [("material", ["x" * 500, "Hemp"])],
        [("colour", ["out"])],
    ]  # fmt: skip
    monkeypatch.setattr("cma_clip_core.catalog.unlisted_values.WORDS", 2)
    counter.add(reader.read([[]] * 5, unknown), unknown, np.array([True] * 4 + [False]))
    counter.add(reader.read([[]], [[("colour", ["Third"])]]), [[("colour", ["Third"])]], np.array([True]))
    found = counter.result(10)
    assert [(w.word, w.products, w.nearest, w.several) for w in found["colour"].commonest] == [
        ("Geen", 2, "Green", ()), ("Red|Blue", 1, "Blue", ("Red", "Blue")),
    ]  # fmt: skip
    assert (found["colour"].words, found["colour"].more) == (2, 1)
    assert max(len(w.word) for w in found["material"].commonest) == 200
