"""Tests of fetching and decoding pictures: `make test TESTS=tests/cma_clip_core/content/test_pictures.py`."""

from __future__ import annotations

import base64
import errno
import gzip
import hashlib
import io
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from cma_clip_core.content import colour_profiles, picture_cost, pictures
from cma_clip_core.content.pictures import PictureError, PictureSpec, decode, fetch
from jobs.demo.dirty_records import bomb, drawing, jpeg, png_16_bit, rotated, transparent
from tests.dirty import DIRTY

SAME = PictureSpec(height=128, width=96)  # the drawing's own size


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def refused(data: bytes) -> PictureError:
    with pytest.raises(PictureError) as error:
        decode(data, SAME)
    return error.value


def outcome(data: bytes) -> tuple[int, ...] | PictureError:
    try:
        return decode(data, SAME).shape
    except PictureError as error:
        return error


UPRIGHT = np.asarray(drawing())


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_recent", pictures._Recent(pictures._decode_file, max_bytes=2**24))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_formats_without_loss_give_the_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode(saved(drawing(), kind, **options), SAME), UPRIGHT)


def test_a_jpeg_gives_nearly_the_pixels() -> None:
    pixels = decode(jpeg(drawing(), subsampling=0), SAME)
    assert pixels.shape == (128, 96, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - UPRIGHT).mean() < 2


@pytest.mark.parametrize("kind", [k for k, d in DIRTY.items() if k.startswith("picture_") and d.picture is not None])
def test_every_dirty_picture_is_decoded_or_refused(kind: str) -> None:
    dirty = DIRTY[kind]
    assert dirty.picture is not None
    if dirty.image_status == "ok":
        assert decode(dirty.picture, SAME).shape == (128, 96, 3)
    else:
        assert refused(dirty.picture).status == dirty.image_status


# --- kinds of pictures


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_turned_equals_upright(orientation: int, kind: str) -> None:
    stored = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    picture = drawing() if stored is None else drawing().transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode(saved(picture, kind, exif=exif, **options), SAME), UPRIGHT)


def test_a_turned_jpeg_is_turned_back() -> None:
    assert np.abs(decode(rotated(), SAME).astype(int) - UPRIGHT).mean() < 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_cost_the_picture() -> None:
    data = jpeg(drawing(), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + b"\x99" * 40)
    assert np.abs(decode(data, SAME).astype(int) - UPRIGHT).mean() < 4


def test_16_bits_are_scaled_and_not_clipped() -> None:
    row = decode(png_16_bit(), SAME)[64, :, 0]
    np.testing.assert_allclose(row, np.linspace(0, 255, 96), atol=1)


@pytest.mark.parametrize(("dtype", "top"), [(np.int32, 65_535), (np.float32, 1.0), (np.float32, 255.0)])
def test_deep_greys_are_scaled(dtype: type, top: float) -> None:
    ramp = np.tile(np.linspace(0, top, 96).astype(dtype), (128, 1))
    row = decode(saved(Image.fromarray(ramp), "TIFF"), SAME)[64, :, 0]
    np.testing.assert_allclose(row, np.linspace(0, 255, 96), atol=1.1)


def test_transparency_shows_white() -> None:
    np.testing.assert_array_equal(decode(saved(transparent()), SAME), UPRIGHT)
    half = Image.new("RGBA", (96, 128), (0, 0, 0, 128))
    assert decode(saved(half), SAME)[0, 0].tolist() == [127, 127, 127]


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_transparency_of_greys_and_palettes_shows_white(mode: str) -> None:
    picture = Image.new("RGBA", (96, 128), (0, 0, 0, 0))
    picture.paste((100, 100, 100, 255), (0, 0, 96, 64))
    pixels = decode(saved(picture.convert(mode)), SAME)
    assert pixels[10, 10].tolist() == [100, 100, 100]
    assert pixels[100, 10].tolist() == [255, 255, 255]


def test_a_colour_that_means_transparent_shows_white() -> None:
    data = saved(Image.new("RGB", (96, 128), (9, 8, 7)), transparency=(9, 8, 7))
    assert decode(data, SAME)[5, 5].tolist() == [255, 255, 255]


