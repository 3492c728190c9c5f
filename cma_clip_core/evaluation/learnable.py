"""The rule that decides whether an attribute can be learnt, for training, the baseline, means and label errors.

Letters of shapes: C classes of all attributes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cma_clip_core.catalog.examples import ExampleIndex, stream_side
from cma_clip_core.inputs.batches import LabelEncoder
from cma_clip_core.model.class_layout import ClassLayout


def find_unlearnable(index: ExampleIndex, layout: ClassLayout, least_labels: int) -> dict[str, str]:
    """Return the attributes that cannot be learnt from the training side, each with the reason, as `unlearnable` does."""
    return unlearnable(count_labels(index, layout), layout, least_labels)


def count_labels(index: ExampleIndex, layout: ClassLayout) -> npt.NDArray[np.float64]:
    """Return the number of training products that have each value [C]."""
    encoder = LabelEncoder(layout)
    counts = np.zeros(layout.classes)
    for examples, _ in stream_side(index, "train", columns=("labels",)):
        counts += encoder.encode(examples.column("labels").to_pylist()).targets.sum(dim=0).numpy()
    return counts


def unlearnable(counts: npt.NDArray[np.float64], layout: ClassLayout, least_labels: int) -> dict[str, str]:
    """Return the attributes that cannot be learnt, each with the reason: too few labels, or all of one value.

    Args:
        counts: training products of each value [C].
        layout: the classes.
        least_labels: the fewest labels that an attribute can be learnt from.
    """
    reasons = {}
    for attribute, part in zip(layout.attributes, layout.slices, strict=True):
        labels, values = int(counts[part].sum()), int((counts[part] > 0).sum())
        if labels < least_labels:
            reasons[attribute.name] = f"it has {labels} training labels; at least {least_labels} are needed"
        elif values < 2:
            only = attribute.value_names[int(counts[part].argmax())]
            reasons[attribute.name] = f"all of its {labels} training labels are {only!r}"
    return reasons
