"""Export into shops: each shop's file, applied as its importer would, brings the new values and nothing else.

Run with ``make test TESTS=tests/jobs/exporting/test_export_changes.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import JobError
from jobs.exporting.export_changes import export_changes
from jobs.exporting.export_table import lines
from jobs.exporting.formulas import is_formula
from jobs.lake.layout import Lake
from tests.conftest import DAY1, DAY2, DAY3, settings_for
from tests.jobs.exporting.shops import Row, apply, conflict_row, export, labels, model_row, publish, read_csv, write_csv

TAXONOMY = """
name: lamps
article_type: kind
attributes:
  - {name: kind, label: Kind, field: KIND, values: [Lamp, Shade, Bulb]}
  - {name: hue, label: Hue, field: HUE, values: [{name: Blue, aliases: [azul, navy]}, {name: Red, aliases: [rojo]}, Green]}
  - {name: extras, label: Extras, field: EXTRAS, multi_valued: true, values: [Dimmer, Timer, Clip]}
"""


def taxonomy(**fields: str) -> str:
    text = TAXONOMY
    for name, field in fields.items():
        text = text.replace(f"field: {name.upper()},", f"field: '{field}',")
    return text


def only_changed(before: dict[str, Row], after: dict[str, Row], changed: dict[str, dict[str, Any]]) -> None:
    """Check that records differ in the given labels and in nothing else."""
    expected = {
        product: record | {"attributes": record["attributes"] | changed.get(product, {})}
        for product, record in before.items()
    }
    assert after == expected


SHOPIFY = """
records: "*.csv"
group_by: Handle
product_id: Handle
title: Title
price: Variant Price
derive:
  options: {pairs: [[Option1 Name, Option1 Value]]}
  category: {from: Product Category, steps: [{leaf: ">"}]}
  extras: {from: Extras (product.metafields.custom.extras), steps: [{split: ";"}]}
