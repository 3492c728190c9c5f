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
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import Field, TypeAdapter

from cma_clip_core import registry
from cma_clip_core.config import ModelConfig, TextConfig, load_config
from cma_clip_core.errors import CoreError, NothingToLearnError
from cma_clip_core.model_documents import Difference, ExperimentOrigin, MethodMetrics, Threshold
from cma_clip_core.training.tensorboard import LOGS
from jobs.errors import JobError, as_job_error
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.lake.storage import Place
from jobs.runtime import process_pool
from jobs.runtime.step_metrics import refuse_several
from jobs.settings import Settings
from jobs.training import workdir
from jobs.training.dataset import LabelledSet, dataset
from jobs.training.pretrain import checked_origin, find_towers, of_set, origin_of, with_towers
from jobs.training.train import save_version
from schemas.loading import Strict
from schemas.taxonomy import load_taxonomy

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cma_clip_core.catalog.examples import ExampleIndex
    from cma_clip_core.catalog.splits import Side
    from cma_clip_core.evaluation.bootstrap import Drawn, RecallDraws
    from cma_clip_core.evaluation.predictions import Predictions
    from cma_clip_core.inputs.perturbations import What
    from cma_clip_core.training.loop import Fitted
    from schemas.taxonomy import Attribute, Taxonomy

log = logging.getLogger(__name__)

# Of the products whose text or picture is swapped, as in the paper, or of the names left out.
SHARES = (0.0, 0.2, 0.5, 1.0)
NOISY = ("late-concatenation", "sa-without-ma", "ma-without-sa", "cma-clip")  # the methods that this is tried on
NOISES: dict[What, str] = {"text": "texts swapped", "image": "pictures swapped", "names": "names left out"}
WHOLE = "cma-clip"
UNTRAINED = ("raw-clip", "tf-idf")  # no model of ours: none to be kept, and the same with every seed
_LAYOUT = 4  # of the predictions that are kept; others are of another experiment
_JUDGED: tuple[Side, ...] = ("validation", "test")
_THRESHOLDS: TypeAdapter[dict[str, Threshold]] = TypeAdapter(dict[str, Threshold])


class MethodRun(Strict):
    """How one method came about."""

    method: str
    seconds: float  # of training; 0 where there was none
    examples_per_second: float
    best_epoch: int
    seed: int | None = None  # None: nothing depends on one


class Kept(Strict):
    """The model version that a method is kept as."""

    version: str


class Judged(Strict):
    """The methods on one kind of text."""

    text_fields: tuple[str, ...]
    methods: tuple[MethodMetrics, ...]  # with the first seed
    seeds: dict[str, tuple[MethodMetrics, ...]] = Field(
        default_factory=dict, description="method: with each seed, the first too, where it was trained with several"
    )
    against_whole: dict[str, Difference | None]  # CMA-CLIP less each method, mean recall at 90 % precision: `_against`
    against_whole_silent: dict[str, Difference | None]


class Results(Strict):
    """An experiment's outcome."""

    labelled_set: str
    products: dict[str, int]  # by side
    attributes: tuple[str, ...]
    not_learnt: dict[str, str]  # attribute: why; in no table and no mean
    left_out: dict[str, str]  # method, or pretraining: why it could not be run
    device: str
    seeds: int = 1  # that each trained method was to have
    towers: str | None = None  # that all methods began with; None: what the configuration names, or none
    texts: tuple[Judged, ...]  # first with all text that is read
    runs: tuple[MethodRun, ...]
    versions: dict[str, str] = Field(default_factory=dict, description="method: the model version that it is kept as")
    # Means over seeds: mean recall at each of SHARES, by what is changed and method; of CMA-CLIP, by what is changed and attribute.
    # "text" and "image" are swapped with another product's, "names" of labels left out of the texts.
    noise: dict[str, dict[str, list[float]]]
    # CMA-CLIP less the method, mean recall, at each of SHARES but the first.
    against_whole_noise: dict[str, dict[str, list[Difference | None]]]
    noise_by_attribute: dict[str, dict[str, list[float]]]


