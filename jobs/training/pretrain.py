"""Pretrain the towers on the catalog's own pairs of picture and text, and find the ones that were."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cma_clip_core.catalog.splits import SIDES
from cma_clip_core.config import ModelConfig, load_config
from cma_clip_core.content.paths import open_parquet
from cma_clip_core.errors import CoreError
from cma_clip_core.model_documents import TowersOrigin
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

if TYPE_CHECKING:
    from cma_clip_core.inputs.compute import Compute
    from cma_clip_core.inputs.learning_problem import LearningProblem
    from cma_clip_core.model.tower_files import TowersMetrics

log = logging.getLogger(__name__)

_ROWS: Final = 1 << 17  # of a labelled set, read at a time
_COLUMNS: Final = ["product_id", "side"]


def pretrain(settings: Settings, ds: str) -> str:
    """Pretrain on the labelled set of the day `ds` and return the towers' name. Killed, it goes on where it was.

    Processes that `torchrun` started train together: the first one writes the towers, all return their name.

    Args:
        settings: names the model configuration (its section `pretraining`), the taxonomy and the device.
        ds: newest day whose examples are used.

    Raises:
        JobError: there are no examples for this configuration and taxonomy, too few, or no such device.
        TransientError: a checkpoint cannot be written, such as on a full disk.
    """
    from cma_clip_core.catalog.examples import read_index
    from cma_clip_core.inputs import distributed
    from cma_clip_core.inputs.compute import Compute
    from cma_clip_core.inputs.devices import resolve_device
    from cma_clip_core.inputs.learning_problem import LearningProblem

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
    """Return the newest towers of this configuration and labelled set, pretrained now where there are none, as `pretrain`.

    Raises:
        CoreError: as `cma_clip_core.training.pretraining.pretrain`.
    """
    world = compute.world
    name = world.broadcast_object(_newest(lake, problem.config, labelled) if world.is_first else "")
    if not name:
        return _pretrain(lake, labelled, problem, compute)
    log.info("pretrained towers of this configuration and labelled set are there: %s", lake.towers / name)
    return name


def _newest(lake: Lake, config: ModelConfig, labelled: LabelledSet) -> str:
    """Return the name of the newest towers of this configuration and labelled set; empty where there are none."""
    from cma_clip_core.model import tower_files
    from cma_clip_core.training.pretraining import pretraining_config

    found: list[tuple[datetime, str]] = []
    for folder in _all(lake):
        try:
            metrics = storage.read_document(folder / tower_files.METRICS, tower_files.TowersMetrics)
            if metrics is None or metrics.made_at is None or not _is_of(metrics.labelled_set, labelled):
                continue
            made_with = storage.read_document(folder / tower_files.CONFIG, ModelConfig)
        except JobError as error:
            log.warning("%s: left out: %s", folder, error)
            continue
        if made_with is not None and pretraining_config(made_with) == pretraining_config(config):
            found.append((metrics.made_at, folder.name))
    return max(found, default=(None, ""))[1]


def _pretrain(lake: Lake, labelled: LabelledSet, problem: LearningProblem, compute: Compute) -> str:
    from cma_clip_core.model import tower_files
    from cma_clip_core.training.pretraining import pretrain as run
    from cma_clip_core.training.pretraining import pretraining_config

    config, world = problem.config, compute.world
    with measure("pretrain") as measured:
        decides, set_id = pretraining_config(config), labelled.manifest.set_id
        work = workdir.work_folder(lake.work / "towers", decides, set_id, processes=world.size)
        if world.is_first:
            workdir.begin(work, config, set_id, world.size)
        backbone, metrics = run(problem, compute, folder=work)
        if not world.is_first:
            return world.broadcast_object("")
        metrics = of_set(metrics, lake, labelled)
        name = tower_files.save(backbone, config, metrics, lake.work / "towers", datetime.now(UTC))
        storage.send_folder(lake.work / "towers" / name, lake.towers / name, last=tower_files.METRICS)
        workdir.finish(work, lake.towers / name / LOGS)
        measured.rows, measured.folder = metrics.train_examples, lake.towers / name
        measured.details |= {"towers": name, "labelled_set": set_id, "device": metrics.device}
        log.info("pretrained towers: %s", lake.towers / name)
        return world.broadcast_object(name)


def of_set(metrics: TowersMetrics, lake: Lake, labelled: LabelledSet) -> TowersMetrics:
    """Return towers' metrics that say which labelled set they were pretrained on."""
    return metrics.model_copy(
        update={"labelled_set": lake.relative(labelled.folder), "catalog_day": labelled.manifest.ds}
    )


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
        JobError: there are none of that name in the lake, or it is no folder of this machine.
    """
    if name is None:
        return None
    if "://" in name:
        raise JobError(
            f"{name!r}: towers are named by their name in the lake, or by a folder on this machine: copy them there first"
        )
    if "/" in name:
        return Path(name).expanduser().resolve()
    there = [path.name for path in _all(lake)]
    if name not in there:
        raise JobError(
            f"{name!r}: no such towers in {lake.towers}; there are {there or 'none'}; `python -m jobs pretrain` makes them, and "
            "those of another lake are named by their folder, with a slash in it"
        )
    return storage.local_copy(lake.towers / name, lake.work / "towers" / name)


def _all(lake: Lake) -> list[AnyPath]:
    return [path for path in storage.children(lake.towers) if path.name[:1].isdigit()]


def origin_of(lake: Lake, towers: Path, labelled: LabelledSet) -> TowersOrigin:
    """Return which labelled set a folder's towers were pretrained on, and how much of what `labelled` holds out they saw.

    Memory: the ids of the products held out; those of the other set pass through in batches.

    Raises:
        ModelError: the towers' metrics cannot be read.
    """
    from cma_clip_core.model.tower_files import METRICS, read_metrics

    of = read_metrics(towers).labelled_set if (towers / METRICS).exists() else ""
    same = _is_of(of, labelled)
    table = lake.root / of / labelled.table.name if of and not same else None
    seen = _count_seen(table, labelled.table) if table is not None and storage.exists(table) else None
    return TowersOrigin(name=towers.name, labelled_set=of, same_set=same, seen=seen)


def checked_origin(lake: Lake, towers: Path, labelled: LabelledSet) -> TowersOrigin:
    """Return `origin_of`; warn where the towers saw what a model will be judged on, or may have."""
    origin = origin_of(lake, towers, labelled)
    if not origin.same_set and (origin.seen is None or any(origin.seen.values())):
        log.warning(
            "%s What is measured may be too good for new products; `python -m jobs pretrain --ds %s` makes towers of this "
            "labelled set",
            origin.words(), labelled.manifest.ds,
        )  # fmt: skip
    return origin


def _is_of(labelled_set: str, labelled: LabelledSet) -> bool:
    """Whether it is this set: one of the same inputs has the same name on whichever day it was asked for."""
    return labelled_set.rpartition("/")[2] == labelled.folder.name


def _count_seen(pretrained_on: AnyPath, table: AnyPath) -> dict[str, int]:
    """Return how many products of each side but training are on the training side of another labelled set."""
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
