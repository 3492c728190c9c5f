"""`make test TESTS=tests/cma_clip_core/test_pictures.py`."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from cma_clip_core import pictures
from cma_clip_core.pictures import PictureError, PictureSpec, decode, fetch
from jobs.dirty_records import bomb, drawing, jpeg, png_16_bit, rotated, transparent
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


# --- what pictures can be


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
    """A drawing under noise: every frequency is in it."""
    noise = np.random.default_rng(seed).integers(0, 80, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(drawing().resize((width, height))) + noise - 40, 0, 255).astype(np.uint8))


def turned() -> bytes:
    """A JPEG of the model's size that its EXIF data turn."""
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
    monkeypatch.setattr(pictures, "MAX_PIXELS", 96 * 128 - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded before the bound was checked"))
    error = refused(saved(drawing(), kind))
    assert error.status == "too_large"
    assert "96 x 128 pixels" in error.detail


def test_bytes_are_bounded() -> None:
    assert refused(bytes(pictures.MAX_BYTES + 1)).status == "too_large"
    assert refused(b"").status == "empty"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_anywhere_is_broken(kind: str) -> None:
    data = saved(drawing(), kind)
    for length in range(1, len(data) - 30, max(1, len(data) // 17)):
        assert refused(data[:length]).status == "broken", length


def test_noise_is_broken_and_its_detail_is_stable() -> None:
    noise = np.random.default_rng(5)
    whole = bytearray(jpeg(drawing()))
    for _ in range(300):
        data = bytearray(whole)
        for place in noise.integers(0, len(whole), 20):
            data[place] = noise.integers(256)
        found = outcome(bytes(data))
        assert isinstance(found, tuple) or found.status in ("broken", "too_large")
        assert "0x" not in str(found)  # no address: a detail is the same at each run


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PCX", "SGI"])
def test_other_formats_are_not_opened(kind: str) -> None:
    assert refused(saved(drawing().resize((32, 32)), kind)).status == "broken"


def test_pillows_settings_are_left_alone() -> None:
    code = (
        "from PIL import Image, ImageFile; before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)\n"
        "import cma_clip_core.pictures\n"
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
    expected = "missing" if uri == "ab/%00" else "forbidden"  # a relative path is no URI: its percent is a percent
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
        file.truncate(2**40)  # a terabyte of nothing
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
