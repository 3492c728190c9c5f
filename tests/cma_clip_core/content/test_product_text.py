"""Tests of cleaning texts: `make test TESTS=tests/cma_clip_core/content/test_product_text.py`."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from cma_clip_core.content import markup
from cma_clip_core.content.product_text import LIMIT, clean, cut


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
        ("& amp amp nbsp Blue", "Blue"),
        ("z" + "\u0301" * 50, "ź" + "\u0301" * 3),
    ],
)
def test_clean(raw: str | None, expected: str) -> None:
    assert clean(raw) == expected


@pytest.mark.parametrize(
    "text",
    ["size <38", "5<10", "I <3 you", "a<b and c>d", "if x<y then z>w", "mail <x@y.z>", "Tee <Red> striped", "Size:<S-XL> fit",
     "Size <S> or <M>", "(<knee length>)", "<A12>", "i<love>tees", "waist<Medium and hip>Large", "see <https://x.y/z>",
     "<Small> fit", "<Body> cotton <Lining> silk", "a <- b -> c <-> d", "<b and c>d", "</3 broken", "x << y >> z", "≤ 3",
     "R&D, AT&T; and &T", "http://x.y/?a=1&copy=2&reg=3", "cotton&notebook", "boho&ethnic", "black&microfibre", "{S, M}",
     "[S, M, L] [NEW] [2 pack] [made-to-order] [l = 10]", "with \\navy print", "C:\\graphic", "<!> 5", "1<2>0", "50%20"],
)  # fmt: skip
def test_what_looks_like_markup_and_is_text_stays(text: str) -> None:
    assert clean(text) == text
    assert clean(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")) == text
    assert clean(f"<p>{text}</p>") == text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("<![CDATA[Blue shirt]]>", "Blue shirt"),
        ("<![CDATA[<p>A <b>blue</b> one.</p>]]> New", "A blue one. New"),
        ("&lt;![CDATA[Blue & red]]&gt;", "Blue & red"),
        ("Tom &amp;amp;amp; Co", "Tom & Co"),
        ("&amp;#38;eacute;t&amp;eacute;", "été"),
        ("&amp;lt;p&amp;gt;Soft &amp;amp; warm&amp;lt;/p&amp;gt;", "Soft & warm"),
        ("<p>&lt;b&gt;Soft&lt;/b&gt; &lt;S-XL&gt;</p>", "Soft <S-XL>"),
        ("Blue&nbspshirt &copy2024 &NBSP;x", "Blue shirt ©2024 x"),
        ("<b>T</b>-Shirt, H<sub>2</sub>O", "T-Shirt, H2O"),
        ("<li>a</li><li>b<td>c<td>d<br/>e<BR>f", "a b c d e f"),
        ('<a href="x>Blue</a> shirt, 5" heel</p> done', 'Blue shirt, 5" heel done'),
        ("<p title='it's'>Blue</p> shirt's", "Blue shirt's"),
        ("<a title='1 > 0'>Blue</a> shirt", "Blue shirt"),
        ('<div data-x="{&quot;t&quot;:&quot;&lt;p&gt;no&lt;/p&gt;&quot;}">Text</div>', "Text"),
        ("<p>One<\\/p><p>Two<\\/p>", "One Two"),
        ('Blue <img src="https://x.y/a', "Blue"),
        ("Blue </stro", "Blue </stro"),
        ("Blue </strong", "Blue"),
        ("x<script>never closed", "x never closed"),
        ('<script type="application/ld+json">{"name": "<b>x"}</script>Blue<noscript>no</noscript>', "Blue"),
        ("<!--[if mso]><p>no</p><![endif]-->a <![if !IE]>b<![endif]>", "a b"),
        ('<?xml version="1.0"?>a<?php echo "x>y" ?>b', "a b"),
        ("<html><head><title>no</title></head><body>Blue</body></html>", "Blue"),
        ("<title>Blue</title><color>Red</color>", "Blue Red"),
        ('<p style="display: none">no</p>Blue<span hidden>no</span><svg><title>no</title></svg>', "Blue"),
        ('<div style="display:none">all that is given</div>', "all that is given"),
        ("<img src=x alt='Blue shirt'>", "Blue shirt"),
        ('<img src="data:image/png;base64,iVBORw0KGgo=">Blue', "Blue"),
        ("<o:p>&nbsp;</o:p>Blue<product-card>Red</product-card>", "Blue Red"),
        ('<meta charset="utf-16"><p>caf\u00e9</p>', "café"),
        ("{{product.title}}", ""),
        (
            '{{widget type="X\\Y" id="3"}} <img src="{{media url="a.jpg"}}" alt=""> Blue {% if x %}a{% endif %}',
            "Blue a",
        ),
        ("<%= name %> ${product.name} Blue", "Blue"),
        ('[vc_row][vc_column width="1/2"]Blue[/vc_column][/vc_row] [gallery ids="1,2"] [b]x[/b]', "Blue x"),
        ("Soft\\nwash\\tcold\\r\\n\\r\\nDry", "Soft wash cold Dry"),
        ('\\u003cp class=\\"a\\"\\u003eRed\\u003c/p\\u003e \\x3cb\\x3edress', "Red dress"),
        ("\\u0026lt;p\\u0026gt;Red, size \\u003c38", "Red, size <38"),
        ("black\\navy or cream\\rose\\nsoft", "black\\navy or cream\\rose soft"),
        ("caf\\u00e9 \\ud83d\\udc57 Men\\'s 5\\\"", "café \U0001f457 Men's 5\""),
        ("Blue_x000D_ shirt", "Blue shirt"),
        ('="Blue shirt"', "Blue shirt"),
    ],
)
def test_what_is_no_text_goes(raw: str, expected: str) -> None:
    assert clean(raw) == expected


@pytest.mark.parametrize(
    "text",
    ["#N/A", "\\N", "#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "(null)", "<NA>", "[none]", "n.d.", "TBC", "\\n", "--"],
)
def test_words_for_nothing_are_nothing(text: str) -> None:
    assert clean(text) == clean(f" {text}\n") == ""


def test_a_long_style_sheet_does_not_cost_the_text_behind_it() -> None:
    style = "<style>" + "p { color: red } " * 10_000 + "</style>"
    picture = '<img src="data:image/png;base64,' + "iVBORw0KGgo" * 60_000 + '">'
    assert clean(f"{style}{picture}<p>Blue</p><!-- {style} --><p>shirt</p>") == "Blue shirt"


HOSTILE = ["<b>", "<i></b>", "<div></p>", "<", "<!--", "<![CDATA[", "<?php ", "<a x=\"", "<a x='", "<a x=\"' ", "</", "{{", "{%",
           "[a x=\"", "[/a", "&amp;", "&#38;", "&lt;b&gt;", "\\", "\\n", "<script>", "<font a=1><p>", "<a title=\"<a title='",
           "data:a;a", ";base64,", "<b x y z ", "<svg><title>", "]]>", "<%", "_x0041_", "&nbsp", "<style></style "]  # fmt: skip


def steps(text: str) -> tuple[int, int]:
    """Return the number of calls that `clean` makes, and of characters that it gives to the parser."""
    calls = fed = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    class Counting(markup.etree.HTMLParser):  # type: ignore[misc]
        def feed(self, data: bytes) -> None:
            nonlocal fed
            fed += len(data)
            super().feed(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markup, "_parser", lambda reader: Counting(target=reader, encoding="utf-8"))
        sys.setprofile(count)
        try:
            result = clean(text)
        finally:
            sys.setprofile(None)
    assert len(result) <= LIMIT
    return calls, fed


@pytest.mark.parametrize("piece", HOSTILE)
def test_the_work_of_a_hostile_text_grows_with_its_length_and_no_faster(piece: str) -> None:
    calls, fed = steps(piece * (20_000 // len(piece)))
    twice_calls, twice_fed = steps(piece * (40_000 // len(piece)))
    assert twice_calls <= 2.1 * calls + 200
    assert twice_fed <= 2.1 * fed + 200
    assert twice_fed <= 10 * 40_000  # "<" becomes "&lt;", and an encoded text is read more than once


@pytest.mark.parametrize("piece", HOSTILE)
def test_no_hostile_text_costs_the_text_around_it(piece: str) -> None:
    text = clean(f"Blue {piece * 50} shirt")
    assert text.startswith("Blue")
    assert "shirt" in text or piece.startswith("<a ")  # a text that ends inside a tag was truncated there


def test_the_parser_never_holds_more_open_elements_than_a_bound() -> None:
    """An end tag without a start searches all open elements, so many of both would take quadratic time."""
    deepest = 0

    class Reader(markup._Reader):
        def start(self, tag: str, attributes: dict[str, str]) -> None:
            nonlocal deepest
            super().start(tag, attributes)
            deepest = max(deepest, self.depth)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markup, "_Reader", Reader)
        assert clean("<i>" * 60_000 + "Blue" + "</b>" * 40_000 + " shirt") == "Blue shirt"
    assert 1_000 < deepest < 4_000


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
    assert time.process_time() - start < 10  # a quadratic step takes minutes
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
    code = "import sys, cma_clip_core.content.product_text, cma_clip_core.content.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
