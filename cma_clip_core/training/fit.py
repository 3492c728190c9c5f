"""Training a model from end to end: the loop, then thresholds, then what it is worth."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cma_clip_core.catalog.examples import ExampleIndex, stream_side
from cma_clip_core.config import ModelConfig
from cma_clip_core.errors import DataError, NothingToLearnError
from cma_clip_core.evaluation.bootstrap import judge_with_intervals
from cma_clip_core.evaluation.calibration import fit_temperature
from cma_clip_core.evaluation.choose_thresholds import choose_threshold
from cma_clip_core.evaluation.evaluate import evaluate, evaluate_with_picture_alone
from cma_clip_core.evaluation.metrics import judge_all, judge_values, promise_kept
from cma_clip_core.evaluation.picture_evidence import weigh_picture, weights_of
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.inputs.checkpoints import fingerprint
from cma_clip_core.inputs.devices import move_to
from cma_clip_core.inputs.distributed import World
from cma_clip_core.inputs.frozen_towers import frozen_towers, idle_settings, run_frozen
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.methods import build_model
from cma_clip_core.model.tokenizer import Tokenizer, compose
from cma_clip_core.model_documents import Metrics, Threshold
from cma_clip_core.training.loop import Fitted, Loop
from cma_clip_core.training.objectives import MultiTask
from schemas.taxonomy import Taxonomy

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Trained:
    """What training gives."""

    model: nn.Module
    thresholds: dict[str, Threshold]
    metrics: Metrics
    test: dict[str, Predictions] = field(default_factory=dict)  # what it says of the test side; not saved, but drawn


def fit(
    config: ModelConfig,
    taxonomy: Taxonomy,
    index: ExampleIndex,
    device: torch.device,
    *,
    folder: Path | None = None,
    world: World | None = None,
    progress: bool = True,
    checkpoint_seconds: float = 300.0,
) -> tuple[nn.Module, Fitted]:
    """Train a model on the training side of `index` and return it, on `device`, with the weights that `Loop.run` keeps.

    What the picture alone says has its weight, too, and what the model says of the validation side is kept; both by the
    first process alone.

    Args:
        config: which model, and how it is trained.
        taxonomy: what it predicts.
        index: the labelled examples.
        device: where.
        folder: for checkpoints, from which a killed training goes on, TensorBoard logs, and what frozen towers give; None:
            nothing is written, and frozen towers are run in every epoch.
        world: the processes that train together.
        progress: show progress bars.
        checkpoint_seconds: least time between checkpoints.

    Raises:
        DataError: a side of the split is empty, or no attribute can be learnt.
        NothingToLearnError: no training product has what the model sees, such as a picture.
        ModelError: the model cannot be built.
        DivergedError, CheckpointError, DeviceError: as `Loop`.
    """
    check_sides(index)
    if config.training.epochs:
        _check_seen(index, config)
    world = world or World()
    torch.manual_seed(config.training.seed)
    # The length of the padding changes a text's last digits, and a frozen tower's output is to be the same in any batch.
    layout, tokenizer = ClassLayout(taxonomy), Tokenizer(config, whole="text" in frozen_towers(config))
    model = move_to(build_model(config, taxonomy, pretrained=True), device)
    freeze(model, config)
    objective = MultiTask(model, index, config, layout, tokenizer, device)
    if world.is_first:
        for name, why in objective.not_learnt.items():
            log.warning("%s is not learnt, accepted or counted in a mean: %s", name, why)
        for tower in frozen_towers(config):
            if idle := idle_settings(config, tower):
                log.info("the %s tower is frozen, what it sees is not varied: no %s", tower, ", ".join(idle))
    if not objective.learnt.any():
        reasons = "; ".join(f"{name}: {why}" for name, why in objective.not_learnt.items())
        raise DataError(f"no attribute can be learnt: {reasons}")
    torch.manual_seed(config.training.seed + world.rank)  # each process drops out other units
    fits = fingerprint(config.model_dump(mode="json"), taxonomy.fingerprint, index.fingerprint, world.size)
    loop = Loop(
        objective, config.training, device, folder=folder, fits=fits, world=world, progress=progress,
        checkpoint_seconds=checkpoint_seconds,
    )  # fmt: skip
    if folder is not None:  # after the loop has read the checkpoint's weights: the towers are run with these
        objective.use(run_frozen(model, index, config, tokenizer, device, folder, world, progress))
    fitted = loop.run()
    fitted.not_learnt = objective.not_learnt
    model.load_state_dict(fitted.weights)
    if world.is_first:
        start = time.perf_counter()
        with world.with_threads_of_all():
            fused, picture = evaluate_with_picture_alone(
                model, index, "validation", config, layout, tokenizer, device, frozen=objective.frozen
            )
        fitted.validation = weigh_picture(model, layout, fused, picture, fitted.not_learnt)
        fitted.judging_seconds = time.perf_counter() - start
    return model.eval(), fitted


def train(
    config: ModelConfig,
    taxonomy: Taxonomy,
    index: ExampleIndex,
    device: torch.device,
    *,
    folder: Path | None = None,
    world: World | None = None,
    progress: bool = True,
) -> Trained:
    """Train a model, choose its thresholds on the validation side, and judge it on the test side. As `fit`."""
    model, fitted = fit(config, taxonomy, index, device, folder=folder, world=world, progress=progress)
    return conclude(model, fitted, config, taxonomy, index, device, world=world)


def conclude(
    model: nn.Module,
    fitted: Fitted,
    config: ModelConfig,
    taxonomy: Taxonomy,
    index: ExampleIndex,
    device: torch.device,
    *,
    world: World | None = None,
) -> Trained:
    """Choose the thresholds of a model that `fit` gave on the validation side, and judge it on the test side.

    Arguments as of `fit`. Raises DeviceError where not even one product fits into the device's memory.
    """
    start = time.perf_counter()
    layout, tokenizer = ClassLayout(taxonomy), Tokenizer(config)
    found = dict(fitted.validation)
    for name in fitted.not_learnt:
        found[name] = found[name].take(np.zeros(len(found[name]), dtype=np.bool_))  # what it says means nothing
    thresholds = {name: choose_threshold(p, fit_temperature(p), config.selection) for name, p in found.items()}
    validation = judge_all(found, thresholds, config.text.fields)
    with (world or World()).with_threads_of_all():
        tested = evaluate(model, index, "test", config, layout, tokenizer, device)
    test = judge_with_intervals(config.name, tested, thresholds, config.text.fields).attributes
    metrics = Metrics(
        train_examples=index.count("train"),
        validation_examples=index.count("validation"),
        test_examples=index.count("test"),
        families=index.families,
        best_epoch=fitted.best_epoch,
        epochs=tuple(fitted.epochs),
        seconds=fitted.seconds + fitted.judging_seconds + time.perf_counter() - start,
        device=str(device),
        validation=validation,
        test=test,
        test_values={name: judge_values(p, thresholds[name].temperature) for name, p in tested.items()},
        not_learnt=fitted.not_learnt,
        promise=promise_kept(test),
        picture_evidence=weights_of(model, layout),
    )
    return Trained(model, thresholds, metrics, tested)


def check_sides(index: ExampleIndex) -> None:
    """Raise DataError where a side of the split is empty."""
    for side in ("train", "validation", "test"):
        if not index.count(side):
            raise DataError(
                f"there is no labelled example on the {side} side of the split ({len(index.row)} examples of "
                f"{index.families} product families in all); training needs more products"
            )


def _check_seen(index: ExampleIndex, config: ModelConfig) -> None:
    """Raise NothingToLearnError where no training product has what the model sees: all its answers would be one."""
    seen = {"image"} if config.method == "clip" else set(config.fusion.modalities)
    for examples, _ in stream_side(index, "train", columns=("title", "brand", "description", "image_status")):
        fields = (examples.column(name).to_pylist() for name in ("title", "brand", "description", "image_status"))
        for title, brand, description, status in zip(*fields, strict=True):
            if ("image" in seen and status == "ok") or (
                "text" in seen and compose(title, brand, description, config.text)
            ):
                return
    what = " or ".join(name for modality, name in (("text", "a text"), ("image", "a picture")) if modality in seen)
    raise NothingToLearnError(
        f"no training product has {what}, and nothing else is seen: there is nothing to learn from"
    )


def freeze(model: nn.Module, config: ModelConfig) -> None:
    """Leave out of training the towers that the configuration freezes, and those that are never run."""
    seen = set(config.fusion.modalities) if config.method == "cma_clip" else {"text", "image"}
    for name in ("text", "image"):
        if name in config.training.freeze or name not in seen:
            model.get_submodule(f"backbone.{name}").requires_grad_(False)
