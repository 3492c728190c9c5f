"""Match the name that a record gives for its picture with the names that an export has, though it is written otherwise.

Two names are *the same* where they differ in case, in how a letter is composed, in blanks, slashes, ``./``, entities, ``%20``
or a query. They are *alike* where, besides, one has another picture ending or lacks folders in front of the other.
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

_DEEP: Final = 8  # folders by which a name in a deeper one is found
_AMBIGUOUS: Final = 4  # names that are looked at: two that are the same in two places, and more than one is ambiguous
_LONGEST: Final = 4096  # characters; a longer text is no name
_COMPARED: Final = 5_000  # names that are looked at for those most like another
_WORD: Final = re.compile(r"[^\W_]+")
_CLOSE: Final = 50  # names that are compared whole
_SHOWN: Final = 200  # characters of a name
_DRIVE: Final = re.compile(r"\s*[A-Za-z]:(?![^/\\]*:)")
_WEB: Final = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.-]+:|//[^/]+\.[^/]+/)")
_INVISIBLE: Final = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{,200}(/[A-Za-z0-9_-][A-Za-z0-9_.-]{,200})*")
_BLANKS_AND_ENDING: Final = re.compile(r" +(?=\.\w{1,5}$)")
# Taken as a path, such a name could lead out of a folder: a scheme, a drive, from the root, a step up.
_UNSAFE: Final = re.compile(r"^/|^[A-Za-z][A-Za-z0-9+.-]*:|(^|/)\.\.(/|$)|[\x00-\x1f\x7f\\\ud800-\udfff]")
_ENDING: Final = re.compile(r"\.([A-Za-z0-9]{1,5})$")
_QUERY: Final = re.compile(rf"\.(?:{'|'.join(sorted(ENDINGS))})(?=[?#])", re.IGNORECASE)
_BETWEEN: Final = re.compile(r"[,;|\n]+")
_AROUND: Final = " \t\r\n\u00a0\"'[]"


class PictureName(NamedTuple):
    """A picture's name, folded: names that are the same are equal."""

    folders: tuple[str, ...]
    stem: str
    ending: str  # a picture's; "" where the name has another one or none, which is then of the stem

    def alike(self, other: PictureName) -> bool:
        """Whether it could be `other`, written with another ending, or with folders in front that the other lacks."""
        if self.stem != other.stem or not (self.folders or other.folders or self.ending != other.ending):
            return self == other
        fewer = min(len(self.folders), len(other.folders))
        return not fewer or self.folders[-fewer:] == other.folders[-fewer:]

    def loses(self, other: PictureName) -> bool:
        """Whether something of this name is not in `other`, so that another name could mean `other` too."""
        return self.ending != other.ending or len(self.folders) > len(other.folders)


def is_unsafe(name: str) -> bool:
    """Whether `name` could lead out of a folder if it were taken as a path: it never is, wherever it leads."""
    return _UNSAFE.search(name) is not None


def is_url(name: str) -> bool:
    """Whether `name` names a place on a server, or in another scheme than a path."""
    return _WEB.match(name) is not None


def leads_out(name: str) -> bool:
    """Whether `name`, or what it decodes to, goes up and out of the export."""
    return any(_steps(reading) is None for reading in readings(name)) or name.strip().lower().startswith("file:")


def fold(name: str) -> PictureName | None:
    """Return `name` folded; None where it leads out of the export or is no name."""
    steps = name.lower().split("/") if _PLAIN.fullmatch(name) else _steps(name)
    if not steps:
        return None
    base = steps.pop()
    stem, _, ending = base.rpartition(".")
    if not stem or ending not in ENDINGS:
        stem, ending = base, ""
    return PictureName(tuple(steps), stem, ending)


def _steps(name: str) -> list[str] | None:
    """Return the steps of a path, folded; none of them goes up. None where the path leads out, or is far too long."""
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
    """Yield `name`, and what it says once entities, a query, percent signs and plus signs are read, each if it differs."""
    seen = name[: _LONGEST + 1]
    yield seen
    for read in (html.unescape, _without_query, unquote, lambda text: text.replace("+", " ")):
        if (found := read(seen)) != seen:
            yield found
        seen = found