class _Trial(NamedTuple):
    """A method, and how much its seed is above the configuration's."""

    method: str
    more: int = 0

    @property
    def name(self) -> str:
        """Of its folders: with the first seed the method's own."""
        return f"{self.method}+{self.more}" if self.more else self.method


@dataclass(frozen=True, slots=True)
class _Setting:
    """What all methods of an experiment share."""

    base: ModelConfig
    taxonomy: Taxonomy
    index: ExampleIndex
    device: torch.device
    folder: Path
    attributes: tuple[str, ...]
    not_learnt: dict[str, str]
    progress: bool
    lake: Lake
    labelled: LabelledSet
    keep: tuple[str, ...]  # methods that are to be kept as model versions, of the first seed
    seeds: int

    @property
    def found_at(self) -> Place:
        """Where the results are in the lake."""
        return self.lake.experiments / self.folder.parent.name / self.folder.name

    def trials(self, methods: Iterable[str]) -> list[_Trial]:
        """Return each of some methods with each of its seeds."""
        return [_Trial(method, more) for method in methods for more in range(1 if method in UNTRAINED else self.seeds)]

    @property
    def compared(self) -> list[Attribute]:
        """The attributes that are compared."""
        return [self.taxonomy[name] for name in self.attributes]

    @property
    def readings(self) -> dict[str, TextConfig]:
        """What the methods are judged on, by the end of its name: all text, and titles alone if trained with both."""
        text, training = self.base.text, self.base.training
        found = {"": text}
        if training.title_only and "text" not in training.freeze and "title" in text.fields and len(text.fields) > 1:
            found["-title"] = text.model_copy(update={"fields": ("title",)})
        return found


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
) -> Place:
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
    from cma_clip_core.inputs.devices import resolve_device
    from cma_clip_core.model.class_layout import ClassLayout
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
        not_learnt = find_unlearnable(index, ClassLayout(taxonomy), base.selection.least_labels)
        wanted = tuple(name for name in attributes or taxonomy.names if name not in not_learnt)
        if not wanted:
            raise JobError(f"nothing to compare: {'; '.join(f'{name}: {why}' for name, why in not_learnt.items())}")
        setting = _Setting(
            base, taxonomy, index, resolve_device(settings.device), folder, wanted, not_learnt, settings.progress, lake,
            labelled, tuple(keep), seeds,
        )  # fmt: skip
        log.info("experiment: %s: %d products", folder, len(index.row))
        if start is not None:
            checked_origin(lake, start, labelled)
            _adopt(start, folder / "towers")
        found, left_out = _run(setting, tuple(methods) or tuple(LABELS), processes)
        _write(setting, labelled.manifest.set_id, found, left_out)
    except CoreError as error:
        raise as_job_error(error) from error
    storage.send_folder(folder, setting.found_at, deep=False)
    return setting.found_at


@dataclass(slots=True)
class _Found:
    """What is known of a method."""

    run: MethodRun
    folder: Path  # with its predictions, a folder for what was seen ("test", "test-title", ...)

    def said(self, name: str, attributes: Iterable[Attribute]) -> dict[str, Predictions]:
        """Read what it said of one side, by attribute. Not all are held at once: there are many, of each seed."""
        from cma_clip_core.evaluation.predictions import Predictions

        return {
            a.name: Predictions.from_bytes(a, (self.folder / name / f"{a.name}.npz").read_bytes()) for a in attributes
        }


