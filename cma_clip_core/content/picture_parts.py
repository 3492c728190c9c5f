"""Bounds on the parts of a picture file (segments, chunks, blocks, tags, items), counted before a decoder opens it.

Before a decoder knows the pixels, it creates an object for each part, or searches all parts for each one. A photograph
has dozens of parts, but a few megabytes can hold millions. This module decodes none of them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Final

from cma_clip_core.content.avif_size import TooManyError, largest_frame
from cma_clip_core.content.picture_cost import MAX_MEMORY, MAX_PIXELS
from cma_clip_core.content.picture_files import JPEG, PNG

_SMALL: Final = 100_000  # bytes of a file that is too small for too many parts
_SEGMENTS: Final = 5_000  # of a JPEG before its first scan; ICC profiles and depth maps have hundreds
_EXIF: Final = 2**20  # bytes of a JPEG's Exif segments, since Pillow copies all previous ones for each
_CHUNKS: Final = 100_000  # of a PNG; some programs write one for each row
_BLOCKS: Final = 400_000  # of a GIF, each of at most 255 bytes
_SKIPPED: Final = 500_000  # bytes between parts, which are read one by one
_NUMBERS: Final = 100_000  # of a tag of TIFF or Exif, such as the offsets of strips and tiles
_DIRECTORIES: Final = 16  # nested directories of tags
_ITEM_BYTES: Final = 2**17  # of an AVIF's lists of items, since libavif searches all lists for each item
_AV1_PIXELS: Final = (
    MAX_MEMORY // 6
)  # of an AV1 frame, even if the container says otherwise; a pixel takes at most six bytes
_HEADERS: Final = 100  # possible Exif headers in an AVIF

_SEGMENT: Final = re.compile(rb"\xff+[\x01-\xfe]")
_BARE: Final = frozenset((0x01, *range(0xD0, 0xDA)))  # JPEG markers without a length field
_SCAN: Final = 0xDA
_GIF_BLOCK: Final = re.compile(rb"[!,;]")
_TIFF: Final = re.compile(rb"II(?:\x2a\0|\0\x2a|\x2b\0)|MM(?:\x2a\0|\0\x2a|\0\x2b)")
_LISTS: Final = re.compile(rb"(?=(....)(?:iinf|iloc|ipma|iref))", re.DOTALL)
# Bytes of a number by its type.
_UNIT: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_TEXTS: Final = (1, 2, 7)  # types whose bytes a decoder keeps without making numbers
_INNER: Final = (34665, 34853, 40965)  # tags that point to another directory


def refusal(data: bytes) -> str | None:
    """Return why the parts of the picture file `data` cost too much; None if they do not."""
    if data.startswith(b"GIF8"):  # even a small file may have later frames of any size
        return _gif(data)
    if data[4:8] == b"ftyp":  # even a small AVIF may decode to frames of any size
        return _avif(data)
    if len(data) <= _SMALL:
        return None
    return next((count(data) for begins, count in _FORMATS if begins(data)), None)


def too_many_numbers(data: bytes) -> str | None:
    """Return why the tags of the TIFF or Exif `data` take too much memory to read; None if they do not."""
    header = _TIFF.match(data)
    if header is None:
        return None
    order, big = ("<" if data[:1] == b"I" else ">"), 0x2B in data[2:4]
    count, entry, value_bytes, offset = ("Q", "HHQ", 8, "Q") if big else ("H", "HHI", 4, "I")
    read, size = struct.Struct(order + entry), struct.calcsize(order + entry) + value_bytes
    waiting, seen = [8 if big else 4], 0  # positions of the offsets of directories
    try:
        while waiting:
            (start,) = struct.unpack_from(order + offset, data, waiting.pop())
            (tags,) = struct.unpack_from(order + count, data, start)
            start += struct.calcsize(order + count)
            for at in range(start, min(start + tags * size, len(data) - size + 1), size):
                tag, kind, numbers = read.unpack_from(data, at)
                if kind not in _TEXTS and _NUMBERS < numbers <= len(data) // _UNIT.get(kind, len(data)):
                    return f"{numbers:,} numbers in tag {tag}; at most {_NUMBERS:,}"
                if tag in _INNER:
                    waiting.append(at + read.size)
            seen += 1
            if seen + len(waiting) > _DIRECTORIES:
                return f"{seen + len(waiting)} directories of tags or more"
    except struct.error:  # truncated data
        pass
    return None


def _jpeg(data: bytes) -> str | None:
    position, skipped, exif = 2, 0, 0
    for _ in range(_SEGMENTS):
        segment = _SEGMENT.search(data, position)
        if segment is None:
            return None
        skipped += segment.end() - 2 - position
        if skipped > _SKIPPED:
            return f"more than {_SKIPPED:,} bytes between its segments"
        marker, position = data[segment.end() - 1], segment.end()
        if marker == _SCAN:
            return None
        if marker not in _BARE:
            length = int.from_bytes(data[position : position + 2], "big")
            if data.startswith(b"Exif\0\0", position + 2):
                exif += length
            if exif > _EXIF:
                return f"more than {_EXIF:,} bytes of Exif data"
            position += max(2, length)
    return f"more than {_SEGMENTS:,} segments before its first scan"


def _png(data: bytes) -> str | None:
    position = len(PNG)
    for _ in range(_CHUNKS):
        if position >= len(data):
            return None
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return f"more than {_CHUNKS:,} chunks"


def _gif(data: bytes) -> str | None:
    position, blocks, skipped = 13 + _colours(data, 10), 0, 0
    while (block := _GIF_BLOCK.search(data, position)) is not None and block[0] != b";":
        skipped += block.start() - position
        if skipped > _SKIPPED:
            return f"more than {_SKIPPED:,} bytes between its blocks"
        position = block.end() + 1
        if block[0] == b",":
            width, height = (int.from_bytes(data[at : at + 2], "little") for at in (block.end() + 4, block.end() + 6))
            if width * height > MAX_PIXELS:
                return f"a frame of {width:,} x {height:,} pixels; at most {MAX_PIXELS:,}"
            position = block.end() + 10 + _colours(data, block.end() + 8)
        while position < len(data) and data[position]:
            position += 1 + data[position]
            blocks += 1
        position += 1
        blocks += 1
        if blocks > _BLOCKS:
            return f"more than {_BLOCKS:,} blocks"
    return None


def _colours(data: bytes, at: int) -> int:
    """Return the bytes of the colour table that the flags at position `at` of a GIF announce."""
    flags = data[at] if at < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _avif(data: bytes) -> str | None:
    total = 0
    for item_list in _LISTS.finditer(data):
        size = int.from_bytes(item_list[1], "big")
        # Sizes 0 and 1 mean that the length is given elsewhere. A list longer than the file is an accidental match.
        total += len(data) if size < 2 else size if size <= len(data) else 0
    if total > _ITEM_BYTES:
        return f"{total:,} bytes of lists of items; at most {_ITEM_BYTES:,}"
    for number, header in enumerate(_TIFF.finditer(data)):
        if number == _HEADERS:
            return f"more than {_HEADERS} headers of Exif data"
        if (reason := too_many_numbers(data[header.start() :])) is not None:
            return f"{reason} of its Exif data"
    try:
        pixels = largest_frame(data)
    except TooManyError:
        return "more boxes and units than a picture has"
    return f"AV1 frames of {pixels:,} pixels; at most {_AV1_PIXELS:,}" if pixels > _AV1_PIXELS else None


_FORMATS: Final[tuple[tuple[Callable[[bytes], bool], Callable[[bytes], str | None]], ...]] = (
    (lambda data: data.startswith(JPEG), _jpeg),
    (lambda data: data.startswith(PNG), _png),
    (lambda data: _TIFF.match(data) is not None, too_many_numbers),
)
