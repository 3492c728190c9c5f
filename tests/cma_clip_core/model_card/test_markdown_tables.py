"""Tables and the model card: `pytest tests/cma_clip_core/model_card/test_markdown_tables.py`"""

from __future__ import annotations

import re
from typing import Any

import pytest

from cma_clip_core.config import ModelConfig
from cma_clip_core.evaluation.metrics import judge, judge_values, method_metrics, promise_kept
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.model_card.markdown_tables import comparison, one_model, over_seeds, own_thresholds, shipped
from cma_clip_core.model_card.write_card import model_card
from cma_clip_core.model_documents import (
    AttributeMetrics,
    ExperimentOrigin,
    Interval,
    LabelCount,
    MethodMetrics,
    Metrics,
    Threshold,
)
from tests.cma_clip_core import drawn
from tests.cma_clip_core.scored import marks, single

SHIPPED = Threshold(
    threshold=0.75, values={"Striped": 0.5, "Checked": None}, temperature=1.25, target_precision=0.9, precision=1.0,
    accepted=2, candidates=3,
)  # fmt: skip
NOTHING = Threshold(threshold=None, target_precision=0.9, precision=None, accepted=0, candidates=3)


def metrics(recall: float | None, interval: Interval | None = None) -> AttributeMetrics:
    found = judge(single([0.9, 0.8, 0.6], marks("rrw")), SHIPPED, ("title",))
    return found.model_copy(update={"recall_at_90": recall, "recall_at_90_interval": interval})


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_methods_side_by_side_the_best_in_bold() -> None:
    text = method_metrics("text alone", {"pattern": metrics(0.5), "colour": metrics(0.25)})
    ours = method_metrics("CMA-CLIP", {"pattern": metrics(0.75, Interval(low=0.7, high=0.81)), "colour": metrics(None)})
    table = rows(comparison([text, ours]))
    assert table[0] == ["method", "pattern", "colour", "mean", "mean, silent"]
    assert table[2][:4] == ["text alone", "50.0", "**25.0**", "37.5"]
    assert table[3][:4] == ["CMA-CLIP", "**75.0** (70.0 to 81.0)", "-", "**75.0**"]
    assert table[3][4] == "**66.7**"
    assert rows(comparison([ours]))[2][1] == "75.0 (70.0 to 81.0)"


def test_seeds_are_a_mean_with_the_least_and_the_greatest() -> None:
    ours = [
        method_metrics("CMA-CLIP", {"pattern": metrics(recall, Interval(low=0.1, high=0.9)), "colour": metrics(None)})
        for recall in (0.75, 0.5, 0.7)
    ]
    table = rows(over_seeds([[method_metrics("TF-IDF", {"pattern": metrics(0.66), "colour": metrics(0.25)})], ours]))
    assert table[0] == ["method", "seeds", "pattern", "colour", "mean", "mean, silent"]
    assert table[2][:5] == ["TF-IDF", "1", "**66.0**", "**25.0**", "45.5"]
    assert table[3][:5] == ["CMA-CLIP", "3", "65.0 (50.0 to 75.0)", "-", "**65.0** (50.0 to 75.0)"]


def test_a_method_without_an_attribute() -> None:
    one = MethodMetrics(method="a", attributes={}, mean_recall_at_90=None, mean_silent_recall_at_90=None)
    assert rows(comparison([one, method_metrics("b", {"pattern": metrics(0.5)})]))[2] == ["a", "-", "-", "-"]


def test_one_model() -> None:
    header, _, row = rows(one_model({"pattern": metrics(2 / 3)}))
    found = dict(zip(header, row, strict=True))
    assert (found["n"], found["silent"], found["accuracy"]) == ("3", "3", "0.667")
    assert (found["recall at 90 %"], found["of the silent"], found["text"]) == ("66.7", "66.7", "0.75")
    header, _, row = rows(shipped({"pattern": metrics(0.5)}, {"pattern": SHIPPED}))
    found = dict(zip(header, row, strict=True))
    assert (found["threshold"], found["values with their own"], found["temperature"]) == ("0.750", "2", "1.25")
    assert rows(own_thresholds({"pattern": SHIPPED}))[2:] == [
        ["pattern", "Striped", "0.500"],
        ["pattern", "Checked", "-"],
    ]
    assert own_thresholds({"pattern": NOTHING}) == ""