def _run(
    setting: _Setting, methods: Sequence[str], processes: int | None
) -> tuple[dict[_Trial, _Found], dict[str, str]]:
    """Run the methods that are asked for; return what is known of these and of all run before, and what could not be run."""
    from cma_clip_core.model.methods import LABELS

    left_out: dict[str, str] = {}

    def leave_out(what: str, error: NothingToLearnError, instead: str) -> None:
        left_out[what] = f"{error}; {instead}"
        log.warning("experiment: %s: %s", what, left_out[what])

    if processes is None:
        missing = sum(not _is_done(setting, trial) for trial in setting.trials(methods))
        processes = _default_processes(setting, missing)
    with process_pool.executor(processes) as pool:
        try:
            running: dict[Future[None], str] = {}
            if "tf-idf" in methods:  # needs no towers
                running[pool.submit(_timed, _baseline, setting, _Trial("tf-idf"))] = "tf-idf"
            towers = None
            # Of methods run before too: what they began with is told in the results each time.
            if any(m != "tf-idf" and (m in methods or _has_predictions(setting, _Trial(m))) for m in LABELS):
                try:
                    towers = pool.submit(_towers, setting).result()
                except NothingToLearnError as error:
                    leave_out("pretraining", error, "all methods begin from scratch")
            # The longest first, so that none is left to run alone at the end.
            for trial in setting.trials(m for m in reversed(LABELS) if m in methods and m != "tf-idf"):
                running[pool.submit(_timed, _method, setting, trial, towers)] = trial.method
            for done in as_completed(running):
                try:
                    done.result()
                except NothingToLearnError as error:
                    leave_out(LABELS[running[done]], error, "it is left out")
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what runs is kept when it is done
            raise
    # A kill may leave a method's later seeds without its first, of which the plots and thresholds are.
    whole = [m for m in LABELS if _has_predictions(setting, _Trial(m))]
    found = {trial: kept for trial in setting.trials(whole) if (kept := _read(setting, trial)) is not None}
    if not found:
        raise JobError(f"nothing to compare: {'; '.join(left_out.values())}")
    return found, left_out


def _default_processes(setting: _Setting, missing: int) -> int:
    if setting.device.type == "cpu":
        return process_pool.default_processes(missing)
    from cma_clip_core.model.methods import build_model

    parameters = sum(p.numel() for p in build_model(setting.base, setting.taxonomy).parameters())
    return process_pool.default_processes_on_gpu(missing, parameters)


def _timed(run: Callable[..., None], setting: _Setting, trial: _Trial, *args: object) -> None:
    """Run a method, unless its predictions are there."""
    if _is_done(setting, trial):
        log.info("experiment: %s is there", trial.name)
        return
    again = ", again: its model was not kept" if _has_predictions(setting, trial) else ""
    log.info("experiment: %s%s", trial.name, again)
    started = time.perf_counter()
    run(setting, trial, *args)
    log.info("experiment: %s is done, %.0f s", trial.name, time.perf_counter() - started)


def _adopt(towers: Path, below: Path) -> None:
    """Copy given towers into the experiment: where they lay is in no checkpoint, and they may be gone when it goes on."""
    from cma_clip_core.model.tower_files import CONFIG, METRICS, WEIGHTS

    if _find(below) is None:
        name = towers.name.lstrip(".") or "towers"
        below.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=below, prefix=".new-") as temporary:
            fresh = Path(temporary) / name
            fresh.mkdir()
            for file in (WEIGHTS, CONFIG, METRICS):
                if (towers / file).exists():
                    shutil.copyfile(towers / file, fresh / file)
            fresh.rename(below / name)


def _find(below: Path) -> Path | None:
    """Return the experiment's own towers; None where there are none yet."""
    return next(iter(sorted(below.glob("[!.]*"))), None)


def _towers(setting: _Setting) -> Path | None:
    """Return the towers that all methods begin with; pretrained now where they are not there yet. None: the configuration
    names what it begins with.
    """
    from cma_clip_core.model import tower_files
    from cma_clip_core.training.pretraining import pretrain

    below = setting.folder / "towers"
    if (found := _find(below)) is not None:
        return found
    if setting.base.backbone.pretrained is not None:
        return None
    work = setting.folder / "unfinished" / "towers"
    backbone, metrics = pretrain(
        setting.base, setting.taxonomy, setting.index, setting.device, folder=work, progress=setting.progress
    )
    metrics = of_set(metrics, setting.lake, setting.labelled)
    name = tower_files.save(backbone, setting.base, metrics, below, datetime.now(UTC))
    workdir.finish(work, setting.folder / LOGS / "towers")
    return below / name


