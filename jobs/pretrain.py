"""Pretrain the towers on the catalog's own pairs of picture and text, and find the ones that were."""

from __future__ import annotations

import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cma_clip_core.config import ModelConfig, load_config
from cma_clip_core.errors import CoreError
from jobs import storage, unfinished
from jobs.dataset import LabelledSet, dataset
from jobs.errors import JobError
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import Measured, measure
from schemas.taxonomy import Taxonomy, load_taxonomy

if TYPE_CHECKING:
    import torch

    from cma_clip_core.distributed import World

log = logging.getLogger(__name__)


def pretrain(settings: Settings, ds: str) -> str:
    """Pretrain on the labelled set of the day `ds` and return the towers' name. Killed, it goes on where it was.

    Processes that `torchrun` started train together: the first one writes the towers, all return their name.

    Args:
        settings: names the model configuration (its section `pretraining`), the taxonomy and the device.
        ds: newest day whose examples are used.

    Raises:
        JobError: there are no examples for this configuration and taxonomy, too few, or no such device.
    """
    from cma_clip_core import distributed
    from cma_clip_core.devices import resolve_device

    lake = Lake(settings.root)
    config, taxonomy = load_config(settings.model_config_name), load_taxonomy(settings.taxonomy)
    try:
        device = resolve_device(settings.device)
        world = distributed.join(device)
        with world.first_before_others():
            labelled = dataset(settings, ds)
        with measure("pretrain") as measured:
            name = _pretrain(settings, lake, config, taxonomy, labelled, device, world, measured)
    except CoreError as error:
        raise JobError(str(error)) from error
    finally:
        distributed.leave()
    return name


def _pretrain(
    settings: Settings,
    lake: Lake,
    config: ModelConfig,
    taxonomy: Taxonomy,
    labelled: LabelledSet,
    device: torch.device,
    world: World,
    measured: Measured,
) -> str:
    from cma_clip_core import towers
    from cma_clip_core.examples import read_index
    from cma_clip_core.pretraining import pretrain as run
    from cma_clip_core.pretraining import pretraining_config

    index = read_index(labelled.table, lake.root)
    decides, set_id = pretraining_config(config), labelled.manifest.set_id
    work = unfinished.work_folder(lake.work / "towers", decides, set_id, processes=world.size)
    if world.is_first:
        unfinished.begin(work, config, set_id, world.size)
    progress = settings.progress and world.is_first
    backbone, metrics = run(config, taxonomy, index, device, folder=work, world=world, progress=progress)
    if not world.is_first:
        return world.broadcast_text("")
    name = towers.save(backbone, config, metrics, lake.work / "towers", datetime.now(UTC))
    storage.send_folder(lake.work / "towers" / name, lake.towers / name, last=towers.METRICS)
    shutil.rmtree(work, ignore_errors=True)
    measured.rows, measured.folder = metrics.train_examples, lake.towers / name
    measured.details |= {"towers": name, "labelled_set": set_id, "device": metrics.device}
    log.info("pretrained towers: %s", lake.towers / name)
    return world.broadcast_text(name)


def with_towers(config: ModelConfig, towers: Path | None) -> ModelConfig:
    """Return the configuration, to begin with the pretrained towers of a folder."""
    if towers is None:
        return config
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"pretrained": str(towers)})})


def find_towers(lake: Lake, name: str | None) -> Path | None:
    """Return the folder of pretrained towers.

    Args:
        lake: where they are looked for by name.
        name: their name in the lake; anything with a slash is their folder, wherever it is; None: none are asked for.

    Raises:
        JobError: there are none of that name in the lake.
    """
    if name is None:
        return None
    if "/" in name:
        return Path(name).expanduser().resolve()
    there = [path.name for path in storage.children(lake.towers) if path.name[:1].isdigit()]
    if name not in there:
        raise JobError(
            f"{name!r}: no such towers in {lake.towers}; there are {there or 'none'}; `python -m jobs pretrain` makes them, and "
            "those of another lake are named by their folder, with a slash in it"
        )
    return storage.local_copy(lake.towers / name, lake.work / "towers" / name)
