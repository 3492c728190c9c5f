"""JSON documents of a model's thresholds, metrics and origin. Loads neither torch nor scipy.

Letters of shapes: C values of one attribute.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter

from schemas.loading import Strict
from schemas.taxonomy import Attribute


class Threshold(Strict):
    """The lowest accepted confidence of an attribute's values, and its effect on the validation products.

    A value that was predicted often on validation has its own threshold; `threshold` applies to all others. A threshold of
    None means that no threshold keeps the promised precision, so nothing is accepted.
    """

    threshold: float | None
    values: dict[str, float | None] = Field(default_factory=dict, description="values with a threshold of their own")
    temperature: float = Field(default=1.0, gt=0, description="logits are divided by it to calibrate confidences")
    target_precision: float
    precision: float | None  # of all accepted candidates
    accepted: int
    candidates: int

    def limits(self, attribute: Attribute) -> npt.NDArray[np.float32]:
        """Return the lowest confidence [C] at which each value is accepted; infinite if it never is."""
        chosen = (self.values.get(name, self.threshold) for name in attribute.value_names)
        return np.array([np.inf if t is None else t for t in chosen], dtype=np.float32)

    def never(self, attribute: Attribute) -> tuple[str, ...]:
        """Return the values that are never accepted."""
        limits = self.limits(attribute)
        return tuple(name for name, limit in zip(attribute.value_names, limits, strict=True) if np.isinf(limit))

    def lowest(self) -> float | None:
        """Return the lowest confidence at which any value is accepted; None if nothing is."""
        return min((t for t in (self.threshold, *self.values.values()) if t is not None), default=None)


# A version's or an experiment's thresholds, by attribute.
THRESHOLDS_DOCUMENT: Final[TypeAdapter[dict[str, Threshold]]] = TypeAdapter(dict[str, Threshold])


class CandidateScore(Strict):
    """Quality of a candidate method for one attribute, on products that it was not fitted to."""

    weights: dict[str, float]  # by member of the ensemble
    log_loss: float  # mean over the products with a listed value, after calibration
    recall: float | None  # share of the listed values that its promised thresholds accept and that are right
    products: int  # with a value, listed or not


class AttributeMethod(Strict):
    """The method that answers one attribute."""

    weights: dict[str, float]  # by member of the ensemble, those with a say; an empty one answers nothing
    cross_validated: bool = False  # thresholds were chosen by cross-fitting, not on the validation side alone
    products: int  # that the thresholds were chosen on
    candidates: dict[str, CandidateScore] = Field(default_factory=dict, description="by name, as they were compared")

    @property
    def name(self) -> str:
        """The members, joined by a plus sign."""
        return "+".join(self.weights) or "none"


class Methods(Strict):
    """The methods of a model version, written as methods.json; a version without this file is one method alone."""

    attributes: dict[str, AttributeMethod]
    left_out: dict[str, str] = Field(default_factory=dict, description="candidate: the reason why it was not tried")


class Interval(Strict):
    """Lower and upper bound (95 % bootstrap interval unless stated otherwise)."""

    low: float
    high: float


class Difference(Strict):
    """The score of one method minus that of another, on the same products."""

    mean: float  # as measured; with several seeds, their mean
    interval: Interval  # from the same bootstrap draws for both
    below_zero: float  # share of the draws


class AttributeMetrics(Strict):
    """Metrics of one attribute on one side of the split. Confidences are calibrated probabilities.

    A candidate is the best value of a product; for a multi-valued attribute, each pair of a product and a value. A metric
    is None if there is nothing to count. `cma_clip_core.evaluation.metrics` defines them.
    """

    n: int  # products with a listed value
    n_unlisted: int = 0  # products with unlisted values only: any accepted value is wrong, and they are not positives
    n_silent: int  # products among `n` with a silent label: none of the model's text fields names it
    accuracy: float | None  # share of the products whose best value is right
    macro_f1: float | None  # mean over the values that occur
    average_precision: float | None  # area under the precision-recall curve of the candidates
    calibration_error: float | None  # expected error of the best value's confidence, in 15 bins of equal mass
    target_precision: float
    recall_at_target: float | None  # at the lowest threshold that reaches the target on these products
    recall_at_90: float | None  # the paper's metric: the same at 90 % precision
    recall_at_90_interval: Interval | None = None
    silent_recall_at_target: float | None  # recall on the silent labels alone
    silent_recall_at_90: float | None  # recall on the silent labels alone
    silent_recall_at_90_interval: Interval | None = None
    coverage: float | None  # at the shipped thresholds: accepted values, right or wrong, over all values given
    precision: float | None  # at the shipped thresholds; a value accepted where the catalog's is unlisted is wrong
    recall: float | None  # at the shipped thresholds
    text_weight: float  # mean over the products
    image_weight: float  # mean over the products


class ValueMetrics(Strict):
    """Metrics of one value of an attribute on one side of the split, over all predictions, accepted or not."""

    support: int  # products that have the value
    predicted: int  # products that it is predicted for
    precision: float | None  # None: it is never predicted
    recall: float | None  # None: no product has it


class Confusion(Strict):
    """A true value that was missed, and the wrong value predicted instead."""

    true: str
    predicted: str
    count: int  # products


class ValuesMetrics(Strict):
    """Metrics of one attribute, value by value, as `cma_clip_core.evaluation.metrics.judge_values` defines them."""

    values: dict[str, ValueMetrics]  # in the order of the taxonomy
    confusions: tuple[Confusion, ...]  # the most common ones, most products first


class Promise(Strict):
    """The attributes that keep or break, on the judged side, the precision that was promised on validation.

    On a side with few products an attribute may miss or reach the target by chance.
    """

    kept: tuple[str, ...]  # attributes whose accepted values reach the target precision
    broken: dict[str, float]  # attributes that do not, with their precision
    nothing: tuple[str, ...]  # attributes that accept nothing, and so promise nothing

    def words(self) -> str:
        """Return one line, such as "kept by 2 of 3 attributes; broken: fit (0.871); nothing is accepted: neck"."""
        parts = [f"kept by {len(self.kept)} of {len(self.kept) + len(self.broken)} attributes"]
        if self.broken:
            parts.append(f"broken: {', '.join(f'{name} ({value:.3f})' for name, value in self.broken.items())}")
        if self.nothing:
            parts.append(f"nothing is accepted: {', '.join(self.nothing)}")
        return "; ".join(parts)


class LabelCount(Strict):
    """The number of labels of an attribute on a side of the split; a multi-valued one may have several per product."""

    labels: int
    silent: int  # labels that no text field names


class TowersOrigin(Strict):
    """The pretrained towers that a model started from, and how many of its held-out products they were trained on.

    Sides change from day to day: a pair of the test side may have been on the training side of another labelled set.
    """

    name: str
    labelled_set: str  # its folder in the lake; empty for towers from before it was recorded
    same_set: bool  # whether it is the model's own labelled set, so that the same products were held out
    # by side (validation, test): products that were on the towers' training side; None: unknown
    seen: dict[str, int] | None

    def words(self) -> str:
        """Return one sentence for the model card and the log."""
        if self.same_set:
            return f"Its towers `{self.name}` were pretrained on the training side of the same labelled set."
        if self.seen is not None:
            return (
                f"Its towers `{self.name}` were pretrained on the labelled set `{self.labelled_set}`, whose training side "
                f"holds {self.seen['test']:,} of the test products and {self.seen['validation']:,} of the validation products."
            )
        why = (
            f"the labelled set `{self.labelled_set}` is not in this lake"
            if self.labelled_set
            else "their labelled set is not recorded"
        )
        return f"It is unknown which of these products its towers `{self.name}` were pretrained on: {why}."


class MethodMetrics(Strict):
    """Metrics of one method on one side of the split."""

    method: str
    attributes: dict[str, AttributeMetrics]
    mean_recall_at_90: float | None  # over the attributes that have labels
    mean_recall_at_90_interval: Interval | None = None
    mean_silent_recall_at_90: float | None  # over the attributes that have silent labels
    mean_silent_recall_at_90_interval: Interval | None = None
    promise: Promise | None = None  # at the shipped thresholds; None: from a release that did not record it


class Epoch(Strict):
    """One pass over the training examples."""

    loss: float
    validation: float  # the objective's own score; higher is better
    seconds: float
    examples: int


class ExperimentOrigin(Strict):
    """The experiment that trained a model."""

    folder: str  # in the lake
    products: int  # in the labelled set; the model may have seen a sample of them
    compared: tuple[str, ...]  # the attributes that the experiment compared; all were trained


class Metrics(Strict):
    """Everything that is recorded about a trained model, written as metrics.json."""

    labelled_set: str = ""  # its folder in the lake
    catalog_day: str = ""  # newest day whose products are in it
    labels: dict[str, dict[str, LabelCount]] = Field(default_factory=dict)  # by attribute and side
    experiment: ExperimentOrigin | None = None  # None: the `train` step trained it
    towers: TowersOrigin | None = None  # None: training did not start from towers of the lake
    train_examples: int
    validation_examples: int
    test_examples: int
    families: int
    best_epoch: int  # the epoch whose weights are kept, counted from 1 (cma_clip_core.training.loop)
    epochs: tuple[Epoch, ...]
    seconds: float  # of training, including the time before a resume, and of evaluation
    device: str
    validation: dict[str, AttributeMetrics]
    test: dict[str, AttributeMetrics]
    test_values: dict[str, ValuesMetrics] = Field(
        default_factory=dict, description="by attribute, on test; empty for a version from before they were recorded"
    )
    not_learnt: dict[str, str] = Field(default_factory=dict, description="attribute: reason; no mean includes it")
    promise: Promise | None = None  # on test
    picture_evidence: dict[str, float] = Field(
        default_factory=dict,
        description="attribute: weight of the image-only logits (cma_clip_core.evaluation.picture_evidence)",
    )