def test_palette_bilevel_and_cmyk() -> None:
    palette = drawing().convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(decode(saved(palette), SAME), UPRIGHT)
    bilevel = Image.new("1", (96, 128), 1)
    assert decode(saved(bilevel), SAME).min() == 255
    cmyk = decode(jpeg(drawing().convert("CMYK"), subsampling=0), SAME)
    assert np.abs(cmyk.astype(int) - UPRIGHT).mean() < 3


def test_of_an_animation_the_first_frame_is_taken() -> None:
    data = DIRTY["picture_animated"].picture
    assert data is not None
    assert np.abs(decode(data, SAME).astype(int) - UPRIGHT).mean() < 3


# --- letterbox


@pytest.mark.parametrize(
    ("size", "spec", "box"),  # box: left, top, right, bottom of the picture in the result
    [
        ((100, 50), (64, 64), (0, 16, 64, 48)),
        ((50, 100), (64, 64), (16, 0, 48, 64)),
        ((60, 80), (224, 224), (28, 0, 196, 224)),
        ((10, 10), (40, 20), (0, 10, 20, 30)),
        ((1000, 1), (32, 32), (0, 15, 32, 16)),
        ((1, 1), (32, 48), (8, 0, 40, 32)),
    ],
)
def test_letterbox_geometry(size: tuple[int, int], spec: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    pixels = decode(saved(Image.new("RGB", size, (10, 20, 30))), PictureSpec(height=spec[0], width=spec[1]))
    left, top, right, bottom = box
    expected = np.full((*spec, 3), 255, np.uint8)
    expected[top:bottom, left:right] = (10, 20, 30)
    np.testing.assert_array_equal(pixels, expected)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a drawing with noise, which has all frequencies."""
    noise = np.random.default_rng(seed).integers(0, 80, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(drawing().resize((width, height))) + noise - 40, 0, 255).astype(np.uint8))


def turned() -> bytes:
    """Return a JPEG of the model's size with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 3
    return saved(photo(96, 128), "JPEG", exif=exif)


PLAIN = {
    "444": saved(photo(96, 128), "JPEG", subsampling=0),
    "422": saved(photo(96, 100), "JPEG", subsampling=1),
    "420, odd sizes": saved(photo(95, 128), "JPEG", subsampling=2, quality=60),
    "progressive": saved(photo(96, 127), "JPEG", progressive=True),
    "garbage after the end": saved(photo(96, 128), "JPEG") + b"garbage",
}
NOT_PLAIN = {
    "other size": saved(photo(97, 128), "JPEG"),
    "grey": saved(photo(96, 128).convert("L"), "JPEG"),
    "CMYK": saved(photo(96, 128).convert("CMYK"), "JPEG"),
    "turned": turned(),
    "truncated": saved(photo(96, 128), "JPEG")[:-400],
    "header alone": saved(photo(96, 128), "JPEG")[:300],
    "PNG": saved(photo(96, 128)),
}


@pytest.mark.parametrize("name", [*PLAIN, *NOT_PLAIN])
def test_a_thumbnail_has_the_pixels_that_pillow_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (PLAIN | NOT_PLAIN)[name]
    assert (pictures._decode_thumbnail(data, SAME) is not None) == (name in PLAIN)

    def result() -> bytes | str:
        try:
            return decode(data, SAME).tobytes()
        except PictureError as error:
            return str(error)

    direct = result()
    monkeypatch.setattr(pictures, "_decode_thumbnail", lambda *_: None)
    assert direct == result()


def test_a_large_jpeg_is_reduced_as_by_a_full_decode() -> None:
    noise = np.random.default_rng(3).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    large = Image.fromarray(noise).resize((1500, 2000), Image.Resampling.BICUBIC)
    data = jpeg(large, subsampling=0)
    full = np.asarray(Image.open(io.BytesIO(data)).resize((96, 128), Image.Resampling.BICUBIC))
    assert np.abs(decode(data, SAME).astype(int) - full).max() <= 4


def test_the_same_bytes_give_the_same_pixels() -> None:
    """The golden hash guards training and inference against a silent change of preprocessing."""
    data = saved(drawing())
    pixels = decode(data, PictureSpec(64, 64))
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "10e63b2e72982bc3"
    with ThreadPoolExecutor(4) as threads:
        for other in threads.map(lambda _: decode(data, PictureSpec(64, 64)), range(32)):
            np.testing.assert_array_equal(other, pixels)


# --- bounds


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bomb()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
    assert refused(data).status == "too_large"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 5_000  # kB


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_pixels_are_bounded_below_pillows_own_bound(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_cost, "MAX_PIXELS", 96 * 128 - 1)
    monkeypatch.setattr(picture_cost, "MAX_JPEG_PIXELS", 96 * 128 - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded before the bound was checked"))
    error = refused(saved(drawing(), kind))
    assert error.status == "too_large"
    assert "96 x 128 pixels" in error.detail


def test_bytes_are_bounded() -> None:
    assert refused(bytes(pictures.MAX_BYTES + 1)).status == "too_large"
    assert refused(b"").status == "empty"


def test_few_bytes_may_not_ask_for_much_work() -> None:
    data = saved(Image.new("RGB", (4_000, 4_000), "red"), "WEBP", lossless=True)
    assert len(data) < 1_000
    error = refused(data)
    assert error.status == "too_large"
    assert "4,000 x 4,000 pixels in" in error.detail
    flat = saved(Image.new("L", (5_000, 5_000), 200), "PNG")
    assert len(flat) > 25_000
    assert refused(flat).status == "too_large"
    assert decode(saved(Image.new("RGB", (1_400, 1_400), "red"), "WEBP", lossless=True), SAME)[64, 48].tolist() == [
        255,
        0,
        0,
    ]


def many_scans(scans: int) -> bytes:
    """Return a progressive JPEG that repeats one scan. Each repetition costs a pass over all pixels."""
    data = saved(Image.new("L", (2_000, 2_000), 90), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def test_scans_of_a_jpeg_are_bounded() -> None:
    assert picture_cost.jpeg_scans(many_scans(1)) == 6
    assert picture_cost.jpeg_scans(many_scans(400)) == 405
    error = refused(many_scans(400))
    assert error.status == "too_large"
    assert "in 405 scans" in error.detail
    comment = b"\xff\xfe\x00\x04\xff\xd9"  # an end marker inside a segment does not end the picture
    hidden = many_scans(400).replace(b"\xff\xda", comment + b"\xff\xda")
    assert refused(hidden).status == "too_large"
    many = many_scans(1).replace(b"\xff\xda", b"\xff\xfe\x00\x02" * 20_000 + b"\xff\xda", 1)
    assert picture_cost.jpeg_scans(many) == len(many) // 10


def test_tiles_of_a_tiff_may_not_be_larger_than_memory() -> None:
    tags = [
        (256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (277, 1), (322, 16_000), (323, 16_000), (324, 200), (325, 20),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(200)
    error = refused(data)
    assert error.status == "too_large"
    assert "MB to decode as TIFF" in error.detail


PEAKS = """
import os, sys
from cma_clip_core.content.pictures import PictureError, PictureSpec, decode

def kilobytes(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))

for path in sys.argv[1:]:
    data = open(path, "rb").read()
    sys.stdout.flush()
    if os.fork():
        os.wait()
        continue
    before = kilobytes("VmRSS")
    try:
        decode(data, PictureSpec(80, 64))
        status = "ok"
    except PictureError as error:
        status = error.status
    print(os.path.basename(path), status, kilobytes("VmHWM") - before, flush=True)
    os._exit(0)
"""


def large(kind: str) -> bytes:
    """Return a picture of three megapixels in a file of plausible size."""
    size = (1_600, 1_900)
    noise = np.random.default_rng(7).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    colour = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    name, _, mode = kind.partition(" ")
    if mode in ("F", "I"):
        picture = Image.fromarray(np.asarray(colour.convert("L")).astype(np.float32 if mode == "F" else np.int32))
    elif mode == "I;16":
        picture = Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) * 257)
    elif mode == "LAB":
        picture = ImageCms.applyTransform(
            colour, ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        )
    elif kind == "GIF animated":
        picture = colour.convert("P")
    elif mode in ("RGBA", "P", "CMYK", "L", "LA", "1"):
        picture = colour.convert(mode)
    else:
        picture = colour
    options: dict[str, Any] = {
        "WEBP": {"method": 0, "quality": 60}, "AVIF": {"speed": 10}, "TIFF": {"compression": "tiff_lzw"},
        "PNG": {"compress_level": 1}, "JPEG": {"progressive": mode == "progressive", "subsampling": 0},
    }.get(name, {})  # fmt: skip
    if mode == "lossless":
        options = {"lossless": True, "method": 0, "quality": 0}
    if mode == "animated":
        options |= {"save_all": True, "append_images": [picture.transpose(Image.Transpose.ROTATE_180)] * 2}
    if mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    return saved(picture, name, **options)


LARGE = ["WEBP", "WEBP lossless", "WEBP RGBA", "WEBP animated", "AVIF", "AVIF RGBA", "PNG", "PNG RGBA", "PNG LA", "PNG I;16", "PNG P",
         "PNG animated", "GIF P", "GIF animated", "TIFF", "TIFF F", "TIFF I", "TIFF CMYK", "TIFF LAB", "TIFF turned", "JPEG",
         "JPEG progressive", "JPEG CMYK", "JPEG turned", "BMP P"]  # fmt: skip
# Bytes a pixel: the decoder's own and the picture's; no conversion may copy the whole picture.
COPIES = {"WEBP": 16, "AVIF": 16, "JPEG": 0, "JPEG progressive": 6, "GIF animated": 4, "TIFF turned": 12, "PNG P": 1,
          "GIF P": 1, "BMP P": 1, "PNG I;16": 2}  # fmt: skip


def test_the_peak_of_memory_is_what_the_bounds_count_with(tmp_path: Path) -> None:
    for kind in LARGE:
        (tmp_path / kind).write_bytes(large(kind))
    paths = [str(tmp_path / kind) for kind in LARGE]
    found = subprocess.run([sys.executable, "-c", PEAKS, *paths], check=True, capture_output=True, text=True).stdout
    peaks = {name: (status, 1024 * int(peak)) for *_, name, status, peak in (
        (line.rsplit(" ", 2)[0], *line.rsplit(" ", 2)[1:]) for line in found.splitlines()
    )}  # fmt: skip
    assert list(peaks) == LARGE
    for kind, (status, peak) in peaks.items():
        assert status == "ok", kind
        copies = COPIES.get(kind, COPIES.get(kind.split()[0], 8 if kind.startswith("TIFF") else 4))
        assert peak < copies * 3_040_000 + 22_000_000, (kind, peak)


def claiming(width: int, height: int) -> dict[str, bytes]:
    """Return small files of every format whose headers claim a picture of `width` x `height` pixels."""

    def riff(name: bytes, body: bytes) -> bytes:
        return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBP" + name + struct.pack("<I", len(body)) + body

    small = Image.new("RGB", (64, 64), "red")
    jpegs = {}
    for name, marker in (("JPEG", b"\xff\xc0"), ("JPEG progressive", b"\xff\xc2")):
        data = saved(small, "JPEG", progressive=name != "JPEG")
        at = data.index(marker) + 5
        jpegs[name] = data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]
    png, gif, bmp, avif = (saved(small, kind) for kind in ("PNG", "GIF", "BMP", "AVIF"))
    header = struct.pack(">II", width, height) + png[24:29]
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1), (278, height), (279, 20)]
    frame = gif.index(b",", 13 + 3 * 2 ** ((gif[10] & 7) + 1)) + 5
    at = avif.index(b"ispe") + 8
    return jpegs | {
        "WEBP lossy": riff(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF) + bytes(10)),
        "WEBP lossless": riff(b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) & 0x3FFF | ((height - 1) & 0x3FFF) << 14) + bytes(20)),
        "WEBP canvas": riff(b"VP8X", b"\x12\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")),
        "PNG": png[:16] + header + zlib.crc32(b"IHDR" + header).to_bytes(4, "big") + png[33:],
        "GIF": gif[:6] + struct.pack("<HH", width, height) + gif[10:],
        "GIF frame": gif[:frame] + struct.pack("<HH", width, height) + gif[frame + 4 :],
        "BMP": bmp[:18] + struct.pack("<ii", width, height) + bmp[26:],
        "TIFF": b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags) + bytes(200),
        "AVIF": avif[:at] + struct.pack(">II", width, height) + avif[at + 8 :],
    }  # fmt: skip


