"""The parser of raw lines: what each odd value becomes.

Run with ``make test TESTS=tests/jobs/test_records.py``.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.records import parse_line


def parse(**record: Any) -> dict[str, Any]:
    return parse_line(json.dumps({"product_id": "p"} | record).encode())


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"product_id": "p"', "not_json"),
        (b'{"product_id": NaN}', "not_json"),
        (b'{"price": Infinity}', "not_json"),
        (b'{"product_id": "p"} {"product_id": "q"}', "not_json"),
        (b'{"title": "a", "title": "b"}', "not_json"),  # which of the two is meant?
        (b'{"price": ' + b"9" * 5000 + b"}", "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not_json"),
        (b'\xef\xbb\xbf{"product_id": "p"}', "not_json"),
        (b'{"title": "\xff\xfe"}', "bad_utf8"),
        (b'{"title": "\xed\xa0\xbd"}', "bad_utf8"),  # half of a surrogate pair in UTF-8
        (b"[]", "not_object"),
        (b"null", "not_object"),
        (b'"text"', "not_object"),
    ],
)
def test_line_that_is_no_record(line: bytes, error: str) -> None:
    assert parse_line(line) == {"line_error": error}


@pytest.mark.parametrize("name", ["product_id", "title", "brand", "description", "image_uri", "updated_at"])
@pytest.mark.parametrize("value", [5, 1.5, True, ["a"], {"en": "a"}])
def test_text_of_another_type(name: str, value: Any) -> None:
    row = parse(**{name: value})
    assert row["wrong_types"] == name
    assert row.get(name) is None


@pytest.mark.parametrize(("value", "price", "wrong"), [
    (None, None, None), (5, 5.0, None), (-0.5, -0.5, None), ("5", None, "price"), (True, None, "price"),
    ([5], None, "price"), (10**400, None, "price"),
])  # fmt: skip
def test_price(value: Any, price: float | None, wrong: str | None) -> None:
    row = parse(price=value)
    assert (row["price"], row["wrong_types"]) == (price, wrong)


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
