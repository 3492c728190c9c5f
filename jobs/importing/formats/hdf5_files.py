"""Reader of HDF5 by h5py, in the layout of Fashion-Gen: a dataset is a column, its n-th entry belongs to the n-th record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import h5py
import numpy as np

from jobs.importing.formats.observations import Observations, StructureError
from jobs.importing.formats.sources import LINE_START, MAX_LINE, Source
from jobs.records.json_values import json_value
from jobs.records.rejected_lines import RejectedLine
from schemas.mapping import Mapping

Json: TypeAlias = Any

_BATCH: Final = 1024  # rows in memory at once
_ENTRY: Final = 4096  # bytes of an entry of fixed size, more: a picture or an embedding, which is only named


def read_hdf5(source: Source, mapping: Mapping, observations: Observations) -> Iterator[dict[str, Json] | RejectedLine]:
    """Yield each record. A picture is given by its name in `Hdf5Pictures`: ``input_image/17.png``.

    Raises:
        StructureError: the file is not HDF5, is damaged, or has no datasets of one length.
    """
    with source.seekable() as path:
        try:
            with h5py.File(path, "r") as file:
                yield from _rows(_datasets(file, mapping, observations), source, mapping, observations)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None and not path.exists():
                raise
            reason = " ".join(str(error).split())[:200]
            raise StructureError(
                f"truncated or damaged HDF5 ({reason}); nothing was imported: copy the file again, or export it again"
            ) from error


def _datasets(file: h5py.File, mapping: Mapping, observations: Observations) -> dict[str, h5py.Dataset]:
    """Return the datasets that are columns: those that have an entry for each record."""
    datasets: dict[str, h5py.Dataset] = {}

    def visit(name: str, node: object) -> None:
        # Links, also those to other files, are not visited.
        if isinstance(node, h5py.Dataset) and node.shape and not node.external and not node.is_virtual:
            datasets[name.replace("/", ".")] = node

    file.visititems(visit)
    if not datasets:
        raise StructureError(
            "an HDF5 file without datasets; nothing was imported: export the records as CSV or Parquet"
        )
    lengths = Counter(dataset.shape[0] for dataset in datasets.values())
    own = next((datasets[column] for column in mapping.id_columns if column in datasets), None)
    length = own.shape[0] if own is not None else max(lengths, key=lambda each: (lengths[each], each))
    if others := [name for name, dataset in datasets.items() if dataset.shape[0] != length]:
        observations.note(f"datasets of another length, not read: {', '.join(others[:10])[:200]}", len(others))
    return {name: dataset for name, dataset in datasets.items() if dataset.shape[0] == length}


def _rows(
    datasets: dict[str, h5py.Dataset], source: Source, mapping: Mapping, observations: Observations
) -> Iterator[dict[str, Json] | RejectedLine]:
    encoding = mapping.encoding or "utf-8"
    length = next(iter(datasets.values())).shape[0]
    for start in range(0, length, _BATCH):
        end = min(start + _BATCH, length)
        columns = {name: _column(dataset, start, end, encoding, observations) for name, dataset in datasets.items()}
        for index in range(end - start):
            observations.line = start + index + 1
            observations.count_row()
            record = {name: values[index] for name, values in columns.items()} | source.partitions
            if sum(len(value) for value in record.values() if isinstance(value, str)) > MAX_LINE:
                raw = str({name: str(value)[:100] for name, value in record.items()})[:LINE_START]
                detail = f"a row of more than {MAX_LINE:,} characters"
                yield observations.reject("line_too_long", detail, raw.encode(errors="replace"))
            else:
                yield record


def _column(dataset: h5py.Dataset, start: int, end: int, encoding: str, observations: Observations) -> list[Json]:
    entry = int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize
    texts = dataset.dtype.kind in "SO"
    if entry > (MAX_LINE if texts else _ENTRY):
        return [f"{dataset.name.strip('/')}/{index}.png" for index in range(start, end)]

    def convert(value: object) -> Json:
        if isinstance(value, bytes):
            value = _text(value.rstrip(b"\x00"), encoding, observations)
        elif isinstance(value, np.ndarray):
            value = [convert(each) for each in value.tolist()]
        if isinstance(value, list):
            values = [convert(each) for each in value]
            return values[0] if len(values) == 1 else values  # Fashion-Gen writes columns as n x 1
        return json_value(value.item() if isinstance(value, np.generic) else value, observations.note)

    step = max(1, (64 * 2**20) // max(entry, 1))
    values: list[Json] = []
    for first in range(start, end, step):
        values.extend(convert(value) for value in dataset[first : min(first + step, end)])
    return values


def _text(value: bytes, encoding: str, observations: Observations) -> str:
    try:
        return value.decode(encoding)
    except UnicodeDecodeError:
        observations.note("texts that are not UTF-8, read as cp1252")
        return value.decode("cp1252", errors="replace")
