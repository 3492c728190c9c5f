"""Extraction of the visible text from a shop's HTML. Pure functions; no torch, because Spark's workers import this.

lxml (libxml2) reads the HTML: its tokenizer is HTML5's, it is widely maintained, and it can emit tokens without
building a tree. A tree is unsafe for untrusted texts, because HTML5's rules for unclosed elements can make its size
quadratic.

No parser can decide whether a ``<`` begins a tag or belongs to the text ("size <38", "Tee <Red>"). HTML
accepts any word in angle brackets as an element. This module decides before parsing: a tag has a name that HTML
defines, or is closed later.

Every pattern runs in linear time: repetitions are possessive, and stop where the next match may begin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from lxml import etree

MAX_CHARACTERS: Final = 400_000  # read of a raw text: two hundred pages, or a long style sheet before the text

_DEEP: Final = 256  # open elements before a new parser continues, since each end tag costs a walk through them
_PIECE: Final = 4_096  # characters given to the parser at once
_FAILURES: Final = (
    100  # after so many tags with unclosed quotes, no closing quotes are searched for, which may be far away
)


def _names(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# Block elements, separate from the text around them: a blank replaces their tags. All others are inline.
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
_PREFIXES: Final = ("o:", "v:", "w:", "m:", "x:", "st1:", "g:", "c:", "svg:", "fb:")  # from Office, feeds and others
# Element names that are also English words: without attributes and never closed, they are text.
_WORDS: Final = _names(
    "address article aside audio base big body button caption center code data details dialog embed font footer form",
    "frame header image input label legend link main map mark marquee math menu meter object option output path picture",
    "progress ruby search section select slot small source style summary table template time title track video",
)
_LETTERS: Final = frozenset("abiqsu")  # one-letter names: in upper case they may be sizes, in lower case they are tags
_NO_TEXT: Final = _names(
    "applet audio canvas datalist iframe noembed noframes noscript script style svg template video xml"
)
# Elements whose content the parser does not read as markup, or does not show. An unclosed one would swallow the rest.
_SWALLOWING: Final = _NO_TEXT | {"textarea", "title"}
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
_MARKUP: Final = re.compile(r"<(?:/?[A-Za-z]|!--|!\[|!doctype|\?)|\]\]>|<\\/", re.IGNORECASE)  # possible markup
_END_TAG: Final = re.compile(rf"</({_NAME})\s*+>")
_QUOTED: Final = re.compile(r"(?:[^<>=]++|=\s*+(?:\"[^\"]*+\"|'[^']*+')|=(?!\s*+[\"']))*+>")  # the rest of a tag
_UNQUOTED: Final = re.compile(r"[^<>]*+>")
_FIRST_ATTRIBUTE: Final = re.compile(r"[\s/]*+(?:>|([^\s\"'<>/=]++)(\s*+=)?)")
_PAGE: Final = re.compile(r"</head\s*+>", re.IGNORECASE)  # a page's title is not shown; a title in a feed is text
_CDATA: Final = re.compile(r"<!\s?\[CDATA\[|\]\]>", re.IGNORECASE)
_JSON_END_TAG: Final = re.compile(r"<\\/(?=[A-Za-z])")
_DATA_URI: Final = re.compile(
    r"data:[^\s,;\"'<>]{0,200}+(?:;(?!base64,)[^\s,;\"'<>]{0,80}+){0,3}+;base64,[A-Za-z0-9+/=%]*+"
)
_UNSEEN: Final = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|mso-hide\s*:\s*all", re.IGNORECASE)
_UNFIT: Final = re.compile("[\x00\ud800-\udfff]")  # UTF-8 cannot encode half a surrogate pair

# Placeholders of template languages: Liquid, Magento, Handlebars, Jinja, ERB, JavaScript.
_TEMPLATE: Final = re.compile(r"\{\{\{?[^{}]*+\}?\}\}|\{%[^%{}]*+%\}|<%[^%<>]*+%>|\$\{[^{}]*+\}")
_SHORTCODE: Final = re.compile(r"\[(/?)([a-z][\w-]*+)([\s=][^\[\]]*+)?\]")
_SHORTCODE_VALUE: Final = re.compile(r"\s[\w-]+\s?=\s?[\"'”“″&]")
_BUILDERS: Final = ("vc_", "et_pb_", "fusion_", "av_", "mk_", "wpb_", "fl_", "cs_", "su_", "elementor-")


def visible_text(text: str, enough: int) -> str:
    """Return the part of `text` that a browser would show; without markup, `text` itself.

    * Comments, scripts, styles, hidden elements, template placeholders and shortcodes are removed.
    * Tags of block elements (paragraphs, cells, line breaks) become blanks. Inline tags are removed without a trace:
      ``<b>T</b>-Shirt`` is ``T-Shirt``.
    * The content of CDATA is read as HTML, as feeds intend it. Entities are not decoded.
    * If nothing is visible, the result is the hidden text, or otherwise the descriptions of pictures.

    Args:
        text: raw text; at most `MAX_CHARACTERS` of it are read, not counting data URIs.
        enough: characters of visible text after which HTML need not be read any further.
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
    """Return whether `text` may contain HTML, so that `visible_text` may change it."""
    return "<" in text and _MARKUP.search(text) is not None