labels: [category, extras, Type, "Hue (product.metafields.custom.hue)"]
label_objects: [options]
"""
HUE, EXTRAS = "Hue (product.metafields.custom.hue)", "Extras (product.metafields.custom.extras)"


def shopify(folder: Path) -> tuple[Path, Path]:
    """Return the mapping and the file of a shop of four products, one with two variants."""
    mapping = folder / "mapping.yaml"
    mapping.write_text(SHOPIFY)
    columns = ["Handle", "Title", "Body (HTML)", "Type", "Product Category", "Option1 Name", "Option1 Value",
               "Variant Price", HUE, EXTRAS]  # fmt: skip
    path = "Home > Lighting > Lamp"
    rows = [
        {"Handle": "arc", "Title": "Arc, tall", "Product Category": path, "Option1 Name": "Size", "Option1 Value": "S",
         "Variant Price": "9", HUE: "azul", EXTRAS: "Timer; Clip", "Type": "A"},
        {"Handle": "arc", "Option1 Value": "L", "Variant Price": "11"},
        {"Handle": "bow", "Title": 'Bow "old"', "Option1 Name": "Size", "Option1 Value": "S", "Variant Price": "7",
         HUE: "azul"},
        {"Handle": "cup", "Title": "Cup", "Product Category": path, "Variant Price": "5", EXTRAS: "Clip; Dimmer"},
        {"Handle": "dot", "Title": "Dot", "Product Category": path, "Variant Price": "5", HUE: "Blue", "Type": "B"},
    ]  # fmt: skip
    return mapping, write_csv(folder / "shop" / "products.csv", columns, rows)


def test_a_shopify_file_brings_the_new_values_in_the_shop_s_words_and_nothing_else(tmp_path: Path) -> None:
    mapping, shop = shopify(tmp_path)
    rows = [
        model_row("bow", "kind", "Lamp"),
        model_row("bow", "extras", "Dimmer"),
        model_row("bow", "extras", "Timer"),
        model_row("cup", "hue", "Blue"),
        model_row("dot", "extras", "Clip"),
        model_row("gone", "hue", "Red"),
    ]
    lake = publish(tmp_path / "lake", taxonomy(kind="category", hue=HUE, extras="extras"), {DAY1: rows})
    before = labels(lake, shop.parent, mapping)
    result, out = export(lake, "shopify", shop.parent, mapping)
    written = read_csv(out)
    assert list(written[0]) == ["Handle", "Title", "Product Category", HUE, EXTRAS]
    assert [row["Handle"] for row in written] == ["bow", "cup", "dot"]
    assert written[0] == {"Handle": "bow", "Title": 'Bow "old"', "Product Category": "Home > Lighting > Lamp", HUE: "azul",
                          EXTRAS: "Dimmer; Timer"}  # fmt: skip
    assert written[1][HUE] == "azul", "the shop writes azul more often than Blue"
    assert written[1][EXTRAS] == "Clip; Dimmer", "a cell that did not change repeats the shop's own text"
    apply(shop, out, "Handle", first_only=True)
    only_changed(
        before,
        labels(lake, shop.parent, mapping),
        {
            "bow": {"category": "Lamp", "extras": ["Dimmer", "Timer"]},
            "cup": {HUE: "azul"},
            "dot": {"extras": "Clip"},
        },
    )
    assert result.counts["hue"].left_out == {"the product is not in the export": 1}
    assert (result.counts["extras"].changes, result.counts["extras"].exported) == (2, 2)


def test_options_of_shopify_are_never_written_and_the_table_says_why(tmp_path: Path) -> None:
    mapping, shop = shopify(tmp_path)
    lake = publish(tmp_path / "lake", taxonomy(kind="category", hue="Colour", extras="extras"),
                   {DAY1: [model_row("bow", "hue", "Red")]})  # fmt: skip
    result, out = export(lake, "shopify", shop.parent, mapping)
    assert read_csv(out) == []
    (reason,) = result.counts["hue"].left_out
    assert reason == "'Option1 Value' is never written: it defines the variants; use a metafield (docs/export.md)"
    assert any(reason in line for line in lines(result))


def test_a_value_with_two_full_paths_in_the_shop_is_left_out(tmp_path: Path) -> None:
    mapping, shop = shopify(tmp_path)
    rows = read_csv(shop)
    rows[-1]["Product Category"] = "Garden > Lamp"
    write_csv(shop, list(rows[0]), rows)
    lake = publish(tmp_path / "lake", taxonomy(kind="category", hue=HUE, extras="extras"),
                   {DAY1: [model_row("bow", "kind", "Lamp"), model_row("bow", "hue", "Green")]})  # fmt: skip
    result, out = export(lake, "shopify", shop.parent, mapping)
    assert result.counts["kind"].left_out == {"the shop uses several full paths for the value": 1}
    assert result.counts["hue"].left_out == {"the export has a value of the shop's own": 1}
    assert read_csv(out) == []


WOOCOMMERCE = """
records: "*.csv"
group_by: product
group_first: {Parent: ""}
product_id: product
title: Name
derive:
  product: {from: [Parent, SKU, "id:{ID}"]}
  categories: {from: Categories, steps: [{split: ","}, {leaf: ">"}]}
  attributes: {pairs: ["Attribute * name", "Attribute * value(s)"], steps: [{split: ","}]}
