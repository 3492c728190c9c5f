"""Tables and the model card: `pytest tests/cma_clip_core/test_tables.py`"""

from __future__ import annotations

import re

from cma_clip_core.card import model_card
from cma_clip_core.documents import AttributeMetrics, Interval, MethodMetrics, Threshold
from cma_clip_core.metrics import judge, method_metrics
from cma_clip_core.predictions import Predictions
from cma_clip_core.tables import comparison, one_model, own_thresholds, shipped
from cma_clip_core.training import Metrics
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


def test_the_card_names_what_is_never_accepted_and_what_the_model_is_not_for() -> None:
    taxonomy = drawn.taxonomy()
    thresholds = dict.fromkeys(taxonomy.names, NOTHING) | {"pattern": SHIPPED}
    found = {a.name: judge(Predictions.empty(a), thresholds[a.name], ("title",)) for a in taxonomy.attributes}
    trained = Metrics(
        train_examples=10, validation_examples=2, test_examples=3, families=12, best_epoch=1, epochs=(), seconds=1.0,
        device="cpu", validation=found, test=found | {"pattern": metrics(0.5)},
    )  # fmt: skip
    card = model_card("20261120-01234567", drawn.config(), taxonomy, thresholds, trained, drawn.NOW)
    assert "- colour: nothing is ever accepted" in card
    assert "- pattern: never accepted is Checked." in card
    assert "Every value has a threshold" not in card
    assert "| pattern | Striped | 0.500 |" in card
    sections = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert sections == [
        "Data", "Test", "Thresholds", "Validation", "Limits", "Not to be used", "Configuration",
    ]  # fmt: skip