def _configure(setting: _Setting, trial: _Trial, towers: Path | None) -> ModelConfig:
    from cma_clip_core.model.methods import configure

    config = configure(setting.base, trial.method)
    training = config.training.model_copy(update={"seed": config.training.seed + trial.more})
    return with_towers(config.model_copy(update={"training": training}), towers)


def _method(setting: _Setting, trial: _Trial, towers: Path | None) -> None:
    """Train a method, evaluate it, and keep what it says."""
    from cma_clip_core.evaluation.evaluate import evaluate
    from cma_clip_core.inputs.perturbations import Noise
    from cma_clip_core.model.class_layout import ClassLayout
    from cma_clip_core.model.tokenizer import Tokenizer
    from cma_clip_core.training.fit import fit

    config = _configure(setting, trial, towers)
    work = setting.folder / "unfinished" / trial.name
    model, fitted = fit(config, setting.taxonomy, setting.index, setting.device, folder=work, progress=setting.progress)
    if trial.name in setting.keep:
        _keep_model(setting, trial, model, fitted, towers)
    layout, tokenizer = ClassLayout(setting.taxonomy), Tokenizer(config)

    def said(side: Side, text: TextConfig, noise: Noise | None = None) -> dict[str, Predictions]:
        reading = config.model_copy(update={"text": text})
        return evaluate(model, setting.index, side, reading, layout, tokenizer, setting.device, noise=noise)

    seconds = sum(epoch.seconds for epoch in fitted.epochs)
    examples = sum(epoch.examples for epoch in fitted.epochs)
    run = MethodRun(
        method=trial.method, seconds=seconds, examples_per_second=examples / seconds if seconds else 0.0,
        best_epoch=fitted.best_epoch,
    )  # fmt: skip
    sides = {"validation": fitted.validation}
    for end, text in setting.readings.items():
        if end:
            sides[f"validation{end}"] = said("validation", text)
        sides[f"test{end}"] = said("test", text)
    sides |= {_noisy_name(*key): said("test", setting.base.text, Noise(*key)) for key in _noises(trial.method)}
    _keep_predictions(setting, trial, run, sides)
    workdir.finish(work, setting.folder / LOGS / trial.name)


def _keep_model(setting: _Setting, trial: _Trial, model: nn.Module, fitted: Fitted, towers: Path | None) -> None:
    """Write a method's model as a version into the lake. Killed and run again, it is the same version."""
    from cma_clip_core.training.fit import conclude

    method, lake, made = trial.method, setting.lake, setting.lake.work / "models"
    below = setting.folder / "unfinished" / method / "version"
    # Of a training before, not kept, or no longer: what is kept and what is judged are of one training.
    if _has_predictions(setting, trial):
        _kept_file(setting, method).unlink(missing_ok=True)
        (_predictions(setting, trial) / "run.json").unlink()
    kept = storage.read_document(_kept_file(setting, method), Kept)
    if kept is None or not (made / kept.version).exists():
        # How long it took is in a version, so that each that is made has another name: one that is there is taken.
        version = next(iter(registry.list_versions(below)), None)
        if version is None:
            config = _configure(setting, trial, towers)
            trained = conclude(model, fitted, config, setting.taxonomy, setting.index, setting.device)
            origin = ExperimentOrigin(
                folder=lake.relative(setting.found_at),
                products=setting.labelled.manifest.products,
                compared=setting.attributes,
            )
            version = save_version(
                trained,
                config,
                setting.taxonomy,
                towers,
                lake,
                setting.labelled,
                setting.index,
                below,
                towers=None if towers is None else origin_of(lake, towers, setting.labelled),
                origin=origin,
            )
        kept = Kept(version=version)
        storage.write_document(_kept_file(setting, method), kept)
        made.mkdir(parents=True, exist_ok=True)
        (below / version).rename(made / version)
    storage.send_folder(made / kept.version, lake.models / kept.version, last=registry.SUMS)
    log.info("experiment: %s is kept: %s", method, lake.models / kept.version)


