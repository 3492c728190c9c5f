"""Drafts of small exports, drawn here, and of exports that are hostile or hold next to nothing."""

from __future__ import annotations

import csv
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.cli import app
from jobs.drafting.draft import Draft, draft
from jobs.drafting.draft_page import render_draft
from jobs.errors import JobError
from schemas.mapping import load_mapping
from schemas.taxonomy import load_taxonomy

Row = dict[str, Any]


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "PNG")
    return stream.getvalue()


def write_csv(path: Path, rows: list[Row], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_json_lines(path: Path, rows: list[Row]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")


def garments(number: int = 400) -> list[Row]:
    """Draw products whose columns have German names."""
    draw = random.Random(5)
    colours = ["Grau", "Schwarz", "Multi-Color", "Multicolour", "Grey", "gray", "Blau"]
    rows = []
    for i in range(number):
        kind = draw.choice(["Hemd", "Bluse", "Rock", "Gürtel"])
        rows.append(
            {
                "Artikelnummer": f"A{i:05}",
                "Bezeichnung": f"{kind} Modell {i} aus der neuen Kollektion",
                "Beschreibung": " ".join(draw.choices(["weich", "leicht", "bequem", "für", "den", "Sommer"], k=20)),
                "Marke": draw.choice(["Alba", "Borea"]),
                "Preis": f"{draw.randint(10, 99)},{draw.randint(10, 99)} €",
                "Warengruppe": kind,
                "Farbe": draw.choice(colours),
                "Ärmel": draw.choice(["Kurz", "Lang", "Ärmellos"]) if kind in ("Hemd", "Bluse") else "",
                "Taschen": draw.choice(["Yes", "No"]),
                "Lagerbestand": draw.choice(["viel", "wenig"]),
                "Bild": f"foto_{i}.png",
            }
        )
    return rows


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    rows = garments()
    write_csv(folder / "artikel.csv", rows, ";")
    with zipfile.ZipFile(folder / "fotos.zip", "w") as archive:
        for row in rows[:300]:
            archive.writestr(f"2026/{row['Bild']}", png())
    return folder


def attribute(made: Draft, name: str) -> Any:
    assert made.taxonomy is not None
    return made.taxonomy[name]


def test_columns_in_another_language_get_their_fields(shop: Path) -> None:
    made = draft(shop)
    mapping = made.mapping
    assert (mapping.product_id, mapping.title, mapping.brand) == ("Artikelnummer", ("Bezeichnung",), "Marke")
    assert (mapping.description, mapping.price, mapping.delimiter) == (("Beschreibung",), "Preis", ";")
    assert (mapping.pictures, mapping.picture_name) == (("fotos.zip",), "{Bild}")
    assert "Lagerbestand" not in mapping.labels
    reasons = {left.name: left.reason for left in made.mapping_draft.labels.left_out}
    assert reasons["Lagerbestand"] == "its name says that it runs the shop"


def test_spellings_are_aliases_and_an_attribute_applies_to_the_types_that_have_it(shop: Path) -> None:
    made = draft(shop)
    assert made.taxonomy is not None
    assert made.taxonomy.article_type == "warengruppe"
    colours = [{value.name, *value.aliases} for value in attribute(made, "farbe").values]
    assert {"Multi-Color", "Multicolour"} in colours
    assert {"Grau", "Grey", "gray"} in colours
    assert set(attribute(made, "armel").applies_to) == {"Hemd", "Bluse"}
    assert set(attribute(made, "taschen").value_names) == {"Yes", "No"}


def test_every_count_of_the_draft_is_what_the_products_have(shop: Path) -> None:
    made = draft(shop)
    rows = garments()
    for column, name in (("Farbe", "farbe"), ("Taschen", "taschen"), ("Ärmel", "armel")):
        drafted = next(a for a in made.drafts.attributes if a.name == name)
        assert sum(v.products for v in drafted.values) == sum(bool(row[column]) for row in rows)
        for value in drafted.values:
            words = {value.name, *value.aliases}
            assert value.products == sum(row[column] in words for row in rows)


def test_rows_of_one_product_are_grouped(tmp_path: Path) -> None:
    rows = [
        {"sku": f"S{i // 3}", "name": f"Long cotton shirt number {i // 3}", "category": ["Shirts", "Skirts"][i // 3 % 2],
         "size": "SML"[i % 3]}
        for i in range(90)
    ]  # fmt: skip
    write_csv(tmp_path / "products.csv", rows)
    made = draft(tmp_path)
    assert made.mapping.group_by == "sku"
    assert len(made.products) == 30
    assert attribute(made, "size").multi_valued


def tagged(number: int = 600) -> list[Row]:
    draw = random.Random(3)
    rows = []
    for i in range(number):
        kind = draw.choice(["Top", "Dress"])
        tags = [
            draw.choice(["black", "dusty pink", "navy blue", "navy"]),
            draw.choice(["long sleeve", "Sleeveless", "long sleeves"]),
            draw.choice(["Ship from USA", "issues", "2024", "new arrivals"]),
            draw.choice(["Zafira", "Mondeo", "Corsa"]),
            kind.lower(),
        ]
        draw.shuffle(tags)
        rows.append({"id": i, "title": f"{kind} with a fine look {i}", "type": kind, "tags": " | ".join(tags)})
    return rows


def test_mixed_tags_are_taken_apart_and_the_shops_own_are_left_out(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "products.jsonl", tagged())
    made = draft(tmp_path)
    colour, sleeve = attribute(made, "color"), attribute(made, "sleeve_length")
    assert colour.unlisted == sleeve.unlisted == "ignore"
    spelled = {frozenset((v.name, *v.aliases)) for v in sleeve.values}
    assert spelled == {frozenset({"long sleeve", "long sleeves"}), frozenset({"Sleeveless"})}
    assert any({v.name, *v.aliases} == {"navy blue", "navy"} for v in colour.values)
    assert "dusty pink" in colour.value_names
    reasons = {left.name: left.reason for left in made.tags_left_out}
    assert reasons["Ship from USA"] == reasons["issues"] == reasons["new arrivals"] == "runs the shop"
    assert reasons["2024"] == "like a number or a code"
    assert "article type" in reasons["top"]
    assert [{v.name for v in s.values} for s in made.suggestions] == [{"Zafira", "Mondeo", "Corsa"}]


def test_lists_within_labels_are_split_where_their_parts_occur_alone(tmp_path: Path) -> None:
    details = ["Belt", "Pocket", "Logo", "Belt|Pocket", "Pocket|Logo"]
    codes = ["A;B", "C;D", "E;F"]  # parts that never occur alone
    write_json_lines(
        tmp_path / "items.jsonl",
        [
            {
                "id": f"p{i}",
                "title": f"Coat number {i}",
                "kind": ("Coat", "Vest")[i % 2],
                "facts": [{"name": "details", "value": details[i % 5]}, {"name": "code", "value": codes[i % 3]}],
            }
            for i in range(200)
        ],
    )
    made = draft(tmp_path)
    assert made.mapping.list_separator == "|"
    assert {value.name for value in attribute(made, "details").values} == {"Belt", "Pocket", "Logo"}
    assert {value.name for value in attribute(made, "code").values} == set(codes)


def test_the_drafted_files_load_and_are_not_overwritten(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = CliRunner().invoke(app, ["draft", str(shop), "--out", str(out)])
    assert run.exit_code == 0, run.output
    assert f"import-catalog {shop}" in run.output
    assert load_mapping(out / "mapping.yaml").product_id == "Artikelnummer"
    assert load_taxonomy(out / "taxonomy.yaml").article_type == "warengruppe"
    (out / "taxonomy.yaml").write_text("# edited")
    again = CliRunner().invoke(app, ["draft", str(shop), "--out", str(out)])
    assert isinstance(again.exception, JobError)
    assert "has mapping.yaml, taxonomy.yaml, draft.html already" in str(again.exception)
    assert (out / "taxonomy.yaml").read_text() == "# edited"
    assert CliRunner().invoke(app, ["draft", str(shop), "--out", str(out), "--force"]).exit_code == 0
    assert load_taxonomy(out / "taxonomy.yaml")


def test_a_check_says_what_an_edit_changes(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert CliRunner().invoke(app, ["draft", str(shop), "--out", str(out)]).exit_code == 0
    lines = (out / "taxonomy.yaml").read_text().splitlines()
    kept = "\n".join(line for line in lines if not line.startswith("      - Blau "))
    (out / "taxonomy.yaml").write_text(kept.replace("      - Lang ", "      - Lnag "))
    run = CliRunner().invoke(app, ["draft", str(shop), "--out", str(out), "--check"])
    assert run.exit_code == 0, run.output
    blue, long = (sum(row[c] == w for row in garments()) for c, w in (("Farbe", "Blau"), ("Ärmel", "Lang")))
    assert "no product has: Lnag" in run.output
    assert f"not listed: Blau ({blue})" in run.output
    assert f"not listed: Lang ({long}), like Lnag" in run.output
    mapping = (out / "mapping.yaml").read_text()
    (out / "mapping.yaml").write_text(mapping.replace("product_id: Artikelnummer", "product_id: Artikelnr"))
    run = CliRunner().invoke(app, ["draft", str(shop), "--out", str(out), "--check"])
    assert run.exit_code == 1
    assert "the column 'Artikelnr', which no row has" in run.output


def test_a_page_shows_pictures_and_runs_nothing_of_the_shop(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    words = ["# [Yes]: &a", "\u202eNo\x07 b"]
    rows = [
        {"id": i, "title": f"{evil} shirt {i}", "kind": "ab"[i % 2] + evil, f"x{evil}": words[i % 2]} for i in range(60)
    ]
    write_json_lines(tmp_path / "p.jsonl", rows)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for i in range(60):
            archive.writestr(f"{i}.png", png())
    made = draft(tmp_path)
    page = render_draft(made)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert '<img src="data:image/jpeg;base64,' in page
    assert "default-src 'none'" in page
    assert made.taxonomy is not None
    assert "# [Yes]: &a" in {word for a in made.taxonomy.attributes for word in a.value_names}


def test_the_drafted_words_are_read_as_they_are(tmp_path: Path) -> None:
    traps = [
        "Yes",
        "No",
        "on",
        "1e3",
        "2024-01-01",
        "a~",
        "12:30",
        "0x1F",
        "- a",
        "b: c",
        "#d",
        "'q'",
        '"r"',
        "é\u2028f",
        "😀g",
    ]
    rows = [
        {"id": f"p{i}", "name": f"one of many things {i}", "category": traps[i % len(traps)]}
        for i in range(20 * len(traps))
    ]
    write_json_lines(tmp_path / "p.jsonl", rows)
    listed = attribute(draft(tmp_path), "category")
    assert all(listed.read(trap)[1] is not None for trap in traps)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "no records"),
        ("header.csv", "id,title\n", "no records"),
        ("readme.md", "# Hello", "no records"),
        ("equal.csv", "a,b\n1,2\n1,2\n1,2\n", "no column identifies a product"),
    ],
)
def test_an_export_without_products_is_refused_in_one_sentence(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(JobError, match=message):
        draft(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no such folder"):
        draft(tmp_path / "none")


def test_one_product_gets_a_mapping_and_no_taxonomy(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "p.jsonl", [{"id": 7, "title": "A long red dress", "kind": "Dress"}])
    made = draft(tmp_path)
    assert made.mapping.product_id == "id"
    assert made.taxonomy is None
    assert any("no taxonomy was drafted" in note for note in made.notes)
    assert "A long red dress" in render_draft(made)


def test_columns_that_are_all_unique_are_no_attributes(tmp_path: Path) -> None:
    rows = [{"id": i, "title": f"thing number {i}", "code2": f"c{i}", "shade": f"s{i * 7}"} for i in range(100)]
    write_json_lines(tmp_path / "p.jsonl", rows)
    made = draft(tmp_path)
    assert made.taxonomy is None
    assert {left.name for left in made.mapping_draft.labels.left_out} == {"code2", "shade"}


def test_thousands_of_columns_are_drafted_in_bounds(tmp_path: Path) -> None:
    rows = [
        {"id": i, "title": f"a fine thing {i}"} | {f"c{n}": "xy"[(i + n) % 2] for n in range(5_000)} for i in range(10)
    ]
    write_json_lines(tmp_path / "p.jsonl", rows)
    made = draft(tmp_path)
    assert made.columns_beyond == 2
    assert len(made.drafts.attributes) == 200
    assert any("more than 200 attributes" in left.reason for left in made.drafts.left_out)
    assert len(render_draft(made)) < 3_000_000


def test_a_sample_says_that_it_is_one(tmp_path: Path) -> None:
    write_json_lines(
        tmp_path / "p.jsonl", [{"id": i, "title": f"a fine thing {i}", "kind": "ab"[i % 2]} for i in range(900)]
    )
    made = draft(tmp_path, rows=500)
    assert (len(made.products), made.sample.complete) == (500, False)
    assert "the first 500 rows" in made.mapping_yaml
    assert draft(tmp_path).sample.complete


def test_a_shop_system_is_recognised_and_its_mapping_is_kept(tmp_path: Path) -> None:
    rows = []
    for i in range(40):
        head = {
            "Title": f"Linen shirt {i}",
            "Body (HTML)": "<p>Soft</p>",
            "Vendor": "Alba",
            "Type": ["Shirt", "Skirt"][i % 2],
        }
        for n, size in enumerate("SM"):
            image = f"https://cdn.example.com/{i}-{n}.jpg"
            option = {"Option1 Name": "Size" if n == 0 else "", "Option1 Value": size}
            rows.append({"Handle": f"shirt-{i}", **(head if n == 0 else dict.fromkeys(head, "")), **option,
                         "Variant Price": "9.90", "Image Src": image, "Fabric care": ["Wash", "Dry clean"][i % 2]})  # fmt: skip
    write_csv(tmp_path / "products_export_1.csv", rows[:40])
    write_csv(tmp_path / "products_export_2.csv", rows[40:])
    made = draft(tmp_path)
    assert made.sample.system is not None
    assert made.sample.system.title == "Shopify"
    assert len(made.products) == 40
    assert made.mapping.records == ("products_export_*.csv",)
    assert "Fabric care" in made.mapping.labels
    assert attribute(made, "size").multi_valued
    assert made.products[0].picture == "https://cdn.example.com/0-0.jpg"
