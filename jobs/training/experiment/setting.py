"""The common setting of an experiment's methods, and the files of each trial in the experiment's work folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cma_clip_core import registry
from cma_clip_core.catalog.splits import Side
from cma_clip_core.config import TextConfig
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.inputs.perturbations import Perturbation
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from jobs.training.dataset import LabelledSet
from jobs.training.experiment.results import NOISES, NOISY, SHARES, UNTRAINED, Kept, MethodRun
from schemas.taxonomy import Attribute

JUDGED: tuple[Side, ...] = ("validation", "test")


class Trial(NamedTuple):
    """A training of a method with one seed."""

    method: str
    seed_offset: int = 0  # added to the configuration's seed

    @property
    def name(self) -> str:
        """The name of its folders: the method's name for the first seed, with the offset for further ones."""
        return f"{self.method}+{self.seed_offset}" if self.seed_offset else self.method


@dataclass(frozen=True, slots=True)
class Setting:
    """The common setting of all methods of an experiment."""

    problem: LearningProblem  # with the base configuration, which each method changes
    compute: Compute
    lake: Lake
    labelled: LabelledSet
    folder: Path  # the experiment's work folder
    attributes: tuple[str, ...]  # that are compared; all are trained
    not_learnt: dict[str, str]  # attribute: why
    keep: tuple[str, ...]  # methods whose model of the first seed becomes a model version
    seeds: int

    @property
    def results_folder(self) -> AnyPath:
        """The folder of the results in the lake."""
        return self.lake.experiments / self.folder.parent.name / self.folder.name

    def trials(self, methods: Iterable[str]) -> list[Trial]:
        """Return the trials of some methods, one for each seed."""
        return [
            Trial(method, offset) for method in methods for offset in range(1 if method in UNTRAINED else self.seeds)
        ]

    @property
    def compared(self) -> list[Attribute]:
        """The attributes that are compared."""
        return [self.problem.taxonomy[name] for name in self.attributes]

    @property
    def readings(self) -> dict[str, TextConfig]:
        """The kinds of text that methods are judged on, by suffix: all text, and titles alone if training shows both."""
        text, training = self.problem.config.text, self.problem.config.training
        kinds = {"": text}
        if training.title_only and "text" not in training.freeze and "title" in text.fields and len(text.fields) > 1:
            kinds["-title"] = text.model_copy(update={"fields": ("title",)})
        return kinds


@dataclass(slots=True)
class MethodOutcome:
    """The outcome of a trial."""

    run: MethodRun
    folder: Path  # of its predictions, with a folder for each input ("test", "test-title", ...)

    def read_predictions(self, name: str, attributes: Iterable[Attribute]) -> dict[str, Predictions]:
        """Read its predictions on one input, by attribute. Memory need not hold those of all inputs and seeds at once."""

        return {
            a.name: Predictions.from_bytes(a, (self.folder / name / f"{a.name}.npz").read_bytes()) for a in attributes
        }


def predictions_folder(setting: Setting, trial: Trial) -> Path:
    return setting.folder / "predictions" / trial.name


def noisy_name(perturbation: str, share: float) -> str:
    return f"test-{perturbation}-{100 * share:.0f}"


def noises(method: str) -> list[tuple[Perturbation, float]]:
    """Return the perturbations that a method is tested with, and their shares."""
    return [(perturbation, share) for perturbation in NOISES for share in SHARES if share and method in NOISY]


def is_done(setting: Setting, trial: Trial) -> bool:
    """Return whether a trial has run and, if its model is to be kept, has been kept."""
    kept = trial.name not in setting.keep or kept_version(setting, trial.method) is not None
    return kept and has_predictions(setting, trial)


def has_predictions(setting: Setting, trial: Trial) -> bool:
    return (predictions_folder(setting, trial) / "run.json").exists()


def read_outcome(setting: Setting, trial: Trial) -> MethodOutcome | None:
    """Return the stored outcome of a trial; None if it has not run."""
    folder = predictions_folder(setting, trial)
    run = storage.read_document(folder / "run.json", MethodRun)
    if run is None:
        return None
    if trial.method not in UNTRAINED:
        run = run.model_copy(update={"seed": setting.problem.config.training.seed + trial.seed_offset})
    return MethodOutcome(run, folder)


def keep_predictions(
    setting: Setting, trial: Trial, run: MethodRun, sides: Mapping[str, dict[str, Predictions]]
) -> None:
    folder = predictions_folder(setting, trial)
    for name, predictions in sides.items():
        for attribute, p in predictions.items():
            storage.write_bytes(folder / name / f"{attribute}.npz", p.to_bytes())
    storage.write_document(folder / "run.json", run)  # last: it marks the trial as done


def by_method(trials: Iterable[Trial]) -> dict[str, list[Trial]]:
    methods: dict[str, list[Trial]] = {}
    for trial in trials:
        methods.setdefault(trial.method, []).append(trial)
    return methods


def kept_file(setting: Setting, method: str) -> Path:
    return setting.folder / "versions" / f"{method}.json"


def kept_version(setting: Setting, method: str) -> str | None:
    """Return the model version that a method is kept as; None if it was not kept, or no longer exists."""
    kept = storage.read_document(kept_file(setting, method), Kept)
    exists = kept is not None and storage.exists(setting.lake.models / kept.version / registry.SUMS)
    return kept.version if kept is not None and exists else None


def own_towers(below: Path) -> Path | None:
    """Return the experiment's own towers; None if they do not exist yet."""
    return next(iter(sorted(below.glob("[!.]*"))), None)
