"""Product pictures: from a URI in the catalog to pixels at model size. No torch: Spark's workers import this.

Pictures are other people's files, so every bound is checked before the work it bounds, and each failure has one of the
statuses of the examples table: missing | empty | forbidden | too_large | broken.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import math
import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import unquote, urlsplit

import numpy as np
import simplejpeg

# Imported so that they are registered: otherwise the first WebP or TIFF makes Pillow load every plugin it has.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from cma_clip_core.arrays import Pixels
from cma_clip_core.content import colour_profiles, picture_cost, picture_files, picture_parts
from cma_clip_core.content.paths import AnyPath, on_disk
from schemas.tables import PictureFault

if TYPE_CHECKING:
    from s3fs import S3FileSystem


# Spark has a worker for each core already, and the memory of a decoder grows with its threads.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

MAX_BYTES: Final = 32 * 2**20  # of a picture file
# Pillow's rarer decoders are never run on strangers' files.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

_AT_ONCE: Final = 32  # objects asked for together, while as many that are there are decoded
_WHITE: Final = 255  # padding and what transparency shows
_REDUCING_GAP: Final = 3.0  # Pillow: from this gap on, a fast first reduction is indistinguishable from fair resampling
_BAND: Final = 1_000_000  # pixels converted at once, so that no conversion copies the whole picture
_FRAMES: Final = 10  # of an animation: as many are tried until one shows anything
_ANIMATED: Final = ("GIF", "PNG", "WEBP", "AVIF")  # a TIFF has pages, each of its own size
_FRAME_BYTES: Final = 16  # a pixel of an animation's later frames, which are laid over each other
_REMEMBERED: Final = 16 * 2**20  # bytes of pixels: what a shop shows where it has no picture is decoded once
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
_SWAPPING: Final = frozenset(
    {Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE}
)
# Where the first column, or the first row, of the turned picture was the last one.
_FROM_RIGHT: Final = frozenset({Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90,
                                Image.Transpose.TRANSVERSE})  # fmt: skip
_FROM_BELOW: Final = frozenset({Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270,
                                Image.Transpose.TRANSVERSE})  # fmt: skip
# What may turn a JPEG, hold several, or give its colours another meaning.
_JPEG_MARKS: Final = (b"Exif\0", b"ns.adobe.com/xap", b"MPF\0", b"ICC_PROFILE\0")
_REFUSED: Final = (errno.EACCES, errno.EPERM, errno.ELOOP)  # of the file itself: it stays so until someone changes it
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_FORBIDDEN: Final = re.compile(r"[\x00-\x1f\x7f\\]")


class PictureError(Exception):
    """A picture cannot be used; the product is tagged by its text alone.

    Attributes:
        status: missing | empty | forbidden | too_large | broken.
        detail: why, in the decoder's words where it is the decoder that refuses.
    """

    def __init__(self, status: PictureFault, detail: str) -> None:
        super().__init__(status, detail)
        self.status: PictureFault = status
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


def fetch_all(uris: Sequence[str | None], roots: Sequence[AnyPath]) -> Iterator[bytes | PictureError | None]:
    """Yield the file of each URI, or why there is none; None where there is no URI. In order, one at a time.

    Args:
        uris: as `fetch` takes them; in object stores as well, ``s3://bucket/key``. Objects are asked for many at a time.
        roots: folders on disks and in object stores; a relative path is below the first.

    Raises:
        OSError: a disk, a network or a store fails.
    """
    return _get_all(uris, roots, fetch, _fetch_object)


def why_not_all(uris: Sequence[str | None], roots: Sequence[AnyPath]) -> Iterator[PictureError | None]:
    """Yield why `fetch_all` would have no picture for each URI; None where there is one, or no URI. None is read.

    A file is asked for its size, an object by one request. Whether it can be decoded is not known. Arguments and errors as of
    `fetch_all`.
    """
    for found in _get_all(uris, roots, _look, _look_for_object):
        yield found if isinstance(found, PictureError) else None


def _get_all(
    uris: Sequence[str | None],
    roots: Sequence[AnyPath],
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
    from cma_clip_core.content import s3_objects  # no lake on a disk needs it

    found = s3_objects.read(fs, key, MAX_BYTES)
    if found is None:
        raise PictureError("missing", "no such object")
    if isinstance(found, int):
        raise _too_large(found, MAX_BYTES)
    _check_size(len(found), MAX_BYTES)
    return found


def _look_for_object(fs: S3FileSystem, key: str) -> bytes:
    from cma_clip_core.content import s3_objects

    found = s3_objects.head(fs, key)
    if found is None:
        raise PictureError("missing", "no such object")
    _check_size(found.size, MAX_BYTES)
    return b""


def _get_objects(
    uris: Sequence[str | None],
    roots: Sequence[AnyPath],
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


def _object(uri: str, roots: Sequence[AnyPath]) -> str | None:
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
    an ICC profile too, transparency shows white, 16-bit channels are scaled to 8, of an animation the first frame that
    shows anything is taken. A picture that every viewer shows though its file is faulty is used: `picture_files.mended`.
    The same bytes give the same pixels. Memory and time are bounded: `picture_cost`.

    Raises:
        PictureError: empty, too_large (in bytes, pixels or memory: judged by the header, before anything is decoded), or
            broken (no picture of an allowed format, or truncated).
    """
    _check_size(len(data), MAX_BYTES)
    ready = _decode_thumbnail(data, spec)
    if ready is None:
        ready = _recent.get(data, spec)
    return _centred(ready, spec, out)


