"""Picture files as they come: what a file is that is no picture, and pictures that every viewer shows though they are faulty."""

from __future__ import annotations

import io
import re
import zlib
from typing import Final

from PIL import Image, ImageFile, JpegImagePlugin

from cma_clip_core.content.picture_cost import jpeg_scans

NEARLY_WHOLE: Final = 0.9  # rows that a picture which was cut off must have: beyond that its product is hardly changed

JPEG: Final = b"\xff\xd8\xff"
PNG: Final = b"\x89PNG\r\n\x1a\n"
_BEFORE: Final = re.compile(
    rb"(?:\s|\xef\xbb\xbf|\xff\xfe(?!\xff)|\xfe\xff(?!\xff)){1,32}(?=\xff\xd8\xff|\x89PNG|GIF8|RIFF|BM)"
)
_NEEDED_CHUNKS: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_OTHERS: Final = (  # of what starts so
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer: the picture itself was not fetched"),
    (re.compile(rb"\s*<(?:!doctype html|html|head|body)", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"\s*(?:<\?xml[^>]{0,200}>\s*)?(?:<!--[^>]{0,200}-->\s*)?(?:<!DOCTYPE svg[^>]{0,200}>\s*)?<svg"), "an SVG drawing"),
    (re.compile(rb"\s*<\?xml"), "XML"),
    (re.compile(rb"\s*[{\[]\s*[\"{\[\]}]"), "JSON"),
    (re.compile(rb"\s*(?:data:image/|/9j/|iVBORw0KGgo|R0lGOD|UklGR)"), "a picture in base64: it is to be decoded first"),
    (re.compile(rb"\x1f\x8b"), "a gzip file: it is to be unpacked first"),
    (re.compile(rb"PK\x03\x04"), "a zip archive: it is to be unpacked first"),
    (re.compile(rb"BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!"), "a packed file: it is to be unpacked first"),
    (re.compile(rb"%PDF"), "a PDF document"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript"),
    (re.compile(rb"8BPS"), "a Photoshop document"),
    (re.compile(rb"\x00\x00[\x01\x02]\x00"), "an icon"),
    (re.compile(rb"....ftyp(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL), "a HEIC picture"),
    (re.compile(rb"....ftyp", re.DOTALL), "a video"),
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
    """Return in words what `data` is where it is no picture of a format that is read, as far as its start tells."""
    return next((name for start, name in _OTHERS if start.match(data)), None)


def begins_as(data: bytes) -> str | None:
    """Return the format of which `data` has the first bytes."""
    return next((name for start, name in _STARTS if data.startswith(start)), None)


def without_lead(data: bytes) -> bytes:
    """Return `data` without the blank line or byte order mark that a program has put before a picture."""
    found = _BEFORE.match(data)
    return data if found is None else data[found.end() :]


def mended(data: bytes) -> bytes | None:
    """Return a picture that could not be decoded in a form that can perhaps, or None.

    A PNG loses the chunks that are not needed to show it: too large ones, and those with a wrong checksum. A JPEG that was
    cut off gets its end where it is nearly whole.
    """
    if data.startswith(PNG):
        needed = _needed_chunks(data)
        return needed if needed != data else None
    if data.startswith(JPEG) and _is_nearly_whole(data):
        return data + b"\xff\xd9"
    return None


def load(picture: ImageFile.ImageFile) -> Image.Image:
    """Decode `picture` and return it; a PNG that was cut off without the rows that are missing, if few are.

    Raises:
        OSError: the file is broken, or more is missing.
    """
    try:
        picture.load()
    except OSError:
        # Of an interlaced picture all rows are there early, and few of their pixels.
        if picture.format != "PNG" or picture.info.get("interlace"):
            raise
        rows = _rows(picture)
        if rows < NEARLY_WHOLE * picture.height:
            raise
        return picture.crop((0, 0, picture.width, rows))
    return picture


def _needed_chunks(data: bytes) -> bytes:
    """Return the PNG `data` of the chunks alone that are needed to show it, their checksums made right but for pixels."""
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
    """Return whether of a JPEG that was cut off enough is there."""
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as picture:
            if picture.info.get("progressive"):
                # The first scans hold the whole picture at an eighth of its size; later ones make it sharper.
                return jpeg_scans(data) > len(picture.getbands())
            picture.draft(None, (8, 8))
            try:
                picture.load()
            except OSError:
                return _rows(picture) >= NEARLY_WHOLE * picture.height
    except Exception:  # as for a whole picture: the decoder raises nearly anything
        return False
    return False


def _rows(picture: ImageFile.ImageFile) -> int:
    """Return how many rows of `picture` were decoded before its decoder failed; black ones at the end do not count."""
    picture.tile = []  # what is decoded stays: it is not tried again
    found = picture.getbbox(alpha_only=False)
    return found[3] if found else 0
