"""The rows of a labelled set: batches read from the examples, rows of the table, and counts of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cma_clip_core.catalog.examples import ExampleIndex, read_rows
from cma_clip_core.catalog.label_mentions import TEXT_FIELDS, Fields, SpokenFinder
from cma_clip_core.catalog.labels import LabelReader, LabelRows
from cma_clip_core.catalog.splits import SIDES
from cma_clip_core.content.paths import AnyPath, open_parquet
from cma_clip_core.model_documents import LabelCount
from jobs.lake.layout import Lake
from schemas.tables import LABELLED
from schemas.taxonomy import Taxonomy

_ROWS: Final = 2048  # read at a time
_COLUMNS: Final = ("product_id", "source_hash", *TEXT_FIELDS, "labels")


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """Consecutive products of the set. Letters: n products, K attributes, C classes of all attributes."""

    first: int  # position of the first product in the index
    examples: pa.RecordBatch  # columns `_COLUMNS`
    texts: list[tuple[str, str, str]]  # title, brand, description of each
    labels: LabelRows
    named: Fields  # [n, C], the text fields that name each label


def read_batches(taxonomy: Taxonomy, index: ExampleIndex) -> Iterator[LabelledBatch]:
    """Yield the texts and labels of the examples, in the order of `index`, a few thousand at a time."""
    reader, spoken = LabelReader(taxonomy), SpokenFinder(taxonomy)
    first = 0
    for number, path in enumerate(index.files):
        keep = index.row[index.file == number]
        for examples in read_rows(path, keep, _COLUMNS, _ROWS) if len(keep) else ():
            texts = list(zip(*(examples.column(name).to_pylist() for name in TEXT_FIELDS), strict=True))
            labels = reader.read(examples.column("labels").to_pylist())
            yield LabelledBatch(first, examples, texts, labels, spoken.find(texts, labels.targets))
            first += len(texts)


class TableRows:
    """A converter from labelled products to rows of the table."""

    def __init__(self, lake: Lake, taxonomy: Taxonomy, index: ExampleIndex) -> None:
        self._files = [lake.relative(path) for path in index.files]
        self._index = index
        self._classes = [
            (attribute.name, value) for attribute in taxonomy.attributes for value in attribute.value_names
        ]
        self._article_type = taxonomy.article_type

    def convert(self, batch: LabelledBatch) -> pa.RecordBatch:
        """Return the rows of some products, with the columns of LABELLED."""
        index, n = self._index, len(batch.texts)
        positions = range(batch.first, batch.first + n)
        labels = [self._labels(batch, row) for row in range(n)]
        types = [next((x["value"] for x in given if x["attribute"] == self._article_type), None) for given in labels]
        columns = {
            "product_id": batch.examples.column("product_id"),
            "source_hash": batch.examples.column("source_hash"),
            "example_file": [self._files[index.file[position]] for position in positions],
            "example_row": index.row[batch.first : batch.first + n],
            "family": index.family[batch.first : batch.first + n],
            "side": [SIDES[index.side[position]] for position in positions],
            "article_type": types,
            "labels": labels,
        }
        return pa.RecordBatch.from_pydict({name: columns[name] for name in LABELLED.names}, schema=LABELLED)

    def _labels(self, batch: LabelledBatch, row: int) -> list[dict[str, object]]:
        labels: list[dict[str, object]] = []
        for c in np.flatnonzero(batch.labels.targets[row]):
            attribute, value = self._classes[c]
            named_in = [field for bit, field in enumerate(TEXT_FIELDS) if batch.named[row, c] >> bit & 1]
            labels.append({"attribute": attribute, "value": value, "named_in": named_in})
        return labels


def count_labels_of_sides(table: AnyPath, lake: Lake, index: ExampleIndex) -> dict[str, dict[str, LabelCount]]:
    """Return the number of labels, and of silent ones, by attribute and side.

    Args:
        table: the table of the labelled set.
        lake: the lake, to which the table's paths of example files are relative.
        index: the products to count: all of the set, or a sample.
    """
    tally: Counter[tuple[str, str, bool]] = Counter()
    wanted = {lake.relative(path): index.row[index.file == number] for number, path in enumerate(index.files)}
    with open_parquet(table) as file:
        for batch in file.iter_batches(columns=["example_file", "example_row", "side", "labels"]):
            files, rows = (
                batch.column("example_file").to_numpy(zero_copy_only=False),
                batch.column("example_row").to_numpy(),
            )
            keep = np.zeros(len(rows), dtype=np.bool_)
            for name in set(files):
                keep |= (files == name) & np.isin(rows, wanted[name])
            batch = batch.filter(pa.array(keep))
            labels = batch.column("labels")
            flat = labels.flatten()
            sides = batch.column("side").take(pc.list_parent_indices(labels))
            silent = pc.equal(pc.list_value_length(flat.field("named_in")), 0)
            columns = (sides.to_pylist(), flat.field("attribute").to_pylist(), silent.to_pylist())
            tally.update(zip(*columns, strict=True))
    counts: dict[str, dict[str, LabelCount]] = {}
    for attribute, side in dict.fromkeys((attribute, side) for side, attribute, _ in tally):
        silent_ones = tally[side, attribute, True]
        counts.setdefault(attribute, {})[side] = LabelCount(
            labels=silent_ones + tally[side, attribute, False], silent=silent_ones
        )
    return counts
