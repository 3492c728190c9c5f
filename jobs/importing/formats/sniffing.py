"""Detection, from the first bytes of a file, of its encoding or of a format other than JSON lines and CSV."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection
from typing import Final

from jobs.importing.formats.observations import StructureError
from schemas.column_paths import parse_path
from schemas.mapping import Mapping

HAS_ID: Final = 1000  # score of a column that holds the id

_PACKED: Final = "unpack it, or pack it with gzip, bzip2, xz, Zstandard or zip"
EXPORT: Final = "export the records as CSV, JSON, Parquet, XLSX or XML"
_ONCE: Final = "unpack it once"
_BINARY: Final = (  # formats that are read
    (re.compile(rb"PAR1\x15"), "parquet"),
    (
        re.compile(rb"PK\x03\x04(?!.{26}mimetypeapplication/vnd\.oasis).*?(\[Content_Types\]\.xml|xl/)", re.DOTALL),
        "xlsx",
    ),
    (re.compile(rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"), "xlsx"),  # XLS, which the same reader reads
    (re.compile(rb"\x89HDF\r\n\x1a\n"), "hdf5"),
)
_MAGIC: Final = (
    (re.compile(rb"PK\x03\x04.{26}mimetypeapplication/vnd\.oasis", re.DOTALL), "an OpenDocument file", EXPORT),
    (re.compile(rb"PK(\x03\x04|\x05\x06)"), "a zip file", _ONCE),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), "a bzip2 file", _ONCE),
    (re.compile(rb"\xfd7zXZ\x00"), "an xz file", _ONCE),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "a Zstandard file", _ONCE),
    (re.compile(rb"\x1f\x8b"), "a gzip file", _ONCE),
    (re.compile(rb"\x04\x22\x4d\x18"), "an LZ4 file", _PACKED),
    (re.compile(rb"PARE"), "an encrypted Parquet file", EXPORT),
    (re.compile(rb"\x1f\x9d"), "a file of `compress`", _PACKED),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "a 7-Zip archive", _PACKED),
    (re.compile(rb"Rar!\x1a\x07"), "a RAR archive", _PACKED),
    (re.compile(rb".{257}ustar(\x00|  \x00)", re.DOTALL), "a tar archive", _PACKED),
    (re.compile(rb"%PDF-"), "a PDF", EXPORT),
    (re.compile(rb"\{\\rtf"), "an RTF document", EXPORT),
    (re.compile(rb"ORC[\x00-\x1f].{0,4000}?[\x00-\x08]", re.DOTALL), "an ORC file", EXPORT),
    (re.compile(rb"Obj\x01"), "an Avro file", EXPORT),
    (re.compile(rb"ARROW1\x00"), "an Arrow file", EXPORT),
    (re.compile(rb"SQLite format 3\x00"), "an SQLite database", EXPORT),
    (re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP", re.DOTALL), "a picture", EXPORT),
    (re.compile(rb"\x00\x05\x16[\x00\x07]"), "a resource file of macOS", "remove it"),
)
# UTF-32 comes first, because its byte-order mark begins with that of UTF-16.
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROLS: Final = frozenset(range(0x20)) - frozenset(b"\t\n\r\x00\x0b\x0c\x1b\x1c\x1d\x1e\x1f")
_LOOKED_AT: Final = 4096  # bytes that are examined
_HEADER: Final = 64  # bytes of a second look, at the header alone
_FEW: Final = 3  # non-ASCII UTF-8 characters that rule out a single-byte encoding
_MANY: Final = 100  # the same for a multi-byte encoding, whose bytes may be valid UTF-8 by chance
_UTF_8_CHARACTER: Final = re.compile(rb"[\xc3-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")


def binary_format(start: bytes) -> str:
    """Return the binary format that the first bytes of a file show, by its name in a mapping; otherwise an empty text."""
    return next((name for magic, name in _BINARY if magic.match(start)), "")


def refuse_binary(start: bytes, marks: str = "", packing: str = "") -> None:
    """Raise StructureError if `start`, the first bytes of a file, belongs to a binary format.

    Args:
        start: the first bytes, unpacked.
        marks: control characters that the file may contain nevertheless, such as its delimiter.
        packing: how the file is packed; empty if it is not.
    """
    for magic, kind, way_out in _MAGIC:
        if magic.match(start):
            kind = f"{kind} within a {packing} file" if packing else kind
            raise StructureError(f"{kind}; nothing was imported: {way_out}")
    head = start[:_LOOKED_AT]
    controls = _CONTROLS.difference(map(ord, marks))
    if sum(byte in controls for byte in head) * 20 > len(head):
        raise StructureError(f"binary data instead of text; nothing was imported: {EXPORT}")


def encoding_of(start: bytes) -> tuple[str, bytes]:
    """Return the encoding that the first bytes of a file show, or UTF-8, and their byte-order mark, which may be empty."""
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding, mark
    for size in (_LOOKED_AT, _HEADER):  # the header may be ASCII even if the records are Chinese
        head = start[: min(len(start), size) // 2 * 2]
        even, odd = head[::2].count(0), head[1::2].count(0)
        if (even + odd) * 20 >= len(head) > 0:  # ASCII as UTF-16 has NULs, at odd or at even positions only
            if odd >= 50 * even and _ends_lines(head, b"\n\x00"):
                return "utf-16-le", b""
            if even >= 50 * odd and _ends_lines(head, b"\x00\n"):
                return "utf-16-be", b""
    return "utf-8", b""


def _ends_lines(head: bytes, end: bytes) -> bool:
    """Return whether most line feeds have two bytes, as in UTF-16; stray NULs in other texts rarely stand beside them."""
    return head.count(end) * 2 >= head.count(b"\n")


def column_score(names: Collection[str], mapping: Mapping) -> int:
    """Return how well the names of columns fit a mapping: how many it names; `HAS_ID` more for a column of the id."""
    matches = sum(column in names or str(parse_path(column)[:1][0]) in names for column in mapping.columns)
    ids = (column in names or str(parse_path(column)[:1][0]) in names for column in mapping.id_columns)
    return matches + HAS_ID * any(ids)


def describe_text(text: str) -> str | None:
    """Return a description of a text that is neither JSON lines nor CSV; None if its start does not show that."""
    start = text[:_LOOKED_AT].lstrip("\ufeff\x1e \t\r\n").lower()
    if re.match(r"<!doctype html|<html|<head|<body", start):
        return "an HTML page"
    if re.match(r"<\?xml|<!--|<!doctype |<[a-z_][\w.:-]*[\s/>]", start):
        return "XML"
    return "a JSON array" if start.startswith("[") else None


def chosen_encoding(start: bytes, wanted: str) -> tuple[str, bytes]:
    """Return the encoding of a file and its byte-order mark: `wanted`, unless the bytes clearly show another encoding.

    Args:
        start: the first bytes.
        wanted: the mapping's encoding; empty if it names none.

    Raises:
        StructureError: the text is UTF-8 but the mapping names another encoding, which would garble every accent.
    """
    detected, mark = encoding_of(start)
    if not wanted or mark:
        return detected, mark
    if wanted in ("utf-16", "utf-32"):  # the byte order is not given
        return detected if detected.startswith(wanted) else f"{wanted}-le", b""
    if not wanted.startswith("utf") and _is_utf_8(start, _FEW if _is_single_byte(wanted) else _MANY):
        raise StructureError(
            f"its text is UTF-8, but the mapping's `encoding` is {wanted}; nothing was imported: leave `encoding` out"
        )
    return "utf-8" if wanted == "utf-8-sig" else wanted, b""


def _is_utf_8(start: bytes, least: int) -> bool:
    """Return whether the text is clearly UTF-8: it decodes, and has at least `least` non-ASCII characters."""
    if start.isascii():
        return False
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return sum(not character.isascii() for character in text) >= least


def _is_single_byte(encoding: str) -> bool:
    return len(bytes(range(256)).decode(encoding, errors="replace")) == 256


def describe_undecodable(encoding: str, raw: bytes) -> str:
    """Describe `raw`, which is not text in `encoding`, and suggest cp1252 if that would read it."""
    problem = f"not {encoding.upper()}"
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError:
        return problem
    letters = [character for character in text if character.isalpha()]
    foreign = sum(not character.isascii() for character in letters)
    # As cp1252, text in another script, or damaged UTF-8, would turn into nonsense.
    if encoding == "cp1252" or 3 * foreign > len(letters) or _UTF_8_CHARACTER.search(raw):
        return problem
    return f"{problem}; cp1252 would read it"
