"""Tests of the tables' schemas: `make test TESTS=tests/schemas`."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from schemas import tables
from schemas.documents import Ledger, RawManifest
from schemas.loading import ContractError, load_yaml
from schemas.tables import ATTRIBUTE_HISTORY, ATTRIBUTES, LABELS, RECORD, TABLES, spark_schema


@pytest.mark.parametrize("name", TABLES)
def test_every_column_says_what_it_is(name: str) -> None:
    table = TABLES[name]
    assert table.metadata[b"description"]
    for field in table:
        if name.endswith("_history") and field.name.startswith("change"):
            continue
        assert field.metadata[b"comment"], field.name


@pytest.mark.parametrize("name", TABLES)
def test_sparks_schema_follows_the_arrow_one(name: str) -> None:
    converted = spark_schema(TABLES[name])
    assert converted.names == TABLES[name].names
    for spark, arrow in zip(converted.fields, TABLES[name], strict=True):
        assert spark.nullable == arrow.nullable
        assert spark.metadata == {key.decode(): value.decode() for key, value in arrow.metadata.items()}


def test_every_table_is_listed() -> None:
    """A schema outside of `TABLES` would escape these tests."""
    assert {id(value) for value in vars(tables).values() if isinstance(value, pa.Schema)} == {
        id(table) for table in TABLES.values()
    }
    assert spark_schema(ATTRIBUTES)["confidence"].metadata["unit"] == "0 to 1"


def test_labels_are_lists_of_text_by_field() -> None:
    assert RECORD.field("attributes").type == LABELS == pa.map_(pa.string(), pa.list_(pa.string()))


def test_history_keeps_the_key_and_frees_the_rest() -> None:
    assert not ATTRIBUTES.field("accepted").nullable
    assert ATTRIBUTE_HISTORY.field("accepted").nullable
    assert not ATTRIBUTE_HISTORY.field("product_id").nullable
    assert ATTRIBUTE_HISTORY.names[-2:] == ["change", "change_ds"]


def ledger(**changes: int | bool) -> Ledger:
    counts: dict[str, int | bool] = {
        "raw": 10, "unparsable": 1, "quarantined": 1, "superseded": 1, "valid": 7, "unchanged": 2, "tagged_both": 2,
        "tagged_text": 1, "tagged_image": 1, "untaggable": 1, "new": 3, "changed": 1, "model_changed": 1, "removed": 4,
        "held": 1, "published_products": 8, "published_rows": 40, "backfill": False,
    }  # fmt: skip
    names = {"run_id": "2026-11-20-00000000", "ds": "2026-11-20", "model_version": "m", "created_at": datetime.now(UTC)}
    return Ledger.model_validate(names | counts | changes)


def test_a_ledger_that_adds_up_has_no_differences() -> None:
    assert ledger().differences() == []
    assert ledger(backfill=True, published_products=0).differences() == []


@pytest.mark.parametrize(
    ("field", "words"),
    [("raw", "raw lines 11"), ("unchanged", "valid 7"), ("new", "planned 6"), ("published_products", "published products 9")],
)  # fmt: skip
def test_a_row_too_many_is_a_difference(field: str, words: str) -> None:
    changed = ledger(**{field: getattr(ledger(), field) + 1})
    assert [words in line for line in changed.differences()] == [True]


def test_a_document_refuses_a_day_that_is_none() -> None:
    with pytest.raises(ValueError, match="ds"):
        RawManifest(ds="20-11-2026", source="", files=(), rows=0, created_at=datetime.now(UTC))


def test_an_unreadable_contract_names_the_file() -> None:
    with pytest.raises(ContractError, match=r"nowhere\.yaml: cannot be read"):
        load_yaml("nowhere.yaml", RawManifest)
