"""Forecast of what a number of labels is enough for: learning an attribute, and promising a precision."""

from __future__ import annotations

import math

from cma_clip_core.config import SelectionConfig
from cma_clip_core.evaluation.choose_thresholds import fewest_right

_SELECTION = SelectionConfig()


def labels_to_learn() -> int:
    """Return about how many labelled products an attribute needs, so that enough of them are on the training side."""
    share = 1 - _SELECTION.validation_share - _SELECTION.test_share
    return math.ceil(_SELECTION.least_labels / share)


def labels_to_promise(precision: float) -> int:
    """Return about how many labelled products a promised precision needs at least, if all answers held back are right."""
    return math.ceil(fewest_right(precision, _SELECTION.promise_confidence) / _SELECTION.validation_share)


def statement(labels: int, values: int, precision: float) -> str:
    """Return in words what an attribute's labels are enough for.

    Args:
        labels: labelled products.
        values: values with at least one label.
        precision: precision to promise.
    """
    learn, promise = labels_to_learn(), labels_to_promise(precision)
    if values < 2:
        return f"{labels:,} labels of one value: nothing to learn"
    if labels < learn:
        return f"{labels:,} labels: too few to learn; about {learn} are needed"
    if labels < promise:
        return (
            f"{labels:,} labels: can be learnt; a precision of {precision:.0%} can be promised from about {promise:,} labels, "
            "more if the model errs"
        )
    return (
        f"{labels:,} labels: can be learnt; a precision of {precision:.0%} can be promised (from about {promise:,} labels, more "
        "if the model errs)"
    )