def _without_query(name: str) -> str:
    found = _QUERY.search(name)
    return name[: found.end()] if found else name


def first_of_list(name: str) -> str | None:
    """Return the first of several pictures that a cell names, a JSON list or with ``, ; |`` between; None for no list."""
    if name.lstrip().startswith("["):
        try:
            listed = json.loads(name)
        except (ValueError, RecursionError):
            listed = None
        if isinstance(listed, list) and listed and isinstance(listed[0], str):
            return listed[0]
    parts = [stripped for part in _BETWEEN.split(name[:_LONGEST]) if (stripped := part.strip(_AROUND))]
    if parts and parts != [name] and all(_is_picture(part) for part in parts):
        return parts[0]
    return None


def _is_picture(name: str) -> bool:
    found = _ENDING.search(_without_query(name))
    return found is not None and found.group(1).lower() in ENDINGS


class NameIndex:
    """Finds names by what they mean, in the time of a few look-ups, however many share a name such as ``front.jpg``.

    Beside the names themselves it takes 16 bytes for each, and for each of its folders.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        keys, places = array("q"), array("q")
        for place, name in enumerate(names):
            if (path := fold(name)) is not None:
                found = [hash(path), _key(path.folders, path.stem, whole=True)]
                for start in range(max(0, len(path.folders) - _DEEP), len(path.folders) + 1):
                    found.append(_key(path.folders[start:], path.stem, whole=False))
                keys.extend(found)
                places.extend([place] * len(found))
        unsorted = np.frombuffer(keys, np.int64) if keys else np.empty(0, np.int64)
        order = np.argsort(unsorted, kind="stable")
        self._keys, self._places = unsorted[order], np.array(places, np.int64)[order]

    def same(self, path: PictureName) -> list[int]:
        """Return the places of names that are the same as `path`, a few at most."""
        return [place for place in self._with_key(hash(path)) if fold(self._names[place]) == path]

    def alike(self, path: PictureName) -> list[int]:
        """Return the places of names that are alike, a few at most."""
        keys = [_key(path.folders, path.stem, whole=False)]
        keys += [_key(path.folders[start:], path.stem, whole=True) for start in range(1, len(path.folders) + 1)]
        found = dict.fromkeys(place for key in keys for place in self._with_key(key))
        return [place for place in found if (other := fold(self._names[place])) and path.alike(other)]

    def _with_key(self, key: int) -> list[int]:
        start, end = (int(np.searchsorted(self._keys, key, side)) for side in ("left", "right"))
        return [int(place) for place in self._places[start : min(end, start + _AMBIGUOUS)]]


def _key(folders: tuple[str, ...], stem: str, *, whole: bool) -> int:
    return hash((folders, stem, whole))


def nearest(name: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the three of `names` that are most like `name`, the most like first. Of very many not all are compared."""
    own = name.rsplit("/", 1)[-1].lower()
    word = max(_WORD.findall(own.rpartition(".")[0] or own), key=len, default="")
    having = (other for other in names if word and word in other.lower())
    some = dict.fromkeys((*itertools.islice(having, _COMPARED), *names[:: 1 + len(names) // _COMPARED]))

    def ends_alike(other: str) -> int:
        base = other.rsplit("/", 1)[-1].lower()
        return _in_common(base, own) + _in_common(base[::-1], own[::-1])

    def alike(other: str) -> tuple[float, int]:
        return difflib.SequenceMatcher(None, name[-_SHOWN:], other).ratio(), ends_alike(other)

    few = (other[-_SHOWN:] for other in heapq.nlargest(_CLOSE, some, key=ends_alike))
    return tuple(sorted(few, key=alike, reverse=True)[:3])


def _in_common(one: str, other: str) -> int:
    """Return how many characters two texts begin alike with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