def _kept_file(setting: _Setting, method: str) -> Path:
    return setting.folder / "versions" / f"{method}.json"


def _version(setting: _Setting, method: str) -> str | None:
    """Return the model version that a method is kept as; None where it is not, or no longer."""
    kept = storage.read_document(_kept_file(setting, method), Kept)
    there = kept is not None and storage.exists(setting.lake.models / kept.version / registry.SUMS)
    return kept.version if kept is not None and there else None


def _baseline(setting: _Setting, trial: _Trial) -> None:
    from cma_clip_core.evaluation.tfidf_baseline import fit_text_baseline
    from cma_clip_core.model.class_layout import ClassLayout

    sides, seconds = {}, 0.0
    for end, text in setting.readings.items():
        start = time.perf_counter()
        baseline = fit_text_baseline(
            setting.index, ClassLayout(setting.taxonomy), text, not_learnt=setting.not_learnt, progress=setting.progress
        )
        seconds = seconds or time.perf_counter() - start  # of all text
        for side in _JUDGED:
            sides[f"{side}{end}"] = baseline.predict(setting.index, side)
    run = MethodRun(
        method=trial.method, seconds=seconds, examples_per_second=setting.index.count("train") / seconds, best_epoch=0
    )
    _keep_predictions(setting, trial, run, sides)


def _keep_predictions(
    setting: _Setting, trial: _Trial, run: MethodRun, sides: Mapping[str, dict[str, Predictions]]
) -> None:
    folder = _predictions(setting, trial)
    for name, predictions in sides.items():
        for attribute, p in predictions.items():
            storage.write_bytes(folder / name / f"{attribute}.npz", p.to_bytes())
    storage.write_document(folder / "run.json", run)  # last: the method is done


def _predictions(setting: _Setting, trial: _Trial) -> Path:
    return setting.folder / "predictions" / trial.name


def _noisy_name(what: str, share: float) -> str:
    return f"test-{what}-{100 * share:.0f}"


def _noises(method: str) -> list[tuple[What, float]]:
    """Return what is changed, and in which share, to see how much a method suffers."""
    return [(what, share) for what in NOISES for share in SHARES if share and method in NOISY]


def _is_done(setting: _Setting, trial: _Trial) -> bool:
    """Whether there is nothing left to do: it was run, and kept where that is wanted."""
    kept = trial.name not in setting.keep or _version(setting, trial.method) is not None
    return kept and _has_predictions(setting, trial)


def _has_predictions(setting: _Setting, trial: _Trial) -> bool:
    return (_predictions(setting, trial) / "run.json").exists()


def _read(setting: _Setting, trial: _Trial) -> _Found | None:
    """Return what is kept of a method that was run before; None where it was not."""
    folder = _predictions(setting, trial)
    run = storage.read_document(folder / "run.json", MethodRun)
    if run is None:
        return None
    if trial.method not in UNTRAINED:
        run = run.model_copy(update={"seed": setting.base.training.seed + trial.more})
    return _Found(run, folder)


def _by_method(found: Iterable[_Trial]) -> dict[str, list[_Trial]]:
    methods: dict[str, list[_Trial]] = {}
    for trial in found:
        methods.setdefault(trial.method, []).append(trial)
    return methods


