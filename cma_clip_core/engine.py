"""Bulk inference: example batches (schema EXAMPLES) in, prediction batches (schema PREDICTIONS) out.

Letters of shapes: B products, K attributes, C classes of all attributes, M modalities (0 text, 1 image).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from cma_clip_core.arrays import Bools, Floats
from cma_clip_core.config import ModelConfig
from cma_clip_core.evaluation.predictions import LIKELY
from cma_clip_core.inputs.batches import Inputs, prepare
from cma_clip_core.inputs.devices import move_to, precision
from cma_clip_core.inputs.oom_halving import Halving
from cma_clip_core.inputs.prefetch import prefetch
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.cma_clip import Output
from cma_clip_core.model.ensemble import CMA_CLIP, bag_of
from cma_clip_core.model.tokenizer import Tokenizer
from cma_clip_core.model_documents import Threshold
from schemas.tables import PREDICTIONS
from schemas.taxonomy import Taxonomy

Part = tuple[npt.NDArray[np.int64], Inputs]  # row numbers of some products of a batch, and their model inputs
Item = TypeVar("Item")


@dataclass(slots=True)
class Timings:
    """Seconds spent in each phase of bulk inference. Reading and preparing run in threads beside the rest."""

    rows: int = 0
    read: float = 0.0  # reading example files
    prepare: float = 0.0  # tokenising and laying out pixels
    wait: float = 0.0  # the forward pass waiting for input
    forward: float = 0.0  # in the model
    assemble: float = 0.0  # converting scores into rows

    def as_dict(self) -> dict[str, float | int]:
        """Return the numbers by name, rounded."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


