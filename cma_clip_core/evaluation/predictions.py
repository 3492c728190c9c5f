"""What a method says of the products that have a value of one attribute: all metrics and thresholds are made from it.

A product whose value the taxonomy does not list is among them, without a target: whatever a method says of it is wrong
where precision is measured, since that is promised of the catalog as it is. It is no positive of a recall, and it is left
out of what needs a target: accuracy, F1, calibration.

Letters of shapes: n products with a value, C values of the attribute.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from cma_clip_core.arrays import Bools, Floats
from cma_clip_core.catalog.label_mentions import field_bits
from cma_clip_core.model.confidence import probabilities
from schemas.taxonomy import Attribute

Names = npt.NDArray[np.object_]


LIKELY = 0.5  # a value of a multi-valued attribute is predicted from this probability on, or where it is the best


@dataclass(slots=True)
class Predictions:
    """One method, one attribute, one side of the split. Rows are products, in no promised order."""

    attribute: Attribute
    products: Names  # [n] str, product ids
    families: npt.NDArray[np.int64]  # [n], product families: what a bootstrap draws
    logits: Floats  # [n, C]; their softmax, of a multi-valued attribute their sigmoid, is the uncalibrated probability
    targets: Bools  # [n, C], True at the listed values a product has; a product of unlisted values alone has none
    named: npt.NDArray[
        np.uint8
    ]  # [n, C], bits of the text fields that name a true value (cma_clip_core.catalog.label_mentions)
    lambdas: Floats  # [n, 2], modality-wise attention on text and picture

    @classmethod
    def empty(cls, attribute: Attribute) -> Predictions:
        """Return the predictions of no products."""
        c = len(attribute.values)
        return cls(
            attribute, np.zeros(0, object), np.zeros(0, np.int64), np.zeros((0, c), np.float32),
            np.zeros((0, c), np.bool_), np.zeros((0, c), np.uint8), np.zeros((0, 2), np.float32),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.products)

    def probabilities(self, temperature: float = 1.0) -> Floats:
        """Return each value's probability [n, C], calibrated by the attribute's temperature."""
        return probabilities(self.logits, self.attribute.multi_valued, temperature)

    @property
    def has_target(self) -> Bools:
        """Which products [n] have a listed value."""
        return np.asarray(self.targets.any(axis=1))

    def with_target(self) -> Predictions:
        """Return the predictions of the products that have a listed value."""
        listed = self.has_target
        return self if listed.all() else self.take(listed)

    def silent(self, text_fields: Sequence[str]) -> Bools:
        """Return which true values [n, C] none of `text_fields` names."""
        silent: Bools = self.targets & ((self.named & np.uint8(field_bits(text_fields))) == 0)
        return silent

    def take(self, rows: npt.NDArray[np.int64] | Bools) -> Predictions:
        """Return the predictions of some of the products."""
        return Predictions(self.attribute, *(getattr(self, f.name)[rows] for f in fields(self)[1:]))

    def to_bytes(self) -> bytes:
        """Return the predictions, the attribute aside, as an NPZ file."""
        buffer = io.BytesIO()
        columns = {f.name: getattr(self, f.name) for f in fields(self)[1:]}
        columns["products"] = columns["products"].astype(np.str_)
        np.savez_compressed(buffer, **columns)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, attribute: Attribute, data: bytes) -> Predictions:
        """Return what `to_bytes` gave. No code in it is run."""
        with np.load(io.BytesIO(data), allow_pickle=False) as columns:
            found = {name: columns[name] for name in columns.files}
        found["products"] = found["products"].astype(object)
        return cls(attribute, **found)


def join(parts: Sequence[Predictions]) -> Predictions:
    """Return predictions of one attribute, of different products, as one."""
    columns = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Predictions)[1:]}
    return Predictions(parts[0].attribute, **columns)