def _against(
    methods: dict[str, list[_Trial]], draws: dict[str, RecallDraws], mean: Callable[[RecallDraws], Drawn]
) -> dict[str, Difference | None]:
    """Return CMA-CLIP less each other method, in mean recall.

    The draws of products are the same for all. Seed by seed, CMA-CLIP's recall in a draw less the method's is a difference;
    the interval is of those of all seeds together, so that it holds the chance of the products and that of one training's
    seed; before it stands the mean of what was measured with each. What is the same with every seed is taken from each of
    CMA-CLIP's. None: no seed was run of both.
    """
    from cma_clip_core.evaluation.bootstrap import Drawn, difference

    found: dict[str, Difference | None] = {}
    for method in methods if WHOLE in methods else ():
        if method == WHOLE:
            continue
        others = {trial.more: trial for trial in methods[method]}
        pairs = [(whole, others.get(0 if method in UNTRAINED else whole.more)) for whole in methods[WHOLE]]
        both = [(mean(draws[whole.name]), mean(draws[other.name])) for whole, other in pairs if other is not None]
        found[method] = difference(*(Drawn.pool(side) for side in zip(*both, strict=True))) if both else None
    return found


def _judge(
    setting: _Setting, found: dict[_Trial, _Found], end: str
) -> tuple[Judged, dict[_Trial, dict[str, Threshold]], dict[_Trial, dict[str, Predictions]]]:
    """Judge the methods on one kind of text; return that, and each one's thresholds and predictions on test."""
    from cma_clip_core.evaluation.bootstrap import RecallDraws, draw_recalls, with_intervals
    from cma_clip_core.evaluation.calibration import fit_temperature
    from cma_clip_core.evaluation.choose_thresholds import choose_threshold
    from cma_clip_core.evaluation.metrics import judge_all, method_metrics
    from cma_clip_core.model.methods import LABELS

    fields = setting.readings[end].fields
    wanted, selection = setting.attributes, setting.base.selection
    thresholds, tests = {}, {}
    for trial, f in found.items():
        validation = f.said(f"validation{end}", setting.compared)
        thresholds[trial] = {a: choose_threshold(p := validation[a], fit_temperature(p), selection) for a in wanted}
        tests[trial] = f.said(f"test{end}", setting.compared)
    draws = draw_recalls({t.name: p for t, p in tests.items()}, {t.name: s for t, s in thresholds.items()}, fields)
    metrics = {
        t: with_intervals(method_metrics(LABELS[t.method], judge_all(tests[t], thresholds[t], fields)), draws[t.name])
        for t in found
    }
    methods = _by_method(found)
    judged = Judged(
        text_fields=fields,
        methods=tuple(metrics[trials[0]] for trials in methods.values()),
        seeds={m: tuple(metrics[t] for t in trials) for m, trials in methods.items() if len(trials) > 1},
        against_whole=_against(methods, draws, RecallDraws.mean_all),
        against_whole_silent=_against(methods, draws, RecallDraws.mean_silent),
    )
    return judged, thresholds, tests


class _UnderNoise(NamedTuple):
    """What `Results` has under the same names."""

    noise: dict[str, dict[str, list[float]]]
    against_whole_noise: dict[str, dict[str, list[Difference | None]]]
    noise_by_attribute: dict[str, dict[str, list[float]]]


