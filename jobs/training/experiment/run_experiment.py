"""The comparison of the paper on one's own catalog: all methods from one start, on one split, by one evaluator.

Where training shows the models some products with their title alone (`title_only`), they are judged on both kinds of text:
on all that is read, and on titles alone, with thresholds chosen for each. TF-IDF is fitted to each kind.
With several seeds each method is trained with each of them, from the same towers, and each training is judged by itself; the
differences of the methods are of the same draws of products, over all seeds. Methods that are asked for are kept as model
versions.
Every method's predictions are kept, so that an experiment that is killed goes on with the methods it was at, and a training
within them where its last checkpoint is. The methods are trained side by side, but for large models on a GPU.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import Future, as_completed

from cma_clip_core.config import TextConfig, load_config
from cma_clip_core.errors import CoreError, NothingToLearnError
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
from jobs.training.pretrain import checked_origin, find_towers
from schemas.taxonomy import load_taxonomy

log = logging.getLogger(__name__)

_LAYOUT = 4  # of the predictions that are kept; others are of another experiment


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
    """Compare the methods on the labelled set of a day and return the folder with the results.

    Args:
        settings: names the base configuration, the taxonomy and the device.
        ds: newest day whose examples are used.
        products: take whole families of about so many products; None: all.
        epochs: of every method's training; None: those of the configuration.
        methods: names of `cma_clip_core.model.methods.LABELS`; empty: all. The results are of these and of all run before.
        text: text fields that are read; empty: those of the configuration.
        attributes: the attributes that are compared (all are trained); empty: all.
        processes: methods that run side by side, each in a process with its share of the cores; None: one a core, as far as
            memory allows, on a GPU at most six of a small model and one of a larger one.
        towers: name, or folder, of the pretrained towers that all methods begin with; None: what the configuration says,
            and where it names none, towers pretrained for this experiment.
        keep: of `methods`, those that become a model version each, as `train` writes them, not promoted: the training with
            the configuration's own seed. One that was run without is trained again.
        seeds: trainings of each method, with the configuration's seed and those after it. Of a method that was run before
            with fewer, or is still to be run with some, the results are of those there are.

    Raises:
        JobError: there is no such method, field or attribute, or a method cannot be kept; there are no examples, or too few,
            or no such towers, or they do not fit; or `torchrun` started several.
        TransientError: a checkpoint cannot be written, such as on a full disk.
    """
    from cma_clip_core.catalog.examples import read_index
    from cma_clip_core.evaluation.learnable import find_unlearnable
    from cma_clip_core.inputs.compute import Compute
    from cma_clip_core.inputs.devices import resolve_device
    from cma_clip_core.inputs.learning_problem import LearningProblem
    from cma_clip_core.model.methods import LABELS
    from cma_clip_core.model.tower_files import check as check_towers

    refuse_several("experiment")
    lake = Lake(settings.root)
    base, taxonomy = load_config(settings.model_config_name), load_taxonomy(settings.taxonomy)
    for given, known, what in (
        ((*methods, *keep), LABELS, "method"),
        (attributes, taxonomy.names, "attribute"),
        (text, ("title", "brand", "description"), "text field"),
    ):
        if unknown := [name for name in given if name not in known]:
            raise JobError(f"no such {what}: {', '.join(unknown)}; there are {', '.join(known)}")
    if untrained := [name for name in keep if name in UNTRAINED]:
        raise JobError(
            f"{', '.join(untrained)} cannot be kept: a model version is what was trained; choose of "
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
        # By what is in them: the same towers elsewhere are the same experiment, and others of the same name another one.
        begins = [] if start is None else [check_towers(start, base)]
        labelled = dataset(settings, ds)
        index = read_index(labelled.table, lake.root)
        if products is not None:
            index = index.sample(products)
        learnt_from = [labelled.manifest.set_id, index.fingerprint]
        parts = [_LAYOUT, *learnt_from, base.model_dump(mode="json"), taxonomy.fingerprint, *begins]
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
            checked_origin(lake, start, labelled)
            adopt_towers(start, folder / "towers")
        found, left_out = _run(setting, tuple(methods) or tuple(LABELS), processes)
        write_results(setting, labelled.manifest.set_id, found, left_out)
    except CoreError as error:
        raise as_job_error(error) from error
    storage.send_folder(folder, setting.found_at, deep=False)
    return setting.found_at


def _run(
    setting: Setting, methods: Sequence[str], processes: int | None
) -> tuple[dict[Trial, MethodOutcome], dict[str, str]]:
    """Run the methods that are asked for; return what is known of these and of all run before, and what could not be run."""
    from cma_clip_core.model.methods import LABELS

    left_out: dict[str, str] = {}

    def leave_out(what: str, error: NothingToLearnError, instead: str) -> None:
        left_out[what] = f"{error}; {instead}"
        log.warning("experiment: %s: %s", what, left_out[what])

    if processes is None:
        missing = sum(not is_done(setting, trial) for trial in setting.trials(methods))
        processes = default_processes(setting, missing)
    with process_pool.executor(processes) as pool:
        try:
            running: dict[Future[None], str] = {}
            if "tf-idf" in methods:  # needs no towers
                running[pool.submit(timed, run_baseline, setting, Trial("tf-idf"))] = "tf-idf"
            towers = None
            # Of methods run before too: what they began with is told in the results each time.
            if any(m != "tf-idf" and (m in methods or has_predictions(setting, Trial(m))) for m in LABELS):
                try:
                    towers = pool.submit(make_towers, setting).result()
                except NothingToLearnError as error:
                    leave_out("pretraining", error, "all methods begin from scratch")
            # The longest first, so that none is left to run alone at the end.
            for trial in setting.trials(m for m in reversed(LABELS) if m in methods and m != "tf-idf"):
                running[pool.submit(timed, run_method, setting, trial, towers)] = trial.method
            for done in as_completed(running):
                try:
                    done.result()
                except NothingToLearnError as error:
                    leave_out(LABELS[running[done]], error, "it is left out")
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what runs is kept when it is done
            raise
    # A kill may leave a method's later seeds without its first, of which the plots and thresholds are.
    whole = [m for m in LABELS if has_predictions(setting, Trial(m))]
    found = {trial: kept for trial in setting.trials(whole) if (kept := read_outcome(setting, trial)) is not None}
    if not found:
        raise JobError(f"nothing to compare: {'; '.join(left_out.values())}")
    return found, left_out