class _Recent:
    """The pictures that were decoded last, and what was wrong with them, by content. For all threads of a process."""

    def __init__(self, decode: Callable[[bytes, PictureSpec], Pixels], most: int) -> None:
        self._decode = decode
        self._most = most  # bytes
        self._bytes = 0
        self._found: OrderedDict[tuple[bytes, PictureSpec], Pixels | tuple[PictureFault, str]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, data: bytes, spec: PictureSpec) -> Pixels:
        """Return the pixels of `data`, not to be written to. Raises PictureError as `decode`."""
        key = (hashlib.sha256(data).digest(), spec)
        with self._lock:
            found = self._found.get(key)
            if found is not None:
                self._found.move_to_end(key)
        if found is None:
            try:
                found = self._decode(data, spec)
            except PictureError as error:
                found = (error.status, error.detail)
            self._keep(key, found)
        if isinstance(found, tuple):
            raise PictureError(*found)
        return found

    def _keep(self, key: tuple[bytes, PictureSpec], found: Pixels | tuple[PictureFault, str]) -> None:
        with self._lock:
            if key not in self._found:
                self._found[key] = found
                self._bytes += _size(found)
            while self._bytes > self._most:
                self._bytes -= _size(self._found.popitem(last=False)[1])


def _size(found: Pixels | tuple[PictureFault, str]) -> int:
    return 1_000 if isinstance(found, tuple) else found.nbytes + 300


def _decode_file(data: bytes, spec: PictureSpec) -> Pixels:
    """Return the pixels of `data` scaled to fit `spec`, mended first where they must be. Raises PictureError as `decode`."""
    data = picture_files.without_lead(data)
    try:
        return _decode(data, spec)
    except Exception as error:
        if isinstance(error, PictureError) and error.status == "too_large":
            raise
        mended = picture_files.mended(data)
        if mended is not None:
            try:
                return _decode(mended, spec)
            except PictureError:
                raise
            except Exception:
                pass  # what was wrong first says more
        raise _broken(data, error) from error


_recent: Final = _Recent(_decode_file, _REMEMBERED)


def _broken(data: bytes, error: Exception) -> PictureError:
    """Return in words what is wrong with `data`, of which the decoder has raised `error`."""
    if (kind := picture_files.kind(data)) is not None:
        return PictureError("broken", f"{kind}; formats that are read: {', '.join(FORMATS)}")
    if isinstance(error, OSError) and "truncated" in str(error):
        return PictureError("broken", f"cut off: fewer than {picture_files.NEARLY_WHOLE:.0%} of its rows are there")
    if isinstance(error, UnidentifiedImageError):
        if (begun := picture_files.begins_as(data)) is not None:
            return PictureError("broken", f"the header of a {begun} picture is broken")
        return PictureError("broken", f"not a picture of a known format ({', '.join(FORMATS)})")
    return PictureError("broken", f"{type(error).__name__}: {error}"[:300])


def _decode_thumbnail(data: bytes, spec: PictureSpec) -> Pixels | None:
    """Return the pixels of a plain JPEG whose size is the model's already, or None: then Pillow decodes or refuses it.

    They are Pillow's pixels, by the same decoder, libjpeg-turbo, but without an image object around them, which takes
    longer than to decode so small a picture.
    """
    if not data.startswith(picture_files.JPEG) or any(mark in data for mark in _JPEG_MARKS):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours != "YCbCr" or _fitted(width, height, spec) != (width, height):
            return None
        if picture_cost.too_many_pixels(width, height, len(data), picture_cost.MAX_JPEG_PIXELS) is not None:
            return None
        if picture_cost.too_many_scans(width, height, data) is not None:
            return None
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:  # also where Pillow is more lenient
        return None
    return pixels