labels: [categories]
label_objects: [attributes]
optional: [Categories]
"""


def woocommerce(folder: Path) -> tuple[Path, Path]:
    """Return the mapping and the file of a shop with a variable product, its variation, and two simple products."""
    mapping = folder / "mapping.yaml"
    mapping.write_text(WOOCOMMERCE)
    pair = [f"Attribute {n} {part}" for n in (1, 2) for part in ("name", "value(s)", "visible", "global", "default")]
    rows = [
        {"ID": "1", "Type": "variable", "SKU": "arc", "Name": "Arc", "Categories": "Home > Lamp, Sale",
         "Attribute 1 name": "Size", "Attribute 1 value(s)": "S, L", "Attribute 1 visible": "1",
         "Attribute 1 global": "1", "Attribute 1 default": "L"},
        {"ID": "2", "Type": "variation", "SKU": "arc-s", "Parent": "arc", "Attribute 1 name": "Size",
         "Attribute 1 value(s)": "S", "Attribute 1 global": "1"},
        {"ID": "3", "Type": "simple", "Name": "Bow", "Attribute 1 name": "Hue", "Attribute 1 value(s)": "rojo",
         "Attribute 1 visible": "0", "Attribute 1 global": "1", "Attribute 2 name": "Note",
         "Attribute 2 value(s)": "'=see below", "Attribute 2 visible": "1", "Attribute 2 global": "0"},
        {"ID": "4", "Type": "simple", "SKU": "cup", "Name": "Cup", "Categories": "Sale", "Attribute 1 name": "Hue",
         "Attribute 1 value(s)": "rojo", "Attribute 1 visible": "0", "Attribute 1 global": "1"},
    ]  # fmt: skip
    columns = ["ID", "Type", "SKU", "Name", "Categories", "Parent", *pair]
    return mapping, write_csv(folder / "shop" / "wc.csv", columns, rows)


def test_a_woocommerce_file_repeats_all_attributes_of_a_product_beside_the_new_one(tmp_path: Path) -> None:
    mapping, shop = woocommerce(tmp_path)
    rows = [model_row("arc", "hue", "Red"), model_row("id:3", "extras", "Clip"), model_row("id:3", "extras", "Timer"),
            model_row("cup", "kind", "Lamp")]  # fmt: skip
    lake = publish(tmp_path / "lake", taxonomy(kind="categories", hue="hue", extras="Extras").replace(
        "values: [Lamp", "unlisted: ignore, values: [Lamp"), {DAY1: rows})  # fmt: skip
    before = labels(lake, shop.parent, mapping)
    _, out = export(lake, "woocommerce", shop.parent, mapping)
    arc, bow, cup = read_csv(out)
    assert (arc["ID"], arc["SKU"]) == ("1", "arc")
    assert "Name" not in arc
    assert (arc["Attribute 1 name"], arc["Attribute 1 value(s)"], arc["Attribute 1 default"]) == ("Size", "S, L", "L")
    assert (arc["Attribute 2 name"], arc["Attribute 2 value(s)"]) == ("Hue", "rojo")
    assert (arc["Attribute 2 visible"], arc["Attribute 2 global"]) == ("0", "1"), "as the shop has it most often"
    assert bow["Attribute 2 value(s)"] == "'=see below"
    assert (bow["Attribute 3 name"], bow["Attribute 3 value(s)"]) == ("Extras", "Clip, Timer")
    assert (bow["Attribute 3 visible"], bow["Attribute 3 global"]) == ("1", "0")
    assert cup["Categories"] == "Sale, Home > Lamp"
    apply(shop, out, "ID")
    only_changed(
        before,
        labels(lake, shop.parent, mapping),
        {
            "arc": {"Hue": "rojo"},
            "id:3": {"Extras": ["Clip", "Timer"]},
            "cup": {"categories": ["Sale", "Lamp"]},
        },
    )


MAGENTO = """
records: "*.csv"
product_id: sku
title: name
where: {store_view_code: ""}
derive:
  more: {from: additional_attributes, steps: [{key_value: ","}, {split: "|"}]}
