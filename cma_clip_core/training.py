"""The training loop: multi-task, one process, deterministic by its seed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cma_clip_core.batches import Inputs, LabelEncoder, Labels, augment, prefetch, prepare
from cma_clip_core.bootstrap import judge_with_intervals
from cma_clip_core.calibration import fit_temperature
from cma_clip_core.classes import ClassLayout
from cma_clip_core.config import ModelConfig, TrainingConfig
from cma_clip_core.devices import precision
from cma_clip_core.documents import AttributeMetrics, Threshold
from cma_clip_core.errors import DataError
from cma_clip_core.evaluation import evaluate
from cma_clip_core.examples import ExampleIndex, stream_shuffled
from cma_clip_core.memory import release
from cma_clip_core.metrics import judge_all, mean_accuracy, mean_of
from cma_clip_core.model import CmaClip
from cma_clip_core.promise import choose_threshold
from cma_clip_core.tokens import Tokenizer
from schemas.loading import Strict
from schemas.taxonomy import Taxonomy

log = logging.getLogger(__name__)


class Epoch(Strict):
    """One pass over the training examples."""

    loss: float
    validation_accuracy: float  # mean over the attributes
    seconds: float
    examples: int


class Metrics(Strict):
    """All that is known of a trained model: goes into its folder as metrics.json."""

    train_examples: int
    validation_examples: int
    test_examples: int
    families: int
    best_epoch: int  # counted from 1
    epochs: tuple[Epoch, ...]
    seconds: float
    device: str
    validation: dict[str, AttributeMetrics]
    test: dict[str, AttributeMetrics]


@dataclass(slots=True)
class Trained:
    """What training gives."""

    model: CmaClip
    thresholds: dict[str, Threshold]
    metrics: Metrics


@dataclass(slots=True)
class _Best:
    score: float = -1.0
    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)


def train(
    config: ModelConfig, taxonomy: Taxonomy, index: ExampleIndex, device: torch.device, *, progress: bool = True
) -> Trained:
    """Train a model on the training side of `index`, keep its best epoch, choose thresholds, and judge it.

    Raises:
        DataError: a side of the split is empty.
        ModelError: the model cannot be built.
    """
    for side in ("train", "validation", "test"):
        if not index.count(side):
            raise DataError(
                f"there is no labelled example on the {side} side of the split ({len(index.row)} examples of "
                f"{index.families} product families in all); training needs more products"
            )
    start = time.perf_counter()
    torch.manual_seed(config.training.seed)
    layout, tokenizer = ClassLayout(taxonomy), Tokenizer(config)
    model = CmaClip(config, taxonomy, pretrained=True).to(device)
    best, epochs = _fit(model, config, index, layout, tokenizer, device, progress)
    model.load_state_dict(best.weights)
    found = evaluate(model, index, "validation", config, layout, tokenizer, device)
    thresholds = {name: choose_threshold(p, fit_temperature(p), config.selection) for name, p in found.items()}
    validation = judge_all(found, thresholds, config.text.fields)
    tested = evaluate(model, index, "test", config, layout, tokenizer, device)
    test = judge_with_intervals(config.name, tested, thresholds, config.text.fields).attributes
    metrics = Metrics(
        train_examples=index.count("train"),
        validation_examples=index.count("validation"),
        test_examples=index.count("test"),
        families=index.families,
        best_epoch=best.epoch,
        epochs=tuple(epochs),
        seconds=time.perf_counter() - start,
        device=str(device),
        validation=validation,
        test=test,
    )
    return Trained(model.eval(), thresholds, metrics)


def _fit(
    model: CmaClip,
    config: ModelConfig,
    index: ExampleIndex,
    layout: ClassLayout,
    tokenizer: Tokenizer,
    device: torch.device,
    progress: bool,
) -> tuple[_Best, list[Epoch]]:
    training = config.training
    optimizer = torch.optim.AdamW(parameter_groups(model, training), betas=(0.9, 0.98), fused=True)
    rng = np.random.default_rng(training.seed)
    total = index.count("train")
    best, epochs = _Best(), []
    for epoch in range(1, training.epochs + 1):
        started, seen, loss_sum = time.perf_counter(), 0, 0.0
        model.train()
        batches = prefetch(_batches(index, config, layout, tokenizer, rng), depth=4)
        with tqdm(total=total, desc=f"epoch {epoch}/{training.epochs}", unit="ex", disable=not progress) as bar:
            for inputs, labels in batches:
                rows = len(inputs.lengths)
                scale = learning_rate_scale((epoch - 1 + seen / total) / training.epochs, training.warmup)
                loss = _step(model, optimizer, inputs.to(device), labels.to(device), layout, training, scale)
                seen, loss_sum = seen + rows, loss_sum + loss * rows
                bar.update(rows)
                bar.set_postfix(loss=f"{loss_sum / seen:.3f}", refresh=False)
        score = mean_accuracy(evaluate(model, index, "validation", config, layout, tokenizer, device))
        seconds = time.perf_counter() - started
        epochs.append(Epoch(loss=loss_sum / max(seen, 1), validation_accuracy=score, seconds=seconds, examples=seen))
        log.info(
            "epoch %d/%d: loss %.4f, validation accuracy %.4f, %.0f examples/s",
            epoch, training.epochs, epochs[-1].loss, score, seen / seconds,
        )  # fmt: skip
        if not math.isfinite(epochs[-1].loss):
            raise DataError("training diverged: the loss is no number; lower the learning rates in the configuration")
        if score > best.score:
            weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            best = _Best(score, epoch, weights)
    return best, epochs


def _step(
    model: CmaClip,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    labels: Labels,
    layout: ClassLayout,
    training: TrainingConfig,
    scale: float,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * scale
    with precision(inputs.ids.device):
        output = model(*inputs)
    loss = layout.loss(output.logits, labels.targets, labels.labelled, training.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimizer.step()
    return float(loss.detach())


def _batches(
    index: ExampleIndex, config: ModelConfig, layout: ClassLayout, tokenizer: Tokenizer, rng: np.random.Generator
) -> Iterator[tuple[Inputs, Labels]]:
    """Yield one epoch's batches: drawn at random, within a buffer of like lengths, in random order."""
    encoder, training = LabelEncoder(layout), config.training
    for examples in stream_shuffled(index, "train", training.shuffle_buffer, rng):
        prepared = prepare(examples, config, tokenizer)
        labels = encoder.encode(examples.column("labels").to_pylist())
        augment(prepared, training, rng)
        batches = prepared.by_length(training.batch_size)
        for at in rng.permutation(len(batches)):
            rows = torch.from_numpy(batches[at])
            yield prepared.inputs(batches[at], tokenizer), Labels(labels.targets[rows], labels.labelled[rows])
        release()


def learning_rate_scale(done: float, warmup: float) -> float:
    """Return the factor on the peak learning rate when the share `done` of training is: linear warm-up, then a cosine."""
    if done < warmup:
        # never zero, so that the first step is not lost
        return max(done / warmup, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def parameter_groups(model: CmaClip, config: TrainingConfig) -> list[dict[str, Any]]:
    """Return the optimizer's groups: towers and new layers, each with and without weight decay.

    Matrices decay; biases, norms, embeddings and MA's vectors do not. Frozen parameters are in none.
    """
    chosen: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tower = name.startswith("backbone.")
            decays = (
                parameter.ndim >= 2 and "embedding" not in name and name not in ("kind", "modality_attention.weight")
            )
            chosen.setdefault((tower, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak": config.backbone_learning_rate if tower else config.learning_rate,
            "lr": 0.0,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (tower, decays), parameters in chosen.items()
    ]


def mean_recall(metrics: Metrics) -> float:
    """Return the paper's number: the mean over the attributes of recall at the target precision, on test."""
    return mean_of(metrics.test, "recall_at_target")
