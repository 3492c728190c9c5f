"""The JSON documents that say what a model's confidences are worth. Loads neither torch nor scipy.

Letters of shapes: C values of one attribute.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import Field

from schemas.loading import Strict
from schemas.taxonomy import Attribute


class Threshold(Strict):
    """From which confidence an attribute's values are accepted, and what that did on the validation products.

    A value that was predicted often on validation has a threshold of its own; `threshold` is that of all others. None
    anywhere: no threshold keeps the promise, so nothing is accepted.
    """

    threshold: float | None
    values: dict[str, float | None] = Field(default_factory=dict, description="values with a threshold of their own")
    temperature: float = Field(default=1.0, gt=0, description="logits are divided by it: confidences are calibrated")
    target_precision: float
    precision: float | None  # of all accepted candidates
    accepted: int
    candidates: int

    def limits(self, attribute: Attribute) -> npt.NDArray[np.float32]:
        """Return the least confidence [C] at which each value is accepted; infinite where never."""
        chosen = (self.values.get(name, self.threshold) for name in attribute.value_names)
        return np.array([np.inf if t is None else t for t in chosen], dtype=np.float32)

    def never(self, attribute: Attribute) -> tuple[str, ...]:
        """Return the values that are never accepted."""
        limits = self.limits(attribute)
        return tuple(name for name, limit in zip(attribute.value_names, limits, strict=True) if np.isinf(limit))

    def lowest(self) -> float | None:
        """Return the lowest confidence at which any value is accepted; None where nothing is."""
        return min((t for t in (self.threshold, *self.values.values()) if t is not None), default=None)


class Interval(Strict):
    """From where to where: of a 95 % bootstrap interval, but where something else is said."""

    low: float
    high: float


class Difference(Strict):
    """One method less another, of the same products."""

    mean: float  # as measured; of several seeds, their mean
    interval: Interval  # by the same bootstrap draws of both
    below_zero: float  # share of the draws


class AttributeMetrics(Strict):
    """One attribute on one side of the split. Confidences are calibrated probabilities.

    A candidate is the best value of a product, or of a multi-valued attribute each (product, value). None: there is
    nothing to count. Definitions: `cma_clip_core.evaluation.metrics`.
    """

    n: int  # products with a listed value
    n_unlisted: int = 0  # products of unlisted values alone: wrong wherever they are accepted, and no positives
    n_silent: int  # of these, with a label that no text the model reads names
    accuracy: float | None  # share of the products whose best value is right
    macro_f1: float | None  # mean over the values that occur
    average_precision: float | None  # area under the precision-recall curve of the candidates
    calibration_error: float | None  # expected, of the best value's confidence, 15 bins of equal mass
    target_precision: float
    recall_at_target: float | None  # at the lowest threshold, on these products, that reaches the target
    recall_at_90: float | None  # the paper's: the same at 90 % precision
    recall_at_90_interval: Interval | None = None
    silent_recall_at_target: float | None  # the same two on the silent labels alone
    silent_recall_at_90: float | None
    silent_recall_at_90_interval: Interval | None = None
    coverage: float | None  # at the thresholds that ship: accepted right and wrong, over all values given
    precision: float | None  # at the thresholds that ship; what is accepted for an unlisted value is wrong
    recall: float | None  # at the thresholds that ship
    text_weight: float  # mean over the products
    image_weight: float  # mean over the products


class ValueMetrics(Strict):
    """One value of an attribute on one side of the split: whatever is predicted, accepted or not."""

    support: int  # products that have it
    predicted: int  # products that it is predicted for
    precision: float | None  # None: it is never predicted
    recall: float | None  # None: no product has it


class Confusion(Strict):
    """A true value that was missed where a wrong one was predicted."""

    true: str
    predicted: str
    count: int  # products


class ValuesMetrics(Strict):
    """One attribute, value by value. Definitions: `cma_clip_core.evaluation.metrics.judge_values`."""

    values: dict[str, ValueMetrics]  # of the taxonomy, in its order
    confusions: tuple[Confusion, ...]  # the commonest, most products first


class Promise(Strict):
    """Whether the precision that was promised on validation is there on the side that is judged, by attribute.

    A side of few products may miss the target by chance, and reach it by chance.
    """

    kept: tuple[str, ...]  # the precision of what is accepted reaches the target
    broken: dict[str, float]  # it does not: this precision
    nothing: tuple[str, ...]  # nothing is accepted, so nothing is promised

    def words(self) -> str:
        """Return it in one line, such as "kept by 2 of 3 attributes; broken: fit (0.871); nothing is accepted: neck"."""
        parts = [f"kept by {len(self.kept)} of {len(self.kept) + len(self.broken)} attributes"]
        if self.broken:
            parts.append(f"broken: {', '.join(f'{name} ({value:.3f})' for name, value in self.broken.items())}")
        if self.nothing:
            parts.append(f"nothing is accepted: {', '.join(self.nothing)}")
        return "; ".join(parts)


class LabelCount(Strict):
    """How many labels an attribute has on a side of the split; a product of a multi-valued one may have several."""

    labels: int
    silent: int  # that no text field names


class TowersOrigin(Strict):
    """The pretrained towers that a model began with, and which of the products that it is judged on they saw.

    Sides move from day to day: a pair of the test side may have been on the training side of another labelled set.
    """

    name: str
    labelled_set: str  # its folder in the lake; empty: of towers from before it was recorded
    same_set: bool  # the one that the model is trained on: what is held out was held out then, too
    seen: (
        dict[str, int] | None
    )  # by side, validation and test: products that were on their training side; None: cannot be told

    def words(self) -> str:
        """Return it in one sentence, as the model card and the log say it."""
        if self.same_set:
            return f"Its towers `{self.name}` were pretrained on the training side of the same labelled set."
        if self.seen is not None:
            return (
                f"Its towers were pretrained on up to {self.seen['test']:,} of the test products and {self.seen['validation']:,} of the "
                f"validation products, those on the training side then: `{self.name}`, of the labelled set "
                f"`{self.labelled_set}`."
            )
        why = (
            f"the labelled set `{self.labelled_set}` is not in this lake"
            if self.labelled_set
            else "their labelled set is not recorded"
        )
        return f"Which of these products its towers `{self.name}` were pretrained on cannot be told: {why}."


class MethodMetrics(Strict):
    """One method on one side of the split."""

    method: str
    attributes: dict[str, AttributeMetrics]
    mean_recall_at_90: float | None  # over the attributes that have labels
    mean_recall_at_90_interval: Interval | None = None
    mean_silent_recall_at_90: float | None  # over the attributes that have silent labels
    mean_silent_recall_at_90_interval: Interval | None = None
    promise: Promise | None = None  # of the thresholds that ship; None: of a release that did not count


class Epoch(Strict):
    """One pass over the training examples."""

    loss: float
    validation: float  # the objective's own measure, higher is better
    seconds: float
    examples: int


class ExperimentOrigin(Strict):
    """The experiment that a model comes from."""

    folder: str  # in the lake
    products: int  # of the labelled set; the model may have seen a sample of them
    compared: tuple[str, ...]  # the attributes that the experiment compared; all were trained


class Metrics(Strict):
    """All that is known of a trained model: goes into its folder as metrics.json."""

    labelled_set: str = ""  # its folder in the lake
    catalog_day: str = ""  # newest day whose products are in it
    labels: dict[str, dict[str, LabelCount]] = Field(default_factory=dict)  # by attribute and side
    experiment: ExperimentOrigin | None = None  # None: it was trained by itself
    towers: TowersOrigin | None = None  # None: not begun with towers of the lake
    train_examples: int
    validation_examples: int
    test_examples: int
    families: int
    best_epoch: int  # the one kept, counted from 1 (cma_clip_core.training.loop)
    epochs: tuple[Epoch, ...]
    seconds: float  # of training, however often it was killed and went on, and of judging
    device: str
    validation: dict[str, AttributeMetrics]
    test: dict[str, AttributeMetrics]
    test_values: dict[str, ValuesMetrics] = Field(
        default_factory=dict, description="by attribute, on test; empty: of a version from before they were counted"
    )
    not_learnt: dict[str, str] = Field(default_factory=dict, description="attribute: why; they count in no mean")
    promise: Promise | None = None  # on test
    picture_evidence: dict[str, float] = Field(
        default_factory=dict,
        description="attribute: weight of what the picture alone says (cma_clip_core.evaluation.picture_evidence)",
    )
