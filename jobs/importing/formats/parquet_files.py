"""Reader of Parquet by pyarrow, in batches of bounded memory. Names of Hive partition folders become columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.importing.formats.observations import Observations, StructureError
from jobs.importing.formats.sources import LINE_START, MAX_LINE, Source
from jobs.records.json_values import TooDeepError, json_value
from jobs.records.rejected_lines import RejectedLine

Json: TypeAlias = Any

_BATCH: Final = 1024  # rows in memory at once
_BUFFER: Final = 2**20  # bytes that are read at once from a column
_PLAIN: Final = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string)


def read_parquet(source: Source, observations: Observations) -> Iterator[dict[str, Json] | RejectedLine]:
    """Yield each row as a record; a row with a value of more than MAX_LINE bytes as a rejected line.

    Raises:
        StructureError: the file is not Parquet, is damaged, or is encrypted.
    """
    with source.seekable() as path:
        try:
            with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, read_dictionary=_texts(path)) as file:
                names = file.schema_arrow.names
                for batch in file.iter_batches(batch_size=_BATCH):
                    yield from _rows(batch, names, source, observations)
        except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = " ".join(str(error).split())[:200]
            raise StructureError(
                f"truncated or damaged Parquet ({reason}); nothing was imported: copy the file again, or export it again"
            ) from error


def _texts(path: Any) -> list[str]:
    """Return the columns of texts. They are read as dictionaries, so that a repeated text is in memory once."""
    schema = pq.read_schema(path)
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return [field.name for field in schema if any(kind(field.type) for kind in kinds)]


def _rows(
    batch: pa.RecordBatch, names: list[str], source: Source, observations: Observations
) -> Iterator[dict[str, Json] | RejectedLine]:
    large = batch.nbytes > MAX_LINE
    columns = [_values(column, observations) for column in batch.columns]
    partitions = {name: value for name, value in source.partitions.items() if name not in names}
    for values in zip(*columns, strict=True) if columns else [()] * batch.num_rows:
        observations.line += 1
        observations.count_row()
        if any(each is TooDeepError for each in values):
            yield _reject("nested_too_deeply", "a value that is nested too deeply", names, values, observations)
        elif large and sum(len(each) for each in values if isinstance(each, str)) > MAX_LINE:
            detail = f"a row of more than {MAX_LINE:,} characters"
            yield _reject("line_too_long", detail, names, values, observations)
        else:
            yield dict(zip(names, values, strict=True)) | partitions


def _values(column: pa.Array, observations: Observations) -> list[Json]:
    """Return a column's values. All rows share a dictionary's value."""
    if pa.types.is_dictionary(column.type):
        values = _values(column.dictionary, observations)
        return [None if index is None else values[index] for index in column.indices.to_pylist()]
    if any(kind(column.type) for kind in _PLAIN):
        return _list(column)
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)

    def convert(value: object) -> Json:
        try:
            return json_value(value, observations.note)
        except TooDeepError:
            return TooDeepError

    return [convert(value) for value in _list(column)]


def _list(column: pa.Array) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:  # a text of bytes that are not UTF-8
        return [
            value.decode(errors="replace") if value is not None else None
            for value in column.cast(pa.binary()).to_pylist()
        ]


def _reject(
    reason: str, detail: str, names: list[str], values: tuple[Json, ...], observations: Observations
) -> RejectedLine:
    start = ", ".join(f"{name}: {str(value)[:100]}" for name, value in zip(names, values, strict=True))
    return observations.reject(reason, detail, start[:LINE_START].encode(errors="replace"))
