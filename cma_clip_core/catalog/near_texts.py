"""Near-same texts of one brand: those that share most of their word 3-shingles.

Two texts are near-same where the Jaccard similarity of their shingle sets is at least 0.7 (Broder 1997, "On the
resemblance and containment of documents"). Candidates come from MinHash signatures cut into bands (Leskovec et al.,
"Mining of Massive Datasets", 3.4); each is then verified on the shingles themselves.
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
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

Numbers = npt.NDArray[np.int64]

NEAR_TEXT: Final = 0.7  # least Jaccard similarity
MIN_LETTERS: Final = 20  # letters and digits; a shorter description ("NA", "Style Note") says nothing of the product
SHINGLE: Final = 3  # words

_PERMUTATIONS: Final = 128
# A pair of similarity s shares a band with probability 1 - (1 - s^3)^42: 1 - 2e-8 at 0.7, 0.3 % at 0.04.
_BANDS, _ROWS = 42, 3
_MIX: Final = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
_CHUNK: Final = 20_000  # pairs verified at a time

COLOURS: Final = frozenset(
    re.findall(
        r"\w+",
        """
        amber aqua beige black blue bronze brown burgundy camel champagne charcoal chocolate cobalt coffee
        copper coral cream crimson cyan dark ecru emerald fluorescent fuchsia gold golden gray green grey
        indigo ivory jade khaki lavender lemon light lilac lime magenta mahogany maroon mauve melange
        metallic mint multi multicolor multicolour mushroom mustard navy neon nude ochre off olive orange
        peach pink plum purple red rose ruby rust salmon sand scarlet sea silver skin steel tan taupe teal
        terracotta turquoise violet white wine yellow
        """,
    )
)


def telling_words(title: str, description: str) -> list[str]:
    """Return the words that texts are compared by: the description's or, where it says nothing, the title's.

    Case, punctuation and colour words are left out: a shop sells one thing in several colours.
    """
    words = _words(description)
    if sum(map(len, words)) < MIN_LETTERS:
        words = _words(title)
    return [word for word in words if word not in COLOURS]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def shingles(words: Sequence[str]) -> Numbers:
    """Return the distinct runs of three words, each as a 62-bit hash, sorted; a shorter text is one run."""
    runs = {" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))}
    hashes = (int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest()) >> 2 for run in runs)
    return np.array(sorted(hashes), dtype=np.int64)


class NearTexts:
    """Takes texts one after the other, then groups the near-same ones.

    Memory for each distinct text: 336 bytes of band keys, 8 for each shingle (a text of 100 words has about 98), and
    about 150 to know it again. Equal texts cost nothing.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self._bands: list[npt.NDArray[np.uint64]] = []
        self._shingles: list[Numbers] = []

    def add(self, texts: Sequence[tuple[str, str, str]]) -> Numbers:
        """Return the number [n] of each text (title, brand, description); -1 where it has no word. Equal ones share it."""
        numbers = np.full(len(texts), -1, dtype=np.int64)
        found: list[Numbers] = []
        brands: list[int] = []
        for row, (title, brand, description) in enumerate(texts):
            words = telling_words(title, description)
            if not words:
                continue
            maker = " ".join(_words(brand))
            digest = hashlib.blake2b(f"{maker}\n{' '.join(words)}".encode(), digest_size=16).digest()
            numbers[row] = number = self._known.setdefault(digest, len(self._known))
            if number == len(self._shingles) + len(found):
                found.append(shingles(words))
                brands.append(int.from_bytes(hashlib.blake2b(maker.encode(), digest_size=8).digest()))
        if found:
            self._bands.append(_band_keys(found, np.array(brands, dtype=np.uint64)))
            self._shingles += found
        return numbers

    def groups(self, *, progress: bool = False) -> Numbers:
        """Return the group of each distinct text, by its number: near-same ones, and those linked by others, share it."""
        groups = np.arange(len(self._shingles), dtype=np.int64)
        if not len(groups):
            return groups
        bands = np.concatenate(self._bands)
        incidence = _incidence(self._shingles)
        for band in tqdm(range(_BANDS), desc="near-same texts", unit="band", disable=not progress):
            for pairs in _pairs_of_equals(bands[:, band]):
                # What is linked already needs no second proof: a large bucket of near-same texts costs little.
                pairs = pairs[groups[pairs[:, 0]] != groups[pairs[:, 1]]]
                pairs = pairs[_similar(incidence, pairs)]
                if len(pairs):
                    groups = join(groups, groups[pairs])
        return groups


def join(groups: Numbers, links: Numbers) -> Numbers:
    """Return `groups` [n] with those joined that `links` [m, 2] link; groups are numbers below n, before and after."""
    n = len(groups)
    graph = sparse.coo_array((np.ones(len(links), dtype=np.int8), (links[:, 0], links[:, 1])), shape=(n, n))
    _, joined = connected_components(graph, directed=False)
    result: Numbers = joined.astype(np.int64)[groups]
    return result


def _band_keys(found: Sequence[Numbers], brands: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the band keys [n, bands] of some texts; texts of two brands have none in common."""
    hashes = MinHash.bulk(
        (text.tolist() for text in found), num_perm=_PERMUTATIONS, hashfunc=lambda h: h & 0xFFFFFFFF, scheme="affine32"
    )
    signatures = np.array([h.hashvalues[: _BANDS * _ROWS] for h in hashes], dtype=np.uint64)
    keys: npt.NDArray[np.uint64] = (signatures.reshape(-1, _BANDS, _ROWS) * _MIX).sum(axis=2) + brands[:, None]
    return keys


def _incidence(found: Sequence[Numbers]) -> sparse.csr_array:
    """Return which text has which shingle: [n, 2^62], its columns the shingles' hashes themselves."""
    ends = np.cumsum([0, *map(len, found)])
    columns = np.concatenate(found)
    return sparse.csr_array((np.ones(len(columns), dtype=np.int32), columns, ends), shape=(len(found), 2**62))


def _pairs_of_equals(keys: npt.NDArray[np.uint64]) -> Iterator[Numbers]:
    """Yield all pairs [m, 2] of places with equal keys, at most `_CHUNK` at a time, neighbours first."""
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


def _similar(incidence: sparse.csr_array, pairs: Numbers) -> npt.NDArray[np.bool_]:
    """Return which pairs [m, 2] of texts are near-same."""
    if not len(pairs):
        return np.zeros(0, dtype=np.bool_)
    one, other = incidence[pairs[:, 0]], incidence[pairs[:, 1]]
    common = one.multiply(other).sum(axis=1)
    sizes = np.diff(one.indptr) + np.diff(other.indptr)
    similar: npt.NDArray[np.bool_] = common >= NEAR_TEXT * (sizes - common) - 1e-9
    return similar
