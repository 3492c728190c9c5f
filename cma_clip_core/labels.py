"""The catalog's labels as arrays: the one place that says what counts as a label. Loads no torch.

Letters of shapes: n products, K attributes, C classes of all attributes, in the taxonomy's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cma_clip_core.errors import DataError
from schemas.taxonomy import Taxonomy

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LabelRows:
    """What the catalog says of some products."""

    targets: Bools  # [n, C], True at the values a product has
    labelled: Bools  # [n, K], False where the catalog gives no value, or the attribute does not apply
    left_out: Bools  # [n, K], True where the catalog gives a value of an attribute that does not apply


class LabelReader:
    """Reads labels as an example has them.

    A label of an attribute that does not apply to the product's labelled article type is not a label: nobody asks for
    that value, and it is mostly a slip of the catalog. Of a product without an article type those attributes apply
    that apply to all.
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

    def read(self, labels: Iterable[Iterable[tuple[str, Sequence[str]]]]) -> LabelRows:
        """Return labels, for each product its attribute names with their values, as arrays.

        Raises:
            DataError: a label is not in the taxonomy.
        """
        rows = list(labels)
        targets = np.zeros((len(rows), self._starts[-1]), dtype=np.bool_)
        given = np.zeros((len(rows), len(self._attributes)), dtype=np.bool_)
        applies = np.zeros_like(given)
        for row, pairs in enumerate(rows):
            article_type = None
            for name, values in pairs:
                if name not in self._attributes:
                    raise DataError(f"an example has a label of {name!r}, which is no attribute of this taxonomy")
                k, index = self._attributes[name]
                for value in values:
                    if value not in index:
                        raise DataError(f"an example has the label {name} = {value!r}, which is not in this taxonomy")
                    targets[row, self._starts[k] + index[value]] = True
                given[row, k] = bool(values)
                if name == self._article_type and values:
                    article_type = values[0]
            applies[row] = self._applies[article_type]
        targets &= applies[:, self._attribute_of]
        return LabelRows(targets, given & applies, given & ~applies)
