"""Train each method of an experiment, store its predictions and, if requested, store its model."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from torch import nn

from cma_clip_core import registry
from cma_clip_core.catalog.splits import Side
from cma_clip_core.config import TextConfig
from cma_clip_core.evaluation.evaluate import evaluate
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.inputs.perturbations import Noise
from cma_clip_core.model import tower_files
from cma_clip_core.model.methods import build_model, configure
from cma_clip_core.model_documents import ExperimentOrigin
from cma_clip_core.training.fit import conclude, fit
from cma_clip_core.training.loop import Fitted
from cma_clip_core.training.pretraining import pretrain
from cma_clip_core.training.tensorboard import LOGS
from jobs.lake import storage
from jobs.runtime import process_pool
from jobs.training import workdir
from jobs.training.experiment.results import Kept, MethodRun
from jobs.training.experiment.setting import (
    JUDGED,
    Setting,
    Trial,
    has_predictions,
    is_done,
    keep_predictions,
    kept_file,
    noises,
    noisy_name,
    own_towers,
    predictions_folder,
)
from jobs.training.pretrain import towers_origin, with_labelled_set, with_towers
from jobs.training.train import save_version

log = logging.getLogger(__name__)


def default_processes(setting: Setting, missing: int) -> int:
    if setting.compute.device.type == "cpu":
        return process_pool.default_processes(missing)
    parameters = sum(p.numel() for p in build_model(setting.problem.config, setting.problem.taxonomy).parameters())
    return process_pool.default_processes_on_gpu(missing, parameters)


def timed(run: Callable[..., None], setting: Setting, trial: Trial, *args: object) -> None:
    """Run a trial and log its duration, unless it is done."""
    if is_done(setting, trial):
        log.info("experiment: %s exists", trial.name)
        return
    again = ", again: its model was not kept" if has_predictions(setting, trial) else ""
    log.info("experiment: %s%s", trial.name, again)
    started = time.perf_counter()
    run(setting, trial, *args)
    log.info("experiment: %s is done, %.0f s", trial.name, time.perf_counter() - started)


def adopt_towers(towers: Path, below: Path) -> None:
    """Copy given towers into the experiment, so that its path is the same in every checkpoint and they exist on a resume."""
    if own_towers(below) is None:
        name = towers.name.lstrip(".") or "towers"
        below.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=below, prefix=".new-") as temporary:
            fresh = Path(temporary) / name
            fresh.mkdir()
            for file in (tower_files.WEIGHTS, tower_files.CONFIG, tower_files.METRICS):
                if (towers / file).exists():
                    shutil.copyfile(towers / file, fresh / file)
            fresh.rename(below / name)


def make_towers(setting: Setting) -> Path | None:
    """Return the towers that all methods start from; pretrain them if they do not exist yet.

    Return None if the configuration names pretrained weights.
    """
    below = setting.folder / "towers"
    if (existing := own_towers(below)) is not None:
        return existing
    if setting.problem.config.backbone.pretrained is not None:
        return None
    work = setting.folder / "unfinished" / "towers"
    backbone, metrics = pretrain(setting.problem, setting.compute, folder=work)
    metrics = with_labelled_set(metrics, setting.lake, setting.labelled)
    name = tower_files.save(backbone, setting.problem.config, metrics, below, datetime.now(UTC))
    workdir.finish(work, setting.folder / LOGS / "towers")
    return below / name


def _problem_of(setting: Setting, trial: Trial, towers: Path | None) -> LearningProblem:
    """Return the learning problem with the configuration of a method, its seed and its towers."""
    config = configure(setting.problem.config, trial.method)
    training = config.training.model_copy(update={"seed": config.training.seed + trial.seed_offset})
    return replace(setting.problem, config=with_towers(config.model_copy(update={"training": training}), towers))


def run_method(setting: Setting, trial: Trial, towers: Path | None) -> None:
    """Train a method, evaluate it, and store its predictions."""
    problem = _problem_of(setting, trial, towers)
    work = setting.folder / "unfinished" / trial.name
    model, fitted = fit(problem, setting.compute, folder=work)
    if trial.name in setting.keep:
        _keep_model(setting, trial, model, fitted, towers)

    def predict(side: Side, text: TextConfig, noise: Noise | None = None) -> dict[str, Predictions]:
        reading = replace(problem, config=problem.config.model_copy(update={"text": text}))
        return evaluate(model, reading, side, setting.compute.device, noise=noise)

    seconds = sum(epoch.seconds for epoch in fitted.epochs)
    examples = sum(epoch.examples for epoch in fitted.epochs)
    run = MethodRun(
        method=trial.method, seconds=seconds, examples_per_second=examples / seconds if seconds else 0.0,
        best_epoch=fitted.best_epoch,
    )  # fmt: skip
    sides = {"validation": fitted.validation}
    for suffix, text in setting.readings.items():
        if suffix:
            sides[f"validation{suffix}"] = predict("validation", text)
        sides[f"test{suffix}"] = predict("test", text)
    sides |= {
        noisy_name(*key): predict("test", setting.problem.config.text, Noise(*key)) for key in noises(trial.method)
    }
    keep_predictions(setting, trial, run, sides)
    workdir.finish(work, setting.folder / LOGS / trial.name)


def _keep_model(setting: Setting, trial: Trial, model: nn.Module, fitted: Fitted, towers: Path | None) -> None:
    """Write a method's model as a version into the lake. After a kill, a repeated run gives the same version."""
    method, lake, local_models = trial.method, setting.lake, setting.lake.work / "models"
    below = setting.folder / "unfinished" / method / "version"
    # Discard earlier predictions, so that the kept model and the judged predictions come from one training.
    if has_predictions(setting, trial):
        kept_file(setting, method).unlink(missing_ok=True)
        (predictions_folder(setting, trial) / "run.json").unlink()
    kept = storage.read_document(kept_file(setting, method), Kept)
    if kept is None or not (local_models / kept.version).exists():
        # A version contains its duration, so that a new one would have another name: take an existing one.
        version = next(iter(registry.list_versions(below)), None)
        if version is None:
            problem = _problem_of(setting, trial, towers)
            trained = conclude(model, fitted, problem, setting.compute)
            origin = ExperimentOrigin(
                folder=lake.relative(setting.results_folder),
                products=setting.labelled.manifest.products,
                compared=setting.attributes,
            )
            version = save_version(
                trained,
                problem,
                lake,
                setting.labelled,
                below,
                towers,
                towers=None if towers is None else towers_origin(lake, towers, setting.labelled),
                origin=origin,
            )
        kept = Kept(version=version)
        storage.write_document(kept_file(setting, method), kept)
        local_models.mkdir(parents=True, exist_ok=True)
        (below / version).rename(local_models / version)
    storage.send_folder(local_models / kept.version, lake.models / kept.version, last=registry.SUMS)
    log.info("experiment: the model of %s is kept: %s", method, lake.models / kept.version)


def run_baseline(setting: Setting, trial: Trial) -> None:
    """Fit TF-IDF to each kind of text, and store its predictions."""
    from cma_clip_core.evaluation.tfidf_baseline import fit_text_baseline  # loads scikit-learn, for this method alone

    problem = setting.problem
    sides, seconds = {}, 0.0
    for suffix, text in setting.readings.items():
        start = time.perf_counter()
        baseline = fit_text_baseline(
            problem.index, problem.layout, text, not_learnt=setting.not_learnt, progress=setting.compute.progress
        )
        seconds = seconds or time.perf_counter() - start  # of the first reading, with all text
        for side in JUDGED:
            sides[f"{side}{suffix}"] = baseline.predict(problem.index, side)
    run = MethodRun(
        method=trial.method, seconds=seconds, examples_per_second=problem.index.count("train") / seconds, best_epoch=0
    )
    keep_predictions(setting, trial, run, sides)
