"""Run the paper's comparison on your own catalog: all methods from one start, on one split, by one evaluator.

- Texts: if training shows some products with their title alone (`title_only`), methods are judged on all text and on titles
  alone. Thresholds are chosen for each kind of text, and TF-IDF is fitted to each.
- Seeds: each method is trained with each seed, from the same towers, and each training is judged by itself. Differences of
  methods are taken over the same draws of products and all seeds.
- Models: the requested methods are stored as model versions.
- Kills: the predictions of every method are stored. A killed experiment resumes with the unfinished methods, and their
  trainings resume from their last checkpoints.
- Processes: the methods are trained in parallel, except large models on a GPU.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import Future, as_completed

from cma_clip_core.catalog.examples import read_index
from cma_clip_core.config import TextConfig, load_config
from cma_clip_core.errors import CoreError, NothingToLearnError
from cma_clip_core.evaluation.learnable import find_unlearnable
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.devices import resolve_device
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.model.methods import LABELS
from cma_clip_core.model.tower_files import check as check_towers
from jobs.errors import JobError, as_job_error
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from jobs.runtime import process_pool
from jobs.runtime.step_metrics import refuse_several
from jobs.settings import Settings
from jobs.training.dataset import dataset
from jobs.training.experiment.results import UNTRAINED
from jobs.training.experiment.setting import MethodOutcome, Setting, Trial, has_predictions, is_done, read_outcome
from jobs.training.experiment.train_methods import (
    adopt_towers,
    default_processes,
    make_towers,
    run_baseline,
    run_method,
    timed,
)
from jobs.training.experiment.write_results import write_results
from jobs.training.pretrain import check_towers_origin, find_towers
from schemas.taxonomy import load_taxonomy

log = logging.getLogger(__name__)

_LAYOUT = 4  # version of the stored predictions; with another version an experiment gets another folder


def experiment(
    settings: Settings,
    ds: str,
    *,
    products: int | None = None,
    epochs: int | None = None,
    methods: Sequence[str] = (),
    text: Sequence[str] = (),
    attributes: Sequence[str] = (),
    processes: int | None = None,
    towers: str | None = None,
    keep: Sequence[str] = (),
    seeds: int = 1,
) -> AnyPath:
    """Compare the methods on the labelled set of a day, and return the folder with the results.

    Args:
        settings: names the base configuration, the taxonomy and the device.
        ds: the newest day whose examples are used.
        products: use whole families with about this many products; None: all.
        epochs: epochs of every method's training; None: those of the configuration.
        methods: keys of `cma_clip_core.model.methods.LABELS`; empty: all. The results also cover methods run before.
        text: text fields that are read; empty: those of the configuration.
        attributes: the attributes that are compared (all are trained); empty: all.
        processes: methods that run in parallel, each in a process with its share of the cores. None: one per core, if
            memory allows; on a GPU, at most six small models or one larger model.
        towers: name or folder of the pretrained towers that all methods start from. None: those of the configuration, or,
            without these, towers pretrained for this experiment.
        keep: those of `methods` whose model becomes a version, as `train` writes it, without promotion. It is the model
            of the configuration's own seed. A method that ran without being kept is trained again.
        seeds: trainings of each method, with the configuration's seed and the following ones. If some of them have not
            run yet, the results cover the others.

    Raises:
        JobError: one of these:
            - a method, field or attribute does not exist, or a method cannot be kept;
            - there are too few examples, or none;
            - the towers do not exist or do not fit;
            - `torchrun` started several processes.
        TransientError: a checkpoint cannot be written, for example because the disk is full.
    """
    refuse_several("experiment")
    lake = Lake(settings.root)
    base, taxonomy = load_config(settings.model_config_name), load_taxonomy(settings.taxonomy)
    for given, known, kind in (
        ((*methods, *keep), LABELS, "method"),
        (attributes, taxonomy.names, "attribute"),
        (text, ("title", "brand", "description"), "text field"),
    ):
        if unknown := [name for name in given if name not in known]:
            raise JobError(f"no such {kind}: {', '.join(unknown)}; choose from {', '.join(known)}")
    if untrained := [name for name in keep if name in UNTRAINED]:
        raise JobError(
            f"{', '.join(untrained)} cannot be kept, because nothing is trained; choose from "
            f"{', '.join(name for name in LABELS if name not in UNTRAINED)}"
        )
    if methods and (others := [name for name in keep if name not in methods]):
        raise JobError(f"{', '.join(others)} cannot be kept: not among the methods that are run: {', '.join(methods)}")
    if text:
        base = base.model_copy(update={"text": TextConfig(fields=tuple(text), context_length=base.text.context_length)})  # type: ignore[arg-type]
    if epochs is not None:
        base = base.model_copy(update={"training": base.training.model_copy(update={"epochs": epochs})})
    start = find_towers(lake, towers)
    try:
        # Towers are identified by their weights: the same towers elsewhere give the same experiment, and other towers of
        # the same name another one.
        towers_id = [] if start is None else [check_towers(start, base)]
        labelled = dataset(settings, ds)
        index = read_index(labelled.table, lake.root)
        if products is not None:
            index = index.sample(products)
        examples_id = [labelled.manifest.set_id, index.fingerprint]
        parts = [_LAYOUT, *examples_id, base.model_dump(mode="json"), taxonomy.fingerprint, *towers_id]
        name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
        folder = lake.work / "experiments" / f"ds={ds}" / f"experiment={name}"
        problem = LearningProblem.build(base, taxonomy, index)
        not_learnt = find_unlearnable(index, problem.layout, base.selection.least_labels)
        wanted = tuple(name for name in attributes or taxonomy.names if name not in not_learnt)
        if not wanted:
            raise JobError(f"nothing to compare: {'; '.join(f'{name}: {why}' for name, why in not_learnt.items())}")
        compute = Compute(resolve_device(settings.device), progress=settings.progress)
        setting = Setting(problem, compute, lake, labelled, folder, wanted, not_learnt, tuple(keep), seeds)
        log.info("experiment: %s: %d products", folder, len(index.row))
        if start is not None:
            check_towers_origin(lake, start, labelled)
            adopt_towers(start, folder / "towers")
        outcomes, left_out = _run(setting, tuple(methods) or tuple(LABELS), processes)
        write_results(setting, labelled.manifest.set_id, outcomes, left_out)
    except CoreError as error:
        raise as_job_error(error) from error
    storage.send_folder(folder, setting.results_folder, deep=False)
    return setting.results_folder


def _run(
    setting: Setting, methods: Sequence[str], processes: int | None
) -> tuple[dict[Trial, MethodOutcome], dict[str, str]]:
    """Run the requested methods.

    Returns:
        The outcomes of these and of all methods run before, and the reason for each method that could not run.
    """
    left_out: dict[str, str] = {}

    def leave_out(name: str, error: NothingToLearnError, effect: str) -> None:
        left_out[name] = f"{error}; {effect}"
        log.warning("experiment: %s: %s", name, left_out[name])

    if processes is None:
        missing = sum(not is_done(setting, trial) for trial in setting.trials(methods))
        processes = default_processes(setting, missing)
    with process_pool.executor(processes) as pool:
        try:
            running: dict[Future[None], str] = {}
            if "tf-idf" in methods:  # needs no towers
                running[pool.submit(timed, run_baseline, setting, Trial("tf-idf"))] = "tf-idf"
            towers = None
            # Also for methods run before, because the results report the towers that they started from.
            if any(m != "tf-idf" and (m in methods or has_predictions(setting, Trial(m))) for m in LABELS):
                try:
                    towers = pool.submit(make_towers, setting).result()
                except NothingToLearnError as error:
                    leave_out("pretraining", error, "all methods start from scratch")
            # The longest trainings first, so that none runs alone at the end.
            for trial in setting.trials(m for m in reversed(LABELS) if m in methods and m != "tf-idf"):
                running[pool.submit(timed, run_method, setting, trial, towers)] = trial.method
            for done in as_completed(running):
                try:
                    done.result()
                except NothingToLearnError as error:
                    leave_out(LABELS[running[done]], error, "it is left out")
        except BaseException:
            pool.shutdown(cancel_futures=True)  # running methods still finish and store their predictions
            raise
    # A kill may leave later seeds of a method without the first one, which the plots and thresholds need.
    complete = [m for m in LABELS if has_predictions(setting, Trial(m))]
    outcomes = {trial: kept for trial in setting.trials(complete) if (kept := read_outcome(setting, trial)) is not None}
    if not outcomes:
        raise JobError(f"nothing to compare: {'; '.join(left_out.values())}")
    return outcomes, left_out
