"""The documents of an experiment's results."""

from __future__ import annotations

from pydantic import Field

from cma_clip_core.inputs.perturbations import Perturbation
from cma_clip_core.model_documents import Difference, MethodMetrics
from schemas.loading import Strict

# Shares of the products whose text or picture is swapped, as in the paper, or of the label names that are left out.
SHARES = (0.0, 0.2, 0.5, 1.0)
NOISY = ("late-concatenation", "sa-without-ma", "ma-without-sa", "cma-clip")  # methods tested on perturbed inputs
NOISES: dict[Perturbation, str] = {"text": "texts swapped", "image": "pictures swapped", "names": "names left out"}
WHOLE = "cma-clip"
UNTRAINED = ("raw-clip", "tf-idf")  # methods without a model to keep, whose results do not depend on the seed


class MethodRun(Strict):
    """The training of one method."""

    method: str
    seconds: float  # of training; 0 without training
    examples_per_second: float
    best_epoch: int
    seed: int | None = None  # None: the method does not depend on a seed


class Kept(Strict):
    """The model version that a method is kept as."""

    version: str


class Judged(Strict):
    """The metrics of the methods on one kind of text."""

    text_fields: tuple[str, ...]
    methods: tuple[MethodMetrics, ...]  # with the first seed
    seeds: dict[str, tuple[MethodMetrics, ...]] = Field(
        default_factory=dict, description="method: metrics with each seed, for methods trained with several"
    )
    # CMA-CLIP minus each method, in mean recall at 90 % precision: `jobs.training.experiment.judge.against_whole`
    against_whole: dict[str, Difference | None]
    against_whole_silent: dict[str, Difference | None]  # the same on the silent labels


class Results(Strict):
    """An experiment's outcome."""

    labelled_set: str
    products: dict[str, int]  # by side
    attributes: tuple[str, ...]
    not_learnt: dict[str, str]  # attribute: reason; no table and no mean includes it
    left_out: dict[str, str]  # method, or pretraining: the reason why it could not run
    device: str
    seeds: int = 1  # requested seeds of each trained method
    towers: str | None = (
        None  # pretrained towers that all methods started from; None: those of the configuration, or none
    )
    texts: tuple[Judged, ...]  # the first one with all text that is read
    runs: tuple[MethodRun, ...]
    versions: dict[str, str] = Field(default_factory=dict, description="method: the model version that it is kept as")
    # Recalls on perturbed inputs: "text" and "image" are swapped with another product's, "names" of labels are left out of
    # the texts. All are means over seeds, with a list of values for SHARES.
    noise: dict[str, dict[str, list[float]]]  # mean recall, by perturbation and method
    # CMA-CLIP minus the method, in mean recall, at each of SHARES except the first
    against_whole_noise: dict[str, dict[str, list[Difference | None]]]
    noise_by_attribute: dict[str, dict[str, list[float]]]  # recall of CMA-CLIP, by perturbation and attribute
