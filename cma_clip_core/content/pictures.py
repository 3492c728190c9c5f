"""Product pictures: from a URI in the catalog to pixels at model size. No torch, because Spark's workers import this.

Pictures are untrusted files, so every bound is checked before the work that it bounds. Each failure is a PictureError,
whose status the examples table holds: missing | empty | forbidden | too_large | broken.
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
from typing import TYPE_CHECKING, Final, TypeAlias, cast
from urllib.parse import unquote, urlsplit

import numpy as np
import simplejpeg

# Importing the plugins registers them. Otherwise the first WebP or TIFF makes Pillow load every plugin.
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


# Spark already has a worker for each core, and a decoder's memory grows with its threads.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

MAX_BYTES: Final = 32 * 2**20  # size limit of a picture file
# Pillow's rarer decoders never run on untrusted files.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

_AT_ONCE: Final = 32  # objects requested together, while the previous ones are decoded
_WHITE: Final = 255  # value of padding and of transparent pixels
_REDUCING_GAP: Final = 3.0  # Pillow: above this factor, a fast first reduction looks the same as good resampling
_BAND: Final = 1_000_000  # pixels converted at once, so that no conversion copies the whole picture
_FRAMES: Final = 10  # frames of an animation that are tried until one shows anything
_ANIMATED: Final = ("GIF", "PNG", "WEBP", "AVIF")  # not TIFF, whose pages have their own sizes
_FRAME_BYTES: Final = 16  # memory per pixel of an animation's later frames, which are composed
_CACHED: Final = 16 * 2**20  # bytes of cached pixels, so that a shop's "no picture" image is decoded once
_ORIENTATION: Final = 0x0112
_TURNS: Final = {  # EXIF orientation to the transposition that makes it upright
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
# Transpositions that make the picture's last column, or its last row, the first one.
_FROM_RIGHT: Final = frozenset({Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90,
                                Image.Transpose.TRANSVERSE})  # fmt: skip
_FROM_BELOW: Final = frozenset({Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270,
                                Image.Transpose.TRANSVERSE})  # fmt: skip
# Metadata that may turn a JPEG, add more pictures, or change the meaning of its colours.
_JPEG_MARKS: Final = (b"Exif\0", b"ns.adobe.com/xap", b"MPF\0", b"ICC_PROFILE\0")
_REFUSED: Final = (errno.EACCES, errno.EPERM, errno.ELOOP)  # permanent faults of the file itself
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_FORBIDDEN: Final = re.compile(r"[\x00-\x1f\x7f\\]")


class PictureError(Exception):
    """A picture that cannot be used; its product is tagged by its text alone.

    Attributes:
        status: one of PictureFault. This module gives missing, empty, forbidden, too_large and broken.
        detail: the reason, in the decoder's words if the decoder fails.
    """

    def __init__(self, status: PictureFault, detail: str) -> None:
        super().__init__(status, detail)
        self.status: PictureFault = status
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.status}: {self.detail}"


@dataclass(frozen=True, slots=True)
class PictureSpec:
    """Size of the model's input pictures."""

    height: int  # pixels
    width: int  # pixels

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a picture of {self.height} x {self.width} pixels; both must be at least 1")


