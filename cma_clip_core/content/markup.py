"""The text that a shop's HTML shows. Pure functions; no torch: Spark's workers import this.

lxml (libxml2) reads the HTML: its tokenizer is HTML5's, it is kept by many, and it can hand out tokens without a tree.
A tree would not do for strangers' texts: HTML5's rules for unclosed elements make a tree of quadratic size. No parser can
tell which ``<`` begins a tag and which one belongs to the text ("size <38", "Tee <Red>"), since HTML calls any word in
angle brackets an element. That is decided here, before the parser: a tag is what HTML names, or what is closed again.

Every pattern runs in linear time: what may repeat is possessive, and stops where the next match may begin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from lxml import etree

MAX_CHARACTERS: Final = 400_000  # of a raw text; more are not read. Two hundred pages, or much style before a text

_DEEP: Final = 256  # open elements; from here on a new parser goes on, since each end tag costs a walk through them
_PIECE: Final = 4_096  # characters given to the parser at once
_FAILURES: Final = 100  # tags whose quotes do not end; from here on quotes, which may be far, are not looked for


def _names(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# Elements that stand apart from the text around them: a blank replaces their tags. All others are inline.
_BLOCKS: Final = _names(
    "address area article aside audio base blockquote body br button canvas caption center col colgroup datalist dd",
    "details dialog dir div dl dt embed fieldset figcaption figure footer form frame frameset h1 h2 h3 h4 h5 h6 head",
    "header hgroup hr html iframe img input isindex legend li link main map marquee menu meta meter nav noframes noscript",
    "object ol optgroup option p param picture pre progress script search section select source style summary svg table",
    "tbody td template textarea tfoot th thead title tr track ul video",
)
_INLINE: Final = _names(
    "a abbr acronym applet b basefont bdi bdo bgsound big blink cite code data del dfn em font i image ins kbd keygen",
    "label mark math nobr output path q rb rp rt rtc ruby s samp slot small span strike strong sub sup time tt u var wbr",
)
_ELEMENTS: Final = _BLOCKS | _INLINE
_PREFIXES: Final = ("o:", "v:", "w:", "m:", "x:", "st1:", "g:", "c:", "svg:", "fb:")  # of Office, feeds and others
# Names of elements that are words, too: without attributes and never closed, they are text.
_WORDS: Final = _names(
    "address article aside audio base big body button caption center code data details dialog embed font footer form",
    "frame header image input label legend link main map mark marquee math menu meter object option output path picture",
    "progress ruby search section select slot small source style summary table template time title track video",
)
_LETTERS: Final = frozenset("abiqsu")  # names that are sizes where they are capital; small, they are tags all the same
_NO_TEXT: Final = _names(
    "applet audio canvas datalist iframe noembed noframes noscript script style svg template video xml"
)
# Elements whose content is no markup to the parser, or is not shown. One that never ends would take the rest with it.
_TAKING: Final = _NO_TEXT | {"textarea", "title"}
_BARE: Final = _names(  # attributes without a value
    "align allowfullscreen alt async autofocus autoplay checked class compact controls default defer disabled hidden href",
    "id inert ismap itemscope loop multiple muted nohref nomodule noresize noshade novalidate nowrap open playsinline",
    "readonly required reversed selected src style truespeed",
)
_BARE_PREFIXES: Final = ("data-", "aria-", "ng-", "v-", "x-", "_ng", "wire:")

_NAME: Final = r"[A-Za-z][^\s/<>\"'=&;,()\[\]{}@]*+"
_OPENING: Final = re.compile(
    r"<(?:"
    rf"(?P<slash>/?)(?P<name>{_NAME})(?=[\s/>]|$)"
    r"|(?P<comment>!--)"
    r"|(?P<declaration>!\[(?:if|endif)\b[^<>]*+>|!doctype\b[^<>]*+>)"
    r"|(?P<program>\?(?:php|xml|=))"
    r")",
    re.IGNORECASE,
)
_MARKUP: Final = re.compile(r"<(?:/?[A-Za-z]|!--|!\[|!doctype|\?)|\]\]>|<\\/", re.IGNORECASE)  # perhaps
_END_TAG: Final = re.compile(rf"</({_NAME})\s*+>")
_QUOTED: Final = re.compile(r"(?:[^<>=]++|=\s*+(?:\"[^\"]*+\"|'[^']*+')|=(?!\s*+[\"']))*+>")  # a tag's rest
_UNQUOTED: Final = re.compile(r"[^<>]*+>")
_FIRST_ATTRIBUTE: Final = re.compile(r"[\s/]*+(?:>|([^\s\"'<>/=]++)(\s*+=)?)")
_PAGE: Final = re.compile(r"</head\s*+>", re.IGNORECASE)  # a title in a page's head is not shown; one in a feed is text
_CDATA: Final = re.compile(r"<!\s?\[CDATA\[|\]\]>", re.IGNORECASE)
_JSON_END_TAG: Final = re.compile(r"<\\/(?=[A-Za-z])")
_DATA_URI: Final = re.compile(
    r"data:[^\s,;\"'<>]{0,200}+(?:;(?!base64,)[^\s,;\"'<>]{0,80}+){0,3}+;base64,[A-Za-z0-9+/=%]*+"
)
_UNSEEN: Final = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|mso-hide\s*:\s*all", re.IGNORECASE)
_UNFIT: Final = re.compile("[\x00\ud800-\udfff]")  # UTF-8 cannot hold half a surrogate pair

# Placeholders of template languages: Liquid, Magento, Handlebars, Jinja, ERB, JavaScript.
_TEMPLATE: Final = re.compile(r"\{\{\{?[^{}]*+\}?\}\}|\{%[^%{}]*+%\}|<%[^%<>]*+%>|\$\{[^{}]*+\}")
_SHORTCODE: Final = re.compile(r"\[(/?)([a-z][\w-]*+)([\s=][^\[\]]*+)?\]")
_SHORTCODE_VALUE: Final = re.compile(r"\s[\w-]+\s?=\s?[\"'”“″&]")
_BUILDERS: Final = ("vc_", "et_pb_", "fusion_", "av_", "mk_", "wpb_", "fl_", "cs_", "su_", "elementor-")


def visible_text(text: str, enough: int) -> str:
    """Return what a browser would show of `text`; without markup, `text` itself.

    Comments, scripts, styles, hidden elements, placeholders of templates and shortcodes are removed. Elements that stand
    apart (paragraphs, cells, line breaks) become blanks, inline ones nothing: ``<b>T</b>-Shirt`` is ``T-Shirt``. The
    content of CDATA is read as HTML, as feeds mean it. Entities stay as they are. Where nothing is shown, a text that the
    page hides is returned, or those that describe its pictures.

    Args:
        text: at most `MAX_CHARACTERS` of it are read, not counting the content of data URIs.
        enough: characters of shown text from which on HTML is not read any further.
    """
    if ";base64," in text:
        text = _DATA_URI.sub("", text)
    text = text[:MAX_CHARACTERS]
    if "{" in text or "<%" in text:
        text = _TEMPLATE.sub(" ", text)
    if "[" in text:
        text = _without_shortcodes(text)
    if "<" in text and _MARKUP.search(text):
        text = _shown(_CDATA.sub("", _JSON_END_TAG.sub("</", text)), enough)
    return text


def has_markup(text: str) -> bool:
    """Return whether `text` has what may be HTML: `visible_text` may return another text."""
    return "<" in text and _MARKUP.search(text) is not None


def _without_shortcodes(text: str) -> str:
    """Return `text` without the shortcodes of WordPress and its like: closed ones, and those with quoted values."""
    closed = {m.group(2) for m in _SHORTCODE.finditer(text) if m.group(1)}
    opened = {m.group(2) for m in _SHORTCODE.finditer(text) if not m.group(1)} if closed else set()

    def replaced(found: re.Match[str]) -> str:
        name, rest = found.group(2), found.group(3)
        is_code = (
            (name in closed and name in opened)
            or name.startswith(_BUILDERS)
            or (rest is not None and _SHORTCODE_VALUE.match(rest) is not None)
        )
        return " " if is_code else found.group()

    return _SHORTCODE.sub(replaced, text)


def _shown(text: str, enough: int) -> str:
    """Return the text that the HTML `text` shows."""
    reader = _Reader(_NO_TEXT | {"title"} if _PAGE.search(text) else _NO_TEXT)
    parser = _parser(reader)
    piece, size = [], 0
    for part in _spelled(text):
        piece.append(part)
        size += len(part)
        if size >= _PIECE:
            parser.feed("".join(piece).encode())
            piece, size = [], 0
            if reader.length > enough:
                break
            if reader.depth > _DEEP:
                parser.close()
                reader.depth = reader.unseen = 0
                parser = _parser(reader)
    parser.feed("".join([*piece, " "]).encode())  # libxml2 refuses a document of no bytes
    parser.close()
    return reader.text()


def _parser(reader: _Reader) -> etree.HTMLParser:
    return etree.HTMLParser(target=reader, encoding="utf-8")


class _Reader:
    """Receives the parser's tokens and keeps the text. `depth` and `unseen` count open elements."""

    def __init__(self, silent: frozenset[str]) -> None:
        self.depth = 0
        self._silent = silent
        self.unseen = 0  # the open elements from the outermost one that shows no text
        self.length = 0  # characters shown
        self._scripted = False
        self._shown: list[str] = []
        self._hidden: list[str] = []
        self._alternatives: list[str] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        if self.unseen:
            self.unseen += 1
        elif tag in self._silent:
            self.unseen, self._scripted = 1, True
        elif attributes:
            if "hidden" in attributes or _UNSEEN.search(attributes.get("style", "")):
                self.unseen, self._scripted = 1, False
            elif tag == "img" and (alternative := attributes.get("alt")):
                self._alternatives.append(alternative)

    def end(self, _tag: str) -> None:
        self.depth -= 1
        if self.unseen:
            self.unseen -= 1

    def data(self, data: str) -> None:
        if not self.unseen:
            self._shown.append(data)
            self.length += len(data)
        elif not self._scripted:
            self._hidden.append(data)

    def close(self) -> None:
        """Nothing to do; lxml asks for it."""

    def text(self) -> str:
        """Return the text shown, else the one hidden, else what describes the pictures."""
        shown = "".join(self._shown)
        if shown.strip():
            return shown
        return "".join(self._hidden).strip() or " ".join(self._alternatives)


