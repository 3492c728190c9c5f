"""Parser of raw JSON lines into typed columns; a note records every line and field that cannot be read.

Python's own JSON reader parses the lines inside Spark's tasks. Spark's reader loses types (a numeric title silently becomes
text) and takes the first of several values on a line for the whole line.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from jobs.lake import parquet, storage
from jobs.lake.storage import AnyPath
from jobs.records import label_forms
from jobs.records.fields import BLANK, READERS, TEXT_START, FieldError, described, read_time, whole
from jobs.records.json_objects import NameTwiceError, unique
from jobs.records.rejected_lines import read_rejected
from jobs.validation.field_rules import FieldRules
from schemas.tables import LABELS, NOTES, TIMESTAMP

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_LINE: Final = pa.schema(
    [
        ("raw", pa.binary()),
        ("source_file", pa.string()),
        ("block", pa.int64()),
        ("position", pa.int64()),
    ]
)
# The rule tables in schemas/rules name these columns.
PARSED: Final = pa.schema(
    [
        *_LINE,
        ("line_error", pa.string()),
        *[(name, pa.float64() if name == "price" else pa.string()) for name in READERS],
        ("image_uris", pa.list_(pa.string())),
        ("updated", TIMESTAMP),
        ("labels", LABELS),
        ("mistyped_labels", pa.map_(pa.string(), pa.string())),
        ("content", pa.string()),
        ("notes", NOTES),
        ("digest", pa.binary()),
        ("source_hash", pa.string()),
    ]
)
_ID_WORD: Final = "[A-Za-z0-9][A-Za-z0-9_:@.-]*"  # the characters of an id (schemas/rules/default.yaml)
_SEARCHED: Final = 2**20  # bytes of a line in which an id is searched
_SHOWN: Final = 200  # characters of a label of a wrong type
_PICTURES: Final = 1_000  # pictures of one product
_NOTE: Final = 300  # characters of a note
_NO_RULES: Final = FieldRules()
FIRST_OF_SEVERAL: Final = "first_of_several"  # the start of the note on the first of a record's several pictures


def read_lines(spark: SparkSession, files: Sequence[AnyPath]) -> DataFrame:
    """Return the lines of `files`: raw (binary), source_file, and block and position, which order the lines of a file."""
    from pyspark.sql import functions as F

    lines = spark.read.text([storage.spark_uri(file) for file in files])
    return lines.select(
        F.col("value").cast("binary").alias("raw"),
        F.col("_metadata.file_name").alias("source_file"),
        F.col("_metadata.file_block_start").alias("block"),
        F.monotonically_increasing_id().alias("position"),
    )


def rejected_ids(quarantine: DataFrame) -> DataFrame:
    """Return the distinct ids of the products that rejected lines are about, or may be about.

    If the id of a line could not be read, every word that could be an id counts. The position of the id is
    unknown, and a wrong word names no product.
    """
    from pyspark.sql import functions as F

    # Latin-1 reads any bytes, and the words are ASCII.
    text = F.decode(F.substring("raw", 1, _SEARCHED), "ISO-8859-1")
    words = F.explode(F.regexp_extract_all(text, F.lit(_ID_WORD), F.lit(0)))
    read = quarantine.where("product_id is not null").select("product_id")
    shown = quarantine.where("product_id is null").select(words.alias("product_id"))
    return read.union(shown).distinct()


def parse(lines: DataFrame, folder: AnyPath, rules: FieldRules) -> DataFrame:
    """Write the non-blank `lines`, with the columns of `PARSED`, as files in `folder`, and return them."""
    return parquet.write_parts(lines, folder, PARSED, functools.partial(_parse_batches, rules))


def _parse_batches(rules: FieldRules, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        lines = batch.column("raw").to_pylist()
        if not all(map(bytes.strip, lines)):
            batch = batch.filter(pa.array([bool(line.strip()) for line in lines], pa.bool_()))
            lines = batch.column("raw").to_pylist()
        rows = [parse_line(line, rules) for line in lines]
        columns = [pa.array([row["raw"] for row in rows], pa.binary())]
        columns += [batch.column(name) for name in _LINE.names[1:]]
        columns += [pa.array([row.get(f.name) for row in rows], f.type) for f in list(PARSED)[len(_LINE) :]]
        yield pa.RecordBatch.from_arrays(columns, schema=PARSED)


def parse_line(line: bytes, rules: FieldRules = _NO_RULES) -> dict[str, Any]:
    """Return the columns of one raw line; an absent column is null.

    ``line_error`` says why the line is not a record: bad_utf8, not_json, name_twice, not_object, or import's reason. The
    note ``line`` says it for people. A field that cannot be read, or breaks a rule that clears it, is null; ``notes``
    gives the rule and the content. A string of only blanks and invisible characters is null.
    """
    if (rejected := read_rejected(line)) is not None:
        return _no_record(rejected.raw, rejected.reason, rejected.note)
    try:
        record = _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        return _no_record(line, "bad_utf8", f"byte {line[error.start]:#04x} at {error.start + 1:,} is not UTF-8")
    except NameTwiceError as error:
        return _no_record(line, "name_twice", str(error))
    except json.JSONDecodeError as error:
        return _no_record(line, "not_json", f"{error.msg} at character {error.pos + 1:,}")
    except (ValueError, RecursionError):
        return _no_record(line, "not_json", "nested too deeply")
    if not isinstance(record, dict):
        return _no_record(line, "not_object", f"{described(record)} where an object should be")
    row: dict[str, Any] = {"raw": line}
    notes: dict[str, str] = {}
    for name, read in READERS.items():
        if (value := record.get(name)) is None:
            continue
        try:
            row[name] = read(value)
            if name == "updated_at" and row[name] is not None:
                row["updated"] = read_time(row[name])
        except FieldError as error:
            row[name] = None
            notes[name] = rules.note(name, error.description)
    row["image_uris"] = _picture_list(record)
    pictures = record.get("image_uri")
    if isinstance(pictures, list) and len(pictures) > 1 and row["image_uri"] is not None:
        notes["image_uri"] = f"{FIRST_OF_SEVERAL}: {described(pictures)}"
    attributes = record.get("attributes")
    if not isinstance(attributes, dict):
        if attributes not in (None, [], ""):
            notes["attributes"] = rules.note("attributes", described(attributes))
        attributes = {}
    rules.clear(row, notes)
    # Only an escape can write half of a surrogate pair.
    row["labels"], row["mistyped_labels"] = _labels(attributes, whole if b"\\u" in line else str)
    row["content"] = _content(row)
    if (
        notes
        and row["content"] is None
        and (lost := [name for name in ("title", "description", "image_uri") if name in notes])
    ):
        notes["content"] = rules.note("content", ", ".join(lost))
    row["notes"] = [(name, whole(note)[:_NOTE]) for name, note in notes.items()]
    row["digest"] = hashlib.blake2b(line, digest_size=16).digest()
    row["source_hash"] = _source_hash(row)
    return row


def _no_record(raw: bytes, reason: str, detail: str) -> dict[str, Any]:
    return {"raw": raw, "line_error": reason, "notes": [("line", whole(f"{reason}: {detail}")[:_NOTE])]}


_DIGITS: Final = 309  # the digits of the largest float


def _integer(digits: str) -> int | float:
    """Return the number, or infinity if it is too large: Python refuses to read thousands of digits."""
    return int(digits) if len(digits) <= _DIGITS else float(digits)


_ENCODER: Final = json.JSONEncoder(check_circular=False)
_DECODER: Final = json.JSONDecoder(object_pairs_hook=unique, parse_int=_integer)


def _labels(
    attributes: dict[str, Any], repair: Callable[[str], str]
) -> tuple[list[tuple[str, list[str]]], list[tuple[str, str]]]:
    """Return the readable labels (`label_forms.read_value`), each as its texts, and the others as JSON.

    Args:
        repair: turns a text into one that UTF-8 can encode.
    """
    labels: list[tuple[str, list[str]]] = []
    mistyped: list[tuple[str, str]] = []
    for name, value in attributes.items():
        if isinstance(value, str):
            labels.append((repair(name), [repair(value)]))
            continue
        try:
            texts = label_forms.read_value(value, name)
        except label_forms.UnreadableError:
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            mistyped.append((repair(name), repair(text)[:_SHOWN]))
        else:
            if texts:
                labels.append((repair(name), [repair(text) for text in texts]))
    return labels, mistyped


def _content(row: dict[str, Any]) -> str | None:
    """Return the content to tag: the start of the texts, otherwise the picture's URI."""
    start = " ".join(text[:TEXT_START] for name in ("title", "description") if (text := row.get(name)))
    uri: str | None = row.get("image_uri")
    return start if not BLANK.fullmatch(start) else uri


def _picture_list(record: dict[str, Any]) -> list[str] | None:
    """Return the URIs of a record with several pictures, in order; None if it has one, or a list that is none of URIs."""
    uris = record.get("image_uris")
    if not isinstance(uris, list) or not all(isinstance(uri, str) for uri in uris):
        return None
    return [whole(uri) for uri in uris] if 1 < len(uris) <= _PICTURES else None


def _source_hash(row: dict[str, Any]) -> str:
    """Return the hash of everything that a prediction and its row depend on: texts, picture identity, labels."""
    texts = [row.get(name) for name in ("title", "brand", "description", "image_uri", "image_version")]
    several = [row["image_uris"]] if row.get("image_uris") else []
    return hashlib.sha256(_ENCODER.encode([texts, sorted(row["labels"]), *several]).encode()).hexdigest()[:32]
