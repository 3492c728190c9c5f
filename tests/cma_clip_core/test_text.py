"""`make test TESTS=tests/cma_clip_core/test_text.py`."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from cma_clip_core.text import LIMIT, clean, cut


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, ""),
        ("", ""),
        ("  Blue \t\n shirt ", "Blue shirt"),
        ("NA", ""),
        (" n/a. ", ""),
        ("-", ""),
        ("...", ""),
        ("Style Note", ""),
        ("NULL", ""),
        ("Nanette shirt", "Nanette shirt"),
        ("None of these", "None of these"),
        ("<p>Blue&nbsp;<b>shirt</b></p>", "Blue shirt"),
        ("AT&amp;T &#169; &eacute;", "AT&T © é"),
        ("the brand& rsquo s& ldquo best& rdquo", "the brand’s“best”"),
        ("a < b and c > d", "a < b and c > d"),
        ("x<style>p{color:red}</style>y<!-- hidden <b> -->z<script>alert(1)</SCRIPT >", "x y z"),
        ("never closed <!-- comment", "never closed comment"),
        ("Blue\u200b\u202e shirt\u202c\x00\ufeff \x1b[31mred\ud800", "Blue shirt red"),
        ("co\u00adtton", "cotton"),
        ("cafe\u0301", "café"),
        ("\uff33\uff48\uff49\uff52\uff54 \ufb01t", "Shirt fit"),
        ("piquÃ© brandâ€™s 30Â°", "piqué brand’s 30°"),
        ("«CAFÉ» Â and Ã stay", "«CAFÉ» Â and Ã stay"),
        ("&#99999999999999999999999;x", "x"),
        ("z" + "\u0301" * 50, "ź" + "\u0301" * 3),
    ],
)
def test_clean(raw: str | None, expected: str) -> None:
    assert clean(raw) == expected


def test_long_text_is_cut_at_a_word() -> None:
    assert clean("one two three", limit=9) == "one two"
    assert clean("one two three", limit=7) == "one two"
    assert clean("x" * 50, limit=9) == "x" * 9
    assert cut("a bcdefghij", 8) == "a bcdefg"  # a cut at the space would lose most of it
    assert len(clean("word " * 10_000)) <= LIMIT


@pytest.mark.parametrize(
    "piece",
    ["&", "<", "<a", "<!--", "<script", "<style></style ", "&#9", "&#99999;", "\u0301\u0316", "\u05b0\u05c1", "\ufdfa", "Ã©",
     "Ãâ€", " ", "\x01\u202e", "\ud800", "& ", "<b>x", "-->", "cotton & <b>blue</b> ", "&amp;amp;"],
)  # fmt: skip
def test_eight_megabytes_of_anything_are_quick(piece: str) -> None:
    text = piece * (8_000_000 // len(piece))
    start = time.process_time()
    result = clean(text)
    assert time.process_time() - start < 0.8
    assert len(result) <= LIMIT
    result.encode()


def test_one_reference_of_eight_million_digits() -> None:
    assert clean("&#" + "9" * 8_000_000) == ""


def test_ordinary_descriptions_are_fast() -> None:
    text = "Blue cotton piqué shirt, with a collar & buttons. Machine wash at 30°.\n" * 8  # 570 characters
    start = time.process_time()
    for _ in range(3_700):
        clean(text)
    assert time.process_time() - start < 1.0  # a tenth of the catalog; measured: 0.05 s


def test_workers_that_import_it_load_no_torch() -> None:
    code = "import sys, cma_clip_core.text, cma_clip_core.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