@pytest.mark.parametrize("side", [7_900, 16_383, 65_000])
def test_a_header_that_claims_a_huge_picture_costs_no_memory(side: int, tmp_path: Path) -> None:
    files = claiming(side, side)
    for kind, data in files.items():
        (tmp_path / kind).write_bytes(data)
    paths = [str(tmp_path / kind) for kind in files]
    found = subprocess.run([sys.executable, "-c", PEAKS, *paths], check=True, capture_output=True, text=True).stdout
    outcomes = [line.rsplit(" ", 2) for line in found.splitlines()]
    assert [kind for kind, *_ in outcomes] == list(files)
    for kind, status, peak in outcomes:
        assert int(peak) < 10_000, (kind, status, peak)  # kB
        assert status in ("too_large", "broken"), kind


def test_equal_content_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    decode_one = pictures._decode

    def counting(data: bytes, spec: PictureSpec) -> pictures.Pixels:
        decoded.append(data)
        return decode_one(data, spec)

    monkeypatch.setattr(pictures, "_decode", counting)
    placeholder, other = saved(drawing()), saved(drawing().resize((97, 50)))
    first = decode(placeholder, SAME)
    first[:] = 0  # the caller's own
    for _ in range(3):
        np.testing.assert_array_equal(decode(placeholder, SAME), UPRIGHT)
        decode(other, SAME)
    assert decode(placeholder, PictureSpec(64, 64)).shape == (64, 64, 3)
    broken = placeholder[:200]
    assert str(refused(broken)) == str(refused(broken))
    assert len(decoded) == 4


