"""What an experiment finds: the documents of its results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cma_clip_core.model_documents import Difference, MethodMetrics
from schemas.loading import Strict

if TYPE_CHECKING:
    from cma_clip_core.inputs.perturbations import Perturbation

# Of the products whose text or picture is swapped, as in the paper, or of the names left out.
SHARES = (0.0, 0.2, 0.5, 1.0)
NOISY = ("late-concatenation", "sa-without-ma", "ma-without-sa", "cma-clip")  # the methods that this is tried on
NOISES: dict[Perturbation, str] = {"text": "texts swapped", "image": "pictures swapped", "names": "names left out"}
WHOLE = "cma-clip"
UNTRAINED = ("raw-clip", "tf-idf")  # no model of ours: none to be kept, and the same with every seed


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
    against_whole: dict[
        str, Difference | None
    ]  # CMA-CLIP less each method, mean recall at 90 % precision: `against_whole`
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