def _spelled(text: str) -> Iterator[str]:
    """Yield `text` in parts, so that the parser finds markup where a shop meant it and nowhere else.

    A ``<`` that is text is escaped, and so is each ``&``: entities are not read here. A tag whose quotes do not end is
    given without attributes, so that it swallows no text. A blank stands before each tag of a block.
    """
    text = _UNFIT.sub("", text)
    closed = {found[1].lower(): found.start() for found in _END_TAG.finditer(text)}  # the last one of each name
    last, last_comment, last_program = text.rfind("<"), text.rfind("-->"), text.rfind("?>")
    opened: set[str] = set()
    failures = 0
    position = 0
    for found in _OPENING.finditer(text):
        start, after = found.span()
        if start < position:
            continue
        if found["comment"]:
            # One that never ends would hide the rest: its mark alone goes.
            spelled, end = (" <!--" if start < last_comment else " "), after
        elif found["declaration"]:
            spelled, end = found.group(), after
        elif found["program"]:
            spelled, end = " ", (text.index("?>", after) + 2 if start < last_program else after)
        else:
            name = found["name"].lower()
            ends = closed.get(name, -1) > start
            first = _FIRST_ATTRIBUTE.match(text, after)
            if not _is_tag(found, name, first, ends, opened):
                continue
            whole = _QUOTED.match(text, after) if failures < _FAILURES else None
            failures += whole is None
            cut = whole or _UNQUOTED.match(text, after)
            if cut is not None:
                end = cut.end()
                if whole is not None:
                    spelled = text[start:end].replace("&", "&amp;")
                else:
                    spelled = f"<{found['slash']}{found['name']}>"
                if name not in _INLINE:
                    spelled = "\n" + spelled
                if not found["slash"]:
                    opened.add(name)
                    if name in _TAKING and not ends:
                        spelled = "\n"
            elif start == last and (not text[after:].strip() if found["slash"] else first is not None and first[2]):
                spelled, end = " ", len(text)  # the text was cut off inside its last tag
            else:
                continue
        yield _escaped(text[position:start])
        yield spelled
        position = end
    yield _escaped(text[position:])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _is_tag(found: re.Match[str], name: str, first: re.Match[str] | None, ends: bool, opened: set[str]) -> bool:
    """Return whether a shop meant markup by the word `name` in angle brackets.

    Args:
        found: what `_OPENING` found.
        first: the tag's end, or its first attribute and the equals sign; None where neither follows.
        ends: whether an end tag of the name follows.
        opened: names of the start tags before.
    """
    known = name in _ELEMENTS or name.startswith(_PREFIXES)
    if found["slash"]:
        return known or name in opened
    if first is None:
        return False
    attribute, equals = first.groups()
    if equals:
        return known or ends or "-" in name
    if attribute is not None:  # "waist <a and hip>": the words of a sentence are no attributes
        attribute = attribute.lower()
        return known and (attribute in _BARE or attribute.startswith(_BARE_PREFIXES))
    if ends:
        return True
    if name in _LETTERS:
        return not found["name"].isupper()
    return known and name not in _WORDS