def _without_shortcodes(text: str) -> str:
    """Return `text` without shortcodes of WordPress and similar systems: closed ones, and those with quoted values."""
    closed = {m.group(2) for m in _SHORTCODE.finditer(text) if m.group(1)}
    opened = {m.group(2) for m in _SHORTCODE.finditer(text) if not m.group(1)} if closed else set()

    def replace(shortcode: re.Match[str]) -> str:
        name, rest = shortcode.group(2), shortcode.group(3)
        is_code = (
            (name in closed and name in opened)
            or name.startswith(_BUILDERS)
            or (rest is not None and _SHORTCODE_VALUE.match(rest) is not None)
        )
        return " " if is_code else shortcode.group()

    return _SHORTCODE.sub(replace, text)


def _shown(text: str, enough: int) -> str:
    """Return the visible text of the HTML `text`."""
    reader = _Reader(_NO_TEXT | {"title"} if _PAGE.search(text) else _NO_TEXT)
    parser = _parser(reader)
    piece, size = [], 0
    for part in _rewritten(text):
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
    parser.feed("".join([*piece, " "]).encode())  # libxml2 refuses an empty document
    parser.close()
    return reader.text()


def _parser(reader: _Reader) -> etree.HTMLParser:
    return etree.HTMLParser(target=reader, encoding="utf-8")


class _Reader:
    """Parser target that collects the text. `depth` and `unseen` count open elements."""

    def __init__(self, silent: frozenset[str]) -> None:
        self.depth = 0
        self._silent = silent
        self.unseen = 0  # open elements, counted from the outermost one that shows no text
        self.length = 0  # characters of visible text
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
        """Do nothing; lxml requires the method."""

    def text(self) -> str:
        """Return the visible text; without any, the hidden text; without either, the descriptions of pictures."""
        shown = "".join(self._shown)
        if shown.strip():
            return shown
        return "".join(self._hidden).strip() or " ".join(self._alternatives)


def _rewritten(text: str) -> Iterator[str]:
    """Yield `text` in parts, rewritten so that the parser finds only the markup that the shop meant.

    Each ``<`` that is text is escaped, and so is each ``&``, because entities are not decoded here. A tag with unclosed
    quotes loses its attributes, so that it swallows no text. A line break is added before each block tag.
    """
    text = _UNFIT.sub("", text)
    closed = {tag[1].lower(): tag.start() for tag in _END_TAG.finditer(text)}  # the last end tag of each name
    last, last_comment, last_program = text.rfind("<"), text.rfind("-->"), text.rfind("?>")
    opened: set[str] = set()
    failures = 0
    position = 0
    for opening in _OPENING.finditer(text):
        start, after = opening.span()
        if start < position:
            continue
        if opening["comment"]:
            # A comment that never ends would hide the rest, so only its mark is removed.
            rewritten, end = (" <!--" if start < last_comment else " "), after
        elif opening["declaration"]:
            rewritten, end = opening.group(), after
        elif opening["program"]:
            rewritten, end = " ", (text.index("?>", after) + 2 if start < last_program else after)
        else:
            name = opening["name"].lower()
            ends = closed.get(name, -1) > start
            first = _FIRST_ATTRIBUTE.match(text, after)
            if not _is_tag(opening, name, first, ends, opened):
                continue
            whole = _QUOTED.match(text, after) if failures < _FAILURES else None
            failures += whole is None
            cut = whole or _UNQUOTED.match(text, after)
            if cut is not None:
                end = cut.end()
                if whole is not None:
                    rewritten = text[start:end].replace("&", "&amp;")
                else:
                    rewritten = f"<{opening['slash']}{opening['name']}>"
                if name not in _INLINE:
                    rewritten = "\n" + rewritten
                if not opening["slash"]:
                    opened.add(name)
                    if name in _SWALLOWING and not ends:
                        rewritten = "\n"
            elif start == last and (not text[after:].strip() if opening["slash"] else first is not None and first[2]):
                rewritten, end = " ", len(text)  # the text was truncated inside its last tag
            else:
                continue
        yield _escaped(text[position:start])
        yield rewritten
        position = end
    yield _escaped(text[position:])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _is_tag(opening: re.Match[str], name: str, first: re.Match[str] | None, ends: bool, opened: set[str]) -> bool:
    """Return whether the shop meant markup by the word `name` in angle brackets.

    Args:
        opening: the match of `_OPENING`.
        name: the word in lower case.
        first: the tag's end, or its first attribute and the equals sign; None if neither follows.
        ends: whether an end tag with this name follows.
        opened: names of the preceding start tags.
    """
    known = name in _ELEMENTS or name.startswith(_PREFIXES)
    if opening["slash"]:
        return known or name in opened
    if first is None:
        return False
    attribute, equals = first.groups()
    if equals:
        return known or ends or "-" in name
    if attribute is not None:  # "waist <a and hip>": words of a sentence, not attributes
        attribute = attribute.lower()
        return known and (attribute in _BARE or attribute.startswith(_BARE_PREFIXES))
    if ends:
        return True
    if name in _LETTERS:
        return not opening["name"].isupper()
    return known and name not in _WORDS
