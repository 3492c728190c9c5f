"""Tests of pictures whose headers, not their pixels, cost time or memory.

`make test TESTS=tests/cma_clip_core/content/test_picture_parts.py`.
"""

from __future__ import annotations

import io
import itertools
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cma_clip_core.content import avif_size, picture_parts, pictures
from cma_clip_core.content.pictures import PictureError, PictureSpec, decode

SPEC = PictureSpec(height=64, width=64)
JPEG_START, PNG_START = 2, 33  # positions for more parts: after the start mark, after the first chunk


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(kind: str, **options: Any) -> bytes:
    return saved(Image.new("RGB", (80, 60), "red"), kind, **options)


def with_parts(kind: str, parts: bytes) -> bytes:
    data = plain(kind)
    start = {"JPEG": JPEG_START, "PNG": PNG_START, "GIF": 13 + (3 << (data[10] & 7) + 1)}[kind]
    return data[:start] + parts + data[start:]


def tags(*entries: tuple[int, int, int, bytes], at: int = 0) -> bytes:
    """Return a TIFF header and one directory, followed by values longer than four bytes. `at`: its position in the file."""
    body, behind = b"", b""
    first = at + 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        field = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", first + len(behind))
        behind += value if len(value) > 4 else b""
        body += struct.pack("<HHI", tag, kind, count) + field
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + behind


def strips(count: int) -> bytes:
    places = struct.pack("<I", 8) * count
    numbers = ((256, 1), (257, count), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1))
    return tags(*((tag, 4, 1, struct.pack("<I", value)) for tag, value in numbers), (273, 4, count, places))


def exif(numbers: int) -> bytes:
    return b"Exif\0\0" + tags((0x0112, 3, numbers, b"\1\1" * numbers))


def scans(count: int) -> bytes:
    """Return a progressive thumbnail of the model's size with one scan repeated."""
    data = saved(Image.new("RGB", (64, 64), "grey"), "JPEG", progressive=True)
    starts = [found.start() for found in re.finditer(b"\xff\xda", data)]
    scan = min((data[a:b] for a, b in itertools.pairwise(starts[1:])), key=len)
    return data[:-2] + scan * count + data[-2:]


def items(count: int) -> bytes:
    """Return an AVIF that lists many items that do not exist."""
    data = plain("AVIF")
    at = data.index(b"iloc")
    length = int.from_bytes(data[at - 4 : at], "big")
    listed = b"".join(struct.pack(">HHH", 2 + item % 65_000, 0, 0) for item in range(count))
    known = bytearray(data[at : at - 4 + length])
    known[10:12] = struct.pack(">H", min(count, 65_535))
    return data[: at - 4] + struct.pack(">I", length + len(listed)) + known + listed + data[at - 4 + length :]


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "segments of a JPEG": (lambda: with_parts("JPEG", b"\xff\xe4\0\2" * 1_000_000), "segments"),
    "comments of a JPEG": (lambda: with_parts("JPEG", b"\xff\xfe\0\2" * 1_000_000), "segments"),
    "fill bytes of a JPEG": (lambda: with_parts("JPEG", b"\xff" * 8_000_000), "between its segments"),
    "junk in a JPEG": (lambda: with_parts("JPEG", b"\xff\xfe\0\2" + bytes(8_000_000)), "between its segments"),
    "Exif segments": (lambda: with_parts("JPEG", (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)) * 100), "Exif"),
    "scans of a thumbnail": (lambda: scans(300_000), "scans"),
    "chunks of a PNG": (
        lambda: with_parts("PNG", (struct.pack(">I", 0) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))) * 400_000),
        "chunks",
    ),
    "comments of a GIF": (lambda: with_parts("GIF", b"!\xfe\x01c\0" * 900_000), "blocks"),
    "junk in a GIF": (lambda: with_parts("GIF", bytes(8_000_000)), "between its blocks"),
    "strips of a TIFF": (lambda: strips(1_000_000), "numbers in tag 273"),
    "inner directories of a TIFF": (
        lambda: tags((256, 4, 1, b"\1\0\0\0"), *[(34665, 4, 1, b"\x08\0\0\0")] * 20).ljust(200_000, b"\0"),
        "directories",
    ),
    "items of an AVIF": (lambda: items(50_000), "lists of items"),
    "Exif of an AVIF": (lambda: plain("AVIF") + exif(200_000), "numbers in tag 274"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.timeout(30)
def test_a_file_of_too_many_parts_is_refused_unread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, said = HOSTILE[name]
    data = make()
    assert len(data) < pictures.MAX_BYTES
    monkeypatch.setattr(pictures, "_opened", lambda _: pytest.fail("it was opened"))
    if "scans" in name:
        monkeypatch.undo()
        monkeypatch.setattr(pictures.simplejpeg, "decode_jpeg", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(PictureError) as error:
        decode(data, SPEC)
    assert error.value.status == "too_large"
    assert said in error.value.detail


def in_front(kind: str) -> bytes:
    """Return a picture with at least as many parts as any photograph has."""
    if kind == "JPEG":
        return with_parts(kind, b"\xff" * 1000 + (b"\xff\xe2\xff\xffICC_PROFILE\0" + bytes(65_521)) * 255)
    if kind == "PNG":
        return with_parts(kind, (struct.pack(">I", 0) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))) * 20_000)
    return with_parts(kind, b"!\xfe" + (b"\xff" + b"c" * 255) * 20_000 + b"\0")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_a_file_of_many_parts_is_read(kind: str) -> None:
    assert decode(in_front(kind), SPEC)[32, 32].tolist() == decode(plain(kind), SPEC)[32, 32].tolist()


