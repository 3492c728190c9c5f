"""Pretraining of both towers on the catalog's own pairs of picture and text, where no pretrained weights can be had."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from cma_clip_core.backbone import Backbone
from cma_clip_core.checkpoints import fingerprint
from cma_clip_core.classes import ClassLayout
from cma_clip_core.config import ModelConfig
from cma_clip_core.distributed import World
from cma_clip_core.examples import ExampleIndex
from cma_clip_core.loop import Loop
from cma_clip_core.objectives import Contrastive
from cma_clip_core.tokens import Tokenizer
from cma_clip_core.towers import TowersMetrics
from cma_clip_core.training import check_sides
from schemas.taxonomy import Taxonomy


def pretrain(
    config: ModelConfig,
    taxonomy: Taxonomy,
    index: ExampleIndex,
    device: torch.device,
    *,
    folder: Path | None = None,
    world: World | None = None,
    progress: bool = True,
) -> tuple[Backbone, TowersMetrics]:
    """Train both towers on the training side of `index`, by `config.pretraining`; labels are not looked at.

    Args and Raises: as `cma_clip_core.training.fit`.
    """
    check_sides(index)
    start, world = time.perf_counter(), world or World()
    config = config.model_copy(update={"training": config.pretraining})
    torch.manual_seed(config.training.seed)
    backbone = Backbone(config, pretrained=True).to(device)
    objective = Contrastive(backbone, index, config, ClassLayout(taxonomy), Tokenizer(config), device)
    torch.manual_seed(config.training.seed + world.rank)
    fits = fingerprint("pretraining", config.model_dump(mode="json"), index.fingerprint, world.size)
    fitted = Loop(objective, config.training, device, folder=folder, fits=fits, world=world, progress=progress).run()
    objective.model.load_state_dict(fitted.weights)
    metrics = TowersMetrics(
        train_examples=index.count("train"),
        best_epoch=fitted.best_epoch,
        epochs=tuple(fitted.epochs),
        seconds=time.perf_counter() - start,
        device=str(device),
    )
    return backbone.eval(), metrics
