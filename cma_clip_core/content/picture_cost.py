"""Bounds on the memory and time that decoding a picture may cost, checked before it is decoded.

Time is bounded by the amount of work, not by a clock. A thread cannot stop a decoder written in C, and a signal
reaches only Python's main thread, which is not always the one that decodes. Work is the number of pixels, multiplied
by the scans of a JPEG. A small file may not cause much work, because an attacker could send many of them.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from PIL import Image, TiffImagePlugin

MAX_MEMORY: Final = 400_000_000  # bytes that decoding may take
MAX_PIXELS: Final = 50_000_000
MAX_JPEG_PIXELS: Final = 200_000_000  # a phone's 200 megapixels take a second, because the decoder reduces a JPEG
MAX_SCANNED_PIXELS: Final = 1_000_000_000  # pixels times scans of a progressive JPEG

_CHEAP_PIXELS: Final = 2_000_000  # allowed for any file size, since a picture of one colour has few bytes
_PIXELS_A_BYTE: Final = 1_000  # limit of larger pictures; white products on white reach a fifth of it
_LARGE_PIXELS: Final = 10_000_000  # pictures of more pixels have a lower limit, except JPEGs, which the decoder reduces
_PIXELS_A_BYTE_OF_LARGE: Final = 100
_RUN_LENGTH_BYTES: Final = 2_000_000  # size limit of a BMP with run lengths, which Pillow decodes in Python
_SEGMENTS: Final = 10_000  # of a JPEG; photographs have dozens
_ROW_BYTES: Final = 16
_BYTES_A_PIXEL: Final = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # other modes: 4
# Measured bytes a pixel of decoders that copy the whole picture. A WebP takes two canvases, bytes and pixels. An AVIF
# takes planes, bytes and pixels: 9 bytes are usual, and 12-bit pictures with transparency take 16.
_WITH_COPIES: Final = {"WEBP": 16, "AVIF": 16}
_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither a stuffed byte of a scan nor a restart
_SCAN, _END = 0xDA, 0xD9
_BARE_MARKERS: Final = (0x01, 0xD8)  # markers without a length
_SCAN_BYTES: Final = 10  # minimum bytes of a scan
_HARMLESS: Final = 30_000_000  # pixels times scans, fewer than the pixels of a large photograph


def refusal(picture: Image.Image, size: tuple[int, int], data: bytes) -> str | None:
    """Return why decoding `picture` costs too much; None if it does not.

    Args:
        picture: opened from `data`, but not decoded yet; a JPEG has the reduction that `Image.Image.draft` set.
        size: width and height of the picture in its file.
        data: the file's content.
    """
    width, height = size
    is_jpeg = picture.format in ("JPEG", "MPO")
    if reason := too_many_pixels(width, height, len(data), MAX_JPEG_PIXELS if is_jpeg else MAX_PIXELS):
        return reason
    scans = _scans(width, height, data) if is_jpeg else 1
    if is_jpeg and (reason := too_many_scans(width, height, data, scans)) is not None:
        return reason
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
    """Return why `width` x `height` pixels in a file of `size` bytes are too many; None if they are not."""
    if width * height > most:
        return f"{width:,} x {height:,} pixels; at most {most:,}"
    empty = _PIXELS_A_BYTE * size
    if most != MAX_JPEG_PIXELS:
        empty = min(empty, max(_LARGE_PIXELS, _PIXELS_A_BYTE_OF_LARGE * size))
    if width * height > max(_CHEAP_PIXELS, empty):
        return f"{width:,} x {height:,} pixels in {size:,} bytes: no photograph is so empty"
    return None


def _scans(width: int, height: int, data: bytes) -> int:
    """Return the number of scans of a JPEG; 1, without counting, if even the most that fit in the file are harmless."""
    return jpeg_scans(data) if width * height * len(data) // _SCAN_BYTES > _HARMLESS else 1


def too_many_scans(width: int, height: int, data: bytes, scans: int | None = None) -> str | None:
    """Return why the `scans` of the JPEG `data` with `width` x `height` pixels are too many; None if they are not."""
    scans = _scans(width, height, data) if scans is None else scans
    if scans * width * height <= MAX_SCANNED_PIXELS:
        return None
    return f"{width:,} x {height:,} pixels in {scans:,} scans or more"


def webp_refusal(data: bytes) -> str | None:
    """Return why `data` costs too much if it is a WebP, since Pillow allocates two canvases just to open one."""
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
    """Return the number of scans of the JPEG `data`; an upper bound if it has too many segments to count."""
    scans, position = 0, 2
    for _ in range(_SEGMENTS):
        match = _MARKER.search(data, position)
        if match is None or data[match.start() + 1] == _END:
            return scans
        start, marker = match.start(), data[match.start() + 1]
        scans += marker == _SCAN
        length = 0 if marker in _BARE_MARKERS else int.from_bytes(data[start + 2 : start + 4], "big")
        position = start + 2 + length
    return len(data) // _SCAN_BYTES


def _memory(picture: Image.Image, width: int, height: int, scans: int) -> int:
    """Return the bytes of memory that decoding `picture` takes; its file has `width` x `height` pixels."""
    kind = picture.format or ""
    # Pillow keeps a pointer to each row, which is most of the memory of a tall and narrow picture.
    pixels = picture.width * picture.height * _BYTES_A_PIXEL.get(picture.mode, 4) + _ROW_BYTES * picture.height
    if kind in ("JPEG", "MPO"):  # with several scans, the decoder keeps all coefficients, two bytes each
        return pixels + (2 * _coefficients(picture, width, height) if scans > 1 or "progressive" in picture.info else 0)
    if kind in _WITH_COPIES:
        return width * height * _WITH_COPIES[kind]
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        tags = picture.tag_v2
        turned = pixels if tags.get(0x0112, 1) != 1 else 0
        # libtiff unpacks a whole strip or tile at once, up to eight bytes a pixel. Tiles may exceed the picture.
        rows = min(int(tags.get(TiffImagePlugin.ROWSPERSTRIP, height)), height)
        across, down = (int(tags.get(tag, 0)) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))
        return pixels + turned + 8 * max(width * rows, across * down)
    if _has_run_lengths(picture):
        pixels += 4 * width * height
    return pixels


def _has_run_lengths(picture: Image.Image) -> bool:
    return any(tile.codec_name == "bmp_rle" for tile in getattr(picture, "tile", ()))


def _coefficients(picture: Image.Image, width: int, height: int) -> int:
    """Return the number of coefficients of a JPEG with `width` x `height` pixels; subsampled colour has fewer."""
    sampled: list[tuple[int, int]] = [(across, down) for _, across, down, _ in getattr(picture, "layer", ())]
    largest = max((across * down for across, down in sampled), default=0)
    if not largest:
        return 4 * width * height
    return int(width * height * sum(across * down for across, down in sampled) // largest)
