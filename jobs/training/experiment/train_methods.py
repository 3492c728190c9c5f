"""Train each method of an experiment, keep what it predicts, and keep its model where that is asked for."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cma_clip_core import registry
from cma_clip_core.config import TextConfig
from cma_clip_core.model_documents import ExperimentOrigin
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
from jobs.training.pretrain import of_set, origin_of, with_towers
from jobs.training.train import save_version

if TYPE_CHECKING:
    from torch import nn

    from cma_clip_core.catalog.splits import Side
    from cma_clip_core.evaluation.predictions import Predictions
    from cma_clip_core.inputs.learning_problem import LearningProblem
    from cma_clip_core.inputs.perturbations import Noise
    from cma_clip_core.training.loop import Fitted

log = logging.getLogger(__name__)


def default_processes(setting: Setting, missing: int) -> int:
    if setting.compute.device.type == "cpu":
        return process_pool.default_processes(missing)
    from cma_clip_core.model.methods import build_model

    parameters = sum(p.numel() for p in build_model(setting.problem.config, setting.problem.taxonomy).parameters())
    return process_pool.default_processes_on_gpu(missing, parameters)


def timed(run: Callable[..., None], setting: Setting, trial: Trial, *args: object) -> None:
    """Run a method, unless its predictions are there."""
    if is_done(setting, trial):
        log.info("experiment: %s is there", trial.name)
        return
    again = ", again: its model was not kept" if has_predictions(setting, trial) else ""
    log.info("experiment: %s%s", trial.name, again)
    started = time.perf_counter()
    run(setting, trial, *args)
    log.info("experiment: %s is done, %.0f s", trial.name, time.perf_counter() - started)


def adopt_towers(towers: Path, below: Path) -> None:
    """Copy given towers into the experiment: where they lay is in no checkpoint, and they may be gone when it goes on."""
    from cma_clip_core.model.tower_files import CONFIG, METRICS, WEIGHTS

    if own_towers(below) is None:
        name = towers.name.lstrip(".") or "towers"
        below.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=below, prefix=".new-") as temporary:
            fresh = Path(temporary) / name
            fresh.mkdir()
            for file in (WEIGHTS, CONFIG, METRICS):
                if (towers / file).exists():
                    shutil.copyfile(towers / file, fresh / file)
            fresh.rename(below / name)


def make_towers(setting: Setting) -> Path | None:
    """Return the towers that all methods begin with; pretrained now where they are not there yet. None: the configuration
    names what it begins with.
    """
    from cma_clip_core.model import tower_files
    from cma_clip_core.training.pretraining import pretrain

    below = setting.folder / "towers"
    if (found := own_towers(below)) is not None:
        return found
    if setting.problem.config.backbone.pretrained is not None:
        return None
    work = setting.folder / "unfinished" / "towers"
    backbone, metrics = pretrain(setting.problem, setting.compute, folder=work)
    metrics = of_set(metrics, setting.lake, setting.labelled)
    name = tower_files.save(backbone, setting.problem.config, metrics, below, datetime.now(UTC))
    workdir.finish(work, setting.folder / LOGS / "towers")
    return below / name


def _problem_of(setting: Setting, trial: Trial, towers: Path | None) -> LearningProblem:
    """Return the learning problem with the configuration of a method, its seed and its towers."""
    from cma_clip_core.model.methods import configure

    config = configure(setting.problem.config, trial.method)
    training = config.training.model_copy(update={"seed": config.training.seed + trial.more})
    return replace(setting.problem, config=with_towers(config.model_copy(update={"training": training}), towers))


def run_method(setting: Setting, trial: Trial, towers: Path | None) -> None:
    """Train a method, evaluate it, and keep what it says."""
    from cma_clip_core.evaluation.evaluate import evaluate
    from cma_clip_core.inputs.perturbations import Noise
    from cma_clip_core.training.fit import fit

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
    for end, text in setting.readings.items():
        if end:
            sides[f"validation{end}"] = predict("validation", text)
        sides[f"test{end}"] = predict("test", text)
    sides |= {
        noisy_name(*key): predict("test", setting.problem.config.text, Noise(*key)) for key in noises(trial.method)
    }
    keep_predictions(setting, trial, run, sides)
    workdir.finish(work, setting.folder / LOGS / trial.name)


def _keep_model(setting: Setting, trial: Trial, model: nn.Module, fitted: Fitted, towers: Path | None) -> None:
    """Write a method's model as a version into the lake. Killed and run again, it is the same version."""
    from cma_clip_core.training.fit import conclude

    method, lake, made = trial.method, setting.lake, setting.lake.work / "models"
    below = setting.folder / "unfinished" / method / "version"
    # Of a training before, not kept, or no longer: what is kept and what is judged are of one training.
    if has_predictions(setting, trial):
        kept_file(setting, method).unlink(missing_ok=True)
        (predictions_folder(setting, trial) / "run.json").unlink()
    kept = storage.read_document(kept_file(setting, method), Kept)
    if kept is None or not (made / kept.version).exists():
        # How long it took is in a version, so that each that is made has another name: one that is there is taken.
        version = next(iter(registry.list_versions(below)), None)
        if version is None:
            problem = _problem_of(setting, trial, towers)
            trained = conclude(model, fitted, problem, setting.compute)
            origin = ExperimentOrigin(
                folder=lake.relative(setting.found_at),
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
                towers=None if towers is None else origin_of(lake, towers, setting.labelled),
                origin=origin,
            )
        kept = Kept(version=version)
        storage.write_document(kept_file(setting, method), kept)
        made.mkdir(parents=True, exist_ok=True)
        (below / version).rename(made / version)
    storage.send_folder(made / kept.version, lake.models / kept.version, last=registry.SUMS)
    log.info("experiment: %s is kept: %s", method, lake.models / kept.version)


def run_baseline(setting: Setting, trial: Trial) -> None:
    from cma_clip_core.evaluation.tfidf_baseline import fit_text_baseline

    problem = setting.problem
    sides, seconds = {}, 0.0
    for end, text in setting.readings.items():
        start = time.perf_counter()
        baseline = fit_text_baseline(
            problem.index, problem.layout, text, not_learnt=setting.not_learnt, progress=setting.compute.progress
        )
        seconds = seconds or time.perf_counter() - start  # of all text
        for side in JUDGED:
            sides[f"{side}{end}"] = baseline.predict(problem.index, side)
    run = MethodRun(
        method=trial.method, seconds=seconds, examples_per_second=problem.index.count("train") / seconds, best_epoch=0
    )
    keep_predictions(setting, trial, run, sides)
