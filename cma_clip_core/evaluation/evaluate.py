"""What a trained model says on one side of the split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from cma_clip_core.catalog.examples import ExampleIndex, Rows, stream_side
from cma_clip_core.catalog.label_mentions import TEXT_FIELDS, SpokenFinder
from cma_clip_core.catalog.splits import Side
from cma_clip_core.config import ModelConfig
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.inputs.batches import Inputs, LabelEncoder, prepare, without_names
from cma_clip_core.inputs.devices import precision
from cma_clip_core.inputs.frozen_towers import FrozenTowers
from cma_clip_core.inputs.oom_halving import Halving
from cma_clip_core.inputs.perturbations import Noise, draw_omitted_labels, swap_all
from cma_clip_core.inputs.prefetch import prefetch
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.cma_clip import Output
from cma_clip_core.model.tokenizer import Tokenizer

Columns = dict[str, npt.NDArray[Any]]

BATCH: Final = 256  # products in a forward pass


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    index: ExampleIndex,
    side: Side,
    config: ModelConfig,
    layout: ClassLayout,
    tokenizer: Tokenizer,
    device: torch.device,
    batch_size: int = BATCH,
    noise: Noise | None = None,
    frozen: FrozenTowers | None = None,
) -> dict[str, Predictions]:
    """Return what the model says of the products of a side that have a value, by attribute name.

    With `noise` it is shown some products with the text or the picture of others, or with texts that leave out some names;
    which labels are named is still told by their own text. With `frozen`, frozen towers are not run again. Where
    `batch_size` products do not fit into memory, half as many go through at a time.

    Raises:
        DeviceError: not even one product fits.
    """
    batches = _batches(index, side, config, layout, tokenizer, batch_size, noise, frozen)
    return split_attributes(layout, _run(model, batches, device, batch_size))


@torch.inference_mode()
def evaluate_with_picture_alone(
    model: nn.Module,
    index: ExampleIndex,
    side: Side,
    config: ModelConfig,
    layout: ClassLayout,
    tokenizer: Tokenizer,
    device: torch.device,
    frozen: FrozenTowers | None = None,
) -> tuple[dict[str, Predictions], dict[str, Predictions]]:
    """Return what `evaluate` does, and of the same products in the same order what the picture's own head says.

    Where there is no picture, or no such head, its logits are 0. Arguments and errors as of `evaluate`.
    """
    batches = _batches(index, side, config, layout, tokenizer, BATCH, None, frozen)
    parts = _run(model, batches, device, BATCH)
    return split_attributes(layout, parts), split_attributes(layout, [{**c, "logits": c["picture"]} for c in parts])


def _run(
    model: nn.Module, batches: Iterator[tuple[Inputs, Columns]], device: torch.device, batch_size: int
) -> list[Columns]:
    """Return the columns of all batches, with `logits`, `lambdas`, and `picture`, the logits of its own head or zeros."""
    parts: list[Columns] = []
    halving = Halving(device, batch_size)
    model.eval()

    def forward(inputs: Inputs) -> tuple[Tensor, ...]:
        with precision(device):
            output: Output = model(*inputs)
        picture = torch.zeros_like(output.logits)
        if "image" in output.alone:
            alone, there = output.alone["image"]
            picture = alone * there[:, None]
        return output.logits, output.lambdas, picture

    for inputs, columns in prefetch(batches):
        found = (column.numpy() for column in halving.run(forward, inputs))
        parts.append(columns | dict(zip(("logits", "lambdas", "picture"), found, strict=True)))
    return parts


def split_attributes(layout: ClassLayout, parts: list[Columns]) -> dict[str, Predictions]:
    """Return predictions by attribute, each of the products that have a value of it, from batches of all classes.

    Args:
        layout: the classes.
        parts: arrays by name: products [B], families [B], given [B, K], and logits, targets, named [B, C], and
            lambdas [B, K, M].
    """
    found = {}
    for k, (attribute, part) in enumerate(zip(layout.attributes, layout.slices, strict=True)):
        rows = [columns["given"][:, k] for columns in parts]

        def gather(name: str, *rest: Any, rows: list[npt.NDArray[Any]] = rows) -> npt.NDArray[Any]:
            return np.concatenate([c[name][(row, *rest)] for c, row in zip(parts, rows, strict=True)])

        if parts:
            found[attribute.name] = Predictions(
                attribute, gather("products"), gather("families"), gather("logits", part), gather("targets", part),
                gather("named", part), gather("lambdas", k),
            )  # fmt: skip
        else:
            found[attribute.name] = Predictions.empty(attribute)
    return found


def label_columns(examples: pa.RecordBatch, families: Rows, encoder: LabelEncoder, spoken: SpokenFinder) -> Columns:
    """Return what `split_attributes` needs of some examples besides the predictions."""
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
    index: ExampleIndex,
    side: Side,
    config: ModelConfig,
    layout: ClassLayout,
    tokenizer: Tokenizer,
    batch_size: int,
    noise: Noise | None,
    frozen: FrozenTowers | None,
) -> Iterator[tuple[Inputs, Columns]]:
    encoder, spoken = LabelEncoder(layout), SpokenFinder(layout.taxonomy)
    stream, positions, at = stream_side(index, side), index.positions(side), 0
    for examples, shown, families in _shown(stream, noise, encoder, spoken):
        prepared = prepare(shown, config, tokenizer)
        columns = label_columns(examples, families, encoder, spoken)
        here = positions[at : at + len(prepared)]
        at += len(prepared)
        for rows in prepared.by_length(batch_size):
            inputs = prepared.inputs(rows, tokenizer)
            if frozen is not None:
                inputs = frozen.add_to(inputs, here[rows])
            yield inputs, {name: column[rows] for name, column in columns.items()}


def _shown(
    stream: Iterator[tuple[pa.RecordBatch, Rows]], noise: Noise | None, encoder: LabelEncoder, spoken: SpokenFinder
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch, Rows]]:
    """Yield examples, what the model is shown of them, and their families."""
    if noise is None:
        yield from ((examples, examples, families) for examples, families in stream)
    elif noise.perturbation == "names":
        for examples, families in stream:
            targets = encoder.encode(examples.column("labels").to_pylist()).targets.numpy() > 0
            chosen = draw_omitted_labels(examples.column("product_id").to_pylist(), targets, noise)
            yield examples, without_names(examples, spoken, chosen), families
    else:
        yield from swap_all(stream, noise)
