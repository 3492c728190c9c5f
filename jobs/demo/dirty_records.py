"""One example of every kind of bad record and bad picture. `sample-catalog` plants them, and many tests use them."""

from __future__ import annotations

import functools
import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from PIL import Image, ImageDraw

Outcome = Literal["unparsable", "quarantined", "superseded", "valid"]
Record = dict[str, Any]

SIZE: Final = (96, 128)  # pixels, width x height
HUGE_TEXT: Final = 8_000_000  # characters


@dataclass(frozen=True, slots=True)
class Dirty:
    """One kind of bad input, in the form of the raw catalog (schemas.tables.RECORD).

    `records` holds its lines: a dict for a JSON object, bytes for anything else. If it has a picture, its path under the
    picture root is the `image_uri` of the first record.
    """

    kind: str
    records: tuple[Record | bytes, ...]
    outcome: Outcome  # of validation, for the last line
    rule: str = ""  # rule that quarantines the line, or drops a field of a valid line
    picture: bytes | None = None
    image_status: str = "absent"  # result of preprocess for the picture, if the record is valid

    @property
    def lines(self) -> tuple[bytes, ...]:
        """The lines in catalog/raw, without line ends."""
        return tuple(r if isinstance(r, bytes) else json.dumps(r).encode() for r in self.records)


def build() -> dict[str, Dirty]:
    """Return all kinds by name. Each call builds the large ones again: 8 MB of text."""
    return {dirty.kind: dirty for dirty in (*_lines(), *_records(), *_uris(), *_texts(), *_labels(), *_pictures())}


def _record(kind: str, **changes: Any) -> Record:
    record: Record = {
        "product_id": f"dirty-{kind}",
        "title": f"Blue T-shirt ({kind.replace('_', ' ')})",
        "brand": "Maker",
        "description": "A T-shirt of soft cotton.",
        "price": 19.5,
        "image_uri": None,
        "image_version": None,
        "updated_at": "2026-11-20T00:00:00Z",
        "attributes": {"kind": "T-shirt", "colour": "Blue"},
    }
    return record | changes


