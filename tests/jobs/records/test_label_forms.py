"""Forms in which shops write labels. ``make test TESTS=tests/jobs/records/test_label_forms.py``."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from jobs.records.label_forms import decoded, read_object
from tests.jobs.importing.test_import_catalog import Shop, fails


@pytest.mark.parametrize(
    ("found", "labels"),
    [
        (
            {"hue": "Teal", "size": 38, "sole": 2.50, "warm": False, "none": None},
            {"hue": ["Teal"], "size": ["38"], "sole": ["2.5"], "warm": ["false"], "none": []},
        ),
        ({"hue": ["Teal", "Sand"]}, {"hue": ["Teal", "Sand"]}),
        ([{"name": "hue", "value": "Teal"}, {"name": "size", "value": 38.0}], {"hue": ["Teal"], "size": ["38"]}),
        ([{"name": "hue", "values": ["Teal", "Sand"]}], {"hue": ["Teal", "Sand"]}),
        ([{"id": 4, "name": "hue", "position": 0, "visible": True, "options": ["Teal"]}], {"hue": ["Teal"]}),
        ([{"id": 4, "name": "hue", "option": "Teal"}], {"hue": ["Teal"]}),
        ([{"Attribute_Code": "hue", "Value": "Teal"}], {"hue": ["Teal"]}),
        ([{"@type": "PropertyValue", "name": "width", "value": 3, "unitCode": "CMT"}], {"width": ["3 CMT"]}),
        ([{"name": "hue", "value": None}], {"hue": []}),
        ([{"name": "hue", "value": "Teal"}, {"name": "hue", "value": "Sand"}], {"hue": ["Teal", "Sand"]}),
        ({"hue": {"value": "Teal", "unit": None}}, {"hue": ["Teal"]}),
        ({"hue": {"values": ["Teal", "Sand"]}}, {"hue": ["Teal", "Sand"]}),
        ({"hue": [{"value": "Teal"}, {"value": "Sand"}]}, {"hue": ["Teal", "Sand"]}),
        ({"hue": {"id": 7, "label": "Teal"}}, {"hue": ["Teal"]}),
        ({"name": "hue", "value": "Teal"}, {"hue": ["Teal"]}),
        (["hue: Teal", "size = 38"], {"hue": ["Teal"], "size": ["38"]}),
        ("hue: Teal; size: 38", {"hue": ["Teal"], "size": ["38"]}),
        ("hue: Teal\nsize: 38", {"hue": ["Teal"], "size": ["38"]}),
        ("hue: Teal, size: 38", {"hue": ["Teal"], "size": ["38"]}),
        ("hue: Teal, Sand", {"hue": ["Teal, Sand"]}),
        ('{"hue": "Teal"}', {"hue": ["Teal"]}),
        ('[{"name": "hue", "value": "Teal"}]', {"hue": ["Teal"]}),
        ("{'hue': 'Teal', 'size': None}", {"hue": ["Teal"], "size": []}),
        ('{"hue": "Teal", "hue": "Sand"}', {"hue": ["Teal", "Sand"]}),
        ([["hue", "Teal"], ["size", 38]], {"hue": ["Teal"], "size": ["38"]}),
        ([{"hue": "Teal"}, {"size": 38}], {"hue": ["Teal"], "size": ["38"]}),
        # Other words for a name and a value.
        ([{"k": "hue", "v": "Teal"}, {"k": "size", "v": 38}], {"hue": ["Teal"], "size": ["38"]}),
        ([{"trait_type": "hue", "value": "Teal"}], {"hue": ["Teal"]}),
        ([{"id": 4, "type": "hue", "value": "Teal"}], {"hue": ["Teal"]}),
        ([{"attribute": {"id": 4, "name": "hue"}, "values": [{"name": "Teal"}]}], {"hue": ["Teal"]}),
        ([{"name": 4, "value": "Teal"}], {"4": ["Teal"]}),
        # A part that is not a pair belongs to the value before it.
        ("hue: Teal, Sand, size: 38", {"hue": ["Teal, Sand"], "size": ["38"]}),
        ("hue: Teal; Sand; size: 38", {"hue": ["Teal; Sand"], "size": ["38"]}),
        ("hue=Teal|Sand,size=38", {"hue": ["Teal|Sand"], "size": ["38"]}),
        ("hue=Teal,stuff=Wool, Silk,size=38|39", {"hue": ["Teal"], "stuff": ["Wool, Silk"], "size": ["38|39"]}),
        ("open: at 10:30, see https://shop.example: teal", {"open": ["at 10:30, see https://shop.example: teal"]}),
        # Other marks, and text around the pairs.
        ('"hue"=>"Teal, light", "size"=>"38"', {"hue": ["Teal, light"], "size": ["38"]}),
        ("hue: Teal\tsize: 38", {"hue": ["Teal"], "size": ["38"]}),
        ("hue=Teal&size=38", {"hue": ["Teal"], "size": ["38"]}),
        ("<ul><li>hue: Teal</li><li>size: 38</li></ul>", {"hue": ["Teal"], "size": ["38"]}),
        ("{hue: Teal, size: nan}", {"hue": ["Teal"], "size": [""]}),
        ("{'hue': 'Teal', 'size': nan}", {"hue": ["Teal"], "size": [""]}),
        ({"hue": float("nan")}, {"hue": []}), (None, {}), ("  ", {}), ([], {}), ({}, {}),
    ],
)  # fmt: skip
def test_the_usual_forms_are_read(found: Any, labels: dict[str, list[str]]) -> None:
    assert read_object(found) == (labels, {})


@pytest.mark.parametrize(
    ("found", "unread"),
    [
        ("Teal", {"": "Teal"}),
        ("https://shop.example/teal", {"": "https://shop.example/teal"}),
        (5, {"": 5}),
        ({"hue": {"en": "Teal", "de": "Petrol"}}, {"hue": {"en": "Teal", "de": "Petrol"}}),
        # Ambiguous: "Teal" may be the value, or the name of a swatch whose value follows.
        ({"hue": [{"name": "Teal", "value": "#088"}]}, {"hue": [{"name": "Teal", "value": "#088"}]}),
        ([{"name": "hue", "content": "Teal"}], {"hue": {"name": "hue", "content": "Teal"}}),
        ({"hue": float("inf")}, {"hue": float("inf")}),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 1}}}),
        ({"size": {"h": 3, "v": 4}}, {"size": {"h": 3, "v": 4}}),
        ([{"name": None, "value": "Teal"}], {"": {"name": None, "value": "Teal"}}),
        # Neither truncated JSON nor PHP's form is a text of pairs.
        ('[{"name": "hue", "value": "Teal"}', {"": '[{"name": "hue", "value": "Teal"}'}),
        ('{"hue": ["Teal", "size": 38}', {"": '{"hue": ["Teal", "size": 38}'}),
        ('a:1:{s:3:"hue";s:4:"Teal";}', {"": 'a:1:{s:3:"hue";s:4:"Teal";}'}),
    ],
)
def test_what_has_no_known_form_is_told_by_name(found: Any, unread: dict[str, Any]) -> None:
    assert read_object(found) == ({}, unread)


def test_attributes_that_are_called_name_and_value_hide_no_others() -> None:
    labels, unread = read_object({"Label": "Fir & Co", "Option": "Long", "hue": "Teal"})
    assert labels == {"Fir & Co": ["Long"], "Label": ["Fir & Co"], "Option": ["Long"], "hue": ["Teal"]}
    assert not unread


def test_a_name_that_json_has_a_thousand_times_has_a_thousand_values() -> None:
    values = [f"Teal {number}" for number in range(2000)]
    labels, _ = read_object("{" + ", ".join(f'"hue": "{value}"' for value in values) + "}")
    assert labels == {"hue": values}


@pytest.mark.parametrize(
    "text", ["[S-XL]", "{see below}", "[", "[" * 100_000, "[1" + "," * 9000, "Teal", "[" + "9" * 5000 + "]"]
)
def test_a_text_that_only_looks_like_a_list_stays_a_text(text: str) -> None:
    assert decoded(text) == text or isinstance(decoded(text), list)


@pytest.mark.parametrize("text", ['["Teal", "Sand"]', "['Teal', 'Sand']"])
def test_a_list_in_a_text_is_a_list(text: str) -> None:
    assert decoded(text) == ["Teal", "Sand"]


def test_levels_without_end_are_told_and_not_followed() -> None:
    deep: Any = "Teal"
    for _ in range(500):
        deep = [deep]
    labels, unread = read_object({"hue": deep})
    assert labels == {}
    assert list(unread) == ["hue"]


@pytest.mark.timeout(60)  # a quadratic step takes minutes
def test_a_long_text_is_read_in_linear_time() -> None:
    for text in (
        " " * 10**6 + "x",
        "a " * 10**6,
        "|" * 10**6,
        "x: " * 10**5,
        ", " * 10**6 + "y",
        "x: y" + ", z" * 10**5,
    ):
        read_object(text)


@pytest.mark.parametrize(
    ("row", "labels"),
    [
        ({"kind": "Hat|Cap"}, {"kind": ["Hat", "Cap"]}),
        ({"kind": '["Hat", "Cap"]'}, {"kind": ["Hat", "Cap"]}),
        ({"kind": "['Hat']"}, {"kind": "Hat"}),
        ({"kind": "{see below}"}, {"kind": "{see below}"}),
        ({"kind": 38.0, "facts": [{"name": "hue", "options": ["Teal|Sand", "NA", None]}]}, {"kind": "38", "hue": ["Teal", "Sand"]}),
        ({"facts": "hue: Teal; sole: Rubber"}, {"hue": "Teal", "sole": "Rubber"}),
        # The values of a column and of an object are joined if they have the same name.
        ({"kind": "Hat", "facts": {"kind": "Cap"}}, {"kind": ["Hat", "Cap"]}),
        ({"kind": "Hat", "facts": {"kind": "Hat", "none": None}}, {"kind": "Hat"}),
        ({"kind": "Hat", "facts": {"kind": {"en": "Cap"}}}, {"kind": "Hat"}),
        ({"facts": [{"hue": "Teal"}, 5]}, {"hue": "Teal", "facts": [{"hue": "Teal"}, 5]}),
        # The name of an attribute without a value is not read as a value.
        ({"facts": [{"name": "hue"}]}, {"hue": {"unread": {"name": "hue"}}}),
        ({"facts": [{"name": "hue", "content": "Teal"}]}, {"hue": {"unread": {"name": "hue", "content": "Teal"}}}),
    ],
)  # fmt: skip
def test_an_import_reads_labels(tmp_path: Path, row: dict[str, Any], labels: dict[str, Any]) -> None:
    assert Shop(tmp_path).import_one(**row)["attributes"] == labels


def test_rows_of_one_product_say_all_that_their_label_objects_say(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.mapping.write_text(shop.mapping.read_text() + "group_by: id\n")
    first = {"id": "1", "name": "Hat", "photo": None, "facts": {"size": "S", "hue": "Teal"}}
    others = [
        {"id": "1", "facts": {"size": "M", "hue": "Teal"}},
        {"id": "1", "facts": [{"name": "sole", "value": "Rubber"}]},
    ]
    shop.write(first, *others)
    shop.run()
    (line,) = shop.lines()
    assert json.loads(line)["attributes"] == {"size": ["S", "M"], "hue": "Teal", "sole": "Rubber"}


def test_a_column_of_texts_is_none_of_label_objects(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    rows = [
        {"id": str(i), "name": "Hat", "photo": None, "facts": "Teal" if i < 6 else {"hue": "Teal"}} for i in range(10)
    ]
    shop.write(*rows)
    fails(shop, r"6 of 10 values of 'facts' are not label objects, such as '\"Teal\"'.*under `labels`")
    shop.write(*rows[2:])
    assert shop.run().notes == {"labels that cannot be read": 4}


def test_an_import_says_by_name_what_it_cannot_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop(tmp_path)
    odd = {"name": "Hat", "photo": None, "facts": {"hue": {"en": "Teal"}, "x" * 10**5: {"en": "y" * 10**5}}}
    shop.write(
        *[odd | {"id": str(number)} for number in range(3)], {"id": "9", "name": "Hat", "photo": None, "facts": "Teal"}
    )
    assert shop.run().notes["labels that cannot be read"] == 7
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any('3 labels of \'hue\' cannot be read, such as {"en": "Teal"}' in message for message in said)
    assert any("1 labels of 'facts' cannot be read, such as \"Teal\"" in message for message in said)
    assert max(map(len, said)) < 400