def card_of(config: ModelConfig, thresholds: dict[str, Threshold], **known: Any) -> str:
    taxonomy = drawn.taxonomy()
    found = {a.name: judge(Predictions.empty(a), thresholds[a.name], ("title",)) for a in taxonomy.attributes}
    test = found | {"pattern": metrics(0.5)} | known.pop("also", {})
    trained = Metrics(
        train_examples=10, validation_examples=2, test_examples=3, families=12, best_epoch=1, epochs=(), seconds=1.0,
        device="cpu", validation=found, test=test, promise=promise_kept(test), **known,
    )  # fmt: skip
    card = model_card(config, taxonomy, thresholds, trained, drawn.NOW, ("calibration.svg",))
    return card.replace("\n", " ")


ALL_BUT_PATTERN = dict.fromkeys(drawn.taxonomy().names, NOTHING) | {"pattern": SHIPPED}


def test_the_card_names_what_is_never_accepted_with_the_reason() -> None:
    thresholds = ALL_BUT_PATTERN | {
        "colour": NOTHING.model_copy(update={"candidates": 29}),
        "article_type": NOTHING.model_copy(update={"candidates": 0}),
    }
    card = card_of(drawn.config(), thresholds)
    assert "- colour: nothing is ever accepted: no threshold kept the promise on validation." in card
    assert "- article_type: nothing is ever accepted: no validation product has a label of this attribute." in card
    assert (
        "- material: nothing is ever accepted: it has 3 candidates on validation; at least 29, all of them right,"
        in card
    )
    assert "- pattern: Checked is never accepted: no threshold kept the promise on validation." in card
    assert "Every value has a threshold" not in card
    assert "| pattern | Striped | 0.500 |" in card
    card = card_of(drawn.config(), thresholds, not_learnt={"colour": "all of its 40 training labels are 'Red'"})
    assert "- colour: nothing is ever accepted: it was not learnt, as all of its 40 training labels are 'Red'." in card


def test_what_was_not_learnt_is_in_no_mean_of_the_card() -> None:
    known: dict[str, Any] = {"also": {"colour": metrics(0.1)}}
    assert "Mean recall at 90 % precision: 0.300" in card_of(drawn.config(), ALL_BUT_PATTERN, **known)
    known = {"also": {"colour": metrics(0.1)}, "not_learnt": {"colour": "all of its 40 training labels are 'Red'"}}
    assert "Mean recall at 90 % precision: 0.500" in card_of(drawn.config(), ALL_BUT_PATTERN, **known)


def test_the_card_says_what_was_promised_and_what_was_kept() -> None:
    card = card_of(drawn.config(), ALL_BUT_PATTERN)
    assert "one-sided Clopper-Pearson lower bound" in card
    assert "fixed-sequence testing" in card
    assert (
        "The promised precision is kept by 1 of 1 attributes; nothing is accepted: article_type, colour, material (on the "
        "test products" in card
    )
    assert "![calibration](calibration.svg)" in card


def test_the_card_says_each_values_worth_and_what_is_confused() -> None:
    values = {"pattern": judge_values(single([0.9] * 4, marks("rrww"), [0, 0, 0, 1]))}
    card = card_of(drawn.config(), ALL_BUT_PATTERN, test_values=values)
    assert "<details><summary>pattern: 3 of 3 values on test</summary>" in card
    assert (
        "| Solid | 2 | 3 | 0.667 | 1.000 | | Striped | 1 | 1 | 0.000 | 0.000 | | Checked | 1 | 0 | - | 0.000 |" in card
    )
    assert "(true -> predicted, test products): Striped -> Solid (1); Checked -> Striped (1)." in card
    assert "<details>" not in card_of(drawn.config(), ALL_BUT_PATTERN)
    few = {"pattern": "it has 3 training labels"}
    assert "<details>" not in card_of(drawn.config(), ALL_BUT_PATTERN, test_values=values, not_learnt=few)


