"""Product pictures: from a URI in the catalog to pixels at model size. No torch: Spark's workers import this.

Pictures are other people's files, so every bound is checked before the work it bounds, and each failure has one of the
statuses of the examples table: missing | empty | forbidden | too_large | broken.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
import simplejpeg

# Imported so that they are registered: otherwise the first WebP or TIFF makes Pillow load every plugin it has.
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401

from cma_clip_core.places import Place, on_disk

if TYPE_CHECKING:
    from s3fs import S3FileSystem

Pixels = npt.NDArray[np.uint8]

MAX_BYTES: Final = 32 * 2**20  # of a picture file
MAX_PIXELS: Final = 50_000_000  # of a decoded picture: 200 MB in Pillow's four bytes a pixel
FORMATS: Final = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
)  # Pillow's rarer decoders are never run on strangers' files

_AT_ONCE: Final = 32  # objects asked for together, while as many that are there are decoded
_WHITE: Final = 255  # padding and what transparency shows
_REDUCING_GAP: Final = 3.0  # Pillow: from this gap on, a fast first reduction is indistinguishable from fair resampling
_ORIENTATION: Final = 0x0112
_TURNS: Final = {  # EXIF orientation to what makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JPEG_START: Final = b"\xff\xd8\xff"
_JPEG_MARKS: Final = (b"Exif\0", b"ns.adobe.com/xap", b"MPF\0")  # may turn the picture, or hold several
_REFUSED: Final = (errno.EACCES, errno.EPERM, errno.ELOOP)  # of the file itself: it stays so until someone changes it
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_FORBIDDEN: Final = re.compile(r"[\x00-\x1f\x7f\\]")


class PictureError(Exception):
    """A picture cannot be used; the product is tagged by its text alone.

    Attributes:
        status: missing | empty | forbidden | too_large | broken.
        detail: why, in the decoder's words where it is the decoder that refuses.
    """

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.status}: {self.detail}"


@dataclass(frozen=True, slots=True)
class PictureSpec:
    """Size of the model's pictures."""

    height: int  # pixels
    width: int  # pixels

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a picture of {self.height} x {self.width} pixels; both must be at least 1")


def fetch(uri: str, roots: Sequence[Path], max_bytes: int = MAX_BYTES) -> bytes:
    """Return the file that `uri` names, if it lies inside one of `roots`.

    Args:
        uri: a path relative to the first root, an absolute path, or a ``file://`` URI.
        roots: folders that pictures may be read from; symlinks and ``..`` are resolved before the comparison.
        max_bytes: largest file that is read, in bytes.

    Raises:
        PictureError: forbidden (another scheme, or outside the roots), missing, empty, too_large, or broken (no regular
            file, or one that may not be read).
        OSError: the disk or the network fails; that says nothing of the picture, which is there again when they are.
    """
    return _read(_resolve(uri, roots), roots, max_bytes)


def fetch_file(path: str, roots: Sequence[Path], max_bytes: int = MAX_BYTES) -> bytes:
    """Return the file at the absolute `path`, whatever characters it has, as `fetch` does, with the same errors."""
    folder, name = os.path.split(path)
    return _read(_inside(os.path.join(_real_folder(folder), name), roots), roots, max_bytes)  # noqa: PTH118


def _look(uri: str, roots: Sequence[Path]) -> bytes:
    """Return nothing for a file that `fetch` would read, with its errors, but read none of it."""
    path = _resolve(uri, roots)
    with _told(path):
        _found(path, roots, MAX_BYTES)
    return b""


def _found(path: str, roots: Sequence[Path], max_bytes: int) -> str:
    """Return `path`, or what it links to. Raises PictureError where that cannot be a picture."""
    found = os.stat(path, follow_symlinks=False)  # noqa: PTH116
    if stat.S_ISLNK(found.st_mode):
        path = _inside(os.path.realpath(path), roots)
        found = os.stat(path, follow_symlinks=False)  # noqa: PTH116
    _check_file(found, max_bytes)
    return path


