"""The parser of raw lines: what each odd value becomes.

Run with ``make test TESTS=tests/jobs/validation/test_parse_records.py``.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.records.rejected_lines import RejectedLine
from jobs.validation.field_rules import field_rules
from jobs.validation.parse_records import parse_line
from schemas.rules import load_rules

RULES = field_rules(load_rules("default"), (Path("/lake/pictures"),))


def parse(**record: Any) -> dict[str, Any]:
    return parse_line(json.dumps({"product_id": "p"} | record).encode(), RULES)


def notes(**record: Any) -> dict[str, str]:
    return dict(parse(**record)["notes"])


@pytest.mark.parametrize(
    ("line", "error", "told"),
    [
        (b'{"product_id": "p"', "not_json", "Expecting ',' delimiter at character 19"),
        (b'{"product_id": "p"} {"product_id": "q"}', "not_json", "Extra data at character 21"),
        (
            b'{"title": "a", "title": "b"}',
            "name_twice",
            'the name "title" occurs twice',
        ),  # which of the two is meant?
        (b"[" * 100_000, "not_json", "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not_json", "nested too deeply"),
        (b'\xef\xbb\xbf{"product_id": "p"}', "not_json", "character 1"),
        (b'{"title": "\xff\xfe"}', "bad_utf8", "byte 0xff at 12 is not UTF-8"),
        (b'{"title": "\xed\xa0\xbd"}', "bad_utf8", "byte 0xed"),  # half of a surrogate pair in UTF-8
        (b"[]", "not_object", "a list of 0, []"),
        (b"null", "not_object", "null where an object should be"),
        (b'"text"', "not_object", '"text" where an object should be'),
    ],
)
def test_line_that_is_no_record_says_why(line: bytes, error: str, told: str) -> None:
    row = parse_line(line)
    assert (row.pop("raw"), row.pop("line_error")) == (line, error)
    ((name, note),) = row.pop("notes")
    assert name == "line"
    assert note.startswith(f"{error}: ")
    assert told in note
    assert row == {}


@pytest.mark.parametrize("raw", [b"a;b;c", bytes(range(256)), b"", '{"k\u00f6nig": 1}'.encode("cp1252")])
def test_rejected_line_keeps_the_reason_that_import_saw_and_every_byte(raw: bytes) -> None:
    line = RejectedLine("csv_cells", "7 cells where the header has 6", "p.csv", 17, raw).encoded()
    assert b"\n" not in line
    row = parse_line(line, RULES)
    assert (row["raw"], row["line_error"]) == (raw, "csv_cells")
    assert row["notes"] == [("line", "csv_cells: 7 cells where the header has 6 (p.csv, line 17)")]


# Import passes on what it cannot read, so that a shop could write this, too: a name is there twice.
DISGUISED = b'{"rejected_line":"me","detail":"d","file":"f","line":1,"raw":"what it was","raw":"another"}'


@pytest.mark.parametrize(
    "line", [b'{"rejected_line":', b'{"rejected_line":1}', b'{"rejected_line":"x","raw":5}', DISGUISED]
)
def test_line_that_only_begins_like_a_rejected_one_is_read_as_any_other(line: bytes) -> None:
    row = parse_line(line, RULES)
    assert row["raw"] == line
    assert row.get("line_error") in (None, "not_json", "name_twice")


def test_texts_and_numbers_of_a_description_are_one_text() -> None:
    assert parse(description=["Soft", None, 80, ""])["description"] == "Soft\n\n80"


@pytest.mark.parametrize("word", ["nan", "NULL", "None", "undefined", "N/A"])
def test_word_for_nothing_is_no_id(word: str) -> None:
    row = parse(product_id=word, title=word)
    assert (row["product_id"], row["title"]) == (None, word)
    assert dict(row["notes"]) == {"product_id": f'unreadable_product_id: "{word}"'}


@pytest.mark.parametrize(
    ("field", "rule"),
    [
        ("product_id", "unreadable_product_id"), ("title", "unreadable_title"), ("brand", "unreadable_brand"),
        ("description", "unreadable_description"), ("image_uri", "unreadable_picture"),
        ("image_version", "unreadable_image_version"), ("updated_at", "unreadable_updated_at"),
        ("price", "unreadable_price"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (True, "true"),
        ({"en": "a"}, 'an object, {"en":"a"}'),
        ([["a"], 5], 'a list of 2, [["a"],5]'),
        (float("nan"), "nan"),
    ],
)
def test_value_that_cannot_be_read_costs_the_field_and_is_named(field: str, rule: str, value: Any, found: str) -> None:
    row = parse(**{"title": "Shirt", "description": "Soft", field: value})
    assert row[field] is None
    assert dict(row["notes"])[field] == f"{rule}: {found}"
    assert "content" not in dict(row["notes"])


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("title", 501, "501"), ("title", 501.0, "501"), ("title", 1.5, "1.5"), ("title", ["Shirt"], "Shirt"),
        ("title", [], None), ("title", {}, None), ("title", [None], None),
        ("brand", ["Acme"], "Acme"), ("description", ["Soft.", None, "Warm."], "Soft.\n\nWarm."),
        ("product_id", 1163, "1163"), ("product_id", 1163.0, "1163"), ("product_id", " \ufeffx-1\u200b\t", "x-1"),
        ("image_version", 17, "17"), ("image_uri", ["a.jpg"], "a.jpg"),
        ("price", 5, 5.0), ("price", "5", 5.0), ("price", " 19.99 ", 19.99), ("price", "28.00 USD", 28.0),
        ("price", [5], 5.0), ("price", "", None), ("price", "\u00a0", None), ("price", None, None),
    ],
)  # fmt: skip
def test_value_of_another_type_is_read_where_there_is_no_doubt(field: str, value: Any, read: Any) -> None:
    row = parse(**{"title": "Shirt", field: value})
    assert row.get(field) == read
    assert row["notes"] == []


@pytest.mark.parametrize("value", ["on request", "1,299", "12 or 15", float("inf"), 10**400, "1e999", "nan"])
def test_price_that_is_no_number_is_noted(value: Any) -> None:
    row = parse(title="Shirt", price=value)
    assert row.get("price") is None
    assert dict(row["notes"])["price"].startswith("unreadable_price: ")


@pytest.mark.parametrize("value", [-0.01, 1.1e9])
def test_implausible_price_is_noted(value: float) -> None:
    row = parse(title="Shirt", price=value)
    assert row["price"] is None
    assert dict(row["notes"]) == {"price": f"implausible_price: {value}"}


def test_number_of_thousands_of_digits_costs_its_field() -> None:
    row = parse_line(b'{"product_id": "p", "title": "t", "price": ' + b"9" * 5000 + b"}", RULES)
    assert dict(row["notes"]) == {"price": "unreadable_price: inf"}


def test_first_of_several_pictures_is_the_picture_and_the_rest_is_noted() -> None:
    row = parse(title="Shirt", image_uri=[None, "a.jpg", "b.jpg"])
    assert row["image_uri"] == "a.jpg"
    assert dict(row["notes"]) == {"image_uri": 'first_of_several: a list of 3, [null,"a.jpg","b.jpg"]'}


@pytest.mark.parametrize("uri", ["/m/b/1.jpg", "https://shop.example/1.jpg", "..\\1.jpg", "a/../../1.jpg", "a.jpg\n"])
def test_picture_outside_the_roots_costs_the_picture(uri: str) -> None:
    row = parse(title="Shirt", image_uri=uri)
    assert row["image_uri"] is None
    assert dict(row["notes"])["image_uri"].startswith("picture_outside_roots: ")
    assert row["source_hash"] == parse(title="Shirt")["source_hash"]  # what the model sees


def test_texts_that_are_too_long_are_cleared_and_told_by_their_start() -> None:
    row = parse(title="t" * 10_001, description="d" * 200_000)
    assert (row["title"], len(row["description"])) == (None, 200_000)
    assert dict(row["notes"])["title"].endswith('"... (10,001 characters)')
    assert len(notes(title="t" * 10**6)["title"]) < 300


@pytest.mark.parametrize(
    "lost", [{"title": {"a": 1}}, {"image_uri": "/etc/passwd"}, {"title": "", "description": {"a": 1}}]
)
def test_record_whose_texts_and_picture_cannot_be_read_says_so(lost: dict[str, Any]) -> None:
    row = parse(**lost)
    assert row["content"] is None
    assert dict(row["notes"])["content"].startswith("nothing_readable: ")
    assert "content" not in notes(title="")


@pytest.mark.parametrize(
    ("given", "time"),
    [
        ("2026-11-20T08:30:00Z", "2026-11-20T08:30:00+00:00"),
        ("2026-11-20", "2026-11-20T00:00:00+00:00"),
        ("2026-11-20 08:30", "2026-11-20T08:30:00+00:00"),
        ("2026-11-20T08:30:00.123456+01:00", "2026-11-20T07:30:00.123456+00:00"),
        ("2026-11-20 08:30:00 +0100", "2026-11-20T07:30:00+00:00"),
        ("2026-1-5", "2026-01-05T00:00:00+00:00"),
        ("Fri, 20 Nov 2026 08:30:00 +0100", "2026-11-20T07:30:00+00:00"),
        (1795163400, "2026-11-20T08:30:00+00:00"),
        ("1795163400000", "2026-11-20T08:30:00+00:00"),
    ],
)
def test_time_that_is_one_beyond_doubt(given: Any, time: str) -> None:
    row = parse(title="t", updated_at=given)
    assert row["updated"].timestamp() == datetime.fromisoformat(time).timestamp()
    assert row["notes"] == []


@pytest.mark.parametrize(
    "given",
    ["20/11/2026", "11/20/2026", "20.11.2026", "0000-00-00 00:00:00", "9999-12-31", "yesterday", "5", "2026-13-01"],
)
def test_time_that_cannot_be_ordered_is_noted_not_absent(given: str) -> None:
    row = parse(title="t", updated_at=given)
    assert (row["updated_at"], row.get("updated")) == (None, None)
    assert dict(row["notes"]) == {"updated_at": f'unreadable_updated_at: "{given}"'}


def test_attributes_that_are_no_object_are_noted() -> None:
    row = parse(title="t", attributes=["Blue", "Cotton"])
    assert row["labels"] == []
    assert dict(row["notes"]) == {"attributes": 'unreadable_attributes: a list of 2, ["Blue","Cotton"]'}
    assert parse(title="t", attributes=[])["notes"] == []


def test_deeply_nested_value_is_described_without_its_depth() -> None:
    deep = b"[" * 900 + b"]" * 900
    note = dict(parse_line(b'{"product_id": "p", "title": ' + deep + b"}", RULES)["notes"])["title"]
    assert note.startswith("unreadable_title: a list of 1")
    assert len(note) <= 300


@pytest.mark.parametrize("field", [b"attributes", b"title"])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nesting_of_any_depth_ends_as_a_row(field: bytes, opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    for depth in range(900, 1010):
        value = opening * depth + (b"" if opening == b"[" else b"1") + closing * depth
        row = parse_line(b'{"product_id": "p", "' + field + b'": {"x": ' + value + b"}}", RULES)
        assert row.get("product_id") == "p" or row["line_error"] == "not_json"


@pytest.mark.parametrize("blank", ["", "  ", "\t\n", "\u200b\u202e", "\x00\x1f", "\u3000\xa0", "\ufeff" * 5000])
def test_text_of_blanks_is_none(blank: str) -> None:
    row = parse(title=blank, image_uri="a.jpg")
    assert row["title"] is None
    assert row["content"] == "a.jpg"


def test_half_a_surrogate_pair_becomes_a_replacement_character() -> None:
    row = parse_line(b'{"product_id": "p", "title": "a \\ud83d", "attributes": {"\\ud83d": "\\udc00"}}')
    assert row["title"] == "a \ufffd"
    assert row["labels"] == [("\ufffd", ["\ufffd"])]
    assert parse_line(b'{"title": "\\ud83d\\ude00"}')["title"] == "\U0001f600"


def test_labels_of_every_type() -> None:
    row = parse(
        attributes={
            "a": "x", "b": ["x", "y"], "c": ["x", None], "d": None, "e": [], "f": [None], "g": 5, "h": ["x", 5.0], "i": True,
            "j": {"value": 38, "unit": "EU"}, "k": {"id": 3, "label": "Red"}, "l": {"en": "x"}, "m": [["x", {"y": 1}]],
        }
    )  # fmt: skip
    assert row["labels"] == [
        ("a", ["x"]), ("b", ["x", "y"]), ("c", ["x"]), ("g", ["5"]), ("h", ["x", "5"]), ("i", ["true"]), ("j", ["38 EU"]),
        ("k", ["Red"]),
    ]  # fmt: skip
    assert row["mistyped_labels"] == [("l", '{"en":"x"}'), ("m", '[["x",{"y":1}]]')]
    assert len(parse(attributes={"a": {"b": "x" * 1000}})["mistyped_labels"][0][1]) == 200


def test_source_hash_does_not_depend_on_the_order_of_labels() -> None:
    one, other = parse(attributes={"a": "x", "b": "y"}), parse(attributes={"b": "y", "a": "x"})
    assert one["source_hash"] == other["source_hash"]
    assert len(one["source_hash"]) == 32


def test_products_without_further_pictures_keep_the_hash_that_earlier_versions_gave_them() -> None:
    # A changed hash would tag the whole catalog again.
    record = {"title": "Größe \u2028 Shirt", "brand": "A", "image_uri": "ab/1.jpg", "image_version": "v1"}
    labels = {"colour": "red", "size": ["m", "l"]}
    assert parse()["source_hash"] == "0b36b9e60a4fb48547932e3190cfd35f"
    assert parse(**record, attributes=labels)["source_hash"] == "e05758667174f1cb2c30f36a70ad5663"
    assert (
        parse(**record, attributes=labels, image_uris=["ab/1.jpg"])["source_hash"] == "e05758667174f1cb2c30f36a70ad5663"
    )
    several = parse(**record, attributes=labels, image_uris=["ab/1.jpg", "cd/2.jpg"])
    turned = parse(**record, attributes=labels, image_uris=["cd/2.jpg", "ab/1.jpg"])
    assert len({"e05758667174f1cb2c30f36a70ad5663", several["source_hash"], turned["source_hash"]}) == 3