def test_the_card_names_the_data() -> None:
    sides = {"train": LabelCount(labels=7000, silent=12), "test": LabelCount(labels=5, silent=4)}
    card = card_of(
        drawn.config(), ALL_BUT_PATTERN, labelled_set="labelled/ds=2026-11-20/set=0123abcd", catalog_day="2026-11-20",
        labels={"pattern": sides},
    )  # fmt: skip
    assert "catalog up to 2026-11-20: the labelled set `labelled/ds=2026-11-20/set=0123abcd`" in card
    assert "| attribute | train labels | train labels, silent | validation labels |" in card
    assert "| pattern | 7,000 | 12 | 0 | 0 | 5 | 4 |" in card
    assert "labelled set" not in card_of(drawn.config(), ALL_BUT_PATTERN)


def test_the_card_of_an_experiments_model_says_what_was_left_out() -> None:
    origin = ExperimentOrigin(
        folder="experiments/ds=2026-11-20/experiment=0123abcd", products=30_000, compared=("pattern", "colour")
    )
    known: dict[str, Any] = {"labelled_set": "labelled/ds=2026-11-20/set=01234567"}
    card = card_of(drawn.config(), ALL_BUT_PATTERN, experiment=origin, **known)
    assert (
        "The experiment `experiments/ds=2026-11-20/experiment=0123abcd` trained the model, on a sample of its families: 15 of"
        in card
    )
    assert "of its 30,000 products. It compared pattern, colour; the model was trained on all attributes" in card
    whole = card_of(drawn.config(), ALL_BUT_PATTERN, experiment=origin.model_copy(update={"products": 15}), **known)
    assert "The experiment `" in whole
    assert "sample of its families" not in whole
    assert "The experiment `" not in card_of(drawn.config(), ALL_BUT_PATTERN, **known)


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        (
            {},
            ("CMA-CLIP (arXiv 2112.03562) for", "random weights and trained from scratch", "picture (32 x 24 pixels) and its title"),
            "without",
        ),
        (
            {"backbone": {"pretrained": "towers/20261120-89abcdef"}},
            ("custom towers, started from the pretrained `towers/20261120-89abcdef`.",), "scratch",
        ),
        ({"training": {"freeze": ("text", "image")}}, ("random weights; frozen: text and image tower",), "scratch"),
        (
            {"method": "clip", "training": {"epochs": 0}},
            ("CLIP as a classifier", "not trained here", "from a product's picture (32 x 24 pixels). Backbone"), "CMA-CLIP (",
        ),
        (
            {"fusion": {"sequence_attention": False, "modality_mixing": "concatenation", "modalities": ("text",)}},
            ("without sequence-wise attention and modality-wise attention", "from a product's title, brand, description (at"),
            "picture (32",
        ),
    ],
)  # fmt: skip
def test_the_card_says_what_the_model_is(changes: dict[str, Any], said: tuple[str, ...], unsaid: str) -> None:
    document = drawn.config().model_dump()
    for section, change in changes.items():
        document[section] = document[section] | change if isinstance(change, dict) else change
    card = card_of(ModelConfig.model_validate(document), ALL_BUT_PATTERN)
    head = card[: card.index("## Test")]
    assert all(words in head for words in said), head
    assert unsaid not in head


def test_the_cards_sections() -> None:
    thresholds = dict.fromkeys(drawn.taxonomy().names, NOTHING)
    found = {a.name: judge(Predictions.empty(a), NOTHING, ("title",)) for a in drawn.taxonomy().attributes}
    trained = Metrics(
        train_examples=10, validation_examples=2, test_examples=3, families=12, best_epoch=1, epochs=(), seconds=1.0,
        device="cpu", validation=found, test=found,
    )  # fmt: skip
    card = model_card(drawn.config(), drawn.taxonomy(), thresholds, trained, drawn.NOW)
    sections = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert sections == [
        "Data", "Test", "Thresholds", "Validation", "Limits", "Not to be used", "Configuration",
    ]  # fmt: skip
