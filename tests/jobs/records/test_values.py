"""`make test TESTS=tests/jobs/records/test_values.py`."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.records.values import DecimalMark, decimal_mark, has_lost_digits, identity, instant, price

# --- ids


@pytest.mark.parametrize(
    ("given", "known_by"),
    [
        (1163, "1163"), (1163.0, "1163"), ("1163.0", "1163"), ("1163", "1163"), ("00123.0", "00123"), (2.5, "2.5"),
        ("v1.0", "v1.0"), ("1.0.0", "1.0.0"), ("1163.00", "1163.00"), ("1163.5", "1163.5"), ("-1.0", "-1.0"), ("1e5", "1e5"),
        (" 12\t", "12"), ("\u00a0\ufeff12\u200b", "12"), ('="00123"', "00123"), ("'00123", "00123"), ("O'Neill", "O'Neill"),
        ("'quoted'", "'quoted'"), (12345678901234567890, "12345678901234567890"), (True, True), (["1"], ["1"]), (None, None),
    ],
)  # fmt: skip
def test_an_id_is_one_by_every_road(given: Any, known_by: Any) -> None:
    assert identity(given) == known_by


@pytest.mark.parametrize(
    ("given", "lost"),
    [
        ("1.23E+12", True), ("8.90012E12", True), ("8.9e+12", True), (" 1.23E+12 ", True), ("5E+11", True), ('="1.2E+11"', True),
        (1.2345678901234568e20, True), (2.0**53, True), ("1,23E+12", True),
        ("1e5", False), ("12E34", False), ("SKU1.2E+12", False), ("1E5", False), (8901230000000.0, False), (2**80, False),
        ("", False), (None, False), ({}, False),
    ],
)  # fmt: skip
def test_an_id_whose_digits_are_lost_is_known(given: Any, lost: bool) -> None:
    assert has_lost_digits(given) is lost


# --- prices


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ("28.00 USD", 28.0), ("$19.99", 19.99), ("19,99", 19.99), ("1.234,56 €", 1234.56), ("€ 1.234,56", 1234.56),
        ("15.00 USD", 15.0), ("1,299.00", 1299.0), ("1,234,567", 1234567), ("1.234.567", 1234567), ("1 299,00", 1299.0),
        ("1\u202f299,00\u00a0€", 1299.0), ("CHF 1'299.50", 1299.5), ("1’299.50", 1299.5), ("kr 199", 199), ("199,- kr", "199,- kr"),
        ("R$ 19,99", 19.99), ("Rs. 1,999.00", 1999.0), ("12,5 zł", 12.5), ("£0.99", 0.99), ("0,999", 0.999), ("-5.00", -5.0),
        ("\u22125.00 EUR", -5.0), ("895", 895), (" 895 ", 895), ("19.5", 19.5), ("1299.999", 1299.999), ("1e3", 1000.0),
        ('="19.90"', 19.9),
        ("on request", "on request"), ("from 19.99", "from 19.99"), ("19.99/each", "19.99/each"), ("10 - 20", "10 - 20"),
        ("19.99-", "19.99-"), ("10 %", "10 %"), ("1_000", "1_000"), ("1e999", "1e999"), ("1.2.3", "1.2.3"), ("1,23,456", "1,23,456"),
        ("$", "$"), ("", ""), ("NaN", "NaN"), ("9" * 400, "9" * 400), (7, 7), (None, None), ([1], [1]), ("$1 $2", "$1 $2"),
        ("3 for 10", "3 for 10"), ("1,299", "1,299"), ("1.299", 1.299),
    ],
)  # fmt: skip
def test_a_price_is_read_where_no_guess_is_needed(given: Any, number: Any) -> None:
    assert price(given, "") == number


@pytest.mark.parametrize(
    ("mark", "point", "comma"),
    [(".", 1.299, 1299), (",", 1299, 1.299), ("", 1.299, "1,299"), ("?", "1.299", "1,299")],
)
def test_other_prices_decide_what_a_price_alone_does_not_say(mark: DecimalMark, point: Any, comma: Any) -> None:
    assert (price("1.299", mark), price("1,299", mark)) == (point, comma)
    assert (price("19,99", mark), price("19.99", mark)) == (19.99, 19.99)


@pytest.mark.parametrize(
    ("prices", "mark"),
    [
        (["19,99", "1.299", "7", None], ","), (["$19.99", "1,299", 5.5], "."), (["1.299", "1,299", "7"], ""),
        (["19,99", "19.99"], "?"), ([], ""), (["1.234,56 €"], ","), (["on 1.5 request"], ""),
    ],
)  # fmt: skip
def test_the_decimal_mark_is_what_prices_show(prices: list[Any], mark: str) -> None:
    assert decimal_mark(prices) == mark


# --- times


@pytest.mark.parametrize(
    ("given", "utc"),
    [
        ("2026-11-20", "2026-11-20T00:00:00Z"), ("2026-11-20T10:00:00+02:00", "2026-11-20T08:00:00Z"),
        ("2026-11-20 10:00:00.123 UTC", "2026-11-20T10:00:00.123000Z"), ("2026-11-19 10:00", "2026-11-19T10:00:00Z"),
        ("2026-11-20T10:00:00.1234567Z", "2026-11-20T10:00:00.123456Z"), ("2026-11-20 10:00:00 +0200", "2026-11-20T08:00:00Z"),
        ("2026/11/20 10:00", "2026-11-20T10:00:00Z"), ("2026-1-5", "2026-01-05T00:00:00Z"), ("20261120", "2026-11-20T00:00:00Z"),
        ("Fri, 20 Nov 2026 10:00:00 GMT", "2026-11-20T10:00:00Z"), ("20 Nov 2026 10:00:00 +0100", "2026-11-20T09:00:00Z"),
        (1795000000, "2026-11-18T11:06:40Z"), ("1795000000", "2026-11-18T11:06:40Z"), (1795000000.0, "2026-11-18T11:06:40Z"),
        ("2026-11-20 9:30", "2026-11-20T09:30:00Z"), ("20 November 2026 9:30", "2026-11-20T09:30:00Z"),
        ("Fri, 20 Nov 2026 10:00:00 -0500 (EST)", "2026-11-20T15:00:00Z"), ("20 Nov 2026 10:00 PST", "2026-11-20T18:00:00Z"),
        ("Fri Nov 20 10:00:00 2026", "2026-11-20T10:00:00Z"), ("Fri Nov 20 10:00:00 UTC 2026", "2026-11-20T10:00:00Z"),
        ("Fri Nov 20 2026 10:00:00 GMT+0100 (Central European Standard Time)", "2026-11-20T09:00:00Z"),
        # "PM" and the zone must not be ignored.
        ("Nov 20, 2026 10:00 PM", None), ("20 Nov 2026 10:00:00 pm", None), ("Friday, November 20, 2026 10:00:00 PM", None),
        ("Fri, 20 Nov 2026 10:00:00 CET", None), ("20 Nov 2026 10:00 Europe/Berlin", None), ("Fri Nov 20 10:00:00 CET 2026", None),
        ("20 Nov 26 10:00", None), ("3 days ago, 20 Nov 2026 10:00", None),
        ("1795000000123", "2026-11-18T11:06:40.123000Z"), (" 2026-11-20 ", "2026-11-20T00:00:00Z"),
        ("20/11/2026", None), ("11/20/2026 10:00", None), ("20.11.2026", None), ("01/02/2026", None), ("yesterday", None),
        ("2026-13-45", None), ("12345", None), (12345, None), ("", None), (True, None), (["2026-11-20"], None), ("9" * 10_000, None),
        (float("nan"), None),
    ],
)  # fmt: skip
def test_a_time_is_read_where_no_guess_is_needed(given: Any, utc: str | None) -> None:
    assert instant(given) == utc


def test_a_time_as_the_mapping_says_it_is_written() -> None:
    assert instant("20/11/2026 10:00", "%d/%m/%Y %H:%M") == "2026-11-20T10:00:00Z"
    assert instant("10/21/16, 9:10 AM", "%m/%d/%y, %I:%M %p") == "2016-10-21T09:10:00Z"
    assert instant("2026-11-20", "%d/%m/%Y") is None
