"""Match a record's picture name with the names in an export, despite differences in spelling.

Two names are the *same* if they differ only in case, Unicode composition, blanks, slashes, ``./``, entities, ``%20`` or a
query string. They are *similar* if, in addition, one has another picture extension or lacks leading folders of the other.
"""

from __future__ import annotations

import difflib
import heapq
import html
import itertools
import json
import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from urllib.parse import unquote

import numpy as np

ENDINGS: Final = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})

_DEEP: Final = 8  # trailing folders of a name that the index has keys for
_AMBIGUOUS: Final = 4  # names per key that are examined: enough to see that a name is ambiguous
_LONGEST: Final = 4096  # characters; a longer text is not a name
_COMPARED: Final = 5_000  # names that are searched for those nearest to another
_WORD: Final = re.compile(r"[^\W_]+")
_CLOSE: Final = 50  # names that are compared in full
_SHOWN: Final = 200  # characters of a name in a message
_DRIVE: Final = re.compile(r"\s*[A-Za-z]:(?![^/\\]*:)")
_WEB: Final = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.-]+:|//[^/]+\.[^/]+/)")
_INVISIBLE: Final = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{,200}(/[A-Za-z0-9_-][A-Za-z0-9_.-]{,200})*")
_BLANKS_AND_ENDING: Final = re.compile(r" +(?=\.\w{1,5}$)")
# As a path, such a name could leave its folder: it has a scheme, a drive, a leading slash or a step up.
_UNSAFE: Final = re.compile(r"^/|^[A-Za-z][A-Za-z0-9+.-]*:|(^|/)\.\.(/|$)|[\x00-\x1f\x7f\\\ud800-\udfff]")
_ENDING: Final = re.compile(r"\.([A-Za-z0-9]{1,5})$")
_QUERY: Final = re.compile(rf"\.(?:{'|'.join(sorted(ENDINGS))})(?=[?#])", re.IGNORECASE)
_BETWEEN: Final = re.compile(r"[,;|\n]+")
_WEB_START: Final = re.compile(r"\s*https?://", re.IGNORECASE)
_BEFORE_WEB: Final = re.compile(r"[\s,;|]+(?=https?://)", re.IGNORECASE)
_LONGEST_LIST: Final = 1_000_000  # characters of a list of web addresses
_AROUND: Final = " \t\r\n\u00a0\"'[]"


class PictureName(NamedTuple):
    """A picture's name in normal form: two names that are the same compare equal."""

    folders: tuple[str, ...]
    stem: str
    ending: str  # one of ENDINGS, or ""; any other extension stays in the stem

    def is_similar(self, other: PictureName) -> bool:
        """Return whether the names match except for their extension and for leading folders that one of them lacks."""
        if self.stem != other.stem or not (self.folders or other.folders or self.ending != other.ending):
            return self == other
        fewer = min(len(self.folders), len(other.folders))
        return not fewer or self.folders[-fewer:] == other.folders[-fewer:]

    def is_lossy(self, other: PictureName) -> bool:
        """Return whether this name has another extension than `other`, or more folders.

        In that case a different name could match `other` too.
        """
        return self.ending != other.ending or len(self.folders) > len(other.folders)


def is_unsafe(name: str) -> bool:
    """Return whether `name`, used as a path, could leave its folder. Such a name is never used as a path."""
    return _UNSAFE.search(name) is not None


def is_url(name: str) -> bool:
    """Return whether `name` is a URL of any scheme, or an address such as ``//host.example/1.jpg``."""
    return _WEB.match(name) is not None


def leads_out(name: str) -> bool:
    """Return whether `name`, or a decoded form of it, leads out of the export, or is a ``file:`` URL."""
    return any(_steps(reading) is None for reading in readings(name)) or name.strip().lower().startswith("file:")


def fold(name: str) -> PictureName | None:
    """Return `name` in normal form; None if it leads out of the export or is not a name."""
    steps = name.lower().split("/") if _PLAIN.fullmatch(name) else _steps(name)
    if not steps:
        return None
    base = steps.pop()
    stem, _, ending = base.rpartition(".")
    if not stem or ending not in ENDINGS:
        stem, ending = base, ""
    return PictureName(tuple(steps), stem, ending)


def _steps(name: str) -> list[str] | None:
    """Return the normalised steps of a path, with ``..`` resolved.

    Returns None if the path leads out of the export, and no steps if it is far too long.
    """
    if len(name) > _LONGEST:
        return []
    if not name.isascii():
        name = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    name = _INVISIBLE.sub("", _DRIVE.sub("", name, count=1)).casefold().replace("\\", "/")
    steps: list[str] = []
    for step in name.split("/"):
        step = " ".join(step.split())
        if step == "..":
            if not steps:
                return None
            steps.pop()
        elif step not in ("", "."):
            steps.append(step)
    if steps:
        steps[-1] = _BLANKS_AND_ENDING.sub("", steps[-1])
    return steps