def _decode(data: bytes, spec: PictureSpec) -> Pixels:
    """Return the pixels of `data` scaled to fit `spec`.

    Raises:
        PictureError: it is too_large.
        Exception: on hostile bytes Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error, zlib.error.
    """
    if (why := picture_cost.webp_refusal(data) or picture_parts.refusal(data)) is not None:
        raise PictureError("too_large", why)
    try:
        with _opened(data) as picture:
            size = picture.size
            if picture.format in ("JPEG", "MPO"):
                # The decoder leaves out the frequencies that `_scaled` would throw away. The longer side of `spec` bounds
                # both, since the picture is not turned yet.
                side = int(max(spec.height, spec.width) * _REDUCING_GAP)
                picture.draft(None, (side, side))
            if (why := picture_cost.refusal(picture, size, data)) is not None:
                raise PictureError("too_large", why)
            shown = _scaled(picture_files.load(picture), picture, spec)
            if shown is not None:
                return shown
            if (shown := _later_frame(picture, spec)) is not None:
                return shown
            width, height = _fitted(*size, spec)
            return np.full((height, width, 3), _WHITE, dtype=np.uint8)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError("too_large", str(error)) from error
    except MemoryError as error:
        raise PictureError("too_large", "not enough memory to decode it") from error


def _later_frame(picture: ImageFile.ImageFile, spec: PictureSpec) -> Pixels | None:
    """Return the first frame of an animation after its first one that shows anything, as `_scaled` does; None where none does.

    Frames of other sizes than the first are not those of an animation, and nobody has judged what they cost.
    """
    size = picture.size
    if picture.format not in _ANIMATED:
        return None
    for frame in range(1, min(_FRAMES, picture_cost.MAX_MEMORY // (_FRAME_BYTES * math.prod(size)))):
        try:
            picture.seek(frame)
        except EOFError:
            break
        if picture.size != size:
            break
        picture.load()
        if (shown := _scaled(picture, picture, spec)) is not None:
            return shown
    return None


def _opened(data: bytes) -> ImageFile.ImageFile:
    """Return the picture in `data`, its header read."""
    if data.startswith(picture_files.JPEG):
        # Not `Image.open`, which refuses by pixels what is reduced while it is decoded.
        return JpegImagePlugin.jpeg_factory(io.BytesIO(data))
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _scaled(picture: Image.Image, source: ImageFile.ImageFile, spec: PictureSpec) -> Pixels | None:
    """Return the pixels of `picture`, decoded from `source`, upright and scaled to fit `spec`; None where all is transparent."""
    turn = _turn(source)
    width, height = picture.size
    swapped = turn in _SWAPPING
    fitted = _fitted(height, width, spec) if swapped else _fitted(width, height, spec)
    # As `Image.resize` does by `reducing_gap`, but band by band, and before any conversion.
    across, down = fitted[::-1] if swapped else fitted
    factors = int(width / across / _REDUCING_GAP) or 1, int(height / down / _REDUCING_GAP) or 1
    profile = source.info.get("icc_profile")
    small = _reduced(picture, factors, keeps_cmyk=profile is not None)
    if small is None:
        return None
    box = (0.0, 0.0, width / factors[0], height / factors[1])  # the last pixels may stand for less than a whole block
    if turn is not None:
        box = _turned_box(box, small.size, turn)
        small = small.transpose(turn)
    if small.size != fitted or factors != (1, 1):
        small = small.resize(fitted, Image.Resampling.BICUBIC, box)
    small = colour_profiles.to_srgb(small, profile)
    if small.mode != "RGB":
        small = small.convert("RGB")
    # Half the time of numpy's own way to an image's bytes.
    return np.frombuffer(small.tobytes(), dtype=np.uint8).reshape(fitted[1], fitted[0], 3)


def _reduced(picture: Image.Image, factors: tuple[int, int], keeps_cmyk: bool) -> Image.Image | None:
    """Return `picture` in RGB, grey, or CMYK where it `keeps_cmyk`, `factors` times smaller in width and height.

    None where all of it is transparent. No step takes memory for more than `_BAND` pixels beside the picture.
    """
    width, height = picture.size
    band_pixels = _BAND // 4 if picture.mode[0] in "IF" else _BAND  # numpy converts by way of eight bytes a pixel
    rows = max(1, band_pixels // (width * factors[1])) * factors[1]
    tops = range(0, height, rows)
    bands = (picture if len(tops) == 1 else picture.crop((0, y, width, min(y + rows, height))) for y in tops)
    white = _white_level(picture, rows) if picture.mode[0] in "IF" else None
    reduced: Image.Image | None = None
    shows = False
    for top, band in zip(tops, bands, strict=True):
        opaque, band_shows = _opaque(band, white, keeps_cmyk)
        shows |= band_shows
        if factors != (1, 1):
            opaque = opaque.reduce(factors)
        if len(tops) == 1:
            reduced = opaque
        else:
            if reduced is None:
                reduced = Image.new(opaque.mode, (opaque.width, -(-height // factors[1])))
            reduced.paste(opaque, (0, top // factors[1]))
    return reduced if shows else None


def _opaque(picture: Image.Image, white: float | None, keeps_cmyk: bool) -> tuple[Image.Image, bool]:
    """Return `picture` in RGB, 8-bit grey or CMYK, what is transparent in it white, and whether anything is not transparent.

    Args:
        picture: of any mode.
        white: the value that means white, of integers and floats.
        keeps_cmyk: CMYK stays as it is.
    """
    mode = picture.mode
    if picture.has_transparency_data:
        if mode not in ("RGBA", "LA"):
            picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
        opaque = Image.new("L" if mode == "LA" else "RGB", picture.size, "white")
        opaque.paste(picture.convert(opaque.mode), mask=alpha)
        return opaque, cast("int", alpha.getextrema()[1]) > 0
    if mode in ("RGB", "L") or (mode == "CMYK" and keeps_cmyk):
        return picture, True
    if white is not None:  # I;16 and its byte orders, 32-bit integers, floats: Pillow's own conversion clips at 255
        values = np.asarray(picture)
        if mode == "F":
            values = np.where(np.isfinite(values), values, 0)
        return Image.fromarray(np.clip(np.rint(values * (_WHITE / white)), 0, _WHITE).astype(np.uint8)), True
    return picture.convert("L" if mode == "1" else "RGB"), True


def _white_level(picture: Image.Image, rows: int) -> float:
    """Return the value that means white: by depth where the mode says it, else the first usual one that is reached.

    Args:
        picture: of integers or floats.
        rows: so many are looked at together.
    """
    if picture.mode.startswith("I;16"):
        return 65_535.0
    largest = 0.0
    for top in range(0, picture.height, rows):
        values = np.asarray(picture.crop((0, top, picture.width, min(top + rows, picture.height))))
        largest = max(largest, float(np.max(values, initial=0, where=np.isfinite(values))))
    return next((top for top in (1.0 if picture.mode == "F" else 255.0, 255.0, 65_535.0) if largest <= top), largest)


def _turn(source: ImageFile.ImageFile) -> Image.Transpose | None:
    """Return what makes the picture of `source` upright, as its EXIF data say; broken EXIF data turn nothing."""
    if source.format in ("JPEG", "MPO") and not source.info.keys() & {"exif", "xmp"}:
        return None  # the usual case, without building an Exif object
    exif = source.info.get("exif") or b""
    if picture_parts.too_many_numbers(exif.removeprefix(b"Exif\0\0")) is not None:
        return None
    try:
        return _TURNS.get(source.getexif().get(_ORIENTATION, 1))
    except Exception:  # as for decode: anything can be raised, and a picture is worth more than its metadata
        return None


def _turned_box(
    box: tuple[float, float, float, float], size: tuple[int, int], turn: Image.Transpose
) -> tuple[float, float, float, float]:
    """Return where `box` (left, top, right, bottom) of a picture of `size` (width, height) lies once that is turned."""
    (left, top, right, bottom), (width, height) = box, size
    if turn in _FROM_RIGHT:
        left, right = width - right, width - left
    if turn in _FROM_BELOW:
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if turn in _SWAPPING else (left, top, right, bottom)


def _fitted(width: int, height: int, spec: PictureSpec) -> tuple[int, int]:
    """Return the width and height of a picture of `width` x `height` scaled to fit `spec`."""
    scale = min(spec.width / width, spec.height / height)
    return min(spec.width, max(1, round(width * scale))), min(spec.height, max(1, round(height * scale)))


def _centred(scaled: Pixels, spec: PictureSpec, out: Pixels | None) -> Pixels:
    """Return `scaled` in the middle of white pixels of the size of `spec`; in `out`, if given."""
    height, width, _ = scaled.shape
    pixels = np.empty((spec.height, spec.width, 3), dtype=np.uint8) if out is None else out
    if pixels.shape != scaled.shape:
        pixels.fill(_WHITE)  # all of it at once is faster than the margins one by one
    top, left = (spec.height - height) // 2, (spec.width - width) // 2
    pixels[top : top + height, left : left + width] = scaled
    return pixels
