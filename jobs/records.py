"""Raw JSON lines to typed columns, in Spark, with nothing lost: what does not parse or has a wrong type says so.

JSON is read as Spark's variant type, which keeps each value's own type; `from_json` would turn a title that is a number
or an object into text without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

STRINGS: Final = ("product_id", "title", "brand", "description", "image_uri", "image_version", "updated_at")
BLANK: Final = r"^[\s\p{Cntrl}\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]*$"
_NUMBERS: Final = r"^(TINYINT|SMALLINT|INT|BIGINT|FLOAT|DOUBLE|DECIMAL\(.*\))$"
# `content` only has to tell blank from given: a look at the start of each text is enough, whatever its length.
_TEXT_START: Final = 2000


def read_lines(spark: SparkSession, files: Sequence[Path]) -> DataFrame:
    """Return the non-blank lines of `files`: raw (binary), source_file, and block, position, which order a file's lines."""
    from pyspark.sql import functions as F

    lines = spark.read.text([str(file) for file in files])
    return lines.where(F.expr(r"btrim(value, ' \t\r\n\f') <> ''")).select(
        F.col("value").cast("binary").alias("raw"),
        F.col("value").alias("line"),
        F.col("_metadata.file_name").alias("source_file"),
        F.col("_metadata.file_block_start").alias("block"),
        F.monotonically_increasing_id().alias("position"),
    )


def parse(lines: DataFrame) -> DataFrame:
    """Return `lines` with the record's columns beside them.

    Columns: raw, source_file, block, position; line_error, wrong_types, content (see schemas/rules/default.yaml); the
    strings of RECORD (blank: null), price; labels (map of lists), mistyped_labels (map of JSON).
    """
    from pyspark.sql import functions as F

    # A broken line is not given to the JSON parser: only its bytes are kept. The parser ignores what follows a whole
    # value; in a list, with a mark after it, a value that is not alone on its line moves the mark.
    items = F.expr("if(is_valid_utf8(line), try_parse_json(concat('[', line, ', \"end\"]')), null)")
    alone = "try_variant_get(items, '$[1]', 'string') = 'end'"
    json = F.expr(f"if({alone}, variant_get(items, '$[0]', 'variant'), null)")
    objects = (
        lines.withColumn("items", items)
        .withColumn("json", json)
        .withColumn("record", F.expr("try_cast(json as map<string, variant>)"))
        .withColumn("attributes", F.expr("try_cast(record['attributes'] as map<string, variant>)"))
    )
    line_error = F.expr(
        "case when not is_valid_utf8(line) then 'bad_utf8' when json is null then 'not_json' "
        "when record is null then 'not_object' end"
    )
    typed = objects.select(
        "raw",
        "source_file",
        "block",
        "position",
        line_error.alias("line_error"),
        _wrong_types().alias("wrong_types"),
        *[_string(name).alias(name) for name in STRINGS],
        F.expr(f"if({_type_of('price')} rlike '{_NUMBERS}', try_cast(record['price'] as double), null)").alias("price"),
        _labels().alias("labels"),
        _mistyped().alias("mistyped_labels"),
    )
    start = F.concat_ws(" ", F.substring("title", 1, _TEXT_START), F.substring("description", 1, _TEXT_START))
    return typed.withColumn("content", F.when(~start.rlike(BLANK), start).otherwise(F.col("image_uri")))


def _type_of(name: str) -> str:
    return f"coalesce(schema_of_variant(record['{name}']), 'VOID')"


def _string(name: str) -> Column:
    from pyspark.sql import functions as F

    value = F.expr(f"if({_type_of(name)} = 'STRING', btrim(try_cast(record['{name}'] as string)), null)")
    # A string of blanks and invisible characters only is no value.
    return F.when(~F.substring(value, 1, _TEXT_START).rlike(BLANK), value)


def _wrong_types() -> Column:
    from pyspark.sql import functions as F

    checks = [F.expr(f"if({_type_of(name)} in ('STRING', 'VOID'), null, '{name}')") for name in STRINGS]
    checks.append(F.expr(f"if({_type_of('price')} rlike '{_NUMBERS}|^VOID$', null, 'price')"))
    checks.append(F.expr(f"if({_type_of('attributes')} = 'VOID' or attributes is not null, null, 'attributes')"))
    found = F.concat_ws(", ", *checks)
    return F.when(F.col("record").isNotNull() & (found != ""), found)


def _labels() -> Column:
    from pyspark.sql import functions as F

    return F.expr(
        """map_filter(transform_values(coalesce(attributes, map()), (field, label) -> case schema_of_variant(label)
               when 'STRING' then array(cast(label as string))
               when 'ARRAY<STRING>' then cast(label as array<string>) end),
           (field, values) -> values is not null)"""
    )


def _mistyped() -> Column:
    from pyspark.sql import functions as F

    return F.expr(
        """map_filter(transform_values(coalesce(attributes, map()), (field, label) ->
               if(schema_of_variant(label) in ('STRING', 'ARRAY<STRING>', 'VOID', 'ARRAY<VOID>'),
                  null, substring(cast(label as string), 1, 200))),
           (field, json) -> json is not null)"""
    )


def source_hash() -> Column:
    """Return the hash of all that a prediction and its row depend on: texts, picture identity, labels.

    Fields are joined with their lengths, so that no two different records give one string.
    """
    from pyspark.sql import functions as F

    texts = ("title", "brand", "description", "image_uri", "image_version")
    parts = [F.coalesce(F.concat(F.length(name).cast("string"), F.lit(":"), F.col(name)), F.lit("-")) for name in texts]
    labels = F.to_json(F.array_sort(F.map_entries("labels")))
    return F.substring(F.sha2(F.concat(*parts, labels), 256), 1, 32)
