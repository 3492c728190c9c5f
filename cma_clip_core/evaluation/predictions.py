"""Predictions of a method for the products that have a value of one attribute; all metrics and thresholds derive from them.

They include products whose value the taxonomy does not list, without a target. Precision counts any answer for such a
product as wrong, because it is promised for the catalog as it is. Such a product is not a positive of a recall, and
metrics that need a target leave it out: accuracy, F1 and calibration.

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


LIKELY = 0.5  # a value of a multi-valued attribute is predicted at this probability or more, or if it is the best


@dataclass(slots=True)
class Predictions:
    """Predictions of one method for one attribute on one side of the split. Rows are products, in no defined order."""

    attribute: Attribute
    products: Names  # [n] str, product ids
    families: npt.NDArray[np.int64]  # [n], product families, the units of the bootstrap
    logits: Floats  # [n, C]; uncalibrated probabilities are their softmax, or sigmoid for a multi-valued attribute
    targets: Bools  # [n, C], True at the listed values of a product; all False if it has unlisted values only
    # [n, C], bits of the text fields that name a true value (cma_clip_core.catalog.label_mentions)
    named: npt.NDArray[np.uint8]
    lambdas: Floats  # [n, 2], modality-wise attention on text and picture

    @classmethod
    def empty(cls, attribute: Attribute) -> Predictions:
        """Return predictions without any product."""
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
        """The products [n] bool that have a listed value."""
        return np.asarray(self.targets.any(axis=1))

    def with_target(self) -> Predictions:
        """Return the predictions of the products that have a listed value."""
        listed = self.has_target
        return self if listed.all() else self.take(listed)

    def silent(self, text_fields: Sequence[str]) -> Bools:
        """Return the true values [n, C] bool that none of `text_fields` names."""
        silent: Bools = self.targets & ((self.named & np.uint8(field_bits(text_fields))) == 0)
        return silent

    def take(self, rows: npt.NDArray[np.int64] | Bools) -> Predictions:
        """Return the predictions of some of the products."""
        return Predictions(self.attribute, *(getattr(self, f.name)[rows] for f in fields(self)[1:]))

    def to_bytes(self) -> bytes:
        """Return the predictions, without the attribute, as an NPZ file."""
        buffer = io.BytesIO()
        columns = {f.name: getattr(self, f.name) for f in fields(self)[1:]}
        columns["products"] = columns["products"].astype(np.str_)
        np.savez_compressed(buffer, **columns)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, attribute: Attribute, data: bytes) -> Predictions:
        """Read the output of `to_bytes`. No code in it is run."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
        columns["products"] = columns["products"].astype(object)
        return cls(attribute, **columns)


def join(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions of several sets of products for one attribute as one object."""
    columns = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Predictions)[1:]}
    return Predictions(parts[0].attribute, **columns)
