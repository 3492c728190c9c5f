"""Raw JSON lines to typed columns, with nothing lost: what does not parse or has a wrong type says so.

The lines are parsed inside Spark's tasks by Python's own JSON reader. Spark's keeps no wrong type (a title that is a
number becomes text without a word) and takes the first of several values on a line for the whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from jobs import label_forms, parquet, storage
from jobs.storage import Place
from schemas.tables import LABELS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

STRINGS: Final = ("product_id", "title", "brand", "description", "image_uri", "image_version", "updated_at")
_LINE: Final = pa.schema(
    [
        ("raw", pa.binary()),
        ("source_file", pa.string()),
        ("block", pa.int64()),
        ("position", pa.int64()),
    ]
)
# The rules of schemas/rules name these columns.
PARSED: Final = pa.schema(
    [
        *_LINE,
        ("line_error", pa.string()),
        ("wrong_types", pa.string()),
        *[(name, pa.string()) for name in STRINGS],
        ("price", pa.float64()),
        ("labels", LABELS),
        ("mistyped_labels", pa.map_(pa.string(), pa.string())),
        ("content", pa.string()),
        ("source_hash", pa.string()),
    ]
)
# Blanks, control and invisible characters: a text of these alone is no text.
_BLANK: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]*")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
# `content` only has to tell blank from given: a look at the start of each text is enough, whatever its length.
_TEXT_START: Final = 2000
_ID_WORD: Final = "[A-Za-z0-9][A-Za-z0-9_:@.-]*"  # what an id may look like (schemas/rules/default.yaml)
_SEARCHED: Final = 2**20  # bytes of a line that are searched for an id
_SHOWN: Final = 200  # characters of a label of a wrong type


def read_lines(spark: SparkSession, files: Sequence[Place]) -> DataFrame:
    """Return the lines of `files`: raw (binary), source_file, and block, position, which order a file's lines."""
    from pyspark.sql import functions as F

    lines = spark.read.text([storage.spark_uri(file) for file in files])
    return lines.select(
        F.col("value").cast("binary").alias("raw"),
        F.col("_metadata.file_name").alias("source_file"),
        F.col("_metadata.file_block_start").alias("block"),
        F.monotonically_increasing_id().alias("position"),
    )


def rejected_ids(quarantine: DataFrame) -> DataFrame:
    """Return product_id, once each: the products that the rejected lines are about, or may be about.

    Of a line whose id could not be read, that is every word in it that could be one: the id is in whatever column the
    shop has for it, and a wrong word names no product.
    """
    from pyspark.sql import functions as F

    # Latin-1 reads any bytes, and the words are ASCII.
    text = F.decode(F.substring("raw", 1, _SEARCHED), "ISO-8859-1")
    words = F.explode(F.regexp_extract_all(text, F.lit(_ID_WORD), F.lit(0)))
    read = quarantine.where("product_id is not null").select("product_id")
    shown = quarantine.where("product_id is null").select(words.alias("product_id"))
    return read.union(shown).distinct()


def parse(lines: DataFrame, folder: Place) -> DataFrame:
    """Return the non-blank `lines` with the record's columns beside them, those of `PARSED`, as files in `folder`."""
    return parquet.write_parts(lines, folder, PARSED, _parse_batches)


def _parse_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        lines = batch.column("raw").to_pylist()
        if not all(map(bytes.strip, lines)):
            batch = batch.filter(pa.array([bool(line.strip()) for line in lines], pa.bool_()))
            lines = batch.column("raw").to_pylist()
        rows = [parse_line(raw) for raw in lines]
        columns = [batch.column(name) for name in _LINE.names]
        columns += [pa.array([row.get(f.name) for row in rows], f.type) for f in list(PARSED)[len(_LINE) :]]
        yield pa.RecordBatch.from_arrays(columns, schema=PARSED)


def parse_line(raw: bytes) -> dict[str, Any]:
    """Return the columns of one raw line; one that is absent is null.

    ``line_error`` says why the line is no record: bad_utf8, not_json, not_object; ``wrong_types`` names the fields whose
    JSON type is not the record's. A string of blanks and invisible characters alone is null.
    """
    try:
        record = _DECODER.decode(raw.decode())
    except UnicodeDecodeError:
        return {"line_error": "bad_utf8"}
    except (ValueError, RecursionError):
        return {"line_error": "not_json"}
    if not isinstance(record, dict):
        return {"line_error": "not_object"}
    row: dict[str, Any] = {}
    wrong = []
    for name in STRINGS:
        value = record.get(name)
        if isinstance(value, str):
            row[name] = _text(value)
        elif value is not None:
            wrong.append(name)
    row["price"], right = _number(record.get("price"))
    if not right:
        wrong.append("price")
    attributes = record.get("attributes")
    if not isinstance(attributes, dict):
        if attributes is not None:
            wrong.append("attributes")
        attributes = {}
    row["wrong_types"] = ", ".join(wrong) or None
    row["labels"], row["mistyped_labels"] = _labels(attributes)
    row["content"] = _content(row)
    row["source_hash"] = _source_hash(row)
    return row


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the JSON object of `pairs`. Raises ValueError where a name is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice: which of the two values is meant is not known")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=unique, parse_constant=_refuse)


def _whole(value: str) -> str:
    """Return `value` as text that UTF-8 can carry: half of a surrogate pair, which JSON can write, becomes U+FFFD."""
    return value if value.isascii() else _LONE_SURROGATE.sub("\ufffd", value)


def _text(value: str) -> str | None:
    value = _whole(value).strip(" ")
    return None if _BLANK.fullmatch(value, 0, _TEXT_START) else value


def _number(value: object) -> tuple[float | None, bool]:
    """Return the number, and whether the value's type is right."""
    if value is None:
        return None, True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, False
    try:
        return float(value), True
    except OverflowError:
        return None, False


def _labels(attributes: dict[str, Any]) -> tuple[list[tuple[str, list[str]]], list[tuple[str, str]]]:
    """Return the labels that can be read (`label_forms.read_value`), each as its texts, and the others as JSON."""
    labels: list[tuple[str, list[str]]] = []
    mistyped: list[tuple[str, str]] = []
    for name, value in attributes.items():
        if isinstance(value, str):
            labels.append((_whole(name), [_whole(value)]))
            continue
        try:
            texts = label_forms.read_value(value, name)
        except label_forms.UnreadableError:
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            mistyped.append((_whole(name), _whole(text)[:_SHOWN]))
        else:
            if texts:
                labels.append((_whole(name), [_whole(text) for text in texts]))
    return labels, mistyped


def _content(row: dict[str, Any]) -> str | None:
    """Return what there is to tag: the start of the texts, else the picture's URI."""
    start = " ".join(text[:_TEXT_START] for name in ("title", "description") if (text := row.get(name)))
    return start if not _BLANK.fullmatch(start) else row.get("image_uri")


def _source_hash(row: dict[str, Any]) -> str:
    """Return the hash of all that a prediction and its row depend on: texts, picture identity, labels."""
    texts = [row.get(name) for name in ("title", "brand", "description", "image_uri", "image_version")]
    return hashlib.sha256(json.dumps([texts, sorted(row["labels"])]).encode()).hexdigest()[:32]
