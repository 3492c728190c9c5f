"""Near-duplicate texts of one brand: texts that share most of their word 3-shingles.

Two texts are near-duplicates if the Jaccard similarity of their shingle sets is at least 0.7 (Broder 1997, "On the
resemblance and containment of documents"). Candidates come from MinHash signatures cut into bands (Leskovec et al.,
"Mining of Massive Datasets", 3.4). Each candidate is then verified on the shingles themselves.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from datasketch import MinHash
from scipy import sparse
from tqdm import tqdm

from cma_clip_core.arrays import Integers
from cma_clip_core.catalog.linked_groups import merge_groups
from schemas.word_lists import load_words

NEAR_TEXT: Final = 0.7  # least Jaccard similarity
MIN_LETTERS: Final = 20  # letters and digits; a shorter description ("NA", "Style Note") says nothing about the product
SHINGLE: Final = 3  # words

_PERMUTATIONS: Final = 128
# A pair of similarity s shares a band with probability 1 - (1 - s^3)^42: 1 - 2e-8 at 0.7, 0.3 % at 0.04.
_BANDS, _ROWS = 42, 3
_MIX: Final = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
_CHUNK: Final = 20_000  # pairs verified at a time

COLOURS: Final = load_words("colours")


def compared_words(title: str, description: str) -> list[str]:
    """Return the words of the description, or of the title if the description is too short to say anything.

    Case, punctuation and colour words are ignored, because a shop sells one thing in several colours.
    """
    words = _words(description)
    if sum(map(len, words)) < MIN_LETTERS:
        words = _words(title)
    return [word for word in words if word not in COLOURS]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def shingles(words: Sequence[str]) -> Integers:
    """Return the distinct runs of three words as sorted 62-bit hashes. A shorter text is one run."""
    runs = {" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))}
    hashes = (int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest()) >> 2 for run in runs)
    return np.array(sorted(hashes), dtype=np.int64)


class NearTexts:
    """Collector of texts that then groups the near-duplicates.

    Memory for each distinct text: 336 bytes of band keys, 8 bytes for each shingle (a text of 100 words has about 98),
    and about 150 bytes of lookup table. A repeated text costs nothing.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self._bands: list[npt.NDArray[np.uint64]] = []
        self._shingles: list[Integers] = []

    def add(self, texts: Sequence[tuple[str, str, str]]) -> Integers:
        """Return the number [n] of each text (title, brand, description). Equal texts share one; -1 means no words."""
        numbers = np.full(len(texts), -1, dtype=np.int64)
        new: list[Integers] = []
        brands: list[int] = []
        for row, (title, brand, description) in enumerate(texts):
            words = compared_words(title, description)
            if not words:
                continue
            brand = " ".join(_words(brand))
            digest = hashlib.blake2b(f"{brand}\n{' '.join(words)}".encode(), digest_size=16).digest()
            numbers[row] = number = self._known.setdefault(digest, len(self._known))
            if number == len(self._shingles) + len(new):
                new.append(shingles(words))
                brands.append(int.from_bytes(hashlib.blake2b(brand.encode(), digest_size=8).digest()))
        if new:
            self._bands.append(_band_keys(new, np.array(brands, dtype=np.uint64)))
            self._shingles += new
        return numbers

    def groups(self, *, progress: bool = False) -> Integers:
        """Return the group of each distinct text, by its number.

        Near-duplicates share a group, directly or through others.
        """
        groups = np.arange(len(self._shingles), dtype=np.int64)
        if not len(groups):
            return groups
        bands = np.concatenate(self._bands)
        incidence = _incidence(self._shingles)
        for band in tqdm(range(_BANDS), desc="near-duplicate texts", unit="band", disable=not progress):
            for pairs in _pairs_of_equals(bands[:, band]):
                # Skip pairs that share a group already, so that a large bucket of near-duplicates costs little.
                pairs = pairs[groups[pairs[:, 0]] != groups[pairs[:, 1]]]
                pairs = pairs[_similar(incidence, pairs)]
                if len(pairs):
                    groups = merge_groups(groups, groups[pairs])
        return groups


def _band_keys(texts: Sequence[Integers], brands: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the band keys [n, bands] of texts, given as shingles. Texts of different brands share no key."""
    hashes = MinHash.bulk(
        (text.tolist() for text in texts), num_perm=_PERMUTATIONS, hashfunc=lambda h: h & 0xFFFFFFFF, scheme="affine32"
    )
    signatures = np.array([h.hashvalues[: _BANDS * _ROWS] for h in hashes], dtype=np.uint64)
    keys: npt.NDArray[np.uint64] = (signatures.reshape(-1, _BANDS, _ROWS) * _MIX).sum(axis=2) + brands[:, None]
    return keys


def _incidence(texts: Sequence[Integers]) -> sparse.csr_array:
    """Return the matrix [n, 2^62] of texts by shingles, whose column numbers are the shingles' hashes."""
    ends = np.cumsum([0, *map(len, texts)])
    columns = np.concatenate(texts)
    return sparse.csr_array((np.ones(len(columns), dtype=np.int32), columns, ends), shape=(len(texts), 2**62))


def _pairs_of_equals(keys: npt.NDArray[np.uint64]) -> Iterator[Integers]:
    """Yield all pairs [m, 2] of positions with equal keys, at most `_CHUNK` at a time, neighbours first."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first, distance = np.arange(len(keys)), 1
    while True:
        first = first[first + distance < len(keys)]
        first = first[ordered[first] == ordered[first + distance]]
        if not len(first):
            return
        for at in range(0, len(first), _CHUNK):
            some = first[at : at + _CHUNK]
            yield np.stack([order[some], order[some + distance]], axis=1)
        distance += 1


def _similar(incidence: sparse.csr_array, pairs: Integers) -> npt.NDArray[np.bool_]:
    """Return which pairs [m, 2] of texts are near-duplicates."""
    if not len(pairs):
        return np.zeros(0, dtype=np.bool_)
    left, right = incidence[pairs[:, 0]], incidence[pairs[:, 1]]
    common = left.multiply(right).sum(axis=1)
    sizes = np.diff(left.indptr) + np.diff(right.indptr)
    similar: npt.NDArray[np.bool_] = common >= NEAR_TEXT * (sizes - common) - 1e-9
    return similar
