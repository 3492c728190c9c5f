"""`pytest tests/cma_clip_core/test_engine.py`"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from cma_clip_core.config import ModelConfig, TextConfig
from cma_clip_core.engine import Engine
from cma_clip_core.errors import DeviceError
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.inputs.devices import resolve_device
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.cma_clip import CmaClip
from cma_clip_core.model_documents import Threshold
from schemas.tables import EXAMPLES, PREDICTIONS
from tests.cma_clip_core import drawn

CPU = torch.device("cpu")


def threshold(value: float | None) -> Threshold:
    return Threshold(threshold=value, target_precision=0.9, precision=None, accepted=0, candidates=0)


@pytest.fixture(scope="module")
def model() -> CmaClip:
    torch.manual_seed(0)
    return CmaClip(drawn.config(), drawn.taxonomy())


def engine(model: CmaClip, config: ModelConfig | None = None, batch_size: int = 256, **thresholds: float) -> Engine:
    chosen = {name: threshold(value) for name, value in thresholds.items()}
    return Engine(model, config or drawn.config(), drawn.taxonomy(), chosen, CPU, batch_size)


def predict(engine: Engine, *batches: pa.RecordBatch) -> list[dict[str, Any]]:
    return [row for batch in engine.predict(batches, drawn.NOW) for row in batch.to_pylist()]


def values(row: dict[str, Any], attribute: str) -> list[dict[str, Any]]:
    return [p for p in row["predictions"] if p["attribute"] == attribute]


class _TooLarge(CmaClip):
    """A model whose weights do not fit."""

    def to(self, *_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_model_that_does_not_fit_says_so() -> None:
    with pytest.raises(DeviceError, match="the model does not fit into its memory"):
        engine(_TooLarge(drawn.config(), drawn.taxonomy()))


class _Small(CmaClip):
    """A model with memory for a limited number of rows at a time."""

    room = 3

    def forward(self, ids: Tensor, *rest: Any) -> Any:
        if len(ids) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(ids, *rest)


def test_too_little_memory_takes_fewer_at_a_time_and_says_the_same() -> None:
    found = []
    for kind in (CmaClip, _Small):
        torch.manual_seed(0)
        small = kind(drawn.config(), drawn.taxonomy())
        found.append(predict(engine(small, batch_size=16), drawn.batch(40)))
    for one, other in zip(*found, strict=True):
        assert [p["value"] for p in one["predictions"]] == [p["value"] for p in other["predictions"]]
        confidences = [[p["confidence"] for p in row["predictions"]] for row in (one, other)]
        assert confidences[0] == pytest.approx(confidences[1], abs=1e-5)
    _Small.room = 0
    with pytest.raises(DeviceError, match="not even one example fits"):
        predict(engine(small), drawn.batch(4))


def test_rows_are_those_of_the_contract_in_the_order_of_the_examples(model: CmaClip) -> None:
    batch = drawn.batch(40)
    (found,) = engine(model, batch_size=8).predict([batch], drawn.NOW)
    assert found.schema.equals(PREDICTIONS, check_metadata=True)
    assert found.column("product_id").equals(batch.column("product_id"))
    assert found.column("source_hash").equals(batch.column("source_hash"))
    rows, examples = found.to_pylist(), batch.to_pylist()
    assert [row["labels"] for row in rows] == [example["labels"] for example in examples]
    assert [row["image_status"] for row in rows] == [example["image_status"] for example in examples]
    assert {row["tagged_at"] for row in rows} == {drawn.NOW}
    found.validate(full=True)


def test_what_applies_follows_the_catalogs_type_else_the_models(model: CmaClip) -> None:
    batch = drawn.batch(40)
    for row, example in zip(predict(engine(model), batch), batch.to_pylist(), strict=True):
        kind = dict(example["labels"])["article_type"][0]
        applicable = drawn.taxonomy().applicable(kind)
        assert row["applicable"] == list(applicable)
        # One prediction of each single-valued attribute that applies, whatever its confidence.
        single = [p["attribute"] for p in row["predictions"] if p["attribute"] != "material"]
        assert single == [name for name in applicable if name != "material"]
        assert bool(values(row, "material")) == (kind == "Shirt")
    unlabelled = batch.set_column(
        batch.schema.get_field_index("labels"),
        EXAMPLES.field("labels"),
        pa.array([[]] * 40, EXAMPLES.field("labels").type),
    )
    for row in predict(engine(model), unlabelled):
        (kind,) = values(row, "article_type")
        assert row["applicable"] == list(drawn.taxonomy().applicable(kind["value"]))


def test_values_are_the_models_own(model: CmaClip) -> None:
    """The best value, the confidence and the weights equal those of a plain forward pass."""
    batch, it = drawn.batch(12), engine(model, material=0.52)
    rows = predict(it, batch)
    from cma_clip_core.inputs.batches import prepare

    with torch.inference_mode():
        output = model(*prepare(batch, it.config, it.tokenizer).inputs(np.arange(12), it.tokenizer))
        probabilities = it.layout.probabilities(output.logits.numpy())
    for row, p, lambdas in zip(rows, probabilities, output.lambdas, strict=True):
        (colour,) = values(row, "colour")
        best = int(p[2:5].argmax())
        assert colour["value"] == list(drawn.COLOURS)[best]
        assert colour["confidence"] == pytest.approx(float(p[2 + best]), abs=1e-5)
        assert (colour["text_weight"], colour["image_weight"]) == pytest.approx(tuple(lambdas[1].tolist()), abs=1e-5)
        if "material" in row["applicable"]:
            likely = {m for m, q in zip(drawn.MATERIALS, p[8:], strict=True) if q >= 0.5}
            assert {m["value"] for m in values(row, "material")} == likely | {drawn.MATERIALS[int(p[8:].argmax())]}
            assert all(m["accepted"] == (m["confidence"] >= np.float32(0.52)) for m in values(row, "material"))


def test_accepted_from_the_threshold_on_and_never_without_one(model: CmaClip) -> None:
    batch = drawn.batch(40)
    confidences = sorted(values(row, "colour")[0]["confidence"] for row in predict(engine(model), batch))
    rows = predict(engine(model, colour=confidences[20]), batch)
    assert sum(values(row, "colour")[0]["accepted"] for row in rows) == 20
    assert not any(p["accepted"] for row in rows for p in row["predictions"] if p["attribute"] != "colour")


def test_calibrated_and_accepted_value_by_value(model: CmaClip) -> None:
    batch = drawn.batch(60)
    plain = [values(row, "colour")[0] for row in predict(engine(model), batch)]
    often = max(drawn.COLOURS, key=lambda colour: sum(p["value"] == colour for p in plain))
    chosen = Threshold(
        threshold=None, values={often: 0.0}, temperature=0.5, target_precision=0.9, precision=None, accepted=0,
        candidates=0,
    )  # fmt: skip
    it = Engine(model, drawn.config(), drawn.taxonomy(), {"colour": chosen}, CPU)
    found = [values(row, "colour")[0] for row in predict(it, batch)]
    assert [p["value"] for p in found] == [p["value"] for p in plain]  # a temperature changes no order within a product
    assert [p["accepted"] for p in found] == [p["value"] == often for p in found]
    # Half the temperature squares the odds: with three values the best one's share grows.
    assert all(p["confidence"] > q["confidence"] for p, q in zip(found, plain, strict=True))


def test_evaluation_and_engine_give_the_same_confidence() -> None:
    layout = ClassLayout(drawn.taxonomy())
    logits = np.random.default_rng(0).normal(size=(20, layout.classes)).astype(np.float32) * 5
    temperature = np.array([0.5, 2.0, 1.0, 3.0], np.float32)
    found = layout.probabilities(logits, temperature[layout.attribute_of])
    for attribute, part, t in zip(layout.attributes, layout.slices, temperature, strict=True):
        empty = Predictions.empty(attribute)
        empty.logits = logits[:, part]
        assert np.array_equal(empty.probabilities(float(t)), found[:, part])


def test_an_accepted_value_below_a_half_is_reported(model: CmaClip) -> None:
    shirts = [row for row in predict(engine(model, material=0.01), drawn.batch(40)) if "material" in row["applicable"]]
    assert all([m["value"] for m in values(row, "material")] == list(drawn.MATERIALS) for row in shirts)


def test_modality(model: CmaClip) -> None:
    empty = {"title": "", "description": "", "image": None, "image_status": "broken"}
    rng = np.random.default_rng(0)
    products = [drawn.example(0, rng), drawn.example(9, rng), drawn.example(10, rng), drawn.example(4, rng) | empty]
    rows = predict(engine(model), pa.RecordBatch.from_pylist(products, schema=EXAMPLES))
    assert [row["modality"] for row in rows] == ["both", "text", "image", "none"]
    assert all((p["text_weight"], p["image_weight"]) == (1.0, 0.0) for p in rows[1]["predictions"])
    assert all((p["text_weight"], p["image_weight"]) == (0.0, 1.0) for p in rows[2]["predictions"])
    assert rows[3]["predictions"] == []
    assert rows[3]["applicable"] == list(drawn.taxonomy().applicable(dict(products[3]["labels"])["article_type"][0]))


def test_texts_the_model_does_not_read_are_no_text(model: CmaClip) -> None:
    config = drawn.config().model_copy(update={"text": TextConfig(fields=("brand",), context_length=16)})
    assert {row["modality"] for row in predict(engine(model, config), drawn.batch(9))} == {"image"}


def test_company_changes_rounding_alone(model: CmaClip) -> None:
    batch = drawn.batch(30)
    together = predict(engine(model), batch)
    apart = predict(engine(model, batch_size=1), *(batch.slice(i, 1) for i in range(30)))
    for one, other in zip(together, apart, strict=True):
        assert [p["value"] for p in one["predictions"]] == [p["value"] for p in other["predictions"]]
        for p, q in zip(one["predictions"], other["predictions"], strict=True):
            assert p["confidence"] == pytest.approx(q["confidence"], abs=1e-5)


def test_the_same_examples_give_the_same_bytes(model: CmaClip) -> None:
    def written() -> bytes:
        buffer = io.BytesIO()
        with pq.ParquetWriter(buffer, PREDICTIONS) as writer:
            for batch in engine(model, batch_size=16).predict([drawn.batch(50), drawn.batch(20, 1)], drawn.NOW):
                writer.write_batch(batch)
        return buffer.getvalue()

    assert written() == written()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_asked_for_and_absent() -> None:
    with pytest.raises(DeviceError, match="no GPU"):
        resolve_device("cuda")
    assert resolve_device("auto").type == "cpu"


def test_device_by_a_wrong_name() -> None:
    with pytest.raises(DeviceError, match="auto, cpu or cuda"):
        resolve_device("gpu")
