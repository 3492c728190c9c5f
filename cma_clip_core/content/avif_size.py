"""Size of an AVIF's frames according to its AV1 data, which a decoder follows even if the container says otherwise.

The formats: ISO/IEC 23008-12 (items and their locations), ISO/IEC 14496-12 (chunks of a track), AV1 5.3 and 5.5
(sequence headers).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import Final

# Names of boxes, searched for anywhere in the file. An accidental match leads to no frame.
_BOXES: Final = re.compile(rb"iloc|infe|idat|stco|co64")
_MOST: Final = 50_000  # boxes, extents and units of AV1 data that are read in total
_SEQUENCE_HEADER: Final = 1


class TooManyError(Exception):
    """A file with more boxes, extents or units than any real picture has."""


class _Budget:
    def __init__(self) -> None:
        self._left = _MOST

    def spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooManyError


def largest_frame(data: bytes) -> int:
    """Return the pixels of the largest frame that a sequence header in `data` allows; 0 without such a header.

    Raises:
        TooManyError: the file has more boxes, extents or units than any real picture.
    """
    budget = _Budget()
    headers = (
        header for start, end in _extents(data, budget) for header in _sequence_headers(data, start, end, budget)
    )
    return max(map(_pixels, headers), default=0)


def _extents(data: bytes, budget: _Budget) -> Iterator[tuple[int, int]]:
    """Yield the start and the latest possible end of AV1 data: the items of pictures and the chunks of tracks."""
    boxes = []
    for match in _BOXES.finditer(data):
        budget.spend()
        boxes.append((match[0], match.end()))
    pictures = {item for name, at in boxes if name == b"infe" and (item := _picture_item(data, at)) is not None}
    item_data = [at for name, at in boxes if name == b"idat"]
    for name, at in boxes:
        try:
            if name == b"iloc":
                for item, method, start, length in _item_extents(data, at, budget):
                    if item in pictures:
                        yield from (
                            (base + start, base + start + length) for base in (item_data if method == 1 else (0,))
                        )
            elif name in (b"stco", b"co64"):
                (count,) = struct.unpack_from(">I", data, at + 4)
                form = ">I" if name == b"stco" else ">Q"
                for entry in range(count):
                    budget.spend()
                    yield struct.unpack_from(form, data, at + 8 + entry * struct.calcsize(form))[0], len(data)
        except struct.error:  # a truncated box, or no box at all
            continue


def _picture_item(data: bytes, at: int) -> int | None:
    """Return the item number of the ``infe`` entry at `at`; None if the item is not an AV1 picture."""
    long = data[at : at + 1] == b"\x03"
    kind = at + (10 if long else 8)
    return int.from_bytes(data[at + 4 : at + (8 if long else 6)], "big") if data[kind : kind + 4] == b"av01" else None


def _item_extents(data: bytes, at: int, budget: _Budget) -> Iterator[tuple[int, int, int, int]]:
    """Yield item, construction method, start and length of each extent in the ``iloc`` box at `at`."""
    version, sizes = data[at], data[at + 4 : at + 6]
    offset, length, base = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4
    index = sizes[1] & 15 if version else 0
    position = at + 6

    def number(width: int) -> int:
        nonlocal position
        if position + width > len(data):
            raise struct.error
        position += width
        return int.from_bytes(data[position - width : position], "big")

    for _ in range(number(4 if version == 2 else 2)):
        budget.spend()
        item, method = number(4 if version == 2 else 2), number(2) & 15 if version else 0
        number(2)
        start = number(base)
        for _ in range(number(2)):
            budget.spend()
            number(index)
            yield item, method, start + number(offset), number(length) or len(data)


def _sequence_headers(data: bytes, start: int, end: int, budget: _Budget) -> Iterator[bytes]:
    """Yield the first bytes of each sequence header in the AV1 data from `start` to `end`."""
    while start < min(end, len(data)):
        budget.spend()
        first = data[start]
        start += 2 if first & 4 else 1
        size, shift = 0, 0
        while first & 2 and start < len(data) and shift < 56:
            size |= (data[start] & 0x7F) << shift
            start, shift = start + 1, shift + 7
            if data[start - 1] < 0x80:
                break
        if first >> 3 & 15 == _SEQUENCE_HEADER:
            yield data[start : start + 400]
        if not first & 2:
            return
        start += size


def _pixels(header: bytes) -> int:
    """Return the pixels of the largest frame that a sequence header allows."""
    bits, left = int.from_bytes(header, "big"), 8 * len(header)

    def read(width: int) -> int:
        nonlocal left
        left -= width
        return bits >> left & (1 << width) - 1 if left >= 0 else 0

    read(4)
    still = read(1)  # a single picture, whose size is in this header
    if still:
        read(5)
    else:
        _skip_timing(read)
    across, down = read(4) + 1, read(4) + 1
    width, height = read(across) + 1, read(down) + 1
    # Otherwise each frame may give its own size, in this number of bits.
    return width * height if still else 1 << across + down


def _skip_timing(read: Callable[[int], int]) -> None:
    decoder_model, delay = 0, 0
    if read(1):
        read(64)
        if read(1):
            zeros = 0
            while zeros < 32 and not read(1):
                zeros += 1
            read(zeros)
        if decoder_model := read(1):
            delay = read(5) + 1
            read(42)
    initial_delay = read(1)
    for _ in range(read(5) + 1):
        read(12)
        if read(5) > 7:
            read(1)
        if decoder_model and read(1):
            read(2 * delay + 1)
        if initial_delay and read(1):
            read(4)
