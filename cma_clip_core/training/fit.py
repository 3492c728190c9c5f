"""Training of a model from end to end: the loop, the choice of thresholds, and the evaluation."""

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
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.devices import move_to
from cma_clip_core.inputs.frozen_towers import frozen_towers, idle_settings, run_frozen
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.model.ensemble import cma_clip_of
from cma_clip_core.model.methods import build_model
from cma_clip_core.model.tokenizer import compose
from cma_clip_core.model_documents import Methods, Metrics, Threshold
from cma_clip_core.training.loop import Fitted, Loop
from cma_clip_core.training.objectives import MultiTask

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Trained:
    """A trained model with its thresholds and metrics."""

    model: nn.Module
    thresholds: dict[str, Threshold]
    metrics: Metrics
    methods: Methods | None = None  # None: the model is one method, which answers all attributes
    test: dict[str, Predictions] = field(default_factory=dict)  # predictions on the test side: drawn, not saved


def fit(
    problem: LearningProblem,
    compute: Compute,
    *,
    folder: Path | None = None,
    checkpoint_seconds: float = 300.0,
) -> tuple[nn.Module, Fitted]:
    """Train a model on the training side of `problem`; return it, on the device, with the weights that `Loop.run` keeps.

    The first process also weighs the picture's own evidence and keeps the predictions on the validation side.

    Args:
        problem: the configuration, the classes and the examples.
        compute: the device, and the processes that train together.
        folder: for checkpoints to resume from, TensorBoard logs, and the outputs of frozen towers. None: nothing is
            written, and frozen towers run in every epoch.
        checkpoint_seconds: least time between checkpoints.

    Raises:
        DataError: a side of the split is empty, or no attribute can be learnt.
        NothingToLearnError: no training product has an input that the model reads, such as a picture.
        ModelError: the model cannot be built.
        DivergedError, CheckpointError, DeviceError: as `Loop` raises them.
    """
    config, index, device, world = problem.config, problem.index, compute.device, compute.world
    check_sides(index)
    if config.training.epochs:
        _check_seen(index, config)
    torch.manual_seed(config.training.seed)
    if "text" in frozen_towers(config):
        # A frozen tower's output must be the same in any batch, and the length of the padding changes its last digits.
        problem = problem.padded_to_context()
    model = move_to(build_model(config, problem.taxonomy, pretrained=True), device)
    freeze(model, config)
    objective = MultiTask(model, problem, device)
    if world.is_first:
        for name, why in objective.not_learnt.items():
            log.warning("%s is not learnt, accepted or counted in a mean: %s", name, why)
        for tower in frozen_towers(config):
            if idle := idle_settings(config, tower):
                log.info("the %s tower is frozen, so its input is not augmented: no %s", tower, ", ".join(idle))
    if not objective.learnt.any():
        reasons = "; ".join(f"{name}: {why}" for name, why in objective.not_learnt.items())
        raise DataError(f"no attribute can be learnt: {reasons}")
    torch.manual_seed(config.training.seed + world.rank)  # so that each process drops out different units
    training = fingerprint(config.model_dump(mode="json"), problem.taxonomy.fingerprint, index.fingerprint, world.size)
    loop = Loop(
        objective, config.training, compute, folder=folder, fingerprint=training, checkpoint_seconds=checkpoint_seconds
    )
    if folder is not None:  # after `Loop` has loaded the checkpoint: the towers run with its weights
        objective.use(run_frozen(model, problem, compute, folder))
    fitted = loop.run()
    fitted.not_learnt = objective.not_learnt
    model.load_state_dict(fitted.weights)
    if world.is_first:
        start = time.perf_counter()
        with world.with_threads_of_all():
            fused, picture = evaluate_with_picture_alone(model, problem, "validation", device, frozen=objective.frozen)
        fitted.validation = weigh_picture(model, problem.layout, fused, picture, fitted.not_learnt)
        fitted.judging_seconds = time.perf_counter() - start
    return model.eval(), fitted


def train(problem: LearningProblem, compute: Compute, *, folder: Path | None = None) -> Trained:
    """Train a model, choose its thresholds on the validation side, and judge it on the test side.

    Arguments and errors are those of `fit`.
    """
    model, fitted = fit(problem, compute, folder=folder)
    return conclude(model, fitted, problem, compute)


