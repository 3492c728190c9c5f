"""Faulty picture files: what a file is if it is not a picture, and the repair of files that every viewer shows."""

from __future__ import annotations

import io
import re
import zlib
from typing import Final

from PIL import Image, ImageFile, JpegImagePlugin

from cma_clip_core.content.picture_cost import jpeg_scans

NEARLY_WHOLE: Final = 0.9  # share of its rows that a truncated picture must have, so that its product is hardly changed

JPEG: Final = b"\xff\xd8\xff"
PNG: Final = b"\x89PNG\r\n\x1a\n"
_BEFORE: Final = re.compile(
    rb"(?:\s|\xef\xbb\xbf|\xff\xfe(?!\xff)|\xfe\xff(?!\xff)){1,32}(?=\xff\xd8\xff|\x89PNG|GIF8|RIFF|BM)"
)
_NEEDED_CHUNKS: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_OTHERS: Final = (  # other kinds of files, by how they start
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer: the picture itself was not fetched"),
    (re.compile(rb"\s*<(?:!doctype html|html|head|body)", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"\s*(?:<\?xml[^>]{0,200}>\s*)?(?:<!--[^>]{0,200}-->\s*)?(?:<!DOCTYPE svg[^>]{0,200}>\s*)?<svg"), "an SVG drawing"),
    (re.compile(rb"\s*<\?xml"), "XML"),
    (re.compile(rb"\s*[{\[]\s*[\"{\[\]}]"), "JSON"),
    (re.compile(rb"\s*(?:data:image/|/9j/|iVBORw0KGgo|R0lGOD|UklGR)"), "a picture in base64; decode it first"),
    (re.compile(rb"\x1f\x8b"), "a gzip file; unpack it first"),
    (re.compile(rb"PK\x03\x04"), "a zip archive; unpack it first"),
    (re.compile(rb"BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!"), "a packed file; unpack it first"),
    (re.compile(rb"%PDF"), "a PDF document"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript"),
    (re.compile(rb"8BPS"), "a Photoshop document"),
    (re.compile(rb"\x00\x00[\x01\x02]\x00"), "an icon"),
    (re.compile(rb"....ftyp(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL), "a HEIC picture"),
    (re.compile(rb"....ftyp(?!avi[fs])", re.DOTALL), "a video"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "a video"),
    (re.compile(rb"\x00\x00\x00\x0cjP|\xff\x4f\xff\x51"), "a JPEG 2000 picture"),
    (re.compile(rb"\xff\x0a|\x00\x00\x00\x0cJXL "), "a JPEG XL picture"),
    (re.compile(rb"II\x2b\x00|MM\x00\x2b"), "a BigTIFF picture that cannot be read"),
    (re.compile(rb"P[1-7]\s"), "a PPM picture"),
    (re.compile(rb"\x00{16}"), "a file of zero bytes"),
    (re.compile(rb"[\t\n\r\x20-\x7e]{8,512}+"), "text"),
)  # fmt: skip
_STARTS: Final = (
    (JPEG, "JPEG"), (PNG, "PNG"), (b"GIF8", "GIF"), (b"RIFF", "WebP"), (b"BM", "BMP"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"),
)  # fmt: skip


def kind(data: bytes) -> str | None:
    """Return the kind of file, in words, that `data` starts like; None if it is not one of the kinds known here."""
    return next((name for start, name in _OTHERS if start.match(data)), None)


def begins_as(data: bytes) -> str | None:
    """Return the picture format whose first bytes `data` has; None if there is no such format."""
    return next((name for start, name in _STARTS if data.startswith(start)), None)


def without_lead(data: bytes) -> bytes:
    """Return `data` without the blank line or byte order mark that some programs write before a picture."""
    lead = _BEFORE.match(data)
    return data if lead is None else data[lead.end() :]


def repair(data: bytes) -> bytes | None:
    """Return a repaired version of a picture that could not be decoded; None if no repair is known.

    A PNG loses the chunks that are not needed to show it, which may be too large or have a wrong checksum. A truncated
    JPEG that is nearly complete gets an end marker.
    """
    if data.startswith(PNG):
        needed = _needed_chunks(data)
        return needed if needed != data else None
    if data.startswith(JPEG) and _is_nearly_whole(data):
        return data + b"\xff\xd9"
    return None


def load(picture: ImageFile.ImageFile) -> Image.Image:
    """Decode `picture` and return it. A truncated PNG is cropped to its decoded rows, if few are missing.

    Raises:
        OSError: the file is broken, or too many rows are missing.
    """
    try:
        picture.load()
    except OSError:
        # An interlaced picture soon has all its rows, but few of their pixels.
        if picture.format != "PNG" or picture.info.get("interlace"):
            raise
        rows = _rows(picture)
        if rows < NEARLY_WHOLE * picture.height:
            raise
        return picture.crop((0, 0, picture.width, rows))
    return picture


def _needed_chunks(data: bytes) -> bytes:
    """Return the PNG `data` with only the chunks needed to show it. The checksum of ``tRNS`` is corrected."""
    chunks = [PNG]
    position = len(PNG)
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        name, end = data[position + 4 : position + 8], position + 12 + length
        if name in _NEEDED_CHUNKS:
            chunks.append(data[position:end])
            if name == b"tRNS" and end <= len(data):
                body = data[position + 4 : end - 4]
                chunks[-1] = data[position : end - 4] + zlib.crc32(body).to_bytes(4, "big")
        position = end
        if name == b"IEND":
            break
    return b"".join(chunks)


def _is_nearly_whole(data: bytes) -> bool:
    """Return whether enough of a truncated JPEG is left to show it."""
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as picture:
            if picture.info.get("progressive"):
                # The first scans hold the whole picture at an eighth of its size. Later ones add detail.
                return jpeg_scans(data) > len(picture.getbands())
            picture.draft(None, (8, 8))
            try:
                picture.load()
            except OSError:
                return _rows(picture) >= NEARLY_WHOLE * picture.height
    except Exception:  # as with a complete picture, the decoder may raise nearly anything
        return False
    return False


def _rows(picture: ImageFile.ImageFile) -> int:
    """Return the number of rows decoded before the decoder of `picture` failed; black rows at the end do not count."""
    picture.tile = []  # keep the decoded pixels, and do not decode again
    box = picture.getbbox(alpha_only=False)
    return box[3] if box else 0
