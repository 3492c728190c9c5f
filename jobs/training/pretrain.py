"""Pretrain towers on the catalog's own pairs of picture and text, and find existing pretrained towers."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cma_clip_core.catalog.examples import read_index
from cma_clip_core.catalog.splits import SIDES
from cma_clip_core.config import ModelConfig, load_config
from cma_clip_core.content.paths import open_parquet
from cma_clip_core.errors import CoreError
from cma_clip_core.inputs import distributed
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.devices import resolve_device
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.model import tower_files
from cma_clip_core.model.tower_files import TowersMetrics
from cma_clip_core.model_documents import TowersOrigin
from cma_clip_core.training.pretraining import pretrain as pretrain_towers
from cma_clip_core.training.pretraining import pretraining_config
from cma_clip_core.training.tensorboard import LOGS
from jobs.errors import JobError, as_job_error
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from jobs.runtime.step_metrics import measure
from jobs.settings import Settings
from jobs.training import workdir
from jobs.training.dataset import LabelledSet, dataset
from schemas.taxonomy import load_taxonomy

log = logging.getLogger(__name__)

_ROWS: Final = 1 << 17  # rows of a labelled set read at a time
_COLUMNS: Final = ["product_id", "side"]


def pretrain(settings: Settings, ds: str) -> str:
    """Pretrain on the labelled set of the day `ds` and return the towers' name. A killed pretraining resumes.

    Processes that `torchrun` started train together: the first one writes the towers, and all return their name.

    Args:
        settings: names the model configuration (its section `pretraining`), the taxonomy and the device.
        ds: the newest day whose examples are used.

    Raises:
        JobError: there are too few examples for this configuration and taxonomy, or none, or the device does not exist.
        TransientError: a checkpoint cannot be written, for example because the disk is full.
    """
    lake = Lake(settings.root)
    config, taxonomy = load_config(settings.model_config_name), load_taxonomy(settings.taxonomy)
    try:
        device = resolve_device(settings.device)
        world = distributed.join(device)
        with world.first_before_others():
            labelled = dataset(settings, ds)
        problem = LearningProblem.build(config, taxonomy, read_index(labelled.table, lake.root))
        name = _pretrain(lake, labelled, problem, Compute(device, world, settings.progress and world.is_first))
    except CoreError as error:
        raise as_job_error(error) from error
    finally:
        distributed.leave()
    return name


def find_or_pretrain(lake: Lake, labelled: LabelledSet, problem: LearningProblem, compute: Compute) -> str:
    """Return the newest towers of this configuration and labelled set; pretrain them if none exist.

    Raises:
        CoreError: as `cma_clip_core.training.pretraining.pretrain` raises it.
    """
    world = compute.world
    name = world.broadcast_object(_newest(lake, problem.config, labelled) if world.is_first else "")
    if not name:
        return _pretrain(lake, labelled, problem, compute)
    log.info("pretrained towers of this configuration and labelled set exist: %s", lake.towers / name)
    return name


def _newest(lake: Lake, config: ModelConfig, labelled: LabelledSet) -> str:
    """Return the name of the newest towers of this configuration and labelled set; empty if none exist."""
    fitting: list[tuple[datetime, str]] = []
    for folder in _all(lake):
        try:
            metrics = storage.read_document(folder / tower_files.METRICS, TowersMetrics)
            if metrics is None or metrics.made_at is None or not _is_same_set(metrics.labelled_set, labelled):
                continue
            made_with = storage.read_document(folder / tower_files.CONFIG, ModelConfig)
        except JobError as error:
            log.warning("%s: left out: %s", folder, error)
            continue
        if made_with is not None and pretraining_config(made_with) == pretraining_config(config):
            fitting.append((metrics.made_at, folder.name))
    return max(fitting, default=(None, ""))[1]


def _pretrain(lake: Lake, labelled: LabelledSet, problem: LearningProblem, compute: Compute) -> str:
    config, world = problem.config, compute.world
    with measure("pretrain") as measured:
        decides, set_id = pretraining_config(config), labelled.manifest.set_id
        work = workdir.work_folder(lake.work / "towers", decides, set_id, processes=world.size)
        if world.is_first:
            workdir.begin(work, config, set_id, world.size)
        backbone, metrics = pretrain_towers(problem, compute, folder=work)
        if not world.is_first:
            return world.broadcast_object("")
        metrics = with_labelled_set(metrics, lake, labelled)
        name = tower_files.save(backbone, config, metrics, lake.work / "towers", datetime.now(UTC))
        storage.send_folder(lake.work / "towers" / name, lake.towers / name, last=tower_files.METRICS)
        workdir.finish(work, lake.towers / name / LOGS)
        measured.rows, measured.folder = metrics.train_examples, lake.towers / name
        measured.details |= {"towers": name, "labelled_set": set_id, "device": metrics.device}
        log.info("pretrained towers: %s", lake.towers / name)
        return world.broadcast_object(name)


def with_labelled_set(metrics: TowersMetrics, lake: Lake, labelled: LabelledSet) -> TowersMetrics:
    """Return the metrics of towers with the labelled set that they were pretrained on."""
    return metrics.model_copy(
        update={"labelled_set": lake.relative(labelled.folder), "catalog_day": labelled.manifest.ds}
    )


def with_towers(config: ModelConfig, towers: Path | None) -> ModelConfig:
    """Return the configuration with the pretrained towers of a folder as initial weights."""
    if towers is None:
        return config
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"pretrained": str(towers)})})


def find_towers(lake: Lake, name: str | None) -> Path | None:
    """Return the folder of pretrained towers.

    Args:
        lake: the lake to search.
        name: their name in the lake, or a folder anywhere if it has a slash; None: no towers.

    Raises:
        JobError: the lake has no towers of that name, or the address is not a folder on this machine.
    """
    if name is None:
        return None
    if "://" in name:
        raise JobError(
            f"{name!r}: give the name of towers in the lake, or a folder on this machine: copy the towers there first"
        )
    if "/" in name:
        return Path(name).expanduser().resolve()
    existing = [path.name for path in _all(lake)]
    if name not in existing:
        raise JobError(
            f"{name!r}: no such towers in {lake.towers}; there are {existing or 'none'}; `python -m jobs pretrain` makes them; "
            "for towers of another lake give their folder, with a slash in it"
        )
    return storage.local_copy(lake.towers / name, lake.work / "towers" / name)


def _all(lake: Lake) -> list[AnyPath]:
    return [path for path in storage.children(lake.towers) if path.name[:1].isdigit()]


def towers_origin(lake: Lake, towers: Path, labelled: LabelledSet) -> TowersOrigin:
    """Return the labelled set that a folder's towers were pretrained on, and how many held-out products of `labelled` they saw.

    Memory holds the ids of the held-out products; those of the other set pass through in batches.

    Raises:
        ModelError: the towers' metrics cannot be read.
    """
    their_set = tower_files.read_metrics(towers).labelled_set if (towers / tower_files.METRICS).exists() else ""
    same = _is_same_set(their_set, labelled)
    table = lake.root / their_set / labelled.table.name if their_set and not same else None
    seen = _count_seen(table, labelled.table) if table is not None and storage.exists(table) else None
    return TowersOrigin(name=towers.name, labelled_set=their_set, same_set=same, seen=seen)


def check_towers_origin(lake: Lake, towers: Path, labelled: LabelledSet) -> TowersOrigin:
    """Return `towers_origin`; warn if the towers saw, or may have seen, products that a model will be judged on."""
    origin = towers_origin(lake, towers, labelled)
    if not origin.same_set and (origin.seen is None or any(origin.seen.values())):
        log.warning(
            "%s The measured quality may be too high for new products; `python -m jobs pretrain --ds %s` makes towers of "
            "this labelled set",
            origin.words(), labelled.manifest.ds,
        )  # fmt: skip
    return origin


def _is_same_set(labelled_set: str, labelled: LabelledSet) -> bool:
    """Return whether both are the same set: a set has the same name on every day that has the same inputs."""
    return labelled_set.rpartition("/")[2] == labelled.folder.name


def _count_seen(pretrained_on: AnyPath, table: AnyPath) -> dict[str, int]:
    """Return how many products of the validation and test sides are on the training side of another labelled set, by side."""
    ids, sides = [], []
    with open_parquet(table) as file:
        for batch in file.iter_batches(_ROWS, columns=_COLUMNS):
            held_out = pc.not_equal(batch["side"], "train")
            ids.append(batch["product_id"].filter(held_out))
            sides.append(batch["side"].filter(held_out))
    products = pa.chunked_array(ids, pa.string())
    seen = np.zeros(len(products), dtype=np.bool_)
    with open_parquet(pretrained_on) as file:
        for batch in file.iter_batches(_ROWS, columns=_COLUMNS):
            trained_on = batch["product_id"].filter(pc.equal(batch["side"], "train"))
            seen |= pc.is_in(products, value_set=trained_on).to_numpy()
    side = pa.chunked_array(sides, pa.string()).to_numpy()
    return {name: int((seen & (side == name)).sum()) for name in SIDES if name != "train"}
