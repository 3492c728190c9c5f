"""Predictions of a trained model on one side of the split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from cma_clip_core.catalog.examples import Rows, stream_side
from cma_clip_core.catalog.label_mentions import TEXT_FIELDS, SpokenFinder
from cma_clip_core.catalog.splits import Side
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.inputs.batches import Inputs, LabelEncoder, prepare, without_names
from cma_clip_core.inputs.devices import precision
from cma_clip_core.inputs.frozen_towers import FrozenTowers
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.inputs.oom_halving import Halving
from cma_clip_core.inputs.perturbations import Noise, draw_omitted_labels, swap_all
from cma_clip_core.inputs.prefetch import prefetch
from cma_clip_core.model.bag_of_words import BagOfWords
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.cma_clip import Output
from cma_clip_core.model.ensemble import bag_of

Columns = dict[str, npt.NDArray[Any]]

BATCH: Final = 256  # products in a forward pass


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    problem: LearningProblem,
    side: Side,
    device: torch.device,
    *,
    batch_size: int = BATCH,
    noise: Noise | None = None,
    frozen: FrozenTowers | None = None,
) -> dict[str, Predictions]:
    """Return the model's predictions for the products of a side that have a value, by attribute name.

    Args:
        model: the trained model, on `device`.
        problem: the configuration, the classes and the examples.
        side: the side of the split.
        device: the device that the model runs on.
        batch_size: products in a forward pass; halved for as long as they do not fit into memory.
        noise: show the model other products' texts or pictures, or texts without some names. The products' own texts still
            decide which labels are silent.
        frozen: cached outputs of frozen towers; None: run the towers.

    Raises:
        DeviceError: not even one product fits into memory.
    """
    batches = _batches(problem, side, batch_size, noise, frozen, bag_of(model))
    return split_attributes(problem.layout, _run(model, batches, device, batch_size))


@torch.inference_mode()
def evaluate_with_picture_alone(
    model: nn.Module,
    problem: LearningProblem,
    side: Side,
    device: torch.device,
    *,
    frozen: FrozenTowers | None = None,
) -> tuple[dict[str, Predictions], dict[str, Predictions]]:
    """Return the predictions of `evaluate`, and those of the image-only head for the same products in the same order.

    The head's logits are 0 where there is no picture or no such head. Arguments and errors are those of `evaluate`.
    """
    layout, batches = problem.layout, _batches(problem, side, BATCH, None, frozen)
    parts = _run(model, batches, device, BATCH)
    return split_attributes(layout, parts), split_attributes(layout, [{**c, "logits": c["picture"]} for c in parts])


def _run(
    model: nn.Module, batches: Iterator[tuple[Inputs, Columns]], device: torch.device, batch_size: int
) -> list[Columns]:
    """Return the columns of all batches, with `logits`, `lambdas` and `picture`: the logits of the image-only head, or 0."""
    parts: list[Columns] = []
    halving = Halving(device, batch_size)
    model.eval()

    def forward(inputs: Inputs) -> tuple[Tensor, ...]:
        with precision(device):
            output: Output = model(*inputs)
        picture = torch.zeros_like(output.logits)
        if "image" in output.alone:
            alone, present = output.alone["image"]
            picture = alone * present[:, None]
        return output.logits, output.lambdas, picture

    for inputs, columns in prefetch(batches):
        outputs = (column.numpy() for column in halving.run(forward, inputs))
        parts.append(columns | dict(zip(("logits", "lambdas", "picture"), outputs, strict=True)))
    return parts


def split_attributes(layout: ClassLayout, parts: list[Columns]) -> dict[str, Predictions]:
    """Return the predictions by attribute, each for the products that have a value, from batches of all classes.

    Args:
        layout: the classes.
        parts: arrays by name: products [B], families [B], given [B, K], and logits, targets, named [B, C], and
            lambdas [B, K, M].
    """
    predictions = {}
    for k, (attribute, part) in enumerate(zip(layout.attributes, layout.slices, strict=True)):
        rows = [columns["given"][:, k] for columns in parts]

        def gather(name: str, *rest: Any, rows: list[npt.NDArray[Any]] = rows) -> npt.NDArray[Any]:
            return np.concatenate([c[name][(row, *rest)] for c, row in zip(parts, rows, strict=True)])

        if parts:
            predictions[attribute.name] = Predictions(
                attribute, gather("products"), gather("families"), gather("logits", part), gather("targets", part),
                gather("named", part), gather("lambdas", k),
            )  # fmt: skip
        else:
            predictions[attribute.name] = Predictions.empty(attribute)
    return predictions


def label_columns(examples: pa.RecordBatch, families: Rows, encoder: LabelEncoder, spoken: SpokenFinder) -> Columns:
    """Return the columns of `split_attributes` that come from the examples and not from a model."""
    labels = encoder.rows(examples)
    targets = labels.targets
    texts = list(zip(*(examples.column(field).to_pylist() for field in TEXT_FIELDS), strict=True))
    return {
        "products": np.array(examples.column("product_id").to_pylist(), dtype=object),
        "families": families,
        "labelled": labels.labelled,
        "given": labels.given,
        "targets": targets,
        "named": spoken.find(texts, targets),
    }


def _batches(
    problem: LearningProblem,
    side: Side,
    batch_size: int,
    noise: Noise | None,
    frozen: FrozenTowers | None,
    bag: BagOfWords | None = None,
) -> Iterator[tuple[Inputs, Columns]]:
    index, tokenizer = problem.index, problem.tokenizer
    encoder, spoken = LabelEncoder(problem.layout), SpokenFinder(problem.taxonomy)
    stream, positions, start = stream_side(index, side), index.positions(side), 0
    for examples, perturbed, families in _perturbed(stream, noise, encoder, spoken):
        prepared = prepare(perturbed, problem.config, tokenizer, bag=bag)
        columns = label_columns(examples, families, encoder, spoken)
        batch_positions = positions[start : start + len(prepared)]
        start += len(prepared)
        for rows in prepared.by_length(batch_size):
            inputs = prepared.inputs(rows, tokenizer)
            if frozen is not None:
                inputs = frozen.add_to(inputs, batch_positions[rows])
            yield inputs, {name: column[rows] for name, column in columns.items()}


def _perturbed(
    stream: Iterator[tuple[pa.RecordBatch, Rows]], noise: Noise | None, encoder: LabelEncoder, spoken: SpokenFinder
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch, Rows]]:
    """Yield examples, their perturbed versions, which the model sees, and their families."""
    if noise is None:
        yield from ((examples, examples, families) for examples, families in stream)
    elif noise.perturbation == "names":
        for examples, families in stream:
            targets = encoder.encode(examples.column("labels").to_pylist()).targets.numpy() > 0
            chosen = draw_omitted_labels(examples.column("product_id").to_pylist(), targets, noise)
            yield examples, without_names(examples, spoken, chosen), families
    else:
        yield from swap_all(stream, noise)
