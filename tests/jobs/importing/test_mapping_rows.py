"""`make test TESTS=tests/jobs/importing/test_mapping_rows.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas.documents import RawManifest
from tests.jobs.importing.test_import_catalog import Shop

MAPPING = """
records: items.jsonl
product_id: product
title: name
group_by: product
group_first: {parent: ""}
where_not: {state: "-1"}
derive:
  product: {from: [parent, sku, "id:{id}"]}
  facts: {pairs: ["n*", "v*"], steps: [{split: ","}]}
label_objects: [facts]
optional: [parent, sku, id, state, facts]
"""


def imported(folder: Path, mapping: str, *rows: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], RawManifest]:
    shop = Shop(folder, mapping)
    shop.write(*rows)
    manifest = shop.run()
    return {record["product_id"]: record for record in map(json.loads, shop.lines())}, manifest


def test_variants_before_their_parent_are_one_product_with_the_parents_texts(tmp_path: Path) -> None:
    rows = [
        {"parent": "T", "sku": "T-1", "name": "Tent, olive", "n1": "Hue", "v1": "Olive"},
        {"parent": "id:9", "sku": "S-1", "name": "Stove, small", "n1": "Size", "v1": "S"},
        {"sku": "T", "name": "Tent", "n1": "Fabric", "v1": "Nylon, PU", "n2": "Hue", "v2": "Olive, Sand"},
        {"id": 9, "name": "Stove", "n1": "Size", "v1": "S, L"},
        {"sku": "K", "name": "Kettle"},
    ]
    products, manifest = imported(tmp_path, MAPPING, *rows)
    assert {key: record["title"] for key, record in products.items()} == {"T": "Tent", "id:9": "Stove", "K": "Kettle"}
    assert products["T"]["attributes"] == {"Fabric": ["Nylon", "PU"], "Hue": ["Olive", "Sand"]}
    assert products["id:9"]["attributes"] == {"Size": ["S", "L"]}
    assert manifest.notes["rows merged with another row of their product"] == 2
    assert not any("group_first" in note for note in manifest.notes)


def test_variants_without_their_parent_are_kept_and_counted(tmp_path: Path) -> None:
    rows = [
        {"parent": "gone", "sku": "G-1", "name": "Lamp, red"},
        {"parent": "draft", "sku": "D-1", "name": "Bag, red", "state": 1},
        {"sku": "draft", "name": "Bag", "state": -1},
    ]
    products, manifest = imported(tmp_path, MAPPING, *rows)
    assert {key: record["title"] for key, record in products.items()} == {"gone": "Lamp, red", "draft": "Bag, red"}
    assert manifest.notes["products without a row that `group_first` describes, such as their parent's"] == 2
    assert manifest.notes["rows left out by `where_not` on column 'state'"] == 1


def test_rows_are_chosen_by_any_of_a_columns_values_and_counted_by_column(tmp_path: Path) -> None:
    mapping = """
records: items.jsonl
product_id: sku
title: name
where: {view: "", seen: ["Catalog, Search", Catalog, 1]}
where_not: {tags: [hidden]}
"""
    rows = [
        {"sku": "1", "name": "a", "view": "", "seen": "catalog"},
        {"sku": "2", "name": "b", "seen": "Catalog, Search ", "tags": ["new"]},
        {"sku": "3", "name": "c", "view": None, "seen": 1.0, "tags": ["new", "Hidden"]},
        {"sku": "4", "name": "d", "view": "de", "seen": "Catalog"},
        {"sku": "5", "name": "e", "seen": "Nowhere"},
        {"sku": "6", "name": "f"},
    ]
    products, manifest = imported(tmp_path, mapping, *rows)
    assert list(products) == ["1", "2"]
    assert manifest.notes["rows left out by `where` on column 'view'"] == 1
    assert manifest.notes["rows left out by `where` on column 'seen'"] == 2
    assert manifest.notes["rows left out by `where_not` on column 'tags'"] == 1
    assert manifest.rows == 2


def test_the_name_of_an_option_stands_in_the_first_row_alone(tmp_path: Path) -> None:
    mapping = """
records: items.jsonl
product_id: handle
title: name
group_by: handle
derive: {facts: {pairs: [n1, v1]}}
label_objects: [facts]
"""
    rows = [
        {"handle": "t", "name": "Tent", "n1": "Hue", "v1": "Olive"},
        {"handle": "t", "n1": "", "v1": "Sand"},
        {"handle": "t", "v1": "Olive"},
        {"handle": "u", "name": "Lamp", "v1": "Red"},
    ]
    products, manifest = imported(tmp_path, mapping, *rows)
    assert products["t"]["attributes"] == {"Hue": ["Olive", "Sand"]}
    assert products["u"]["attributes"] == {"v1": "Red"}
    assert manifest.notes["derived column 'facts': values without a name, kept under their column's name"] == 1


def test_a_title_stays_one_text_although_labels_are_made_of_the_same_column(tmp_path: Path) -> None:
    mapping = """
records: items.jsonl
product_id: handle
title: name
group_by: handle
derive: {words: {from: name, steps: [{split: " "}]}}
labels: [words]
"""
    products, _ = imported(
        tmp_path, mapping, {"handle": "t", "name": "Olive Tent"}, {"handle": "t", "name": "Sand Tent"}
    )
    assert products["t"]["title"] == "Olive Tent"
    assert products["t"]["attributes"] == {"words": ["Olive", "Tent", "Sand"]}


def test_a_text_in_a_language_that_only_a_later_row_has_is_found(tmp_path: Path) -> None:
    mapping = """
records: items.jsonl
product_id: id
title: "name[lang=en].value"
group_by: id
"""
    rows = [
        {"id": "1", "name": [{"lang": "de", "value": "Zelt"}]},
        {"id": "1", "name": [{"lang": "en_GB", "value": "Tent"}]},
    ]
    products, _ = imported(tmp_path, mapping, *rows)
    assert products["1"]["title"] == "Tent"
