"""Reader of XML feeds (Merchant RSS, Atom, any repeated element) by expat, as a stream, without entities or external files."""

from __future__ import annotations

import codecs
import html
import xml.sax
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, TypeAlias
from xml.sax.handler import ContentHandler, feature_namespaces
from xml.sax.xmlreader import AttributesNSImpl, InputSource

from defusedxml.common import DefusedXmlException
from defusedxml.expatreader import create_parser

from jobs.importing.formats.observations import Observations, StructureError, shown
from jobs.importing.formats.sniffing import column_score
from jobs.importing.formats.sources import LINE_START, MAX_LINE, Source
from jobs.records.rejected_lines import RejectedLine
from schemas.mapping import Mapping

Json: TypeAlias = Any
_Path: TypeAlias = tuple[str, ...]

_CHUNK: Final = 2**16
_SAMPLED: Final = 2**21  # bytes that are searched for the repeated element
_DEPTH: Final = 100  # elements within a record
_OUTER: Final = 1000  # elements around a record
_SILENT: Final = 2 * MAX_LINE  # bytes of one tag or comment
_KNOWN: Final = ({"rss", "rdf", "channel", "item"}, {"feed", "entry"})  # RSS and Atom
_NAMED: Final = ("name", "key", "code")  # attributes that name what an element's text is the value of


@dataclass(slots=True)
class _Element:
    """An element that is being read."""

    name: str
    prefix: str
    attributes: dict[str, str]
    texts: list[str] = field(default_factory=list)
    children: list[_Element] = field(default_factory=list)
    value: Json = None

    def record(self) -> dict[str, Json]:
        """Return the element's attributes and children by name. Children with the same name become a list."""
        record: dict[str, Json] = {f"@{name}": value for name, value in self.attributes.items()}
        spaces: dict[str, set[str]] = {}
        for child in self.children:
            spaces.setdefault(child.name, set()).add(child.prefix)
        repeated = {key for key, count in Counter((c.name, c.prefix) for c in self.children).items() if count > 1}
        for child in self.children:
            clash = len(spaces[child.name]) > 1 and child.prefix
            name = f"{child.prefix}:{child.name}" if clash else child.name
            values = child.flattened(name)
            for key, value in values.items():
                if (child.name, child.prefix) in repeated:
                    record.setdefault(key, []).append(value)
                else:
                    record[key] = value
        return record

    def flattened(self, name: str) -> dict[str, Json]:
        """Return the element as columns: `name`, and `name@attribute` for the attributes of a text."""
        text = "".join(self.texts).strip()
        if self.children:
            return {name: self.record()} if not text else {name: self.all_text()}
        if not self.attributes:
            return {name: text}
        label = next((each for each in _NAMED if each in self.attributes), None)
        if text and label:
            rest = {f"@{each}": value for each, value in self.attributes.items() if each != label}
            return {name: {"name": self.attributes[label], "value": text} | rest}
        if text:
            return {name: text} | {f"{name}@{each}": value for each, value in self.attributes.items()}
        return {name: self.record()}

    def all_text(self) -> str:
        """Return the text of a mixed element and of all elements within it."""
        parts = ["".join(self.texts), *(child.all_text() for child in self.children)]
        return " ".join(" ".join(parts).split())


