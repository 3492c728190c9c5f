"""Arrow schemas of all tables of the lake, their only definition.

A field has its meaning under the metadata key ``comment`` and its unit, if any, under ``unit``. Spark's fields have
both, and ``DESCRIBE`` shows the comment. `spark_schema` derives the Spark schema with PySpark's own converter, so
there is no second definition to keep in sync.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

import pyarrow as pa

if TYPE_CHECKING:
    from pyspark.sql.types import StructType

# Reasons why a picture cannot be used. Only import gives the last three.
PictureFault = Literal["missing", "empty", "forbidden", "too_large", "broken", "ambiguous", "url", "link"]
ImageStatus = Literal["ok", "absent"] | PictureFault
Modality = Literal["both", "text", "image", "none"]  # the model's input; none: the product is untaggable
MODALITIES: Final[tuple[Modality, ...]] = get_args(Modality)
# Reasons why a product is in a plan, or is not tagged.
PlanReason = Literal["new", "changed", "model_changed", "unchanged", "waiting", "removed", "held", "held_pictures"]

LABELS: Final = pa.map_(pa.string(), pa.list_(pa.string()))
NOTES: Final = pa.map_(pa.string(), pa.string())
TIMESTAMP: Final = pa.timestamp("us", tz="UTC")


def _field(name: str, dtype: pa.DataType, comment: str, *, unit: str = "", null: bool = True) -> pa.Field:
    metadata = {"comment": comment} | ({"unit": unit} if unit else {})
    return pa.field(name, dtype, nullable=null, metadata=metadata)


def _schema(description: str, *fields: pa.Field) -> pa.Schema:
    return pa.schema(fields, metadata={"description": description})


_PRODUCT_ID = _field("product_id", pa.string(), "the shop's id of the product", null=False)
_SOURCE_HASH = _field(
    "source_hash",
    pa.string(),
    "hash of everything that a prediction depends on: texts, picture identity, labels",
    null=False,
)
_RUN = _field("run_id", pa.string(), "the run that wrote this row", null=False)
_DS = _field("ds", pa.string(), "day of the catalog that this row was made from", unit="YYYY-MM-DD", null=False)

RECORD: Final = _schema(
    "A product as the shop gives it: one JSON object on each line of catalog/raw",
    _PRODUCT_ID,
    _field("title", pa.string(), "short name of the product"),
    _field("brand", pa.string(), "maker or label of the product"),
    _field("description", pa.string(), "long text, in the shop's words"),
    _field("price", pa.float64(), "price", unit="the shop's currency"),
    _field("image_uri", pa.string(), "picture: a path relative to a picture root, or a URI inside one"),
    _field("image_version", pa.string(), "identity of the picture's content: a hash, ETag, or size and mtime"),
    _field(
        "updated_at",
        pa.string(),
        "when the shop last changed the record; of two records with one id, the later wins",
        unit="ISO 8601",
    ),
    _field("attributes", LABELS, "the catalog's own labels by source field name, in the shop's words"),
)

VALID: Final = _schema(
    "Records that pass every row rule, one for each product_id",
    *[f for f in RECORD if f.name != "attributes"],
    _field("labels", LABELS, "the catalog's own labels by source field name, in the shop's words"),
    _field(
        "mistyped_labels", pa.map_(pa.string(), pa.string()), "labels that are not text: field name to the JSON value"
    ),
    _field(
        "notes",
        NOTES,
        "fields that were cleared, or that hold less than the shop gave: field name to the rule, a colon, and details",
    ),
    _SOURCE_HASH,
    _DS,
)

QUARANTINE: Final = _schema(
    "Records that are not in `valid`, each with the reasons and its raw text",
    _field("kind", pa.string(), "unparsable | quarantined | superseded (a newer record has this id)", null=False),
    _field("reasons", pa.list_(pa.string()), "names of the rules that failed", null=False),
    _field("product_id", pa.string(), "the record's id, if one could be read"),
    _field("notes", NOTES, "as in `valid`; under `line`, why the line is not a record, and where the shop wrote it"),
    _field("raw", pa.binary(), "the raw line, byte for byte", null=False),
    _field("source_file", pa.string(), "the raw file that contains the line", null=False),
    _DS,
)

PLAN: Final = _schema(
    "The work of a run: one row for each product to tag",
    _PRODUCT_ID,
    _field("reason", pa.string(), "new | changed | model_changed", null=False),
    _field("shard", pa.int32(), "the shard that this product is tagged in", null=False),
    _field(
        "example_path",
        pa.string(),
        "folder, relative to the lake, of an example that can be reused; null: make a new one",
    ),
    _SOURCE_HASH,
)

REMOVED: Final = _schema("Products that a run removes from the tables", _PRODUCT_ID)

EXAMPLES: Final = _schema(
    "Model inputs, made once for each new or changed product",
    _PRODUCT_ID,
    _SOURCE_HASH,
    _field("title", pa.string(), "clean title, '' if absent", null=False),
    _field("brand", pa.string(), "clean brand, '' if absent", null=False),
    _field("description", pa.string(), "clean description, '' if absent", null=False),
    _field(
        "image",
        pa.binary(),
        "uint8 pixels, height x width x 3, RGB, row by row, of the size in picture_spec; null: no picture",
    ),
    _field(
        "image_status",
        pa.string(),
        "ok, or why there is no picture: absent | missing | empty | forbidden | too_large | broken",
        null=False,
    ),
    _field("image_detail", pa.string(), "the decoder's own words if the picture is not ok"),
    _field("labels", LABELS, "the catalog's labels, in the taxonomy's words, by attribute name", null=False),
    _field(
        "unknown_labels",
        LABELS,
        "the catalog's labels outside the taxonomy, in the shop's words, by attribute name; several words for a single-valued "
        "attribute form one label, joined by |",
        null=False,
    ),
)

_LABEL = pa.struct(
    [
        _field("attribute", pa.string(), "attribute name", null=False),
        _field("value", pa.string(), "a value of the attribute", null=False),
        _field(
            "named_in",
            pa.list_(pa.string()),
            "the text fields that name the value or an alias: title | brand | description; none: the label is silent",
            null=False,
        ),
    ]
)

LABELLED: Final = _schema(
    "A labelled set: one row for each product that models are trained or judged on",
    _PRODUCT_ID,
    _SOURCE_HASH,
    _field(
        "example_file", pa.string(), "Parquet file, relative to the lake, that holds the product's example", null=False
    ),
    _field("example_row", pa.int64(), "row of that file, counted from 0", null=False),
    _field("family", pa.int64(), "number of the product's family, which near-duplicates share", null=False),
    _field("side", pa.string(), "side of the split: train | validation | test", null=False),
    _field("article_type", pa.string(), "the catalog's article type; null: it gives none"),
    _field("labels", pa.list_(_LABEL), "the catalog's labels of applicable attributes", null=False),
)

SUSPECTS: Final = _schema(
    "Catalog labels that are probably wrong according to models that never saw them: one row for each, the surest first",
    _PRODUCT_ID,
    _field("attribute", pa.string(), "attribute name", null=False),
    _field("catalog_value", pa.string(), "the catalog's value; null: a multi-valued attribute lacks a value"),
    _field("model_value", pa.string(), "the model's value; null: a multi-valued attribute has a value too many"),
    _field("confidence", pa.float32(), "calibrated probability that the model is right", unit="0 to 1", null=False),
    _field(
        "label_confidence", pa.float32(), "calibrated probability that the catalog is right", unit="0 to 1", null=False
    ),
)

_METHOD: Final = (
    "the members of the model that answered the attribute, joined by a plus sign: bag-of-words, picture-features, cma-clip; "
    "null: an older version did not record it"
)

_PREDICTION = pa.struct(
    [
        _field("attribute", pa.string(), "attribute name", null=False),
        _field("value", pa.string(), "a value of the attribute", null=False),
        _field("confidence", pa.float32(), "the model's probability of this value", unit="0 to 1", null=False),
        _field("accepted", pa.bool_(), "confidence reaches the threshold of the promised precision", null=False),
        _field("text_weight", pa.float32(), "how much the text counted", unit="0 to 1", null=False),
        _field("image_weight", pa.float32(), "how much the picture counted", unit="0 to 1", null=False),
        _field("method", pa.string(), _METHOD),
    ]
)

PREDICTIONS: Final = _schema(
    "The model's predictions: one row for each product of a shard",
    _PRODUCT_ID,
    _SOURCE_HASH,
    _field("modality", pa.string(), f"the model's input: {' | '.join(MODALITIES)} (untaggable)", null=False),
    _field("image_status", pa.string(), "as in the example", null=False),
    _field("labels", LABELS, "the catalog's labels, in the taxonomy's words, as in the example", null=False),
    _field(
        "unlisted",
        LABELS,
        "the catalog's labels outside the taxonomy, in the shop's words, as in the example; null: an older version did not "
        "record them",
    ),
    _field("applicable", pa.list_(pa.string()), "attributes that apply to this product", null=False),
    _field(
        "predictions",
        pa.list_(_PREDICTION),
        "the best value of each applicable attribute, or each likely value if it is multi-valued",
        null=False,
    ),
    _field("tagged_at", TIMESTAMP, "when the model saw the product", null=False),
)

ATTRIBUTES: Final = _schema(
    "The attribute table: one row for each product and applicable attribute, and for each value of a multi-valued one",
    _PRODUCT_ID,
    _field("attribute", pa.string(), "attribute name", null=False),
    _field(
        "value",
        pa.string(),
        "the value to use: the catalog's own value, listed in the taxonomy or not; if it gives none, the model's value if "
        "accepted; otherwise null",
    ),
    _field(
        "source",
        pa.string(),
        "the source of `value`: catalog | catalog_unlisted (the shop's own word, which the taxonomy does not list) | model; "
        "null if `value` is null",
    ),
    _field(
        "catalog_value",
        pa.string(),
        "the catalog's own value: in the taxonomy's words if listed, otherwise in the shop's words, as given; several words "
        "for a single-valued attribute are joined by |",
    ),
    _field("model_value", pa.string(), "the model's best value; null if the model saw neither text nor picture"),
    _field("confidence", pa.float32(), "the model's probability of model_value", unit="0 to 1"),
    _field("accepted", pa.bool_(), "confidence reaches the threshold of the promised precision", null=False),
    _field(
        "conflict",
        pa.bool_(),
        "an accepted model value differs from the catalog's listed values: a suspected wrong label, unless the model was "
        "trained on that very label; the step `suspects` uses models that were not. Never true if the catalog gives only "
        "unlisted values, because no model knows them",
        null=False,
    ),
    _field(
        "text_weight",
        pa.float32(),
        "how much the text counted: CMA-CLIP's modality-wise attention; 1 for a bag of words, 0 for picture features; the "
        "weighted mean of several members",
        unit="0 to 1",
    ),
    _field(
        "image_weight",
        pa.float32(),
        "how much the picture counted, likewise; excludes the picture evidence that CMA-CLIP adds to an answer (model card)",
        unit="0 to 1",
    ),
    _field("method", pa.string(), _METHOD),
    _field("model_version", pa.string(), "the model that made model_value", null=False),
    _SOURCE_HASH,
    _DS,
    _RUN,
    _field("tagged_at", TIMESTAMP, "when the model saw the product", null=False),
)

PRODUCTS: Final = _schema(
    "The state of each published product, with which a later plan compares",
    _PRODUCT_ID,
    _SOURCE_HASH,
    _field("model_version", pa.string(), "the model that tagged it", null=False),
    _field("modality", pa.string(), f"the model's input: {' | '.join(MODALITIES)} (untaggable)", null=False),
    _field("image_status", pa.string(), "as in the example", null=False),
    _field("example_path", pa.string(), "folder of its example, relative to the lake", null=False),
    _field("example_spec", pa.string(), "picture size and taxonomy that its example was made for", null=False),
    _DS,
    _RUN,
    _field("tagged_at", TIMESTAMP, "when the model saw the product", null=False),
)

_CHANGE = (
    _field("change", pa.string(), "upsert | remove", null=False),
    _field("change_ds", pa.string(), "the day that this change belongs to", unit="YYYY-MM-DD", null=False),
)


def history_of(table: pa.Schema, key: tuple[str, ...]) -> pa.Schema:
    """Return the history schema of `table`: its columns plus the kind and day of the change.

    In the row of a removal, all of the table's columns except `key` are null.
    """
    fields = [f.with_nullable(f.nullable or f.name not in key) for f in table]
    return pa.schema([*fields, *_CHANGE], metadata={"description": "The changes of each day"})


ATTRIBUTE_HISTORY: Final = history_of(ATTRIBUTES, ("product_id", "attribute"))
PRODUCT_HISTORY: Final = history_of(PRODUCTS, ("product_id",))

TABLES: Final[dict[str, pa.Schema]] = {
    "record": RECORD,
    "valid": VALID,
    "quarantine": QUARANTINE,
    "plan": PLAN,
    "removed": REMOVED,
    "examples": EXAMPLES,
    "labelled": LABELLED,
    "suspects": SUSPECTS,
    "predictions": PREDICTIONS,
    "attributes": ATTRIBUTES,
    "products": PRODUCTS,
    "attribute_history": ATTRIBUTE_HISTORY,
    "product_history": PRODUCT_HISTORY,
}


def spark_schema(table: pa.Schema) -> StructType:
    """Return the Spark schema of `table`, including comments, by PySpark's own Arrow conversion."""
    from pyspark.sql.pandas.types import from_arrow_schema
    from pyspark.sql.types import StructField, StructType

    converted = from_arrow_schema(table)
    metadata = {
        f.name: {"comment": ""} | {k.decode(): v.decode() for k, v in (f.metadata or {}).items()} for f in table
    }
    return StructType([StructField(f.name, f.dataType, f.nullable, metadata[f.name]) for f in converted.fields])
