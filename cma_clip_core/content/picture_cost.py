"""Bounds on what decoding a picture may cost, in memory and in time, judged before it is decoded.

Time is bounded by work and not by a clock: a thread cannot stop a decoder written in C, and a signal reaches Python's
main thread alone, which is not always the one that decodes. Work is pixels, times scans where a JPEG has several. A file
of few bytes may not ask for much work: a stranger would pay nothing for it.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from PIL import Image, TiffImagePlugin

MAX_MEMORY: Final = 400_000_000  # bytes that a picture may take while it is decoded
MAX_PIXELS: Final = 50_000_000
MAX_JPEG_PIXELS: Final = (
    200_000_000  # the decoder reduces a JPEG while it decodes: 200 megapixels of a phone are a second
)
MAX_SCANNED_PIXELS: Final = 1_000_000_000  # of a progressive JPEG: pixels, counted once a scan

_CHEAP_PIXELS: Final = 2_000_000  # a picture of one colour may be so large, however few bytes it has
_PIXELS_A_BYTE: Final = 1_000  # of larger ones. White products on white have a fifth of that
_LARGE_PIXELS: Final = 10_000_000  # from here on fewer, but in a JPEG, which is reduced while it is decoded
_PIXELS_A_BYTE_OF_LARGE: Final = 100
_RUN_LENGTH_BYTES: Final = 2_000_000  # of a BMP with run lengths: Pillow decodes these in Python
_SEGMENTS: Final = 10_000  # of a JPEG; photographs have dozens
_ROW_BYTES: Final = 16
_BYTES_A_PIXEL: Final = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # other modes: 4
# Decoders that make copies of the whole picture. Measured: the two canvases of a WebP, its bytes, its pixels; planes,
# bytes and pixels of an AVIF, of which 9 bytes are usual and 16 those of 12 bits with transparency.
_WITH_COPIES: Final = {"WEBP": 16, "AVIF": 16}
_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # in a scan: neither a stuffed byte nor a restart
_SCAN, _END = 0xDA, 0xD9
_BARE_MARKERS: Final = (0x01, 0xD8)  # without a length
_SCAN_BYTES: Final = 10  # that a scan takes at least
_HARMLESS: Final = 30_000_000  # pixels, counted once a scan: less than those of a large photograph


def refusal(picture: Image.Image, size: tuple[int, int], data: bytes) -> str | None:
    """Return why `picture`, opened from `data` and not decoded yet, costs too much to decode; None where it does not.

    Args:
        picture: a JPEG with the reduction that `Image.Image.draft` has set.
        size: width and height of the picture in its file.
        data: the file.
    """
    width, height = size
    is_jpeg = picture.format in ("JPEG", "MPO")
    if found := too_many_pixels(width, height, len(data), MAX_JPEG_PIXELS if is_jpeg else MAX_PIXELS):
        return found
    scans = _scans(width, height, data) if is_jpeg else 1
    if is_jpeg and (found := too_many_scans(width, height, data, scans)) is not None:
        return found
    if len(data) > _RUN_LENGTH_BYTES and _has_run_lengths(picture):
        return f"{len(data):,} bytes of run lengths; at most {_RUN_LENGTH_BYTES:,}"
    memory = _memory(picture, width, height, scans)
    if memory > MAX_MEMORY:
        return (
            f"{width:,} x {height:,} pixels take {memory / 1e6:,.0f} MB to decode as {picture.format}; "
            f"at most {MAX_MEMORY / 1e6:,.0f}"
        )
    return None


def too_many_pixels(width: int, height: int, size: int, most: int) -> str | None:
    """Return what is too much of a picture of `width` x `height` pixels in a file of `size` bytes, else None."""
    if width * height > most:
        return f"{width:,} x {height:,} pixels; at most {most:,}"
    empty = _PIXELS_A_BYTE * size
    if most != MAX_JPEG_PIXELS:
        empty = min(empty, max(_LARGE_PIXELS, _PIXELS_A_BYTE_OF_LARGE * size))
    if width * height > max(_CHEAP_PIXELS, empty):
        return f"{width:,} x {height:,} pixels in {size:,} bytes: no photograph is so empty"
    return None


def _scans(width: int, height: int, data: bytes) -> int:
    """Return the scans of a JPEG; 1 where as many as the file can hold would do no harm: they are not counted then."""
    return jpeg_scans(data) if width * height * len(data) // _SCAN_BYTES > _HARMLESS else 1


def too_many_scans(width: int, height: int, data: bytes, scans: int | None = None) -> str | None:
    """Return what is too much of the JPEG `data` of `width` x `height` pixels, which has so many `scans`, else None."""
    scans = _scans(width, height, data) if scans is None else scans
    if scans * width * height <= MAX_SCANNED_PIXELS:
        return None
    return f"{width:,} x {height:,} pixels in {scans:,} scans or more"


def webp_refusal(data: bytes) -> str | None:
    """Return why `data` costs too much where it is a WebP: Pillow takes the memory of two canvases to open one."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return too_many_pixels(width, height, len(data), min(MAX_PIXELS, MAX_MEMORY // _WITH_COPIES["WEBP"]))


def jpeg_scans(data: bytes) -> int:
    """Return how many scans the JPEG `data` has; where it has too many segments to count, how many it may have."""
    scans, position = 0, 2
    for _ in range(_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None or data[found.start() + 1] == _END:
            return scans
        start, marker = found.start(), data[found.start() + 1]
        scans += marker == _SCAN
        length = 0 if marker in _BARE_MARKERS else int.from_bytes(data[start + 2 : start + 4], "big")
        position = start + 2 + length
    return len(data) // _SCAN_BYTES


def _memory(picture: Image.Image, width: int, height: int, scans: int) -> int:
    """Return the bytes that it takes to decode `picture`, of `width` x `height` pixels in its file."""
    kind = picture.format or ""
    # Pillow keeps the place of each row, beside the row: of a tall and narrow picture that is most of it.
    pixels = picture.width * picture.height * _BYTES_A_PIXEL.get(picture.mode, 4) + _ROW_BYTES * picture.height
    if kind in ("JPEG", "MPO"):  # of more than one scan all coefficients are kept, two bytes each
        return pixels + (2 * _coefficients(picture, width, height) if scans > 1 or "progressive" in picture.info else 0)
    if kind in _WITH_COPIES:
        return width * height * _WITH_COPIES[kind]
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        tags = picture.tag_v2
        turned = pixels if tags.get(0x0112, 1) != 1 else 0
        # libtiff unpacks a strip or a tile at once, up to eight bytes a pixel; tiles may be larger than the picture.
        rows = min(int(tags.get(TiffImagePlugin.ROWSPERSTRIP, height)), height)
        across, down = (int(tags.get(tag, 0)) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))
        return pixels + turned + 8 * max(width * rows, across * down)
    if _has_run_lengths(picture):
        pixels += 4 * width * height
    return pixels


def _has_run_lengths(picture: Image.Image) -> bool:
    return any(tile.codec_name == "bmp_rle" for tile in getattr(picture, "tile", ()))


def _coefficients(picture: Image.Image, width: int, height: int) -> int:
    """Return how many coefficients the JPEG `picture` of `width` x `height` pixels has: fewer where colour is coarser."""
    sampled: list[tuple[int, int]] = [(across, down) for _, across, down, _ in getattr(picture, "layer", ())]
    largest = max((across * down for across, down in sampled), default=0)
    if not largest:
        return 4 * width * height
    return int(width * height * sum(across * down for across, down in sampled) // largest)
