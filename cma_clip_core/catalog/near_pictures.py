"""Near-duplicate pictures: the same photo encoded again, scaled, or made a little brighter.

Pictures are compared as thumbnails of 20 x 16 block means. Two are near-duplicates if both of these hold:

* the mean difference of their values is at most 3 of 255;
* the mean difference over the foreground is at most 10, because a small product on a large white background must match
  too.

We chose both bounds by looking at pairs of a real catalog.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from tqdm import tqdm

from cma_clip_core.arrays import Integers, Pixels
from cma_clip_core.catalog.linked_groups import merge_groups

HEIGHT, WIDTH = 20, 16  # size of a thumbnail
NEAR, NEAR_FOREGROUND = 3, 10  # largest mean absolute difference, of 255
BACKGROUND: Final = 240  # least value of the background
PLAIN: Final = 4  # largest spread of values in each channel of a picture that counts as one plain colour

_BLOCK: Final = 4
_FEATURES: Final = (HEIGHT // _BLOCK) * (WIDTH // _BLOCK) * 3
_CHUNK: Final = 20_000  # pairs verified at a time
_ROWS: Final = 128  # pictures reduced at a time


def thumbnails(pixels: Pixels) -> Pixels:
    """Return pictures [n, H, W, 3] of any size as thumbnails [n, 20, 16, 3] of rounded area means.

    The result is exact on every machine, because all sums are whole numbers below 2^53.
    """
    n, height, width, _ = pixels.shape
    rows, columns = _overlaps(height, HEIGHT), _overlaps(width, WIDTH)
    small = np.empty((n, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for at in range(0, n, _ROWS):
        part = pixels[at : at + _ROWS].astype(np.float64)
        sums = rows @ part.reshape(len(part), height, width * 3)
        sums = columns @ sums.reshape(len(part), HEIGHT, width, 3)
        small[at : at + _ROWS] = (sums + height * width // 2) // (height * width)
    return small


@functools.cache
def _overlaps(size: int, parts: int) -> npt.NDArray[np.float64]:
    """Return the overlap [parts, size] of parts with pixels, in units of 1/parts pixel. Rows add up to `size`."""
    part, pixel = np.arange(parts)[:, None] * size, np.arange(size)[None, :] * parts
    overlaps: npt.NDArray[np.float64] = (
        np.minimum(part + size, pixel + parts) - np.maximum(part, pixel)
    ).clip(0).astype(np.float64)  # fmt: skip
    return overlaps


def near_duplicate(left: Pixels, right: Pixels) -> npt.NDArray[np.bool_]:
    """Return which pairs [n] of the thumbnails `left` and `right` [n, 20, 16, 3] are near-duplicates."""
    flat, reference = left.reshape(len(left), -1), right.reshape(len(right), -1)
    difference = np.abs(flat.astype(np.int16) - reference)
    foreground = np.minimum(flat, reference) < BACKGROUND
    near: npt.NDArray[np.bool_] = (difference.sum(axis=1, dtype=np.int64) <= NEAR * flat.shape[1]) & (
        (difference * foreground).sum(axis=1, dtype=np.int64) <= NEAR_FOREGROUND * foreground.sum(axis=1)
    )
    return near


class NearPictures:
    """Collector of pictures that then groups the near-duplicates.

    Memory for each distinct thumbnail:

    * 960 bytes of pixels, and twice that while the groups are computed;
    * about 1 kB of the search tree, and about 150 bytes of lookup table;
    * 16 bytes for each candidate pair (about 8 pairs a picture in a real catalog).

    A repeated thumbnail costs nothing.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self._thumbnails: list[Pixels] = []

    def add(self, pixels: Pixels, present: npt.NDArray[np.bool_]) -> Integers:
        """Return the number [n] of each picture of `pixels` [n, H, W, 3]; equal thumbnails share one.

        The number is -1 where there is no picture (`present` [n] is False) or the picture is one plain colour. A plain
        picture shows no product, and a shop may use it for thousands. A faint product on white is not plain.
        """
        numbers = np.full(len(pixels), -1, dtype=np.int64)
        small = thumbnails(pixels)
        new = []
        spread = (small.max(axis=(1, 2)) - small.min(axis=(1, 2))).max(axis=1)
        for row in np.flatnonzero(present & (spread > PLAIN)):
            digest = hashlib.blake2b(small[row].tobytes(), digest_size=16).digest()
            known = len(self._known)
            numbers[row] = self._known.setdefault(digest, known)
            if len(self._known) > known:
                new.append(row)
        if new:
            self._thumbnails.append(small[new])
        return numbers

    def groups(self, *, progress: bool = False) -> Integers:
        """Return the group of each distinct picture, by its number.

        Near-duplicates share a group, directly or through others.

        No near-duplicate pair is missed. The difference of two block means never exceeds the mean difference in the
        block, so the tree's radius on 5 x 4 block means includes all of them.
        """
        groups = np.arange(len(self._known), dtype=np.int64)
        if not len(groups):
            return groups
        small = np.concatenate(self._thumbnails)
        sums = small.reshape(-1, HEIGHT // _BLOCK, _BLOCK, WIDTH // _BLOCK, _BLOCK, 3).sum(axis=(2, 4), dtype=np.int64)
        tree = cKDTree(sums.reshape(len(small), _FEATURES).astype(np.float64))
        pairs = tree.query_pairs(NEAR * _FEATURES * _BLOCK**2, p=1, output_type="ndarray")
        links = [np.zeros((0, 2), dtype=np.int64)]
        for at in tqdm(
            range(0, len(pairs), _CHUNK), desc="near-duplicate pictures", unit="chunk", disable=not progress
        ):
            some = pairs[at : at + _CHUNK]
            links.append(some[near_duplicate(small[some[:, 0]], small[some[:, 1]])])
        return merge_groups(groups, np.concatenate(links))