def test_what_is_remembered_is_bounded() -> None:
    recent = pictures._Recent(pictures._decode_file, max_bytes=200_000)
    for shade in range(20):
        recent.get(saved(Image.new("RGB", (96, 128), (shade, 0, 0))), SAME)
    assert recent._bytes <= 200_000
    assert 4 <= len(recent._outcomes) <= 6
    assert recent._bytes == sum(pictures._cached_size(outcome) for outcome in recent._outcomes.values())


# --- pictures that every viewer shows, though their files are faulty


WHOLE = photo(300, 400)


def cut(data: bytes, share: float) -> bytes:
    return data[: int(share * len(data))]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "progressive"])
def test_a_file_that_lacks_its_last_bytes_is_used(kind: str) -> None:
    data = saved(WHOLE, "JPEG", progressive=True) if kind == "progressive" else saved(WHOLE, kind)
    whole = decode(data, SAME).astype(int)
    for share in (0.97, 0.999):
        found = decode(cut(data, share), SAME).astype(int)
        assert np.abs(found - whole)[: 128 * 9 // 10].mean() < (1 if kind in ("JPEG", "progressive") else 25)
    if kind != "progressive":  # its first scans already hold the whole picture
        assert refused(cut(data, 0.7)).detail == "cut off: fewer than 90% of its rows are there"
    assert refused(cut(data, 0.02)).status == "broken"


def test_a_jpeg_without_its_end_mark_is_whole() -> None:
    data = saved(WHOLE, "JPEG")
    np.testing.assert_array_equal(decode(data[:-2], SAME), decode(data, SAME))


def test_a_progressive_jpeg_is_used_from_its_first_whole_scans_on() -> None:
    data = saved(WHOLE, "JPEG", progressive=True)
    scans = [start for start in range(len(data)) if data[start : start + 2] == b"\xff\xda"]
    assert refused(data[: scans[2]]).status == "broken"
    assert np.abs(decode(data[: scans[4]], SAME).astype(int) - decode(data, SAME)).mean() < 20


@pytest.mark.parametrize("lead", [b"\n", b"\r\n\r\n", b"\xef\xbb\xbf", b"  \t"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_blanks_and_marks_before_a_picture_do_not_cost_it(lead: bytes, kind: str) -> None:
    data = saved(drawing(), kind)
    np.testing.assert_array_equal(decode(lead + data, SAME), decode(data, SAME))


def png_with(name: bytes, body: bytes, crc: int | None = None) -> bytes:
    chunk = name + body
    data = saved(drawing())
    made = len(body).to_bytes(4, "big") + chunk + (zlib.crc32(chunk) if crc is None else crc).to_bytes(4, "big")
    return data[:33] + made + data[33:]


def test_what_a_png_has_beside_its_pixels_does_not_cost_it() -> None:
    packed = zlib.compress(bytes(20_000_000))
    for data in (
        png_with(b"iCCP", b"p\0\0" + packed),
        png_with(b"zTXt", b"t\0\0" + packed),
        png_with(b"iTXt", b"t\0\1\0\0\0" + packed),
        png_with(b"tEXt", b"a\0b", crc=1),
    ):
        np.testing.assert_array_equal(decode(data, SAME), UPRIGHT)


def test_avif_is_read() -> None:
    assert np.abs(decode(saved(drawing(), "AVIF", quality=90), SAME).astype(int) - UPRIGHT).mean() < 4


def test_a_photograph_of_more_than_fifty_megapixels_is_reduced_while_it_is_decoded() -> None:
    large = Image.new("L", (9_000, 7_000), 77)
    large.paste(200, (0, 0, 9_000, 3_500))
    for progressive in (False, True):
        pixels = decode(saved(large, "JPEG", quality=95, progressive=progressive), SAME)
        assert [int(pixels[40, 48, 0]), int(pixels[90, 48, 0])] == [200, 77]


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "PNG"])
def test_of_an_animation_that_begins_clear_the_first_frame_that_shows_anything_is_taken(kind: str) -> None:
    clear, red = Image.new("RGBA", (96, 128), (0, 0, 0, 0)), Image.new("RGBA", (96, 128), (200, 0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {"disposal": 2} if kind == "GIF" else {}
    data = saved(clear, kind, save_all=True, append_images=[clear.copy(), red], duration=[100, 110, 120], **options)
    assert decode(data, SAME)[64, 48].tolist() == [200, 0, 0]
    alone = saved(clear, kind, **options)
    assert decode(alone, SAME).min() == 255


# --- colours


def swapped_profile() -> bytes:
    """Return a profile whose red is sRGB's blue."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * profile[131], 12)}
    for one, other in ((b"rXYZ", b"bXYZ"),):
        first, second = entries[one] + 4, entries[other] + 4
        profile[first : first + 8], profile[second : second + 8] = (
            profile[second : second + 8],
            profile[first : first + 8],
        )
    return bytes(profile)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colours_are_those_of_the_icc_profile(kind: str) -> None:
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG": {"subsampling": 0, "quality": 95}}.get(kind, {})
    for size in ((96, 128), (960, 1_280)):
        red = Image.new("RGB", size, (200, 30, 30))
        found = decode(saved(red, kind, icc_profile=swapped_profile(), **options), SAME)[64, 48].astype(int)
        assert np.abs(found - (30, 30, 200)).max() <= 3


def test_a_profile_of_srgb_changes_no_pixel_and_a_broken_one_costs_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = saved(drawing().convert("L"))
    for profile in (srgb, b"garbage", srgb[:200], swapped_profile()[:-100] + b"\xff" * 100):
        assert decode(saved(drawing(), icc_profile=profile), SAME).shape == (128, 96, 3)
    np.testing.assert_array_equal(decode(saved(drawing(), icc_profile=srgb), SAME), UPRIGHT)
    np.testing.assert_array_equal(decode(saved(drawing(), icc_profile=b"garbage"), SAME), UPRIGHT)
    # A profile for another colour space does not count.
    np.testing.assert_array_equal(
        decode(saved(drawing().convert("L"), icc_profile=swapped_profile()), SAME), decode(grey, SAME)
    )


def program(steps: int) -> bytes:
    """Return sRGB's profile with an additional program of `steps` steps, all of which share a few bytes."""
    known = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = [struct.unpack_from(">4sII", known, 132 + 12 * at) for at in range(struct.unpack_from(">I", known, 128)[0])]
    contents = [(name, known[start : start + size]) for name, start, size in tags]
    curve = b"curf" + bytes(4) + struct.pack(">HH", 1, 0) + b"parf" + bytes(8) + struct.pack(">4f", 1.0001, 1, 0, 0)
    step = b"cvst" + bytes(4) + struct.pack(">HH", 3, 3) + struct.pack(">II", 36, len(curve)) * 3 + curve
    location = struct.pack(">II", 16 + 8 * steps, len(step))
    contents.append((b"D2B0", b"mpet" + bytes(4) + struct.pack(">HHI", 3, 3, steps) + location * steps + step))
    table, body, start = b"", b"", 132 + 12 * len(contents)
    for name, content in contents:
        table += struct.pack(">4sII", name, start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    version = known[:8] + bytes([4, 0x40]) + known[10:128]
    whole = version + struct.pack(">I", len(contents)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


@pytest.mark.timeout(60)
def test_a_profile_that_is_a_program_is_not_run() -> None:
    before = decode(saved(drawing(), "PNG"), SAME)
    np.testing.assert_array_equal(decode(saved(drawing(), "PNG", icc_profile=program(60_000)), SAME), before)
    # The program would run if it had few steps and a name that the check does not know.
    colour_profiles._transform.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colour_profiles, "_PROGRAM", b"no such")
        assert colour_profiles._transform(program(50), "RGB") is not None


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_large_turned_picture_equals_the_same_one_upright(orientation: int) -> None:
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    upright = drawing().resize((1_211, 1_613), Image.Resampling.NEAREST)  # not a multiple of any reduction
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(saved(upright.transpose(stored), exif=exif), SAME).astype(int)
    assert np.abs(found - decode(saved(upright), SAME)).mean() < 0.5


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_bands_give_the_pixels_of_the_whole_picture(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = photo(701, 903).convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    data = saved(picture, "TIFF" if mode == "CMYK" else "PNG")
    whole = decode(data, SAME)
    monkeypatch.setattr(pictures, "_BAND", 5_000)
    monkeypatch.setattr(pictures, "_recent", pictures._Recent(pictures._decode_file, max_bytes=0))
    np.testing.assert_array_equal(decode(data, SAME), whole)


def test_floats_that_are_no_numbers_are_black() -> None:
    values = np.tile(np.linspace(0, 1, 96, dtype=np.float32), (128, 1))
    values[:4, :4] = np.nan
    values[10, 10] = np.inf
    row = decode(saved(Image.fromarray(values), "TIFF"), SAME)[64, :, 0]
    np.testing.assert_allclose(row, np.linspace(0, 255, 96), atol=1.1)


# --- error details


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "an SVG drawing"),
        (b'{"error": "not found"}', "JSON"),
        (base64.b64encode(jpeg(drawing())), "a picture in base64"),
        (b"data:image/png;base64,iVBORw0KGgo=", "a picture in base64"),
        (gzip.compress(b"x", mtime=0), "a gzip file"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"%PDF-1.7", "a PDF document"),
        (b"8BPS\0\1", "a Photoshop document"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC picture"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
        (b"\xff\x0a\x01\x02", "a JPEG XL picture"),
        (bytes(1000), "a file of zero bytes"),
        (b"404 page not found", "text"),
        (b"\x89PNG\r\n\x1a\nnothing", "PNG"),
        (b"\xfe\xdc\xba", "not a picture of a known format"),
    ],
)
def test_a_file_that_is_no_picture_is_called_what_it_is(data: bytes, said: str) -> None:
    error = refused(data)
    assert error.status == "broken"
    assert said in error.detail


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_anywhere_is_broken(kind: str) -> None:
    data = saved(drawing(), kind)
    for length in range(1, int(0.85 * len(data)), max(1, len(data) // 17)):
        assert refused(data[:length]).status == "broken", length


def test_noise_is_broken_and_its_detail_is_stable() -> None:
    noise = np.random.default_rng(5)
    whole = bytearray(jpeg(drawing()))
    for _ in range(300):
        data = bytearray(whole)
        for position in noise.integers(0, len(whole), 20):
            data[position] = noise.integers(256)
        found = outcome(bytes(data))
        assert isinstance(found, tuple) or found.status in ("broken", "too_large")
        assert "0x" not in str(found)  # no address, so that a detail is the same in each run


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PCX", "SGI"])
def test_other_formats_are_not_opened(kind: str) -> None:
    assert refused(saved(drawing().resize((32, 32)), kind)).status == "broken"


def test_pillows_settings_are_left_alone() -> None:
    code = (
        "from PIL import Image, ImageFile; before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)\n"
        "import cma_clip_core.content.pictures\n"
        "assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_spec_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        PictureSpec(0, 5)


def test_as_fast_as_a_bare_loop() -> None:
    data = jpeg(drawing().resize((225, 300)))

    def bare() -> None:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        np.asarray(picture.resize((96, 128), Image.Resampling.BICUBIC))

    def seconds(work: Any) -> float:
        start = time.process_time()
        for _ in range(60):
            work()
        return time.process_time() - start

    ratios = [seconds(bare) / seconds(lambda: decode(data, SAME)) for _ in range(5)]
    assert max(ratios) > 0.8  # measured on a quiet machine: 1.0


# --- fetch


@pytest.fixture
def root(tmp_path: Path) -> Path:
    inside = tmp_path / "root" / "ab"
    inside.mkdir(parents=True)
    (inside / "1.jpg").write_bytes(b"picture")
    (inside / "100% Ü.jpg").write_bytes(b"named")
    (inside / "empty.jpg").touch()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "root-other").mkdir()
    (tmp_path / "root-other" / "1.jpg").write_bytes(b"neighbour")
    return tmp_path / "root"


def status(uri: str, *roots: Path, max_bytes: int = 1000) -> str:
    with pytest.raises(PictureError) as error:
        fetch(uri, roots, max_bytes)
    return error.value.status


def test_what_lies_in_a_root_is_read(root: Path, tmp_path: Path) -> None:
    for uri in ("ab/1.jpg", "./ab//1.jpg", "ab/../ab/1.jpg", f"{root}/ab/1.jpg", f"file://{root}/ab/1.jpg",
                f"FILE://localhost{root}/ab/1.jpg"):  # fmt: skip
        assert fetch(uri, [root]) == b"picture"
    assert fetch("ab/100% Ü.jpg", [root]) == b"named"
    assert fetch(f"file://{root}/ab/100%25%20%C3%9C.jpg", [root]) == b"named"
    assert fetch(f"{tmp_path}/root-other/1.jpg", [root, tmp_path / "root-other"]) == b"neighbour"
    (root / "link.jpg").symlink_to(root / "ab" / "1.jpg")
    (tmp_path / "alias").symlink_to(root)
    assert fetch("link.jpg", [root]) == fetch("ab/1.jpg", [tmp_path / "alias"]) == b"picture"


@pytest.mark.parametrize(
    "uri",
    ["../secret.jpg", "ab/../../secret.jpg", "{tmp}/secret.jpg", "file://{tmp}/secret.jpg", "{tmp}/root-other/1.jpg",
     "file://{root}/%2e%2e/secret.jpg", "file:///etc/passwd", "/etc/passwd", "/dev/zero", "file://host/etc/passwd",
     "file:ab/1.jpg", "http://169.254.169.254/latest/meta-data/", "https://x/1.jpg", "ftp://x/1.jpg", "data:image/png;base64,AA",
     "s3://bucket/1.jpg", "C:\\1.jpg", "ab\\1.jpg", "ab/1.jpg\x00.png", "ab/%00", "\x1b", "ab/\ud800.jpg", "out/secret.jpg", "..",
     "file://{root}/ab/1.jpg%00", "file://[bad/1.jpg", "."],
)  # fmt: skip
def test_what_leaves_the_roots_is_forbidden(uri: str, root: Path, tmp_path: Path) -> None:
    (root / "out").symlink_to(tmp_path)
    expected = (
        "missing" if uri == "ab/%00" else "forbidden"
    )  # a relative path is not a URI, so its percent sign is literal
    assert status(uri.replace("{tmp}", str(tmp_path)).replace("{root}", str(root)), root) == expected


def test_no_root_no_picture(root: Path) -> None:
    assert status(f"{root}/ab/1.jpg") == "forbidden"


def test_what_is_no_picture_file(root: Path) -> None:
    assert status("ab/2.jpg", root) == status("ab/1.jpg/x", root) == status("", root) == status("  ", root) == "missing"
    assert status("x" * 5000, root) == "missing"
    assert status("ab/empty.jpg", root) == "empty"
    assert status("ab/1.jpg", root, max_bytes=6) == "too_large"
    assert status("ab", root) == "broken"
    (root / "loop").symlink_to(root / "loop")
    assert status("loop", root) in ("broken", "missing")
    (root / "dangling").symlink_to(root / "nothing")
    assert status("dangling", root) == "missing"


def test_a_pipe_is_never_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(root / "pipe.jpg")
    monkeypatch.setattr(os, "open", lambda path, *_: pytest.fail(f"{path} was opened"))
    assert status("pipe.jpg", root) == "broken"


def test_a_large_file_is_refused_unread(root: Path) -> None:
    with (root / "huge.jpg").open("wb") as file:
        file.truncate(2**40)  # an empty terabyte
    assert status("huge.jpg", root) == "too_large"


@pytest.mark.parametrize("call", ["stat", "open", "read"])
def test_a_fault_of_the_disk_is_not_the_pictures(root: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=r"Input/output error: '.*/ab/1\.jpg'"):
        fetch("ab/1.jpg", [root])


def test_a_file_that_may_not_be_read_is_broken(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PictureError, match="broken: Permission denied"):
        fetch("ab/1.jpg", [root])
