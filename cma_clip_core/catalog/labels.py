"""The catalog's labels as arrays, with the only definition of what counts as a label. Loads no torch.

A value that the taxonomy does not list is not a label, because nothing can be learnt from it. It is not a gap either:
the product has a value, and any value of the model is wrong.

Letters of shapes: n products, K attributes, C classes of all attributes, in the taxonomy's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cma_clip_core.arrays import Bools
from cma_clip_core.errors import DataError
from schemas.taxonomy import Taxonomy

Pairs = Iterable[tuple[str, Sequence[str]]]  # a product's attribute names with their values


@dataclass(frozen=True, slots=True)
class LabelRows:
    """The catalog's values of some products."""

    targets: Bools  # [n, C], True at the listed values a product has
    labelled: Bools  # [n, K], False where the catalog gives no listed value, or the attribute does not apply
    unlisted: Bools  # [n, K], True where the attribute applies and the catalog gives unlisted values only
    gaps: Bools  # [n, K], True where the attribute applies and the catalog gives no value at all
    left_out: Bools  # [n, K], True where the catalog gives a value of an attribute that does not apply

    @property
    def given(self) -> Bools:
        """The mask [n, K] of applicable attributes for which the catalog gives a value, listed or not."""
        return self.labelled | self.unlisted


class LabelReader:
    """Converter of an example's labels into arrays.

    A value is not a label if its attribute does not apply to the product's labelled article type. Nobody needs such a
    value, and it is usually an error of the catalog. For a product without an article type, only the attributes that
    apply to all products count.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._article_type = taxonomy.article_type
        self._attributes = {a.name: (k, a.index) for k, a in enumerate(taxonomy.attributes)}
        sizes = [len(a.values) for a in taxonomy.attributes]
        self._starts = np.cumsum([0, *sizes]).tolist()
        self._attribute_of = np.repeat(np.arange(len(sizes)), sizes)  # [C]
        self._applies: dict[str | None, Bools] = {
            kind: np.array([a.name in taxonomy.applicable(kind) for a in taxonomy.attributes])
            for kind in (None, *taxonomy[taxonomy.article_type].value_names)
        }

    def read(self, labels: Iterable[Pairs], unlisted: Iterable[Pairs] | None = None) -> LabelRows:
        """Return the labels of n products as arrays.

        Args:
            labels: for each product its attribute names with their listed values.
            unlisted: the same products' values outside the taxonomy; None: there are none.

        Raises:
            DataError: a label is not in the taxonomy.
        """
        rows = list(labels)
        others: Iterable[Pairs] = [()] * len(rows) if unlisted is None else unlisted
        targets = np.zeros((len(rows), self._starts[-1]), dtype=np.bool_)
        given = np.zeros((len(rows), len(self._attributes)), dtype=np.bool_)
        applies, outside = np.zeros_like(given), np.zeros_like(given)
        for row, (pairs, words) in enumerate(zip(rows, others, strict=True)):
            article_type = None
            for name, values in pairs:
                if name not in self._attributes:
                    raise DataError(f"an example has a label of {name!r}, which is not an attribute of this taxonomy")
                k, index = self._attributes[name]
                for value in values:
                    if value not in index:
                        raise DataError(f"an example has the label {name} = {value!r}, which is not in this taxonomy")
                    targets[row, self._starts[k] + index[value]] = True
                given[row, k] = bool(values)
                if name == self._article_type and values:
                    article_type = values[0]
            for name, values in words:
                if name in self._attributes and values:
                    outside[row, self._attributes[name][0]] = True
            applies[row] = self._applies[article_type]
        targets &= applies[:, self._attribute_of]
        outside &= ~given
        any_value = given | outside
        return LabelRows(targets, given & applies, outside & applies, applies & ~any_value, any_value & ~applies)