def _judge_noise(
    setting: _Setting,
    found: dict[_Trial, _Found],
    thresholds: dict[_Trial, dict[str, Threshold]],
    tests: dict[_Trial, dict[str, Predictions]],
    fields: Sequence[str],
) -> _UnderNoise:
    """Judge the methods that noise was tried on, at each of SHARES; what they said of one is read once, and then forgotten."""
    from cma_clip_core.evaluation.bootstrap import RecallDraws, draw_recalls
    from cma_clip_core.evaluation.metrics import judge_all, method_metrics
    from cma_clip_core.model.methods import LABELS

    trials = [trial for trial in found if trial.method in NOISY]
    methods = _by_method(trials)
    result = _UnderNoise({what: {} for what in NOISES}, {what: {} for what in NOISES}, {what: {} for what in NOISES})
    plain = {t: judge_all(tests[t], thresholds[t], fields) for t in trials}
    for what in NOISES:
        judged = {t: [plain[t]] for t in trials}
        for share in SHARES[1:]:
            sides = {t: found[t].said(_noisy_name(what, share), setting.compared) for t in trials}
            for t in trials:
                judged[t].append(judge_all(sides[t], thresholds[t], fields))
            if WHOLE in methods and len(methods) > 1:
                draws = draw_recalls(
                    {t.name: p for t, p in sides.items()}, {t.name: thresholds[t] for t in trials}, fields, silent=False
                )
                for method, difference in _against(methods, draws, RecallDraws.mean_all).items():
                    result.against_whole_noise[what].setdefault(method, []).append(difference)
        for method, seeds in methods.items():
            means = [[method_metrics(method, j).mean_recall_at_90 or 0.0 for j in judged[t]] for t in seeds]
            result.noise[what][LABELS[method]] = np.mean(means, axis=0).tolist()
        for a in setting.attributes if WHOLE in methods else ():
            recalls = [[j[a].recall_at_90 or 0.0 for j in judged[t]] for t in methods[WHOLE]]
            result.noise_by_attribute[what][a] = np.mean(recalls, axis=0).tolist()
    return result


def _write(setting: _Setting, labelled_set: str, found: dict[_Trial, _Found], left_out: dict[str, str]) -> None:
    """Judge the methods, and write tables, plots and numbers."""
    from cma_clip_core.model_card import markdown_tables, plots

    wanted = setting.attributes
    (full, thresholds, tests), *others = (_judge(setting, found, end) for end in setting.readings)
    methods = _by_method(found)
    under_noise = _judge_noise(setting, found, thresholds, tests, full.text_fields)
    results = Results(
        labelled_set=labelled_set,
        products={side: setting.index.count(side) for side in ("train", "validation", "test")},
        attributes=wanted,
        not_learnt=setting.not_learnt,
        left_out=left_out,
        device=str(setting.device),
        seeds=setting.seeds,
        towers=None if (towers := _find(setting.folder / "towers")) is None else towers.name,
        texts=(full, *(judged for judged, _, _ in others)),
        runs=tuple(f.run for f in found.values()),
        versions={method: version for method in methods if (version := _version(setting, method)) is not None},
        **under_noise._asdict(),
    )
    folder = setting.folder
    storage.write_document(folder / "results.json", results)
    text = _markdown(results)
    storage.write_bytes(folder / "results.md", text.encode())
    if WHOLE in methods:
        first = methods[WHOLE][0]
        whole = full.methods[list(methods).index(WHOLE)].attributes
        plots.precision_recall(folder / "precision_recall.svg", tests[first], thresholds[first])
        plots.calibration(folder / "calibration.svg", tests[first], thresholds[first])
        plots.modality_weights(folder / "modality_weights.svg", whole, {a: setting.taxonomy[a].label for a in wanted})
        page = f"{markdown_tables.one_model(whole)}\n\n{markdown_tables.shipped(whole, thresholds[first])}\n"
        storage.write_bytes(folder / "cma_clip.md", page.encode())
        storage.write_bytes(folder / "thresholds.json", _THRESHOLDS.dump_json(thresholds[first], indent=1))
    if any(results.noise.values()):
        plots.robustness(
            folder / "robustness.svg", SHARES, {words: results.noise[what] for what, words in NOISES.items()}
        )
    print(text)


