"""Pretrain the towers on the catalog's own pairs of picture and text, and find the ones that were."""

from __future__ import annotations

import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path

from cma_clip_core.config import ModelConfig, load_config
from cma_clip_core.errors import CoreError
from jobs.dataset import dataset
from jobs.errors import JobError
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import measure
from schemas.taxonomy import load_taxonomy

log = logging.getLogger(__name__)


def pretrain(settings: Settings, ds: str) -> str:
    """Pretrain on the labelled set of the day `ds` and return the towers' name. Killed, it goes on where it was.

    Args:
        settings: names the model configuration (its section `pretraining`), the taxonomy and the device.
        ds: newest day whose examples are used.

    Raises:
        JobError: there are no examples for this configuration and taxonomy, too few, or no such device.
    """
    from cma_clip_core import towers
    from cma_clip_core.devices import resolve_device
    from cma_clip_core.examples import read_index
    from cma_clip_core.pretraining import pretrain as run

    lake = Lake(settings.root)
    config, taxonomy = load_config(settings.model_config_name), load_taxonomy(settings.taxonomy)
    labelled = dataset(settings, ds)
    work = lake.towers / f".{config.name}-{labelled.manifest.set_id}"  # the unfinished training
    with measure("pretrain") as measured:
        try:
            index, device = read_index(labelled.table, lake.root), resolve_device(settings.device)
            backbone, metrics = run(config, taxonomy, index, device, folder=work, progress=settings.progress)
            name = towers.save(backbone, config, metrics, lake.towers, datetime.now(UTC))
        except CoreError as error:
            raise JobError(str(error)) from error
        shutil.rmtree(work, ignore_errors=True)
        measured.rows, measured.folder = metrics.train_examples, lake.towers / name
        measured.details |= {"towers": name, "labelled_set": labelled.manifest.set_id, "device": metrics.device}
    log.info("pretrained towers: %s", lake.towers / name)
    return name


def with_towers(config: ModelConfig, towers: Path | None) -> ModelConfig:
    """Return the configuration, to begin with the pretrained towers of a folder."""
    if towers is None:
        return config
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"pretrained": str(towers)})})


def find_towers(lake: Lake, name: str | None) -> Path | None:
    """Return the folder of pretrained towers in the lake. Raises JobError where there are none of that name."""
    if name is None:
        return None
    folder = lake.towers / name
    if "/" in name or not folder.is_dir():
        there = sorted(p.name for p in lake.towers.glob("[0-9]*")) or "none"
        raise JobError(
            f"{name!r}: no such towers in {lake.towers}; there are {there}; `python -m jobs pretrain` makes them"
        )
    return folder