class Engine:
    """A model ready to tag."""

    def __init__(
        self,
        model: nn.Module,
        config: ModelConfig,
        taxonomy: Taxonomy,
        thresholds: Mapping[str, Threshold],
        device: torch.device,
        batch_size: int = 256,
        methods: Mapping[str, str] | None = None,
    ) -> None:
        """Create an engine; `methods` names the method that answers each attribute, None: the configuration's for all."""
        self.model = move_to(model, device).eval()
        self.config, self.taxonomy, self.device, self.batch_size = config, taxonomy, device, batch_size
        self.layout, self.tokenizer = ClassLayout(taxonomy), Tokenizer(config)
        self._temperature = np.array(
            [thresholds[a.name].temperature if a.name in thresholds else 1.0 for a in taxonomy.attributes], np.float32
        )[self.layout.attribute_of]  # [C]
        whole = CMA_CLIP if config.method == "cma_clip" else config.method
        names = [(methods or {}).get(attribute.name, whole) for attribute in taxonomy.attributes]
        self._rows = _RowBuilder(taxonomy, self.layout, thresholds, names)
        self._halving = Halving(device, batch_size)

    def predict(
        self, examples: Iterable[pa.RecordBatch], tagged_at: datetime, timings: Timings | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the predictions for `examples` (schema EXAMPLES), one batch per batch, rows in the same order.

        Within a batch of examples, texts of similar length go through the model together. Nothing is random: the same
        batches give the same bytes on the same machine. The other products of a batch change a score only by rounding.

        Raises:
            DataError: a picture is not of the model's size.
            DeviceError: not even one example fits into the device's memory.
        """
        timings = timings if timings is not None else Timings()
        # One thread reads and another prepares: a GPU would wait if both were done in sequence.
        inputs = prefetch(self._prepared(prefetch(_timed(examples, timings), 1), timings))
        while (item := _timed_next(inputs, timings, "wait")) is not None:
            batch, seen, parts = item
            probabilities, lambdas = self._forward(batch.num_rows, parts, timings)
            start = time.perf_counter()
            rows = self._rows.build(batch, seen, probabilities, lambdas, tagged_at)
            timings.assemble += time.perf_counter() - start
            timings.rows += batch.num_rows
            yield rows

    def _prepared(
        self, examples: Iterable[pa.RecordBatch], timings: Timings
    ) -> Iterator[tuple[pa.RecordBatch, Bools, list[Part]]]:
        for batch in examples:
            start = time.perf_counter()
            prepared = prepare(batch, self.config, self.tokenizer, bag=bag_of(self.model))
            parts = [(rows, prepared.inputs(rows, self.tokenizer)) for rows in prepared.by_length(self.batch_size)]
            seen = np.stack([prepared.text_present, prepared.image_present], axis=1)
            timings.prepare += time.perf_counter() - start
            yield batch, seen, parts

    @torch.inference_mode()
    def _forward(self, count: int, parts: list[Part], timings: Timings) -> tuple[Floats, Floats]:
        """Return probabilities [B, C] and lambdas [B, K, M] of all parts, in the order of the `count` examples."""
        start = time.perf_counter()
        probabilities = np.zeros((count, self.layout.classes), dtype=np.float32)
        lambdas = np.zeros((count, len(self.layout.attributes), 2), dtype=np.float32)
        for rows, inputs in parts:
            logits, part_lambdas = self._halving.run(self._run, inputs)
            probabilities[rows] = self.layout.probabilities(logits.numpy(), self._temperature)
            lambdas[rows] = part_lambdas.numpy()
        timings.forward += time.perf_counter() - start
        return probabilities, lambdas

    def _run(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        with precision(self.device):
            output: Output = self.model(*inputs)
        return output.logits, output.lambdas


def _timed(examples: Iterable[pa.RecordBatch], timings: Timings) -> Iterator[pa.RecordBatch]:
    source = iter(examples)
    while (batch := _timed_next(source, timings, "read")) is not None:
        yield batch


def _timed_next(source: Iterator[Item], timings: Timings, name: str) -> Item | None:
    start = time.perf_counter()
    item = next(source, None)
    setattr(timings, name, getattr(timings, name) + time.perf_counter() - start)
    return item


class _RowBuilder:
    """A converter from scores to rows of PREDICTIONS, column by column."""

    def __init__(
        self, taxonomy: Taxonomy, layout: ClassLayout, thresholds: Mapping[str, Threshold], methods: Sequence[str]
    ) -> None:
        self.taxonomy, self.layout = taxonomy, layout
        types = taxonomy[taxonomy.article_type]
        self.type_slice = layout.slices[layout.position[types.name]]
        self.type_index = types.index
        # Row i: the attributes that apply to article type i; the last row: those that apply to an unknown one.
        self.applies = np.array(
            [
                [a.name in taxonomy.applicable(article_type) for a in layout.attributes]
                for article_type in (*types.value_names, None)
            ]
        )
        self.limits = np.full(layout.classes, np.inf, dtype=np.float32)  # [C]
        for attribute, part in zip(layout.attributes, layout.slices, strict=True):
            if attribute.name in thresholds:
                self.limits[part] = thresholds[attribute.name].limits(attribute)
        self.multi_valued = np.array([a.multi_valued for a in layout.attributes])[layout.attribute_of]  # [C]
        self.methods = pa.array(methods, pa.string())  # [K]
        self.names = pa.array([a.name for a in layout.attributes], pa.string())
        self.values = pa.array([v for a in layout.attributes for v in a.value_names], pa.string())

    def build(
        self, batch: pa.RecordBatch, seen: Bools, probabilities: Floats, lambdas: Floats, tagged_at: datetime
    ) -> pa.RecordBatch:
        """Return the rows of a batch of examples.

        Args:
            batch: [B] examples.
            seen: [B, M], the modalities that the model saw.
            probabilities: [B, C].
            lambdas: [B, K, M].
            tagged_at: the time of tagging.
        """
        any_seen: Bools = np.asarray(seen.any(axis=1))
        applicable = self._applicable(batch, probabilities, any_seen)
        # An answer that rests on neither text nor picture is a guess.
        accepted = (probabilities >= self.limits) & (lambdas.sum(axis=2) > 0)[:, self.layout.attribute_of]
        chosen = self._best(probabilities) | (self.multi_valued & ((probabilities >= LIKELY) | accepted))
        chosen &= applicable[:, self.layout.attribute_of] & any_seen[:, None]
        rows, classes = np.nonzero(chosen)  # products in order; within one, attributes and values in class order
        attributes = self.layout.attribute_of[classes]
        struct = PREDICTIONS.field("predictions").type.value_type
        predictions = pa.StructArray.from_arrays(
            [
                self.names.take(pa.array(attributes)),
                self.values.take(pa.array(classes)),
                pa.array(probabilities[rows, classes], pa.float32()),
                pa.array(accepted[rows, classes], pa.bool_()),
                pa.array(lambdas[rows, attributes, 0], pa.float32()),
                pa.array(lambdas[rows, attributes, 1], pa.float32()),
                self.methods.take(pa.array(attributes)),
            ],
            fields=list(struct),
        )
        modality = np.select(
            [seen.all(axis=1), seen[:, 0], seen[:, 1]], ["both", "text", "image"], default="none"
        ).astype(object)
        columns = {
            "product_id": batch.column("product_id"),
            "source_hash": batch.column("source_hash"),
            "modality": pa.array(modality, pa.string()),
            "image_status": batch.column("image_status"),
            "labels": _as_type(batch.column("labels"), PREDICTIONS.field("labels").type),
            "unlisted": _as_type(batch.column("unknown_labels"), PREDICTIONS.field("unlisted").type),
            "applicable": _lists(applicable, self.names.take(pa.array(np.nonzero(applicable)[1])), "applicable"),
            "predictions": _lists(chosen, predictions, "predictions"),
            "tagged_at": pa.array([tagged_at] * batch.num_rows, PREDICTIONS.field("tagged_at").type),
        }
        return pa.RecordBatch.from_arrays([columns[f.name] for f in PREDICTIONS], schema=PREDICTIONS)

    def _best(self, probabilities: Floats) -> Bools:
        """Return the best value of each attribute [B, C] bool; the first one among equals."""
        best = np.zeros(probabilities.shape, dtype=np.bool_)
        rows = np.arange(len(probabilities))
        for part in self.layout.slices:
            best[rows, part.start + probabilities[:, part].argmax(axis=1)] = True
        return best

    def _applicable(self, batch: pa.RecordBatch, probabilities: Floats, any_seen: Bools) -> Bools:
        """Return the attributes that apply to each product [B, K] bool.

        | catalog's article type | model saw something | attributes that apply |
        |---|---|---|
        | listed | any | those of this article type |
        | unlisted | any | those that apply to all products, and those that the catalog gives a value of |
        | none | yes | those of the article type that the model considers best |
        | none | no | those that apply to all products |
        """
        unknown = len(self.type_index)
        type_rows = np.where(any_seen, probabilities[:, self.type_slice].argmax(axis=1), unknown)
        columns = [batch.column(name) for name in ("labels", "unknown_labels")]
        name = pa.scalar(self.taxonomy.article_type)
        types = (pc.map_lookup(column, query_key=name, occurrence="first").to_pylist() for column in columns)
        unlisted = []
        for row, (listed, others) in enumerate(zip(*types, strict=True)):
            if listed:
                type_rows[row] = self.type_index.get(listed[0], type_rows[row])
            elif others:
                type_rows[row] = unknown
                unlisted.append(row)
        applicable: Bools = self.applies[type_rows]
        for row in unlisted:
            given = {attribute for column in columns for attribute, values in column[row].as_py() if values}
            applicable[row] |= [attribute in given for attribute in self.layout.position]
        return applicable


def _lists(chosen: Bools, values: pa.Array, name: str) -> pa.Array:
    offsets = np.concatenate([[0], chosen.sum(axis=1).cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=PREDICTIONS.field(name).type)


def _as_type(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Return a map column with the nested field names of its schema, because writers differ in these names."""
    return column if column.type.equals(wanted) else column.cast(wanted)
