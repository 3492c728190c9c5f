"""Pictures of an export: in which folders and zips they are, how their names follow from the columns, and a few to show."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import logging
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from cma_clip_core.content.pictures import PictureError, PictureSpec, decode
from jobs.drafting.analysis.column_profiles import Row, is_nothing, paths, text_of
from jobs.drafting.analysis.column_roles import Profiles
from jobs.errors import JobError
from jobs.importing.files.unpacking import Bounds
from jobs.importing.pictures.picture_sources import FolderSource, Source, ZipSource

log = logging.getLogger(__name__)

_ENDINGS: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif", ".bmp", ".tif", ".tiff")
_NAMES: Final = 200_000  # names of a folder or zip that are looked at
_VALUES: Final = 300  # values of a column that are looked for among the names
_LEAST: Final = 0.3  # least share of a column's values that are names of pictures
_SIDE: Final = PictureSpec(176, 176)


@dataclass(frozen=True, slots=True)
class PictureColumns:
    """Way to find the pictures: the mapping's `pictures` and `picture_name`, with the reason."""

    pictures: tuple[str, ...]
    picture_name: str
    why: str


def find_pictures(folder: Path, rows: Sequence[Row], profiles: Profiles) -> tuple[PictureColumns | None, list[str]]:
    """Return how the pictures of an export are named, None if there are none, and notes on pictures without a column."""
    notes: list[str] = []
    for path in sorted(folder.iterdir()):
        names = _names(path)
        if not names:
            continue
        if best := _best_column(names, rows, profiles):
            column, template, share = best
            why = f"{len(names):,} pictures in {path.name}; {share:.0%} of the values of {column!r} are names of them"
            return PictureColumns((path.name,), template, why), notes
        notes.append(
            f"{path.name} has {len(names):,} pictures, but no column has their names, such as {names[0][:80]!r}"
        )
    addresses = [p for p in profiles.values() if p.filled and p.share(p.addresses) > 0.8 and "{" not in p.name]
    likely = [p for p in addresses if p.share(p.pictures) > 0.5 or _is_picture_word(p.name)]
    if likely:
        best_column = max(likely, key=lambda p: (p.fill, _is_picture_word(p.name), -len(p.name)))
        why = f"{best_column.fill:.0%} of the rows have an address of a picture"
        return PictureColumns((), f"{{{best_column.name}}}", why), notes
    return None, notes


def _is_picture_word(name: str) -> bool:
    return any(word in name.casefold() for word in ("image", "picture", "photo", "bild", "foto", "img", "画像", "图"))


def _names(path: Path) -> list[str]:
    """Return the names of the pictures in a folder or zip; none if it is neither."""
    with contextlib.ExitStack() as stack:
        source = _open(path, stack)
        if source is None:
            return []
        names = (name for _, name in itertools.islice(source.names(), _NAMES))
        return [name for name in names if name.lower().endswith(_ENDINGS)]


def _open(path: Path, stack: contextlib.ExitStack) -> Source | None:
    try:
        if path.is_symlink():
            return None
        if path.is_dir():
            return FolderSource(path, path.parent)
        if zipfile.is_zipfile(path):
            return ZipSource(path, stack.enter_context(zipfile.ZipFile(path)), Bounds())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        log.warning("draft: %s cannot be read: %s", path.name, error)
    return None


def _best_column(names: Sequence[str], rows: Sequence[Row], profiles: Profiles) -> tuple[str, str, float] | None:
    """Return the column whose values are names of pictures, the template of a name, and the share of values that are."""
    files = {name.rsplit("/", 1)[-1].casefold() for name in names}
    stems = {file.rsplit(".", 1)[0] for file in files}
    ending = Counter(name.rsplit(".", 1)[-1] for name in names).most_common(1)[0][0]
    given: dict[str, list[str]] = {}
    for row in rows[: 4 * _VALUES]:
        for column, value in paths(row):
            values = given.setdefault(column, [])
            if len(values) < _VALUES and not is_nothing(value) and not isinstance(value, list | dict):
                values.append(text_of(value))
    best: tuple[str, str, float] | None = None
    for column, values in given.items():
        if (
            not values
            or "{" in column
            or "}" in column
            or profiles.get(column) is None
            or len(set(values)) < len(values) / 3
        ):
            continue
        plain = [value.replace("\\", "/").rsplit("/", 1)[-1].casefold() for value in values if "://" not in value]
        whole = sum(value in files for value in plain) / len(values)
        bare = sum(value in stems for value in plain) / len(values)
        share = max(whole, bare)
        if share >= _LEAST and (best is None or share > best[2] + 0.01):
            best = column, f"{{{column}}}" if whole >= bare else f"{{{column}}}.{ending}", share
    return best


def show_pictures(folder: Path, pictures: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Return small pictures as ``data:`` URIs by their name in `wanted`, for those that can be found and decoded."""
    shown: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        sources = [source for name in pictures for path in sorted(folder.glob(name)) if (source := _open(path, stack))]
        for source in sources:
            by_stem: dict[str, str] = {}
            for exact, name in itertools.islice(source.names(), _NAMES):
                by_stem.setdefault(_stem(name), exact)
            for name in wanted:
                if name not in shown and (exact := by_stem.get(_stem(name), "")):
                    with contextlib.suppress(PictureError, JobError, OSError):
                        data = source.read(exact)
                        if data is not None:
                            shown[name] = _jpeg(data)
    return shown


def _stem(name: str) -> str:
    file = name.replace("\\", "/").rsplit("/", 1)[-1].casefold()
    return file.rsplit(".", 1)[0] if file.endswith(_ENDINGS) else file


def _jpeg(data: bytes) -> str:
    pixels = decode(data, _SIDE)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
