"""Tests of the column mapping: `make test TESTS=tests/schemas`."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.loading import ContractError, parse_yaml
from schemas.mapping import Mapping, load_mapping


def test_shipped_mappings_load_by_name() -> None:
    assert load_mapping("sample").product_id == "sku"
    fashion = load_mapping("fashion-products")
    assert fashion.records[0] == "products.jsonl.gz"
    assert fashion.description == ("description", "style_note")
    assert fashion.picture_columns == ("id",)


def test_one_column_may_be_written_without_a_list() -> None:
    mapping = parse_yaml("{records: a.jsonl, product_id: id, title: name, description: text}", Mapping, "m.yaml")
    assert (mapping.records, mapping.title, mapping.description) == (("a.jsonl",), ("name",), ("text",))
    assert mapping.columns == ("id", "name", "text")


def test_a_typing_mistake_is_an_error_with_its_place() -> None:
    with pytest.raises(ContractError, match=r"m\.yaml(?s:.*)titel: Extra inputs"):
        parse_yaml("{records: a.jsonl, product_id: id, titel: name}", Mapping, "m.yaml")


@pytest.mark.parametrize("name", ["photo", "a.jpg", "{photo", "photo}", "{}", "{{photo}}"])
def test_a_picture_s_name_has_a_column_in_it(name: str) -> None:
    with pytest.raises(ContractError, match=r"picture_name.*must name a column in braces, such as \{id\}\.jpg"):
        parse_yaml(
            f"{{records: a.jsonl, product_id: id, title: name, pictures: pics, picture_name: '{name}'}}",
            Mapping,
            "m.yaml",
        )


def test_pictures_that_are_imported_are_not_named_by_uri_too() -> None:
    with pytest.raises(ContractError, match="give one of the two"):
        parse_yaml(
            "{records: a.jsonl, product_id: id, pictures: pics, picture_name: '{p}', image_uri: u}", Mapping, "m.yaml"
        )


@pytest.mark.parametrize("marks", ["delimiter: ',', quote: ','", "delimiter: ';', escape: ';'", "escape: '\"'"])
def test_marks_of_csv_differ(marks: str) -> None:
    with pytest.raises(ContractError, match="must differ"):
        parse_yaml(f"{{records: a.jsonl, product_id: id, {marks}}}", Mapping, "m.yaml")


def test_a_missing_mapping_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"the shipped ones are \[.*'fashion-products'.*'shopify'"):
        load_mapping(tmp_path / "none.yaml")
