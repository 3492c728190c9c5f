"""Pretraining of both towers on the catalog's own pairs of picture and text, for configurations without pretrained weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from cma_clip_core.catalog.examples import ExampleIndex, stream_side
from cma_clip_core.catalog.splits import Side
from cma_clip_core.config import ModelConfig
from cma_clip_core.errors import ModelError, NothingToLearnError
from cma_clip_core.inputs.checkpoints import fingerprint
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.devices import move_to
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.model.backbone import Backbone
from cma_clip_core.model.tokenizer import compose
from cma_clip_core.model.tower_files import TowersMetrics
from cma_clip_core.training.fit import check_sides
from cma_clip_core.training.loop import Loop
from cma_clip_core.training.objectives import Contrastive

# Settings that have no effect in pretraining, because they concern labels, single modalities or frozen towers.
WITHOUT_EFFECT = (
    "freeze", "class_balance", "label_smoothing", "alone_loss", "name_dropout", "text_dropout", "image_dropout",
)  # fmt: skip


def pretrain(
    problem: LearningProblem, compute: Compute, *, folder: Path | None = None
) -> tuple[Backbone, TowersMetrics]:
    """Train both towers on the training side of `problem`, with the settings of `config.pretraining`, without labels.

    The arguments are those of `cma_clip_core.training.fit.fit`.

    Raises:
        NothingToLearnError: the training or validation side has no two products with both a picture and a text.
        ModelError: the towers cannot be built, or `config.pretraining` has a setting without effect there.
        DataError, DivergedError, CheckpointError, DeviceError: as `fit` raises them.
    """
    config, index = problem.config, problem.index
    if idle := [name for name in WITHOUT_EFFECT if getattr(config.pretraining, name)]:
        raise ModelError(f"configuration {config.name!r}: {', '.join(idle)} has no effect in `pretraining`: remove it")
    check_sides(index)
    sides: tuple[Side, ...] = ("train", "validation")
    for side in sides:
        if not _has_pairs(index, side, config):
            raise NothingToLearnError(
                f"no two products on the {side} side have both a picture and a text: there is nothing to pretrain on"
            )
    config = pretraining_config(config)
    world, problem = compute.world, replace(problem, config=config)
    torch.manual_seed(config.training.seed)
    backbone = move_to(Backbone(config, pretrained=True), compute.device)
    objective = Contrastive(backbone, problem, compute)
    torch.manual_seed(config.training.seed + world.rank)  # so that each process drops out different patches
    training = fingerprint("pretraining", config.model_dump(mode="json"), index.fingerprint, world.size)
    fitted = Loop(objective, config.training, compute, folder=folder, fingerprint=training).run()
    objective.model.load_state_dict(fitted.weights)
    metrics = TowersMetrics(
        train_examples=index.count("train"),
        best_epoch=fitted.best_epoch,
        epochs=tuple(fitted.epochs),
        seconds=fitted.seconds,
        device=str(compute.device),
    )
    return backbone.eval(), metrics


def pretraining_config(config: ModelConfig) -> ModelConfig:
    """Return the configuration with its pretraining settings as training settings: the later training does not matter."""
    return config.model_copy(update={"training": config.pretraining})


def _has_pairs(index: ExampleIndex, side: Side, config: ModelConfig) -> bool:
    """Return whether at least two products of a side have both a picture and a text that the model reads."""
    pairs = 0
    for examples, _ in stream_side(index, side, columns=("title", "brand", "description", "image_status")):
        fields = (examples.column(name).to_pylist() for name in ("title", "brand", "description", "image_status"))
        pairs += sum(
            status == "ok" and bool(compose(title, brand, description, config.text))
            for title, brand, description, status in zip(*fields, strict=True)
        )
        if pairs > 1:
            return True
    return False