def readings(name: str) -> Iterator[str]:
    """Yield `name` and its decoded forms.

    The decodings are applied one after the other: entities, the query string, percent signs, plus signs. A form that equals
    the one before is left out.
    """
    seen = name[: _LONGEST + 1]
    yield seen
    for decode in (html.unescape, _without_query, unquote, lambda text: text.replace("+", " ")):
        if (decoded := decode(seen)) != seen:
            yield decoded
        seen = decoded


def _without_query(name: str) -> str:
    match = _QUERY.search(name)
    return name[: match.end()] if match else name


def parts_of_list(name: str) -> list[str]:
    """Return the picture names of a list, in order; none if `name` is not a list.

    A list is JSON, or names separated by commas, semicolons, bars or line ends. Of web addresses, each begins with its
    scheme.
    """
    if name.lstrip().startswith("["):
        try:
            listed = json.loads(name)
        except (ValueError, RecursionError):
            listed = None
        if isinstance(listed, list) and listed and all(isinstance(each, str) for each in listed):
            return listed
    if _WEB_START.match(name):
        addresses = [part.strip(_AROUND) for part in _BEFORE_WEB.split(name[:_LONGEST_LIST])]
        return addresses if len(addresses) > 1 else []
    parts = [stripped for part in _BETWEEN.split(name[:_LONGEST]) if (stripped := part.strip(_AROUND))]
    return parts if parts and parts != [name] and all(_is_picture(part) for part in parts) else []


def _is_picture(name: str) -> bool:
    match = _ENDING.search(_without_query(name))
    return match is not None and match.group(1).lower() in ENDINGS


class NameIndex:
    """Index of picture names that finds the same and similar names.

    A search takes a few look-ups, even if many pictures are called ``front.jpg``. A name has three keys and one more for
    each of its folders, up to eight. Each key takes 16 bytes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        keys, indexes = array("q"), array("q")
        for index, name in enumerate(names):
            if (path := fold(name)) is not None:
                own = [hash(path), _key(path.folders, path.stem, whole=True)]
                for start in range(max(0, len(path.folders) - _DEEP), len(path.folders) + 1):
                    own.append(_key(path.folders[start:], path.stem, whole=False))
                keys.extend(own)
                indexes.extend([index] * len(own))
        unsorted = np.frombuffer(keys, np.int64) if keys else np.empty(0, np.int64)
        order = np.argsort(unsorted, kind="stable")
        self._keys, self._indexes = unsorted[order], np.array(indexes, np.int64)[order]

    def find_same(self, path: PictureName) -> list[int]:
        """Return the indexes of a few names that are the same as `path`."""
        return [index for index in self._with_key(hash(path)) if fold(self._names[index]) == path]

    def find_similar(self, path: PictureName) -> list[int]:
        """Return the indexes of a few names that are similar to `path`."""
        keys = [_key(path.folders, path.stem, whole=False)]
        keys += [_key(path.folders[start:], path.stem, whole=True) for start in range(1, len(path.folders) + 1)]
        candidates = dict.fromkeys(index for key in keys for index in self._with_key(key))
        return [index for index in candidates if (other := fold(self._names[index])) and path.is_similar(other)]

    def _with_key(self, key: int) -> list[int]:
        start, end = (int(np.searchsorted(self._keys, key, side)) for side in ("left", "right"))
        return [int(index) for index in self._indexes[start : min(end, start + _AMBIGUOUS)]]


def _key(folders: tuple[str, ...], stem: str, *, whole: bool) -> int:
    return hash((folders, stem, whole))


def nearest(name: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the three of `names` that are nearest to `name`, the nearest first. Among very many names, compare only some."""
    own = name.rsplit("/", 1)[-1].lower()
    word = max(_WORD.findall(own.rpartition(".")[0] or own), key=len, default="")
    with_word = (other for other in names if word and word in other.lower())
    some = dict.fromkeys((*itertools.islice(with_word, _COMPARED), *names[:: 1 + len(names) // _COMPARED]))

    def common_ends(other: str) -> int:
        base = other.rsplit("/", 1)[-1].lower()
        return _common_prefix(base, own) + _common_prefix(base[::-1], own[::-1])

    def similarity(other: str) -> tuple[float, int]:
        return difflib.SequenceMatcher(None, name[-_SHOWN:], other).ratio(), common_ends(other)

    few = (other[-_SHOWN:] for other in heapq.nlargest(_CLOSE, some, key=common_ends))
    return tuple(sorted(few, key=similarity, reverse=True)[:3])


def _common_prefix(one: str, other: str) -> int:
    """Return the length of the longest common prefix of two texts."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