class _Handler(ContentHandler):
    """Base of the handlers: keeps the path of the open elements and the prefixes of the namespaces."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = []
        self.events = 0
        self.line = 0
        self._prefixes: dict[str | None, str] = {None: ""}
        self._locator: xml.sax.xmlreader.Locator | None = None

    def setDocumentLocator(self, locator: xml.sax.xmlreader.Locator) -> None:
        self._locator = locator

    def startPrefixMapping(self, prefix: str | None, uri: str) -> None:
        if len(self._prefixes) < 1000:
            self._prefixes[uri] = prefix or ""

    def startElementNS(self, name: tuple[str | None, str], qname: str | None, attrs: AttributesNSImpl) -> None:  # noqa: ARG002
        self.events += 1
        self.line = (self._locator.getLineNumber() or 0) if self._locator else 0
        self.path.append(name[1])
        if len(self.path) > _OUTER + _DEPTH:
            raise StructureError(f"line {self.line}: XML elements nested more than {_OUTER} deep; nothing was imported")
        self.begin(name[1], self._prefixes.get(name[0], ""), attrs)

    def endElementNS(self, name: tuple[str | None, str], qname: str | None) -> None:  # noqa: ARG002
        self.events += 1
        self.end()
        self.path.pop()

    def skippedEntity(self, name: str) -> None:
        text = html.unescape(f"&{name};")
        if text.startswith("&"):
            raise StructureError(
                f"an entity of its own, &{name[:60]};, which XML feeds may not have; nothing was imported"
            )
        self.characters(text)

    def begin(self, name: str, prefix: str, attrs: AttributesNSImpl) -> None:
        """Handle the start of the element at the path."""

    def end(self) -> None:
        """Handle the end of the element at the path."""


class _Outline(_Handler):
    """Counter of the elements by path, with the names of their children and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[_Path] = Counter()
        self.columns: dict[_Path, set[str]] = {}
        self.parents: set[_Path] = set()

    def begin(self, name: str, prefix: str, attrs: AttributesNSImpl) -> None:  # noqa: ARG002
        path = tuple(self.path)
        self.counts[path] += 1
        if len(self.counts) > 100_000:
            return
        names = self.columns.setdefault(path, set())
        names.update(f"@{attribute}" for _, attribute in list(attrs.keys())[:1000])
        if len(path) > 1:
            self.columns[path[:-1]].add(name)
            self.parents.add(path[:-1])


class _Recorder(_Handler):
    """Collector of the elements at one path as records; content beyond MAX_LINE is dropped."""

    def __init__(self, path: _Path) -> None:
        super().__init__()
        self._wanted = path
        self._open: list[_Element] = []
        self._size = self._first_line = 0
        self._fault = ""
        self.outside = 0  # elements with the record's name elsewhere
        self.done: list[tuple[int, dict[str, Json] | str, str]] = []  # line, record or fault, start of its text

    def begin(self, name: str, prefix: str, attrs: AttributesNSImpl) -> None:
        if not self._open:
            if len(self.path) < len(self._wanted) or tuple(self.path[-len(self._wanted) :]) != self._wanted:
                return
            self._size, self._fault, self._first_line = 0, "", self.line
        given = {(f"{self._prefixes.get(uri, '')}:" if uri else "") + key: value for (uri, key), value in attrs.items()}
        self._grow(len(name) + 50 + sum(len(key) + len(value) for key, value in given.items()))
        if len(self._open) > _DEPTH:
            self._fault = self._fault or f"elements nested more than {_DEPTH} deep"
        element = _Element(name, prefix, {} if self._fault else given)
        if self._open and not self._fault:
            self._open[-1].children.append(element)
        self._open.append(element)

    def characters(self, content: str) -> None:
        self.events += 1
        if self._open:
            self._grow(len(content))
            if not self._fault:
                self._open[-1].texts.append(content)

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > MAX_LINE:
            self._fault = self._fault or f"an element of more than {MAX_LINE:,} characters"

    def end(self) -> None:
        if not self._open:
            return
        element = self._open.pop()
        if not self._open:
            start = "" if not self._fault else _start(element)
            self.done.append((self._first_line, self._fault or element.record(), start))


def _start(element: _Element) -> str:
    texts = [f"{child.name}: {''.join(child.texts[:5])[:100]}" for child in element.children[:20]]
    return f"<{element.name}> {', '.join(texts)}"[:LINE_START]