def fetch(uri: str, roots: Sequence[Path], max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of the file that `uri` names, if it is inside one of `roots`.

    Args:
        uri: a path relative to the first root, an absolute path, or a ``file://`` URI.
        roots: folders that pictures may be read from; symlinks and ``..`` are resolved before the comparison.
        max_bytes: size limit of the file, in bytes.

    Raises:
        PictureError: forbidden (another scheme, or outside the roots), missing, empty, too_large, or broken (not a
            regular file, or no permission to read it).
        OSError: the disk or the network fails. This is temporary, and not a fault of the picture.
    """
    return _read(_resolve(uri, roots), roots, max_bytes)


def fetch_file(path: str, roots: Sequence[Path], max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of the file at the absolute `path`, which may have any characters. Errors as for `fetch`."""
    folder, name = os.path.split(path)
    return _read(_inside(os.path.join(_real_folder(folder), name), roots), roots, max_bytes)  # noqa: PTH118


def _check(uri: str, roots: Sequence[Path]) -> bytes:
    """Return b"" if `fetch` would read the file, without reading it. Raises the same errors."""
    path = _resolve(uri, roots)
    with _translated_errors(path):
        _checked_path(path, roots, MAX_BYTES)
    return b""


def _checked_path(path: str, roots: Sequence[Path], max_bytes: int) -> str:
    """Return `path` or its link target. Raises PictureError if the file cannot be a picture."""
    status = os.stat(path, follow_symlinks=False)  # noqa: PTH116
    if stat.S_ISLNK(status.st_mode):
        path = _inside(os.path.realpath(path), roots)
        status = os.stat(path, follow_symlinks=False)  # noqa: PTH116
    _check_file(status, max_bytes)
    return path


def _read(path: str, roots: Sequence[Path], max_bytes: int) -> bytes:
    with _translated_errors(path):
        # Check before opening, since opening a FIFO or a device can block or have effects.
        path = _checked_path(path, roots, max_bytes)
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(handle)
            _check_file(status, max_bytes)
            data = os.read(handle, status.st_size)
            while len(data) < status.st_size and (more := os.read(handle, status.st_size - len(data))):
                data += more
        finally:
            os.close(handle)
    _check_size(len(data), max_bytes)
    return data


@contextlib.contextmanager
def _translated_errors(path: str) -> Iterator[None]:
    """Raise PictureError for errors of the file at `path` itself, and add the path to other OSErrors."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise PictureError("missing", "no such file") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # no file can have such a name
            raise PictureError("missing", "no such file") from None
        if error.errno not in _REFUSED:
            raise OSError(error.errno, error.strerror, path) from error
        raise PictureError("broken", error.strerror or type(error).__name__) from error


def fetch_all(uris: Sequence[str | None], roots: Sequence[AnyPath]) -> Iterator[bytes | PictureError | None]:
    """Yield the file of each URI in order, or the error that prevents it; None for a missing URI.

    Args:
        uris: as for `fetch`, or ``s3://bucket/key`` in an object store. Many objects are requested at a time.
        roots: folders on disks and in object stores; a relative path is below the first.

    Raises:
        OSError: a disk, a network or a store fails.
    """
    return _get_all(uris, roots, fetch, _fetch_object)


def check_all(uris: Sequence[str | None], roots: Sequence[AnyPath]) -> Iterator[PictureError | None]:
    """Yield the error that `fetch_all` would give for each URI; None if the picture exists, or for a missing URI.

    Nothing is read or decoded: a file costs one look at its size, an object one request. Arguments and errors are
    those of `fetch_all`.
    """
    for result in _get_all(uris, roots, _check, _check_object):
        yield result if isinstance(result, PictureError) else None


def _get_all(
    uris: Sequence[str | None],
    roots: Sequence[AnyPath],
    from_disk: Callable[[str, Sequence[Path]], bytes],
    from_store: Callable[[S3FileSystem, str], bytes],
) -> Iterator[bytes | PictureError | None]:
    if all(on_disk(root) for root in roots):
        disks = cast("Sequence[Path]", roots)
        for uri in uris:
            yield None if uri is None else _result_or_error(from_disk, uri, disks)
        return
    yield from _get_objects(uris, roots, from_disk, from_store)


def _result_or_error(get: Callable[..., bytes], *args: object) -> bytes | PictureError:
    try:
        return get(*args)
    except PictureError as error:
        return error


def _fetch_object(fs: S3FileSystem, key: str) -> bytes:
    from cma_clip_core.content import s3_objects  # a lake on a disk does not need it

    data = s3_objects.read(fs, key, MAX_BYTES)
    if data is None:
        raise PictureError("missing", "no such object")
    if isinstance(data, int):
        raise _too_large(data, MAX_BYTES)
    _check_size(len(data), MAX_BYTES)
    return data


def _check_object(fs: S3FileSystem, key: str) -> bytes:
    from cma_clip_core.content import s3_objects

    head = s3_objects.head(fs, key)
    if head is None:
        raise PictureError("missing", "no such object")
    _check_size(head.size, MAX_BYTES)
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
        key = _object_path(uri, roots)
        return from_disk(uri, disks) if key is None else from_store(fs, key)

    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="picture")

    def request(start: int) -> list[Future[bytes | PictureError] | None]:
        some = uris[start : start + _AT_ONCE]
        futures = {uri: pool.submit(_result_or_error, get, uri) for uri in dict.fromkeys(some) if uri is not None}
        return [None if uri is None else futures[uri] for uri in some]

    try:
        requested = request(0)
        for start in range(_AT_ONCE, len(uris) + _AT_ONCE, _AT_ONCE):
            next_requested = request(start)
            for future in requested:
                yield None if future is None else future.result()
            requested = next_requested
    finally:
        pool.shutdown(cancel_futures=True)


def _object_path(uri: str, roots: Sequence[AnyPath]) -> str | None:
    """Return ``bucket/key`` of a URI in an object store; None if it names a file.

    Raises:
        PictureError: missing (no URI), or forbidden (such as a key outside of `roots`).
    """
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
    """Return the path of `uri`, with its folder's symlinks resolved; the file itself may be a symlink.

    Raises:
        PictureError: missing (no URI), or forbidden (such as a path outside of `roots`).
    """
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
        raise PictureError("forbidden", "there are no picture roots")
    folder, name = os.path.split(os.path.join(roots[0], path))  # noqa: PTH118 (five times pathlib's speed)
    try:
        os.fsencode(name)
        if name in ("", ".", ".."):
            return _inside(os.path.realpath(os.path.join(folder, name)), roots)  # noqa: PTH118
        return _inside(os.path.join(_real_folder(folder), name), roots)  # noqa: PTH118
    except UnicodeEncodeError:
        raise PictureError("forbidden", "not a valid path") from None


def _inside(real: str, roots: Sequence[Path]) -> str:
    """Return `real`, a path without symlinks and ``..``. Raises PictureError (forbidden) outside of `roots`."""
    for root in roots:
        if real.startswith(os.path.join(_real_folder(str(root)), "")):  # noqa: PTH118
            return real
    raise PictureError("forbidden", "outside the picture roots")


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    """Return `folder` without symlinks and ``..``. Cached, since many pictures share a folder."""
    return os.path.realpath(folder)


def _check_file(status: os.stat_result, max_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise PictureError("broken", "not a regular file")
    _check_size(status.st_size, max_bytes)


def _check_size(size: int, max_bytes: int) -> None:
    if size == 0:
        raise PictureError("empty", "the file has no bytes")
    if size > max_bytes:
        raise _too_large(size, max_bytes)


def _too_large(size: int, max_bytes: int) -> PictureError:
    return PictureError("too_large", f"{size:,} bytes; at most {max_bytes:,}")


def decode(data: bytes, spec: PictureSpec, out: Pixels | None = None) -> Pixels:
    """Return the picture in `data` at the size of `spec`: uint8 (height, width, 3), RGB, row by row.

    * The whole picture is kept: it is scaled to fit with its aspect ratio, and centred on white.
    * EXIF orientation and ICC profiles are applied. Transparency becomes white, and 16-bit channels are scaled to 8
      bits.
    * For an animation, the result is its first frame that shows anything.
    * A faulty file that every viewer shows is repaired (`picture_files.repair`).
    * The same bytes always give the same pixels. Memory and time are bounded (`picture_cost`).

    The result is written to `out`, if given.

    Raises:
        PictureError: empty, too_large (bytes, pixels or memory according to the header, before anything is decoded), or
            broken (not a picture of an allowed format, or truncated).
    """
    _check_size(len(data), MAX_BYTES)
    pixels = _decode_thumbnail(data, spec)
    if pixels is None:
        pixels = _recent.get(data, spec)
    return _centred(pixels, spec, out)


_Outcome: TypeAlias = "Pixels | tuple[PictureFault, str]"  # pixels, or the status and detail of an error


class _Recent:
    """Cache of recently decoded pictures and their errors, by content. Safe for all threads of a process."""

    def __init__(self, decode: Callable[[bytes, PictureSpec], Pixels], max_bytes: int) -> None:
        self._decode = decode
        self._max_bytes = max_bytes
        self._bytes = 0
        self._outcomes: OrderedDict[tuple[bytes, PictureSpec], _Outcome] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, data: bytes, spec: PictureSpec) -> Pixels:
        """Return the pixels of `data`, which the caller must not modify. Raises PictureError as `decode` does."""
        key = (hashlib.sha256(data).digest(), spec)
        with self._lock:
            outcome = self._outcomes.get(key)
            if outcome is not None:
                self._outcomes.move_to_end(key)
        if outcome is None:
            try:
                outcome = self._decode(data, spec)
            except PictureError as error:
                outcome = (error.status, error.detail)
            self._keep(key, outcome)
        if isinstance(outcome, tuple):
            raise PictureError(*outcome)
        return outcome

    def _keep(self, key: tuple[bytes, PictureSpec], outcome: _Outcome) -> None:
        with self._lock:
            if key not in self._outcomes:
                self._outcomes[key] = outcome
                self._bytes += _cached_size(outcome)
            while self._bytes > self._max_bytes:
                self._bytes -= _cached_size(self._outcomes.popitem(last=False)[1])


def _cached_size(outcome: _Outcome) -> int:
    return 1_000 if isinstance(outcome, tuple) else outcome.nbytes + 300


def _decode_file(data: bytes, spec: PictureSpec) -> Pixels:
    """Return the pixels of `data`, repaired if necessary, scaled to fit `spec`. Raises PictureError as `decode` does."""
    data = picture_files.without_lead(data)
    try:
        return _decode(data, spec)
    except Exception as error:
        if isinstance(error, PictureError) and error.status == "too_large":
            raise
        repaired = picture_files.repair(data)
        if repaired is not None:
            try:
                return _decode(repaired, spec)
            except PictureError:
                raise
            except Exception:
                pass  # the first error says more
        raise _broken(data, error) from error


_recent: Final = _Recent(_decode_file, _CACHED)


def _broken(data: bytes, error: Exception) -> PictureError:
    """Return the error that explains why `data` is broken; `error` is the decoder's."""
    if (kind := picture_files.kind(data)) is not None:
        return PictureError("broken", f"{kind}; formats that are read: {', '.join(FORMATS)}")
    if isinstance(error, OSError) and "truncated" in str(error):
        return PictureError("broken", f"cut off: fewer than {picture_files.NEARLY_WHOLE:.0%} of its rows are there")
    if isinstance(error, UnidentifiedImageError):
        if (image_format := picture_files.begins_as(data)) is not None:
            return PictureError("broken", f"the header of a {image_format} picture is broken")
        return PictureError("broken", f"not a picture of a known format ({', '.join(FORMATS)})")
    return PictureError("broken", f"{type(error).__name__}: {error}"[:300])


def _decode_thumbnail(data: bytes, spec: PictureSpec) -> Pixels | None:
    """Return the pixels of a plain JPEG that has the model's size; None if Pillow must decode or refuse it.

    The pixels are the same as Pillow's, which uses the same decoder (libjpeg-turbo). Creating Pillow's image object
    would take longer than decoding such a small picture.
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
    except ValueError:  # Pillow may be more lenient
        return None
    return pixels


def _decode(data: bytes, spec: PictureSpec) -> Pixels:
    """Return the pixels of `data` scaled to fit `spec`.

    Raises:
        PictureError: too_large.
        Exception: on hostile bytes Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error,
            zlib.error.
    """
    if (reason := picture_cost.webp_refusal(data) or picture_parts.refusal(data)) is not None:
        raise PictureError("too_large", reason)
    try:
        with _opened(data) as picture:
            size = picture.size
            if picture.format in ("JPEG", "MPO"):
                # The decoder skips the frequencies that `_scaled` would discard. The longer side of `spec` bounds both
                # sides, since the picture is not turned yet.
                side = int(max(spec.height, spec.width) * _REDUCING_GAP)
                picture.draft(None, (side, side))
            if (reason := picture_cost.refusal(picture, size, data)) is not None:
                raise PictureError("too_large", reason)
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
    """Return the first later frame of an animation that shows anything, scaled as by `_scaled`; None if none does.

    A frame with another size than the first is not part of an animation, and its cost has not been checked.
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
    """Return the picture in `data`, with only its header read."""
    if data.startswith(picture_files.JPEG):
        # `Image.open` would refuse a large JPEG by its pixels, although the decoder reduces it.
        return JpegImagePlugin.jpeg_factory(io.BytesIO(data))
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _scaled(picture: Image.Image, source: ImageFile.ImageFile, spec: PictureSpec) -> Pixels | None:
    """Return the pixels of `picture`, upright and scaled to fit `spec`; None if it is fully transparent.

    Args:
        picture: the decoded picture.
        source: the opened file, which has the metadata.
        spec: the model's size.
    """
    turn = _turn(source)
    width, height = picture.size
    swapped = turn in _SWAPPING
    fitted = _fitted(height, width, spec) if swapped else _fitted(width, height, spec)
    # Like `Image.resize` with `reducing_gap`, but band by band, and before any conversion.
    across, down = fitted[::-1] if swapped else fitted
    factors = int(width / across / _REDUCING_GAP) or 1, int(height / down / _REDUCING_GAP) or 1
    profile = source.info.get("icc_profile")
    small = _reduced(picture, factors, keeps_cmyk=profile is not None)
    if small is None:
        return None
    box = (0.0, 0.0, width / factors[0], height / factors[1])  # the last pixels may cover less than a whole block
    if turn is not None:
        box = _turned_box(box, small.size, turn)
        small = small.transpose(turn)
    if small.size != fitted or factors != (1, 1):
        small = small.resize(fitted, Image.Resampling.BICUBIC, box)
    small = colour_profiles.to_srgb(small, profile)
    if small.mode != "RGB":
        small = small.convert("RGB")
    # Takes half the time of numpy's own conversion.
    return np.frombuffer(small.tobytes(), dtype=np.uint8).reshape(fitted[1], fitted[0], 3)


def _reduced(picture: Image.Image, factors: tuple[int, int], keeps_cmyk: bool) -> Image.Image | None:
    """Return `picture`, reduced by `factors` in width and height, in RGB, grey, or CMYK if `keeps_cmyk`.

    The result is None if the picture is fully transparent. No step takes extra memory for more than `_BAND` pixels.
    """
    width, height = picture.size
    band_pixels = _BAND // 4 if picture.mode[0] in "IF" else _BAND  # numpy's conversion takes eight bytes a pixel
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
    """Return `picture` in RGB, 8-bit grey or CMYK with transparency as white, and whether any pixel is not transparent.

    Args:
        picture: a picture of any mode.
        white: the value of white in integer and float pictures; None for other modes.
        keeps_cmyk: leave CMYK unchanged.
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
    """Return the value of white: by the mode's bit depth if known, otherwise the lowest usual one that fits all pixels.

    Args:
        picture: a picture of integers or floats.
        rows: rows to read at a time.
    """
    if picture.mode.startswith("I;16"):
        return 65_535.0
    largest = 0.0
    for top in range(0, picture.height, rows):
        values = np.asarray(picture.crop((0, top, picture.width, min(top + rows, picture.height))))
        largest = max(largest, float(np.max(values, initial=0, where=np.isfinite(values))))
    return next((top for top in (1.0 if picture.mode == "F" else 255.0, 255.0, 65_535.0) if largest <= top), largest)


def _turn(source: ImageFile.ImageFile) -> Image.Transpose | None:
    """Return the transposition that makes the picture upright according to its EXIF data; None if they are broken."""
    if source.format in ("JPEG", "MPO") and not source.info.keys() & {"exif", "xmp"}:
        return None  # the usual case, which needs no Exif object
    exif = source.info.get("exif") or b""
    if picture_parts.too_many_numbers(exif.removeprefix(b"Exif\0\0")) is not None:
        return None
    try:
        return _TURNS.get(source.getexif().get(_ORIENTATION, 1))
    except Exception:  # any error is possible, and a picture is worth more than its metadata
        return None


def _turned_box(
    box: tuple[float, float, float, float], size: tuple[int, int], turn: Image.Transpose
) -> tuple[float, float, float, float]:
    """Return `box` (left, top, right, bottom) of a picture of `size` (width, height) after the turn."""
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
    """Return `scaled`, centred on white pixels of the size of `spec`; in `out`, if given."""
    height, width, _ = scaled.shape
    pixels = np.empty((spec.height, spec.width, 3), dtype=np.uint8) if out is None else out
    if pixels.shape != scaled.shape:
        pixels.fill(_WHITE)  # faster than filling the margins one by one
    top, left = (spec.height - height) // 2, (spec.width - width) // 2
    pixels[top : top + height, left : left + width] = scaled
    return pixels
