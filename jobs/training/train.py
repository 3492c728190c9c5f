"""Train a model on the examples of the lake, and store it as a version."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cma_clip_core import registry
from cma_clip_core.catalog.examples import read_index
from cma_clip_core.config import ModelConfig, load_config
from cma_clip_core.errors import CoreError
from cma_clip_core.evaluation.metrics import mean_recall
from cma_clip_core.inputs import distributed
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.devices import resolve_device
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.model.ensemble import CMA_CLIP
from cma_clip_core.model_documents import ExperimentOrigin, TowersOrigin
from cma_clip_core.training import fit
from cma_clip_core.training.tensorboard import LOGS
from cma_clip_core.training.train_candidates import train_candidates
from jobs.errors import JobError, as_job_error
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.models import promotion
from jobs.runtime.step_metrics import measure
from jobs.settings import Settings
from jobs.training import workdir
from jobs.training.dataset import LabelledSet, dataset
from jobs.training.labelled_rows import count_labels_of_sides
from jobs.training.pretrain import check_towers_origin, find_or_pretrain, find_towers, with_towers
from schemas.taxonomy import load_taxonomy

log = logging.getLogger(__name__)


def train(settings: Settings, ds: str, promote: bool = True, towers: str | None = None, pretrain: bool = False) -> str:
    """Train on the labelled set of the day `ds`, write a model version, and return its name. A killed training resumes.

    Each attribute is answered by the candidate that is best on validation (cma_clip_core.training.train_candidates).

    Processes that `torchrun` started train together: the first one writes the version, and the others return "".

    Args:
        settings: names the model configuration, the candidates, the taxonomy and the device.
        ds: the newest day whose examples are used; its labelled set is made if it does not exist.
        promote: make the new version the champion, unless it is worse than the current one.
        towers: name or folder of the pretrained towers to start from; None: those of the configuration, if any.
        pretrain: start from towers pretrained with this configuration on the same labelled set: the newest existing ones,
            or new ones.

    Raises:
        JobError: one of these:
            - there are too few examples for this configuration and taxonomy, or none;
            - the device does not exist;
            - `pretrain` is combined with `towers`, or with a configuration that names pretrained weights.
        TransientError: a checkpoint cannot be written, for example because the disk is full.
    """
    lake = Lake(settings.root)
    config, taxonomy = load_config(settings.model_config_name), load_taxonomy(settings.taxonomy)
    if pretrain:
        _check_pretraining(config, towers)
    start = find_towers(lake, towers)
    try:
        device = resolve_device(settings.device)
        world = distributed.join(device)
        compute = Compute(device, world, settings.progress and world.is_first)
        with world.first_before_others():
            labelled = dataset(settings, ds)
        problem = LearningProblem.build(config, taxonomy, read_index(labelled.table, lake.root))
        if pretrain:
            start = find_towers(lake, find_or_pretrain(lake, labelled, problem, compute))
        with measure("train") as measured:
            version = _train(lake, labelled, problem, compute, start, measured.details, settings.candidates)
            measured.rows = int(measured.details.get("examples", 0))
            measured.folder = lake.model_reports(ds, version) if version else None
    except CoreError as error:
        raise as_job_error(error) from error
    finally:
        distributed.leave()
    if version:
        log.info("train: %s is saved", lake.models / version)
    if promote and version:
        with world.with_threads_of_all():
            _promote(settings, version)
    return version


def _check_pretraining(config: ModelConfig, towers: str | None) -> None:
    """Raise JobError if `--towers` or the configuration also names initial weights of the towers."""
    if towers is not None:
        raise JobError(
            f"--pretrain starts from towers of the day's labelled set, --towers from {towers!r}: give one of them"
        )
    if config.backbone.pretrained is not None:
        raise JobError(
            f"--pretrain: the configuration {config.name!r} starts from the weights backbone.pretrained: "
            f"{config.backbone.pretrained!r}; leave out the flag (or TAGGING_PRETRAIN), or these weights"
        )


def _promote(settings: Settings, version: str) -> None:
    """Promote a new version if it is good enough; otherwise log the reason. The version stays in the lake."""
    try:
        verdict = promotion.promote(settings, version)
    except JobError as error:
        log.warning("%s is not the champion: %s", version, error)
        return
    log.info("%s is the champion", version)
    for line in verdict.lines() if verdict else ():
        log.info("%s", line)


def _train(
    lake: Lake,
    labelled: LabelledSet,
    problem: LearningProblem,
    compute: Compute,
    start: Path | None,
    details: dict[str, float | int | str],
    candidates: Sequence[str],
) -> str:
    index, world = problem.index, compute.world
    log.info(
        "train: %d examples of %d families: %d to train on, %d to validate, %d to test",
        len(index.row), index.families, index.count("train"), index.count("validation"), index.count("test"),
    )  # fmt: skip
    origin = None if start is None or not world.is_first else check_towers_origin(lake, start, labelled)
    from_towers, set_id = replace(problem, config=with_towers(problem.config, start)), labelled.manifest.set_id
    work = workdir.work_folder(
        lake.work / "models", from_towers.config, set_id, problem.taxonomy.fingerprint, processes=world.size
    )
    if not world.is_first:
        if CMA_CLIP in candidates:
            fit.fit(from_towers, compute, folder=work)
        world.wait()  # until the first process has written the version and no longer needs the work folder
        shutil.rmtree(work, ignore_errors=True)  # on another machine: the cached outputs of frozen towers
        return ""
    workdir.begin(work, problem.config, set_id, world.size)
    trained = train_candidates(from_towers, compute, folder=work, candidates=candidates)
    version = save_version(trained, problem, lake, labelled, lake.work / "models", start, towers=origin)
    storage.send_folder(lake.work / "models" / version, lake.models / version, last=registry.SUMS)
    workdir.finish(work, lake.model_reports(labelled.manifest.ds, version) / LOGS)
    world.wait()
    metrics = trained.metrics
    for name, m in metrics.test.items():
        log.info(
            "test %s: n %d, accuracy %s, recall at %.2f precision %s, text %.2f, image %.2f",
            name, m.n, _percent(m.accuracy), m.target_precision, _percent(m.recall_at_target), m.text_weight,
            m.image_weight,
        )  # fmt: skip
    if metrics.promise is not None:
        level = logging.WARNING if metrics.promise.broken else logging.INFO
        log.log(level, "the promised precision, on test: %s", metrics.promise.words())
    details |= {
        "model_version": version,
        "labelled_set": labelled.manifest.set_id,
        "examples": len(index.row),
        "epochs": len(metrics.epochs),
        "device": metrics.device,
        "mean_recall_at_target": round(mean_recall(metrics), 4),
    }
    return version


def save_version(
    trained: fit.Trained,
    problem: LearningProblem,
    lake: Lake,
    labelled: LabelledSet,
    models: Path,
    start: Path | None = None,
    towers: TowersOrigin | None = None,
    origin: ExperimentOrigin | None = None,
) -> str:
    """Write a trained model into the folder `models` as a version that records its origin, and return the version's name.

    Args:
        trained: the model, its thresholds and metrics.
        problem: the configuration, the classes and the products it was trained with; `start` replaces its towers.
        lake: the lake of the labelled set.
        labelled: the labelled set that the products belong to.
        models: the folder of versions.
        start: folder of the pretrained towers that training started from; None: those of the configuration.
        towers: the origin of the pretrained towers; None: training did not start from towers of the lake.
        origin: the experiment that trained the model; None: `train` did.
    """
    # A version names its towers as the lake does: a path on the machine that trained it means nothing elsewhere.
    made_with = with_towers(problem.config, start and Path(origin.folder if origin else "") / "towers" / start.name)
    trained.metrics = trained.metrics.model_copy(
        update={
            "labelled_set": lake.relative(labelled.folder),
            "catalog_day": labelled.manifest.ds,
            "labels": count_labels_of_sides(labelled.table, lake, problem.index),
            "towers": towers,
            "experiment": origin,
        }
    )
    return registry.save(trained, made_with, problem.taxonomy, models, datetime.now(UTC))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
