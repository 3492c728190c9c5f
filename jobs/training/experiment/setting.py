"""What all methods of an experiment share, and what is kept of each in its work folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cma_clip_core import registry
from cma_clip_core.config import TextConfig
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from jobs.training.dataset import LabelledSet
from jobs.training.experiment.results import NOISES, NOISY, SHARES, UNTRAINED, Kept, MethodRun

if TYPE_CHECKING:
    from cma_clip_core.catalog.splits import Side
    from cma_clip_core.evaluation.predictions import Predictions
    from cma_clip_core.inputs.compute import Compute
    from cma_clip_core.inputs.learning_problem import LearningProblem
    from cma_clip_core.inputs.perturbations import Perturbation
    from schemas.taxonomy import Attribute

JUDGED: tuple[Side, ...] = ("validation", "test")


class Trial(NamedTuple):
    """A method, and how much its seed is above the configuration's."""

    method: str
    more: int = 0

    @property
    def name(self) -> str:
        """Of its folders: with the first seed the method's own."""
        return f"{self.method}+{self.more}" if self.more else self.method


@dataclass(frozen=True, slots=True)
class Setting:
    """What all methods of an experiment share."""

    problem: LearningProblem  # with the base configuration, which each method changes
    compute: Compute
    lake: Lake
    labelled: LabelledSet
    folder: Path  # the experiment's work folder
    attributes: tuple[str, ...]  # that are compared; all are trained
    not_learnt: dict[str, str]  # attribute: why
    keep: tuple[str, ...]  # methods that are to be kept as model versions, of the first seed
    seeds: int

    @property
    def found_at(self) -> AnyPath:
        """Where the results are in the lake."""
        return self.lake.experiments / self.folder.parent.name / self.folder.name

    def trials(self, methods: Iterable[str]) -> list[Trial]:
        """Return each of some methods with each of its seeds."""
        return [Trial(method, more) for method in methods for more in range(1 if method in UNTRAINED else self.seeds)]

    @property
    def compared(self) -> list[Attribute]:
        """The attributes that are compared."""
        return [self.problem.taxonomy[name] for name in self.attributes]

    @property
    def readings(self) -> dict[str, TextConfig]:
        """What the methods are judged on, by the end of its name: all text, and titles alone if trained with both."""
        text, training = self.problem.config.text, self.problem.config.training
        found = {"": text}
        if training.title_only and "text" not in training.freeze and "title" in text.fields and len(text.fields) > 1:
            found["-title"] = text.model_copy(update={"fields": ("title",)})
        return found


@dataclass(slots=True)
class MethodOutcome:
    """What is known of a method."""

    run: MethodRun
    folder: Path  # with its predictions, a folder for what was seen ("test", "test-title", ...)

    def said(self, name: str, attributes: Iterable[Attribute]) -> dict[str, Predictions]:
        """Read what it said of one side, by attribute. Not all are held at once: there are many, of each seed."""
        from cma_clip_core.evaluation.predictions import Predictions

        return {
            a.name: Predictions.from_bytes(a, (self.folder / name / f"{a.name}.npz").read_bytes()) for a in attributes
        }


def predictions_folder(setting: Setting, trial: Trial) -> Path:
    return setting.folder / "predictions" / trial.name


def noisy_name(what: str, share: float) -> str:
    return f"test-{what}-{100 * share:.0f}"


def noises(method: str) -> list[tuple[Perturbation, float]]:
    """Return what is changed, and in which share, to see how much a method suffers."""
    return [(what, share) for what in NOISES for share in SHARES if share and method in NOISY]


def is_done(setting: Setting, trial: Trial) -> bool:
    """Whether there is nothing left to do: it was run, and kept where that is wanted."""
    kept = trial.name not in setting.keep or kept_version(setting, trial.method) is not None
    return kept and has_predictions(setting, trial)


def has_predictions(setting: Setting, trial: Trial) -> bool:
    return (predictions_folder(setting, trial) / "run.json").exists()


def read_outcome(setting: Setting, trial: Trial) -> MethodOutcome | None:
    """Return what is kept of a method that was run before; None where it was not."""
    folder = predictions_folder(setting, trial)
    run = storage.read_document(folder / "run.json", MethodRun)
    if run is None:
        return None
    if trial.method not in UNTRAINED:
        run = run.model_copy(update={"seed": setting.problem.config.training.seed + trial.more})
    return MethodOutcome(run, folder)


def keep_predictions(
    setting: Setting, trial: Trial, run: MethodRun, sides: Mapping[str, dict[str, Predictions]]
) -> None:
    folder = predictions_folder(setting, trial)
    for name, predictions in sides.items():
        for attribute, p in predictions.items():
            storage.write_bytes(folder / name / f"{attribute}.npz", p.to_bytes())
    storage.write_document(folder / "run.json", run)  # last: the method is done


def by_method(found: Iterable[Trial]) -> dict[str, list[Trial]]:
    methods: dict[str, list[Trial]] = {}
    for trial in found:
        methods.setdefault(trial.method, []).append(trial)
    return methods


def kept_file(setting: Setting, method: str) -> Path:
    return setting.folder / "versions" / f"{method}.json"


def kept_version(setting: Setting, method: str) -> str | None:
    """Return the model version that a method is kept as; None where it is not, or no longer."""
    kept = storage.read_document(kept_file(setting, method), Kept)
    there = kept is not None and storage.exists(setting.lake.models / kept.version / registry.SUMS)
    return kept.version if kept is not None and there else None


def own_towers(below: Path) -> Path | None:
    """Return the experiment's own towers; None where there are none yet."""
    return next(iter(sorted(below.glob("[!.]*"))), None)