labels: [kind]
label_objects: [more]
"""


def test_a_magento_file_has_only_the_new_pairs_and_the_shop_s_separators(tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(MAGENTO)
    rows = [
        {"sku": "arc", "name": "Arc", "kind": "Lamp", "additional_attributes": "note=a, b,hue=navy"},
        {"sku": "arc", "name": "Bogen", "store_view_code": "de", "additional_attributes": "hue=blau"},
        {"sku": "bow", "name": "Bow", "kind": "", "additional_attributes": "note=x=y"},
        {"sku": "cup", "name": "Cup", "kind": "Shade"},
    ]
    columns = ["sku", "store_view_code", "name", "kind", "additional_attributes"]
    shop = write_csv(tmp_path / "shop" / "products.csv", columns, rows)
    changes = [model_row("arc", "extras", "Clip"), model_row("arc", "extras", "Timer"), model_row("bow", "hue", "Blue"),
               model_row("bow", "kind", "Bulb"), model_row("cup", "hue", "Green")]  # fmt: skip
    lake = publish(tmp_path / "lake", taxonomy(kind="kind", hue="hue", extras="extras"), {DAY1: changes})
    before = labels(lake, shop.parent, mapping)
    _, out = export(lake, "magento", shop.parent, mapping)
    assert read_csv(out) == [
        {"sku": "arc", "kind": "Lamp", "additional_attributes": "extras=Clip|Timer"},
        {"sku": "bow", "kind": "Bulb", "additional_attributes": "hue=navy"},
        {"sku": "cup", "kind": "Shade", "additional_attributes": "hue=Green"},
    ]
    apply(shop, out, "sku", merged="additional_attributes", first_only=True)
    only_changed(
        before,
        labels(lake, shop.parent, mapping),
        {"arc": {"extras": ["Clip", "Timer"]}, "bow": {"hue": "navy", "kind": "Bulb"}, "cup": {"hue": "Green"}},
    )


MERCHANT = """
records: "*.tsv"
product_id: id
title: title
labels: [color, kind]
"""


def merchant(folder: Path) -> tuple[Path, Path]:
    mapping = folder / "mapping.yaml"
    mapping.write_text(MERCHANT)
    rows = [
        {"id": "a1", "title": "Arc", "color": "rojo", "kind": "Lamp"},
        {"id": "b2", "title": "Bow", "kind": "=Lamp()"},
        {"id": "c3", "title": "=HYPERLINK(1)", "color": ""},
    ]
    return mapping, write_csv(folder / "shop" / "feed.tsv", ["id", "title", "color", "kind"], rows, "\t")


def test_a_merchant_file_is_a_supplemental_feed_of_ids_and_attributes(tmp_path: Path) -> None:
    mapping, shop = merchant(tmp_path)
    changes = [model_row("b2", "hue", "Red"), model_row("c3", "hue", "Red")]
    lake = publish(tmp_path / "lake", taxonomy(kind="kind", hue="color", extras="extras"), {DAY1: changes})
    before = labels(lake, shop.parent, mapping)
    _, out = export(lake, "google-merchant", shop.parent, mapping)
    assert out.read_text() == "id\tcolor\nb2\trojo\nc3\trojo\n"
    apply(shop, out, "id", delimiter="\t")
    only_changed(before, labels(lake, shop.parent, mapping), {"b2": {"color": "rojo"}, "c3": {"color": "rojo"}})


def test_a_row_whose_repeated_text_is_a_formula_is_left_out_and_counted(tmp_path: Path) -> None:
    mapping, shop = merchant(tmp_path)
    changes = [model_row("b2", "hue", "Red"), model_row("c3", "kind", "Bulb")]
    lake = publish(tmp_path / "lake", taxonomy(kind="kind", hue="color", extras="extras"), {DAY1: changes})
    result, out = export(lake, "google-merchant", shop.parent, mapping)
    assert out.read_text() == "id\tcolor\tkind\nc3\t\tBulb\n"
    assert result.rows == 1
    assert result.counts["hue"].exported == 0
    assert list(result.counts["hue"].left_out) == ["the shop's own text in 'kind' begins like a formula"]


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-x", "@SUM(A1)", "\tx", "\rx", "-2+3+cmd|' /C calc'!A0"])
def test_a_text_that_a_spreadsheet_runs_is_a_formula(text: str) -> None:
    assert is_formula(text)


@pytest.mark.parametrize("text", ["-5", "+12,5", "-1.000,00", "Red", "", "50 %", "a=b", "-5 %"])
def test_a_number_or_a_word_is_no_formula(text: str) -> None:
    assert not is_formula(text)


def test_only_changes_since_the_day_are_exported(tmp_path: Path) -> None:
    mapping, shop = merchant(tmp_path)
    days = {
        DAY1: [model_row("a1", "kind", "Lamp"), model_row("b2", "hue", "Red")],
        DAY2: [
            model_row("b2", "hue", "Red", confidence=0.99),  # tagged again, with the same answer
            model_row("c3", "hue", "Blue"),
            model_row("a1", "kind", "Lamp") | {"value": None, "source": None, "accepted": False},
        ],
    }
    lake = publish(tmp_path / "lake", taxonomy(kind="kind", hue="color", extras="extras"), days)
    out = tmp_path / "out.tsv"
    result = export_changes(
        settings_for(lake.root), "google-merchant", DAY2, out, mapping=str(mapping), catalog=shop.parent
    )
    assert out.read_text() == "id\tcolor\nc3\tBlue\n"
    assert result.counts["kind"].left_out == {"the pipeline no longer fills it; nothing is erased in the shop": 1}


def test_a_conflict_is_corrected_only_if_asked_for(tmp_path: Path) -> None:
    mapping, shop = merchant(tmp_path)
    changes = [conflict_row("a1", "hue", "Red", "Green")]
    lake = publish(tmp_path / "lake", taxonomy(kind="kind", hue="color", extras="extras"), {DAY1: changes})
    _, out = export(lake, "google-merchant", shop.parent, mapping)
    assert out.read_text() == "id\n"
    _, out = export(lake, "google-merchant", shop.parent, mapping, corrections=True)
    assert out.read_text() == "id\tcolor\na1\tGreen\n"


def test_a_correction_of_a_list_keeps_the_shop_s_words(tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(MAGENTO)
    row = {"sku": "arc", "name": "Arc", "additional_attributes": "hue=navy,extras=Clip|Cord,note=x"}
    shop = write_csv(
        tmp_path / "shop" / "p.csv", ["sku", "store_view_code", "name", "kind", "additional_attributes"], [row]
    )
    changes = [conflict_row("arc", "extras", "Clip", "Timer"), conflict_row("arc", "hue", "Blue", "Red")]
    lake = publish(tmp_path / "lake", taxonomy(kind="kind", hue="hue", extras="extras"), {DAY1: changes})
    _, out = export(lake, "magento", shop.parent, mapping, corrections=True)
    assert read_csv(out) == [{"sku": "arc", "additional_attributes": "extras=Clip|Cord|Timer,hue=Red"}]


def test_an_attribute_of_a_product_with_variations_is_not_corrected(tmp_path: Path) -> None:
    mapping, shop = woocommerce(tmp_path)
    text = taxonomy(kind="categories", hue="Size", extras="Extras").replace("Red", "S")
    lake = publish(tmp_path / "lake", text, {DAY1: [conflict_row("arc", "hue", "S", "Blue")]})
    rows = read_csv(shop)
    rows[0]["Attribute 1 value(s)"] = "S"
    write_csv(shop, list(rows[0]), rows)
    result, out = export(lake, "woocommerce", shop.parent, mapping, corrections=True)
    assert read_csv(out) == []
    assert result.counts["hue"].left_out == {"the attribute may define the product's variations": 1}


def test_texts_with_line_ends_quotes_and_delimiters_are_repeated_as_they_are(tmp_path: Path) -> None:
    mapping, shop = shopify(tmp_path)
    rows = read_csv(shop)
    rows[2]["Title"] = 'Bow, "old"\rand\nnew'
    write_csv(shop, list(rows[0]), rows)
    lake = publish(tmp_path / "lake", taxonomy(kind="category", hue=HUE, extras="extras"),
                   {DAY1: [model_row("bow", "kind", "Lamp")]})  # fmt: skip
    _, out = export(lake, "shopify", shop.parent, mapping)
    (written,) = read_csv(out)
    assert written["Title"] == 'Bow, "old"\rand\nnew'


def test_the_csv_has_a_column_for_each_attribute_and_is_read_by_our_import(tmp_path: Path) -> None:
    changes = [model_row("p2", "extras", "Clip"), model_row("p2", "extras", "Timer"), model_row("p1", "hue", "Red"),
               model_row("=p3", "hue", "Blue")]  # fmt: skip
    lake = publish(tmp_path / "lake", taxonomy(), {DAY1: changes})
    out = tmp_path / "out" / "tags.csv"
    export_changes(settings_for(lake.root), "csv", DAY1, out)
    assert out.read_text() == "product_id,hue,extras\n'=p3,Blue,\np1,Red,\np2,,Clip|Timer\n"
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text('records: tags.csv\nproduct_id: product_id\nlabels: [hue, extras]\nlist_separator: "|"\n')
    read = labels(lake, out.parent, mapping)
    assert read["p1"]["attributes"] == {"hue": "Red"}
    assert read["p2"]["attributes"] == {"extras": ["Clip", "Timer"]}


def test_an_export_without_changes_or_keys_says_so(tmp_path: Path) -> None:
    mapping, shop = merchant(tmp_path)
    lake = publish(tmp_path / "lake", taxonomy(), {DAY1: [model_row("a1", "hue", "Red")]})
    settings, out = settings_for(lake.root), tmp_path / "out.csv"
    with pytest.raises(JobError, match="the newest day is 2026-11-20"):
        export_changes(settings, "csv", DAY3, out)
    with pytest.raises(JobError, match="needs --catalog"):
        export_changes(settings, "shopify", DAY1, out)
    with pytest.raises(JobError, match="lacks Handle or URL handle and Title, by which the importer of shopify"):
        export_changes(settings, "shopify", DAY1, out, mapping=str(mapping), catalog=shop.parent)
    with pytest.raises(JobError, match="in the export's own folder"):
        export_changes(
            settings, "google-merchant", DAY1, shop.parent / "x.tsv", mapping=str(mapping), catalog=shop.parent
        )
    with pytest.raises(JobError, match="nothing is published yet"):
        export_changes(settings_for(Lake(tmp_path / "empty").root), "csv", DAY1, out)
    assert not out.exists()