def _markdown(results: Results) -> str:
    from cma_clip_core.model.methods import LABELS
    from cma_clip_core.model_card.markdown_tables import comparison, markdown, over_seeds

    def points(d: Difference | None) -> str:
        if d is None:
            return "-"
        return f"{100 * d.mean:+.1f} ({100 * d.interval.low:+.1f} to {100 * d.interval.high:+.1f})"

    sides = ", ".join(f"{n:,} {side}" for side, n in results.products.items())
    noise = markdown(
        ["changed", "method", *(f"{100 * share:.0f} %" for share in SHARES)],
        [
            [words, method, *(f"{100 * value:.1f}" for value in series)]
            for what, words in NOISES.items()
            for method, series in results.noise[what].items()
        ],
    )
    by_attribute = markdown(
        ["changed", "attribute, CMA-CLIP", *(f"{100 * share:.0f} %" for share in SHARES)],
        [
            [words, attribute, *(f"{100 * value:.1f}" for value in series)]
            for what, words in NOISES.items()
            for attribute, series in results.noise_by_attribute[what].items()
        ],
    )
    noise_margins = markdown(
        ["changed", "CMA-CLIP less, points of mean recall", *(f"{100 * share:.0f} %" for share in SHARES if share)],
        [
            [words, LABELS[method], *map(points, differences)]
            for what, words in NOISES.items()
            for method, differences in results.against_whole_noise[what].items()
        ],
    )
    of_label = {label: method for method, label in LABELS.items()}
    named: dict[str, list[str]] = {label: [] for label in of_label}  # of each seed, in the order of `Judged.seeds`
    for r in results.runs:
        with_seed = r.seed is not None and results.seeds > 1
        named[LABELS[r.method]].append(f"{LABELS[r.method]}, seed {r.seed}" if with_seed else LABELS[r.method])
    cost = markdown(
        ["method", "training, s", "examples/s", "epoch kept"],
        [
            [name, f"{r.seconds:.0f}", f"{r.examples_per_second:.0f}", f"{r.best_epoch}"]
            for name, r in zip((name for names in named.values() for name in names), results.runs, strict=True)
        ],
    )

    def on(judged: Judged) -> list[str]:
        margins = [
            [LABELS[m], points(d), points(judged.against_whole_silent.get(m))] for m, d in judged.against_whole.items()
        ]
        with_seeds = [judged.seeds.get(of_label[m.method], (m,)) for m in judged.methods]
        promises = [
            [name, m.promise.words()]
            for trials in with_seeds
            for name, m in zip(named[trials[0].method], trials, strict=True)
            if m.promise is not None
        ]
        return [
            f"## Text: {', '.join(judged.text_fields)}",
            over_seeds(with_seeds) if judged.seeds else comparison(judged.methods),
            markdown(["CMA-CLIP less", "points of mean recall", "on silent labels"], margins),
            markdown(["method", "precision promised by its thresholds, on test"], promises),
        ]

    notes = [f"{name} is not learnt, nor in any mean: {why}" for name, why in results.not_learnt.items()]
    notes += [f"{what}: {why}" for what, why in results.left_out.items()]
    notes += [f"{LABELS[method]} is kept as model version {version}" for method, version in results.versions.items()]
    if any(judged.seeds for judged in results.texts):
        notes.append(
            "Of methods that were trained with several seeds, recalls are means over these, in brackets the least and the "
            "greatest. A difference is the mean over the seeds; its interval holds 95 % of the bootstrap's draws of all seeds "
            "together. Plots, thresholds and what is kept are of the first seed"
        )
    else:
        notes.append(
            "Each method was trained once: an interval holds the chance of the test products, not that of a training, and another "
            "seed may move a method as far. `--seeds 3` holds both"
        )
    left_out = "".join(f"\n{note}.\n" for note in notes)
    head = (
        f"Recall at 90 % precision, in %, on the test side; products: {sides}; labelled set {results.labelled_set}; "
        f"{results.device}{f'; towers {results.towers}' if results.towers else ''}.\n{left_out}"
    )
    changed = (
        "## Texts or pictures swapped with another product's, names of labels left out of the texts; "
        f"text: {', '.join(results.texts[0].text_fields)}"
    )
    parts = [head, *(part for judged in results.texts for part in on(judged))]
    if any(results.noise.values()):
        parts += [changed, noise, *([noise_margins] if any(results.against_whole_noise.values()) else []), by_attribute]
    return "\n\n".join([*parts, "## Training", cost]) + "\n"