def conclude(model: nn.Module, fitted: Fitted, problem: LearningProblem, compute: Compute) -> Trained:
    """Choose the thresholds of a model from `fit` on the validation side, and judge the model on the test side.

    Args:
        model: the trained model.
        fitted: the result of its training.
        problem: the configuration, the classes and the examples that it was trained with.
        compute: as for `fit`.

    Raises:
        DeviceError: not even one product fits into the device's memory.
    """
    return judge(model, fitted, problem, compute, dict(fitted.validation))


def judge(
    model: nn.Module,
    fitted: Fitted,
    problem: LearningProblem,
    compute: Compute,
    predictions: dict[str, Predictions],
    methods: Methods | None = None,
) -> Trained:
    """Choose thresholds on some predictions, and judge the model on the test side.

    Args:
        model: the trained model.
        fitted: the result of its training.
        problem: the configuration, the classes and the examples that it was trained with.
        compute: as for `fit`.
        predictions: the model's answers, by attribute, for products that it was not fitted to.
        methods: the members that answer each attribute; None: the model is one method.

    Raises:
        DeviceError: not even one product fits into the device's memory.
    """
    start = time.perf_counter()
    config, index = problem.config, problem.index
    for name in fitted.not_learnt:  # predictions of an attribute that was not learnt mean nothing
        predictions[name] = predictions[name].take(np.zeros(len(predictions[name]), dtype=np.bool_))
    thresholds = {name: choose_threshold(p, fit_temperature(p), config.selection) for name, p in predictions.items()}
    validation = judge_all(predictions, thresholds, config.text.fields)
    with compute.world.with_threads_of_all():
        tested = evaluate(model, problem, "test", compute.device)
    test = judge_with_intervals(config.name, tested, thresholds, config.text.fields).attributes
    metrics = Metrics(
        train_examples=index.count("train"),
        validation_examples=index.count("validation"),
        test_examples=index.count("test"),
        families=index.families,
        best_epoch=fitted.best_epoch,
        epochs=tuple(fitted.epochs),
        seconds=fitted.seconds + fitted.judging_seconds + time.perf_counter() - start,
        device=str(compute.device),
        validation=validation,
        test=test,
        test_values={name: judge_values(p, thresholds[name].temperature) for name, p in tested.items()},
        not_learnt=fitted.not_learnt,
        promise=promise_kept(test),
        picture_evidence=weights_of(cma_clip_of(model), problem.layout),
    )
    return Trained(model, thresholds, metrics, methods, tested)


def check_sides(index: ExampleIndex) -> None:
    """Raise DataError if a side of the split is empty."""
    for side in ("train", "validation", "test"):
        if not index.count(side):
            raise DataError(
                f"there is no labelled example on the {side} side of the split ({len(index.row)} examples of "
                f"{index.families} product families in all); training needs more products"
            )


def _check_seen(index: ExampleIndex, config: ModelConfig) -> None:
    """Raise NothingToLearnError if no training product has an input that the model reads: it would learn one constant."""
    seen = {"image"} if config.method == "clip" else set(config.fusion.modalities)
    for examples, _ in stream_side(index, "train", columns=("title", "brand", "description", "image_status")):
        fields = (examples.column(name).to_pylist() for name in ("title", "brand", "description", "image_status"))
        for title, brand, description, status in zip(*fields, strict=True):
            if ("image" in seen and status == "ok") or (
                "text" in seen and compose(title, brand, description, config.text)
            ):
                return
    inputs = " or ".join(name for modality, name in (("text", "a text"), ("image", "a picture")) if modality in seen)
    raise NothingToLearnError(
        f"no training product has {inputs}, and the model reads nothing else: there is nothing to learn from"
    )


def freeze(model: nn.Module, config: ModelConfig) -> None:
    """Exclude from training the towers that the configuration freezes, and those that never run."""
    seen = set(config.fusion.modalities) if config.method == "cma_clip" else {"text", "image"}
    for name in ("text", "image"):
        if name in config.training.freeze or name not in seen:
            model.get_submodule(f"backbone.{name}").requires_grad_(False)