def _read(path: str, roots: Sequence[Path], max_bytes: int) -> bytes:
    with _told(path):
        # Asked before opening: to open a FIFO or a device can block or act.
        path = _found(path, roots, max_bytes)
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(handle)
            _check_file(found, max_bytes)
            data = os.read(handle, found.st_size)
            while len(data) < found.st_size and (more := os.read(handle, found.st_size - len(data))):
                data += more
        finally:
            os.close(handle)
    _check_size(len(data), max_bytes)
    return data


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    """Turn errors that say something of the file at `path` into PictureError, and let the others name it."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise PictureError("missing", "no such file") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # no file can have this name
            raise PictureError("missing", "no such file") from None
        if error.errno not in _REFUSED:
            raise OSError(error.errno, error.strerror, path) from error
        raise PictureError("broken", error.strerror or type(error).__name__) from error


def fetch_all(uris: Sequence[str | None], roots: Sequence[Place]) -> Iterator[bytes | PictureError | None]:
    """Yield the file of each URI, or why there is none; None where there is no URI. In order, one at a time.

    Args:
        uris: as `fetch` takes them; in object stores as well, ``s3://bucket/key``. Objects are asked for many at a time.
        roots: folders on disks and in object stores; a relative path is below the first.

    Raises:
        OSError: a disk, a network or a store fails.
    """
    return _get_all(uris, roots, fetch, _fetch_object)


def why_not_all(uris: Sequence[str | None], roots: Sequence[Place]) -> Iterator[PictureError | None]:
    """Yield why `fetch_all` would have no picture for each URI; None where there is one, or no URI. None is read.

    A file is asked for its size, an object by one request. Whether it can be decoded is not known. Arguments and errors as of
    `fetch_all`.
    """
    for found in _get_all(uris, roots, _look, _look_for_object):
        yield found if isinstance(found, PictureError) else None


def _get_all(
    uris: Sequence[str | None],
    roots: Sequence[Place],
    from_disk: Callable[[str, Sequence[Path]], bytes],
    from_store: Callable[[S3FileSystem, str], bytes],
) -> Iterator[bytes | PictureError | None]:
    if all(on_disk(root) for root in roots):
        disks = cast("Sequence[Path]", roots)
        for uri in uris:
            yield None if uri is None else _or_why_not(from_disk, uri, disks)
        return
    yield from _get_objects(uris, roots, from_disk, from_store)


def _or_why_not(get: Callable[..., bytes], *args: object) -> bytes | PictureError:
    try:
        return get(*args)
    except PictureError as error:
        return error


def _fetch_object(fs: S3FileSystem, key: str) -> bytes:
    from cma_clip_core import objects  # no lake on a disk needs it

    found = objects.read(fs, key, MAX_BYTES)
    if found is None:
        raise PictureError("missing", "no such object")
    if isinstance(found, int):
        raise _too_large(found, MAX_BYTES)
    _check_size(len(found), MAX_BYTES)
    return found


def _look_for_object(fs: S3FileSystem, key: str) -> bytes:
    from cma_clip_core import objects

    found = objects.head(fs, key)
    if found is None:
        raise PictureError("missing", "no such object")
    _check_size(found.size, MAX_BYTES)
    return b""


def _get_objects(
    uris: Sequence[str | None],
    roots: Sequence[Place],
    from_disk: Callable[[str, Sequence[Path]], bytes],
    from_store: Callable[[S3FileSystem, str], bytes],
) -> Iterator[bytes | PictureError | None]:
    fs = next(root.fs for root in roots if not on_disk(root))
    disks = [root for root in roots if on_disk(root)]

    def get(uri: str) -> bytes:
        key = _object(uri, roots)
        return from_disk(uri, disks) if key is None else from_store(fs, key)

    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="picture")

    def ask(start: int) -> list[Future[bytes | PictureError] | None]:
        some = uris[start : start + _AT_ONCE]
        asked = {uri: pool.submit(_or_why_not, get, uri) for uri in dict.fromkeys(some) if uri is not None}
        return [None if uri is None else asked[uri] for uri in some]

    try:
        asked = ask(0)
        for start in range(_AT_ONCE, len(uris) + _AT_ONCE, _AT_ONCE):
            coming = ask(start)
            for each in asked:
                yield None if each is None else each.result()
            asked = coming
    finally:
        pool.shutdown(cancel_futures=True)


def _object(uri: str, roots: Sequence[Place]) -> str | None:
    """Return bucket and key of a URI in an object store; None where it names a file. Raises PictureError (missing, forbidden)."""
    if not uri.strip():
        raise PictureError("missing", "no URI")
    if uri.startswith("s3://"):
        key = uri.removeprefix("s3://")
    elif _SCHEME.match(uri) or uri.startswith("/") or on_disk(roots[0]):
        return None
    else:
        key = f"{roots[0].path.rstrip('/')}/{uri}"
    if _FORBIDDEN.search(key) or not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise PictureError("forbidden", "a control character, a backslash, or an empty or .. step in the URI")
    if not any(key.startswith(f"{root.path.rstrip('/')}/") for root in roots if not on_disk(root)):
        raise PictureError("forbidden", "outside the picture roots")
    return key


def _resolve(uri: str, roots: Sequence[Path]) -> str:
    """Return the path of `uri` in a real folder, the file itself perhaps a symlink. Raises PictureError (forbidden)
    where that is in none of `roots`."""
    if not uri.strip():
        raise PictureError("missing", "no URI")
    path = uri
    if scheme := _SCHEME.match(uri):
        if scheme.group().lower() != "file:":
            raise PictureError("forbidden", f"the scheme {scheme.group()[:20]!r} is not read; give a path")
        try:
            parts = urlsplit(uri)
        except ValueError:
            raise PictureError("forbidden", "not a valid URI") from None
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise PictureError("forbidden", "a file URI must name an absolute path on this machine")
        path = unquote(parts.path, errors="surrogateescape")
    if _FORBIDDEN.search(path):
        raise PictureError("forbidden", "a control character or a backslash in the URI")
    if not roots:
        raise PictureError("forbidden", "no picture root is allowed")
    folder, name = os.path.split(os.path.join(roots[0], path))  # noqa: PTH118 (five times pathlib's speed)
    try:
        os.fsencode(name)
        if name in ("", ".", ".."):
            return _inside(os.path.realpath(os.path.join(folder, name)), roots)  # noqa: PTH118
        return _inside(os.path.join(_real_folder(folder), name), roots)  # noqa: PTH118
    except UnicodeEncodeError:
        raise PictureError("forbidden", "not a valid path") from None


def _inside(real: str, roots: Sequence[Path]) -> str:
    """Return `real`, a path without symlinks and ``..``. Raises PictureError (forbidden) where none of `roots` has it."""
    for root in roots:
        if real.startswith(os.path.join(_real_folder(str(root)), "")):  # noqa: PTH118
            return real
    raise PictureError("forbidden", "outside the picture roots")


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    """Return `folder` without symlinks and ``..``; asked once, since many pictures share a folder."""
    return os.path.realpath(folder)


def _check_file(found: os.stat_result, max_bytes: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise PictureError("broken", "not a regular file")
    _check_size(found.st_size, max_bytes)


def _check_size(size: int, max_bytes: int) -> None:
    if size == 0:
        raise PictureError("empty", "the file has no bytes")
    if size > max_bytes:
        raise _too_large(size, max_bytes)


def _too_large(size: int, max_bytes: int) -> PictureError:
    return PictureError("too_large", f"{size:,} bytes; at most {max_bytes:,}")


def decode(data: bytes, spec: PictureSpec, out: Pixels | None = None) -> Pixels:
    """Return the picture in `data` at the size of `spec`: uint8 (height, width, 3), RGB, row by row; in `out`, if given.

    The whole picture is kept: it is scaled to fit, its aspect kept, and centred on white. EXIF orientation is applied,
    transparency shows white, 16-bit channels are scaled to 8, of an animation the first frame is taken. The same bytes
    give the same pixels.

    Raises:
        PictureError: empty, too_large (in bytes, or in pixels: judged by the header, before anything is decoded), or
            broken (no picture of an allowed format, or truncated).
    """
    _check_size(len(data), MAX_BYTES)
    ready = _decode_thumbnail(data, spec)
    if ready is not None:
        return _centred(ready, spec, out)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise PictureError(
                    "too_large", f"{picture.width:,} x {picture.height:,} pixels; at most {MAX_PIXELS:,}"
                )
            return _centred(_scaled(_upright(picture, spec), spec), spec, out)
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError("too_large", str(error)) from error
    except MemoryError as error:
        raise PictureError("too_large", "not enough memory to decode it") from error
    except UnidentifiedImageError as error:
        raise PictureError("broken", f"not a picture of a known format ({', '.join(FORMATS)})") from error
    # On hostile bytes Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        raise PictureError("broken", f"{type(error).__name__}: {error}"[:300]) from error


def _decode_thumbnail(data: bytes, spec: PictureSpec) -> Pixels | None:
    """Return the pixels of a plain JPEG whose size is the model's already, or None: then Pillow decodes or refuses it.

    They are Pillow's pixels, by the same decoder, libjpeg-turbo, but without an image object around them, which takes
    longer than to decode so small a picture.
    """
    if not data.startswith(_JPEG_START) or any(mark in data for mark in _JPEG_MARKS):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours != "YCbCr" or _fitted(width, height, spec) != (width, height) or width * height > MAX_PIXELS:
            return None
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:  # also where Pillow is more lenient
        return None
    return pixels


def _upright(picture: ImageFile.ImageFile, spec: PictureSpec) -> Image.Image:
    """Return `picture` decoded, in RGB or grey, turned as EXIF says."""
    if picture.format in ("JPEG", "MPO"):
        # The decoder leaves out the frequencies that `_scaled` would throw away. The longer side of `spec` bounds
        # both, since the picture is not turned yet.
        side = int(max(spec.height, spec.width) * _REDUCING_GAP)
        picture.draft(None, (side, side))
    picture.load()
    return _turned(_opaque(picture), picture)


def _opaque(picture: Image.Image) -> Image.Image:
    """Return `picture` in RGB or 8-bit grey, what is transparent in it white."""
    mode = picture.mode
    if picture.has_transparency_data:
        if mode not in ("RGBA", "LA"):
            picture = picture.convert("RGBA")
        opaque = Image.new("L" if mode == "LA" else "RGB", picture.size, "white")
        opaque.paste(picture.convert(opaque.mode), mask=picture.getchannel("A"))
        return opaque
    if mode in ("RGB", "L"):
        return picture
    if mode[0] in "IF":  # I;16 and its byte orders, 32-bit integers, floats: Pillow's own conversion clips at 255
        values = np.asarray(picture)
        top = _white_level(mode, values)
        return Image.fromarray(np.clip(np.rint(values * (_WHITE / top)), 0, _WHITE).astype(np.uint8))
    return picture.convert("L" if mode == "1" else "RGB")


def _white_level(mode: str, values: npt.NDArray[Any]) -> float:
    """Return the value that means white: by depth where `mode` says it, else the first usual one that is reached."""
    if mode.startswith("I;16"):
        return 65_535.0
    largest = float(np.nanmax(values))
    return next((top for top in (1.0 if mode == "F" else 255.0, 255.0, 65_535.0) if largest <= top), largest)


def _turned(picture: Image.Image, source: Image.Image) -> Image.Image:
    """Return `picture` turned as the EXIF data of `source` say; broken EXIF data turn nothing."""
    if source.format in ("JPEG", "MPO") and not source.info.keys() & {"exif", "xmp"}:
        return picture  # the usual case, without building an Exif object
    try:
        turn = _TURNS.get(source.getexif().get(_ORIENTATION, 1))
    except Exception:  # as for decode: anything can be raised, and a picture is worth more than its metadata
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _fitted(width: int, height: int, spec: PictureSpec) -> tuple[int, int]:
    """Return the width and height of a picture of `width` x `height` scaled to fit `spec`."""
    scale = min(spec.width / width, spec.height / height)
    return min(spec.width, max(1, round(width * scale))), min(spec.height, max(1, round(height * scale)))


def _scaled(picture: Image.Image, spec: PictureSpec) -> Pixels:
    """Return the pixels of `picture` scaled to fit `spec`."""
    width, height = _fitted(picture.width, picture.height, spec)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=_REDUCING_GAP)
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    # Half the time of numpy's own way to an image's bytes.
    return np.frombuffer(picture.tobytes(), dtype=np.uint8).reshape(height, width, 3)


def _centred(scaled: Pixels, spec: PictureSpec, out: Pixels | None) -> Pixels:
    """Return `scaled` in the middle of white pixels of the size of `spec`; in `out`, if given."""
    height, width, _ = scaled.shape
    pixels = np.empty((spec.height, spec.width, 3), dtype=np.uint8) if out is None else out
    if pixels.shape != scaled.shape:
        pixels.fill(_WHITE)  # all of it at once is faster than the margins one by one
    top, left = (spec.height - height) // 2, (spec.width - width) // 2
    pixels[top : top + height, left : left + width] = scaled
    return pixels
