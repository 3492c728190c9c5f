"""Bounds on what opening a picture file may cost: its segments, chunks, blocks, tags and items, counted before a decoder does.

Decoders make an object for each part, or look through all of them for each, before anything is known of the pixels. A few
megabytes hold millions. A photograph has dozens, and no part below is decoded.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Final

from cma_clip_core.content.avif_size import TooManyError, largest_frame
from cma_clip_core.content.picture_cost import MAX_MEMORY, MAX_PIXELS
from cma_clip_core.content.picture_files import JPEG, PNG

_SMALL: Final = 100_000  # bytes of a file that cannot have too many
_SEGMENTS: Final = 5_000  # of a JPEG before its first scan; ICC profiles and depth maps have hundreds
_EXIF: Final = 2**20  # bytes of a JPEG's Exif segments: Pillow copies all that it has for each
_CHUNKS: Final = 100_000  # of a PNG; some programs write one for each row
_BLOCKS: Final = 400_000  # of a GIF, of at most 255 bytes
_SKIPPED: Final = 500_000  # bytes between parts, read one by one
_NUMBERS: Final = 100_000  # of a tag of TIFF or Exif: places of strips and tiles
_DIRECTORIES: Final = 16  # of tags, one in another
_ITEM_BYTES: Final = 2**17  # of an AVIF's lists of items: libavif looks for each in all of them
_AV1_PIXELS: Final = MAX_MEMORY // 6  # whatever the file says of its size; a pixel takes six bytes at most
_HEADERS: Final = 100  # in an AVIF, of what may be Exif

_SEGMENT: Final = re.compile(rb"\xff+[\x01-\xfe]")
_BARE: Final = frozenset((0x01, *range(0xD0, 0xDA)))  # JPEG markers without a length
_SCAN: Final = 0xDA
_GIF_BLOCK: Final = re.compile(rb"[!,;]")
_TIFF: Final = re.compile(rb"II(?:\x2a\0|\0\x2a|\x2b\0)|MM(?:\x2a\0|\0\x2a|\0\x2b)")
_LISTS: Final = re.compile(rb"(?=(....)(?:iinf|iloc|ipma|iref))", re.DOTALL)
_UNIT: Final = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
}  # bytes by type
_TEXTS: Final = (1, 2, 7)  # types of tags that are kept as they are
_INNER: Final = (34665, 34853, 40965)  # tags that place another directory


def refusal(data: bytes) -> str | None:
    """Return why the picture file `data` has more parts than is worth their cost; None where it does not."""
    if data.startswith(b"GIF8"):  # its later frames may be of any size
        return _gif(data)
    if data[4:8] == b"ftyp":  # and so may what an AVIF is decoded to
        return _avif(data)
    if len(data) <= _SMALL:
        return None
    return next((count(data) for begins, count in _FORMATS if begins(data)), None)


def too_many_numbers(data: bytes) -> str | None:
    """Return why the tags of a TIFF, or of the Exif data in `data`, take too much memory to read; None where they do not."""
    header = _TIFF.match(data)
    if header is None:
        return None
    order, big = ("<" if data[:1] == b"I" else ">"), 0x2B in data[2:4]
    count, entry, most, place = ("Q", "HHQ", 8, "Q") if big else ("H", "HHI", 4, "I")
    read, size = struct.Struct(order + entry), struct.calcsize(order + entry) + most
    waiting, seen = [(8, place) if big else (4, place)], 0
    try:
        while waiting:
            at, of = waiting.pop()
            (start,) = struct.unpack_from(order + of, data, at)
            (tags,) = struct.unpack_from(order + count, data, start)
            start += struct.calcsize(order + count)
            for at in range(start, min(start + tags * size, len(data) - size + 1), size):
                tag, kind, numbers = read.unpack_from(data, at)
                if kind not in _TEXTS and _NUMBERS < numbers <= len(data) // _UNIT.get(kind, len(data)):
                    return f"{numbers:,} numbers in tag {tag}; at most {_NUMBERS:,}"
                if tag in _INNER:
                    waiting.append((at + read.size, place))
            seen += 1
            if seen + len(waiting) > _DIRECTORIES:
                return f"{seen + len(waiting)} directories of tags or more"
    except struct.error:  # it ends before
        pass
    return None


def _jpeg(data: bytes) -> str | None:
    position, skipped, exif = 2, 0, 0
    for _ in range(_SEGMENTS):
        found = _SEGMENT.search(data, position)
        if found is None:
            return None
        skipped += found.end() - 2 - position
        if skipped > _SKIPPED:
            return f"more than {_SKIPPED:,} bytes between its segments"
        marker, position = data[found.end() - 1], found.end()
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
    while (found := _GIF_BLOCK.search(data, position)) is not None and found[0] != b";":
        skipped += found.start() - position
        if skipped > _SKIPPED:
            return f"more than {_SKIPPED:,} bytes between its blocks"
        position = found.end() + 1
        if found[0] == b",":
            width, height = (int.from_bytes(data[at : at + 2], "little") for at in (found.end() + 4, found.end() + 6))
            if width * height > MAX_PIXELS:
                return f"a frame of {width:,} x {height:,} pixels; at most {MAX_PIXELS:,}"
            position = found.end() + 10 + _colours(data, found.end() + 8)
        while position < len(data) and data[position]:
            position += 1 + data[position]
            blocks += 1
        position += 1
        blocks += 1
        if blocks > _BLOCKS:
            return f"more than {_BLOCKS:,} blocks"
    return None


def _colours(data: bytes, at: int) -> int:
    """Return the bytes of the colour table that the flags `at` a place in a GIF announce."""
    flags = data[at] if at < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _avif(data: bytes) -> str | None:
    total = 0
    for found in _LISTS.finditer(data):
        size = int.from_bytes(found[1], "big")
        # 0 and 1: it says elsewhere how long it is. One that does not fit in the file is none.
        total += len(data) if size < 2 else size if size <= len(data) else 0
    if total > _ITEM_BYTES:
        return f"{total:,} bytes of lists of items; at most {_ITEM_BYTES:,}"
    for at, found in enumerate(_TIFF.finditer(data)):
        if at == _HEADERS:
            return f"more than {_HEADERS} headers of Exif data"
        if (why := too_many_numbers(data[found.start() :])) is not None:
            return f"{why} of its Exif data"
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
