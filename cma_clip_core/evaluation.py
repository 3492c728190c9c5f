"""What a trained model says on one side of the split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import torch

from cma_clip_core.batches import Inputs, LabelEncoder, Labels, prefetch, prepare
from cma_clip_core.classes import ClassLayout
from cma_clip_core.config import ModelConfig
from cma_clip_core.devices import precision
from cma_clip_core.examples import ExampleIndex, stream_side
from cma_clip_core.metrics import Outcomes, outcomes
from cma_clip_core.model import CmaClip
from cma_clip_core.splits import Side
from cma_clip_core.tokens import Tokenizer


@torch.inference_mode()
def evaluate(
    model: CmaClip,
    index: ExampleIndex,
    side: Side,
    config: ModelConfig,
    layout: ClassLayout,
    tokenizer: Tokenizer,
    device: torch.device,
    batch_size: int = 256,
) -> dict[str, Outcomes]:
    """Return the outcomes of every attribute on the labelled products of a side, by attribute name."""
    parts: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in layout.attributes]
    model.eval()
    stream = stream_side(index, side)
    for inputs, labels in prefetch(_batches(stream, config, layout, tokenizer, batch_size)):
        with precision(device):
            output = model(*inputs.to(device))
        probabilities = layout.probabilities(output.logits).cpu().numpy()
        lambdas = output.lambdas.float().cpu().numpy()
        targets, labelled = labels.targets.numpy() > 0, labels.labelled.numpy()
        for k, part in enumerate(layout.slices):
            rows = labelled[:, k]
            parts[k].append((probabilities[rows, part], targets[rows, part], lambdas[rows, k]))
    found = {}
    for attribute, part, seen in zip(layout.attributes, layout.slices, parts, strict=True):
        values = part.stop - part.start
        columns = zip(*seen, strict=True) if seen else iter(())
        p, t, w = (np.concatenate(c) for c in columns) if seen else (np.zeros((0, values), np.float32),) * 3
        found[attribute.name] = outcomes(attribute, p, t.astype(np.bool_), w if seen else np.zeros((0, 2), np.float32))
    return found


def _batches(
    stream: Iterable[pa.RecordBatch], config: ModelConfig, layout: ClassLayout, tokenizer: Tokenizer, batch_size: int
) -> Iterator[tuple[Inputs, Labels]]:
    encoder = LabelEncoder(layout)
    for examples in stream:
        prepared = prepare(examples, config, tokenizer)
        labels = encoder.encode(examples.column("labels").to_pylist())
        for rows in prepared.by_length(batch_size):
            at = torch.from_numpy(rows)
            yield prepared.inputs(rows, tokenizer), Labels(labels.targets[at], labels.labelled[at])