def _lines() -> list[Dirty]:
    whole = json.dumps(_record("not_json")).encode()
    return [
        Dirty("not_json", (whole[: len(whole) // 2],), "unparsable", "unparsable"),
        Dirty("not_an_object", (b'["dirty-not_an_object", "a list, no object"]',), "unparsable", "unparsable"),
        Dirty(
            "bad_utf8",
            (json.dumps(_record("bad_utf8")).encode().replace(b"Blue", b"Bl\xff\xfee"),),
            "unparsable",
            "unparsable",
        ),
    ]


def _records() -> list[Dirty]:
    def rejected(kind: str, rule: str, **changes: Any) -> Dirty:
        return Dirty(kind, (_record(kind, **changes),), "quarantined", rule)

    def cleared(kind: str, rule: str, **changes: Any) -> Dirty:
        return Dirty(kind, (_record(kind, **changes),), "valid", rule)

    without_id = _record("id_missing")
    del without_id["product_id"]
    doubled = _record("id_doubled"), _record("id_doubled", title="Red T-shirt", updated_at="2026-11-19T00:00:00Z")
    unsafe = "unsafe_product_id"
    return [
        cleared("title_number", "", title=12345),
        cleared("title_object", "unreadable_title", title={"en": "Blue T-shirt"}),
        cleared("price_word", "unreadable_price", price="on request"),
        cleared("attributes_list", "unreadable_attributes", attributes=["Blue", "Cotton"]),
        Dirty("id_missing", (without_id,), "quarantined", "missing_product_id"),
        rejected("id_null", "missing_product_id", product_id=None),
        rejected("id_blank", "missing_product_id", product_id=" \t "),
        Dirty("id_doubled", doubled, "superseded", "newer_record_with_this_id"),
        rejected("id_path", unsafe, product_id="../../dirty-id_path"),
        rejected("id_absolute", unsafe, product_id="/etc/dirty-id_absolute"),
        rejected("id_file_uri", unsafe, product_id="file:///etc/dirty-id_file_uri"),
        rejected("id_metadata_service", unsafe, product_id="http://169.254.169.254/latest/dirty-id_metadata_service"),
        rejected("nothing_to_tag", "nothing_to_tag", title="", description=None),
    ]


def _uris() -> list[Dirty]:
    uris = {
        "picture_dotdot": "../../../../etc/passwd",
        "picture_absolute": "/etc/passwd",
        "picture_file_uri": "file:///etc/passwd",
        "picture_metadata_service": "http://169.254.169.254/latest/meta-data/",
        "picture_nul": "a\x00b.jpg",
        "picture_backslash": "..\\..\\secret.jpg",
    }
    return [
        Dirty(kind, (_record(kind, image_uri=uri),), "valid", "picture_outside_roots") for kind, uri in uris.items()
    ]


def _texts() -> list[Dirty]:
    hostile = "\x00\x07Blue\u202e tac\u202c T\u200b-\u200dshirt\ufeff\x1b[31m \ud83d"
    long = "cotton & <b>blue</b> " * (HUGE_TEXT // 21 + 1)
    return [
        Dirty("text_8_mb", (_record("text_8_mb", description=long[:HUGE_TEXT]),), "valid", "description_too_long"),
        Dirty("control_characters", (_record("control_characters", title=hostile),), "valid"),
        Dirty("markup", (_record("markup", description="<p>Soft&nbsp;<b>cotton</b><script>x()</script>"),), "valid"),
        Dirty("placeholders", (_record("placeholders", description="Style Note", brand="N/A"),), "valid"),
    ]


def _labels() -> list[Dirty]:
    labels: dict[str, Any] = {
        "label_unknown": {"kind": "T-shirt", "colour": "Octarine"},
        "label_number": {"kind": "T-shirt", "colour": 5},
        "label_object": {"kind": "T-shirt", "colour": {"name": "Blue"}},
        "label_mixed_list": {"kind": "T-shirt", "details": ["Pocket", 7]},
    }
    return [Dirty(kind, (_record(kind, attributes=value),), "valid") for kind, value in labels.items()]


def _pictures() -> list[Dirty]:
    def one(kind: str, picture: bytes | None, status: str, ending: str = "jpg") -> Dirty:
        record = _record(kind, image_uri=f"dirty/{kind}.{ending}")
        return Dirty(kind, (record,), "valid", picture=picture, image_status=status)

    whole = jpeg(drawing())
    return [
        one("picture_missing", None, "missing"),
        one("picture_empty", b"", "empty"),
        one("picture_truncated", whole[: len(whole) // 2], "broken"),
        one("picture_is_text", b"<html><body>404 Not Found</body></html>", "broken"),
        one("picture_bomb", bomb(), "too_large", "png"),
        one("picture_cmyk", jpeg(drawing().convert("CMYK")), "ok"),
        one("picture_16_bit", png_16_bit(), "ok", "png"),
        one("picture_animated", animation(), "ok", "gif"),
        one("picture_palette", _saved(drawing().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), "ok", "png"),
        one("picture_transparent", _saved(transparent(), "PNG"), "ok", "png"),
        one("picture_1x1", _saved(Image.new("RGB", (1, 1), "blue"), "PNG"), "ok", "png"),
        one("picture_exif_rotated", rotated(), "ok"),
    ]


# --- pictures


def drawing() -> Image.Image:
    """Return a small picture with four different corners, so that rotations and flips are visible."""
    picture = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((24, 32, 72, 112), fill="blue")
    draw.rectangle((0, 0, 20, 20), fill="red")
    draw.rectangle((75, 0, 95, 20), fill="lime")
    draw.rectangle((0, 107, 20, 127), fill="black")
    return picture


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    """Return `picture` as a JPEG file."""
    return _saved(picture, "JPEG", quality=90, **options)


def png_16_bit() -> bytes:
    """Return a grey PNG with 16 bits per pixel: a ramp from black (left) to white (right)."""
    ramp = np.linspace(0, 65_535, SIZE[0]).astype(np.uint16)
    return _saved(Image.fromarray(np.tile(ramp, (SIZE[1], 1))), "PNG")


def animation() -> bytes:
    """Return a GIF whose first frame is the drawing and whose second is red."""
    first = drawing().quantize(64)
    return _saved(first, "GIF", save_all=True, append_images=[Image.new("RGB", SIZE, "red").quantize(2)], duration=100)


def transparent() -> Image.Image:
    """Return the drawing on a transparent background; transparent pixels are black."""
    picture = drawing().convert("RGBA")
    pixels = np.array(picture)
    pixels[(pixels[..., :3] == 255).all(axis=-1)] = 0
    return Image.fromarray(pixels)


def rotated() -> bytes:
    """Return the drawing as a camera held sideways stores it: rotated by 90 degrees, with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(drawing().transpose(Image.Transpose.ROTATE_90), exif=exif.tobytes(), subsampling=0)


@functools.cache
def bomb(side: int = 40_000) -> bytes:
    """Return a valid black PNG of `side` x `side` pixels. By default about 200 kB decode to 1.6 gigapixels."""
    pack = zlib.compressobj(9)
    rows = bytes(1 + side // 8) * 100
    packed = b"".join([*(pack.compress(rows) for _ in range(side // 100)), pack.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunk: Callable[[bytes, bytes], bytes] = lambda name, data: (  # noqa: E731
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    )
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