def test_a_tiff_of_many_strips_is_read() -> None:
    assert decode(strips(30_000), SPEC).shape == (64, 64, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_data_of_many_numbers_turn_nothing_and_cost_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = plain(kind, exif=exif(500_000))
    monkeypatch.setattr(Image.Image, "getexif", lambda _: pytest.fail("it was read"))
    assert decode(data, SPEC)[32, 32, 0] > 250


def frame(width: int, height: int, dispose: int = 0) -> bytes:
    """Return a GIF frame of only its first colour, which is transparent."""
    data = saved(Image.new("P", (width, height), 0), "GIF", transparency=0)
    start = 13 + (3 << (data[10] & 7) + 1)
    return b"!\xf9\x04" + bytes([dispose << 2 | 1]) + bytes(4) + data[data.index(b",", start) : -1]


SECOND = {
    "GIF": lambda: plain("GIF")[: 13 + (3 << (plain("GIF")[10] & 7) + 1)] + frame(40, 40) + frame(9000, 9000, 2) + b";",
    "TIFF": lambda: saved(
        Image.new("RGBA", (40, 40), (0, 0, 0, 0)), "TIFF", save_all=True, append_images=[Image.new("RGBA", (9000, 9000), "red")],
        compression="tiff_adobe_deflate",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SECOND)
def test_a_later_page_or_frame_of_another_size_costs_nothing(kind: str, tmp_path: Path) -> None:
    """The first one is small and transparent; the next one would take gigabytes."""
    path = tmp_path / "picture"
    path.write_bytes(SECOND[kind]())
    assert path.stat().st_size < 2_000_000
    script = (
        "import sys, resource; from pathlib import Path; from cma_clip_core.content.pictures import *; "
        "data = Path(sys.argv[1]).read_bytes(); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: decode(data, PictureSpec(64, 64))\nexcept PictureError as error: assert error.status == 'too_large'\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50_000, "kB"


AVIFS: dict[str, tuple[tuple[int, int], str, dict[str, Any]]] = {
    "a pixel": ((1, 1), "RGB", {}), "odd": ((63, 65), "RGB", {}), "grey": ((300, 200), "L", {}),
    "transparent": ((300, 200), "RGBA", {}), "without loss": ((640, 480), "RGB", {"quality": 100, "subsampling": "4:4:4"}),
}  # fmt: skip


@pytest.mark.parametrize("name", AVIFS)
def test_the_size_of_av1_frames_is_read(name: str) -> None:
    size, mode, options = AVIFS[name]
    data = saved(Image.effect_noise(size, 60).convert(mode), "AVIF", speed=10, **options)
    assert avif_size.largest_frame(data) == size[0] * size[1]


def test_frames_of_an_animated_avif_may_be_as_large_as_their_bits_allow() -> None:
    picture = Image.effect_noise((300, 200), 60).convert("RGB")
    data = saved(picture, "AVIF", speed=10, save_all=True, append_images=[picture.rotate(5)])
    assert avif_size.largest_frame(data) == 512 * 256
    assert decode(data, SPEC).shape == (64, 64, 3)


def test_an_avif_that_is_larger_than_it_says_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder makes a frame of the size in the AV1 data: 2 kB took 264 MB, and could take 1.6 GB."""
    data = saved(Image.effect_noise((320, 200), 60).convert("RGB"), "AVIF", speed=10)
    position = data.index(b"ispe") + 8
    assert struct.unpack_from(">II", data, position) == (320, 200)
    lying = data[:position] + struct.pack(">II", 10, 10) + data[position + 8 :]
    assert decode(lying, SPEC).shape == (64, 64, 3)  # it is decoded
    monkeypatch.setattr(picture_parts, "_AV1_PIXELS", 60_000)
    monkeypatch.setattr(pictures, "_recent", pictures._Recent(pictures._decode_file, max_bytes=0))
    monkeypatch.setattr(pictures, "_opened", lambda _: pytest.fail("it was opened"))
    with pytest.raises(PictureError, match="too_large: AV1 frames of 64,000 pixels"):
        decode(lying, SPEC)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "boxes", [b"iloc", b"infe", b"stco" + bytes(4) + b"\xff" * 20, b"iloc\2\0\0\0\x44\0" + b"\xff" * 4]
)
def test_looking_for_av1_frames_takes_bounded_time(boxes: bytes) -> None:
    data = b"\0\0\0\x1cftypavif" + boxes * (20_000_000 // len(boxes))
    with pytest.raises(PictureError):
        decode(data, SPEC)


def test_a_tall_and_narrow_picture_is_judged_with_the_pointers_to_its_rows() -> None:
    rows = 40_000_000
    packed = zlib.compressobj(1)
    body = b"".join(packed.compress(bytes(2_000_000)) for _ in range(rows // 1_000_000)) + packed.flush()

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, rows, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"prVt", bytes(500_000)) + chunk(b"IEND", b"")
    with pytest.raises(PictureError, match="MB to decode as PNG"):
        decode(data, SPEC)


def test_counting_parts_takes_linear_time() -> None:
    for data in (
        b"\xff\xd8\xff" + b"\xff\0" * 10_000_000,
        b"GIF89a" + b"," * 20_000_000,
        b"II*\0" + b"\xff" * 20_000_000,
    ):
        picture_parts.refusal(data)