def _feed(file: BinaryIO, source: Source, handler: _Handler, limit: int | None = None) -> Iterator[None]:
    """Parse `file` with `handler`, and yield after each chunk. Raises StructureError if it is not well-formed."""
    parser = create_parser(forbid_dtd=False, forbid_entities=True, forbid_external=False)
    parser.setFeature(feature_namespaces, True)
    parser.setContentHandler(handler)
    handler.setDocumentLocator(parser)
    wide = source.encoding.startswith(("utf-16", "utf-32"))
    given = InputSource()
    if wide or source.mark:
        given.setEncoding("utf-8")
    decoder = codecs.getincrementaldecoder(source.encoding)("replace") if wide else None
    parser.prepareParser(given)
    read = silent = events = 0
    try:
        while chunk := file.read(_CHUNK):
            parser.feed(decoder.decode(chunk).encode() if decoder else chunk)
            read += len(chunk)
            silent = silent + len(chunk) if handler.events == events else 0
            events = handler.events
            if silent > _SILENT:
                raise StructureError(
                    f"line {handler.line}: a tag or comment of more than {_SILENT:,} bytes; nothing was imported"
                )
            yield
            if limit is not None and read >= limit:
                return
        parser.close()
        yield
    except DefusedXmlException as error:
        raise StructureError(
            "XML that defines entities, which can grow without bound; nothing was imported: export the feed without them"
        ) from error
    except xml.sax.SAXParseException as error:
        raise StructureError(
            f"line {error.getLineNumber()}: XML that is truncated or not well-formed ({error.getMessage()}); nothing was "
            "imported: correct the line, or export the file again"
        ) from error


def find_element(source: Source, mapping: Mapping) -> _Path:
    """Return the path, or its last names, of the element that each record is.

    Raises:
        StructureError: the start of the file shows no such element, or several.
    """
    if mapping.records_at:
        return tuple(name.rsplit(":", 1)[-1] for name in mapping.records_at.replace("/", ".").split("."))
    outline = _Outline()
    with source.open() as file:
        try:
            for _ in _feed(file, source, outline, _SAMPLED):
                pass
        except StructureError:
            if not outline.parents:
                raise
    for path in outline.counts:
        lower = [name.lower() for name in path]
        if any(set(lower) <= known for known in _KNOWN) and lower[-1] in ("item", "entry"):
            return path
    tables = {path: outline.columns[path] for path in outline.parents}
    tables |= {path: columns for path, columns in outline.columns.items() if len(columns) > 1}
    scores = {path: column_score(columns, mapping) for path, columns in tables.items()}
    best = max(scores.values(), default=0)
    likely = [path for path in tables if scores[path] == best and (best or outline.counts[path] > 1)]
    if not likely:
        likely = [path for path in tables if len(path) == 2] or list(tables)
    if not likely:
        raise StructureError(
            "XML without elements that hold others, so it has no records; nothing was imported: set `records_at` in the "
            "mapping to the name of the element that is a record"
        )
    least = min(map(len, likely))
    shallow = sorted((path for path in likely if len(path) == least), key=lambda path: -outline.counts[path])
    if mapping.columns and len(shallow) > 1 and best:
        names = ", ".join("/".join(path)[:80] for path in sorted(shallow)[:10])
        raise StructureError(
            f"XML with several elements that may be records: {names}; nothing was imported: set `records_at` in the mapping "
            "to the name of one"
        )
    return shallow[0]


def read_xml(
    file: BinaryIO, source: Source, mapping: Mapping, observations: Observations
) -> Iterator[dict[str, Json] | RejectedLine]:
    """Yield each record's element as an object, or as a rejected line if it is too long or too deep.

    Raises:
        StructureError: the XML is not well-formed, defines entities, or has no repeated element.
    """
    path = find_element(source, mapping)
    recorder, count = _Recorder(path), 0
    for _ in _feed(file, source, recorder):
        for line, record, start in recorder.done:
            count += 1
            observations.line = line
            observations.count_row()
            if isinstance(record, str):
                yield observations.reject("line_too_long", record, start.encode(errors="replace"))
            else:
                yield record
        recorder.done.clear()
    if not count:
        raise StructureError(
            f"XML without an element {shown('/'.join(path))}; nothing was imported: correct `records_at` in the mapping"
        )
