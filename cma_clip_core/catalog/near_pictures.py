"""Near-same pictures: one photo twice, encoded anew, scaled, or a little brighter.

Pictures are compared as thumbnails of 20 x 16 block means. Two are near-same where their values differ by at most 3 of 255
in the mean, and by at most 10 in the mean over the foreground: a small thing on a large white ground must be the same
thing too. Both bounds are ours, chosen by looking at pairs of a real catalog.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from tqdm import tqdm

from cma_clip_core.arrays import Pixels
from cma_clip_core.catalog.near_texts import Numbers, join

HEIGHT, WIDTH = 20, 16  # of a thumbnail
NEAR, NEAR_FOREGROUND = 3, 10  # largest mean absolute difference, of 255
GROUND: Final = 240  # from this value on a picture shows its ground
PLAIN: Final = 4  # a picture whose values spread no more than this in each channel is one colour all over

_BLOCK: Final = 4
_FEATURES: Final = (HEIGHT // _BLOCK) * (WIDTH // _BLOCK) * 3
_CHUNK: Final = 20_000  # pairs verified at a time
_ROWS: Final = 128  # pictures reduced at a time


def thumbnails(pixels: Pixels) -> Pixels:
    """Return pictures [n, H, W, 3], of any size, as thumbnails [n, 20, 16, 3]: means of areas, rounded.

    Exact: sums are whole numbers below 2^53, so every machine rounds alike.
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
    """Return how much of each part [parts, size] lies on each pixel, in units of 1/parts pixel: rows add up to `size`."""
    part, pixel = np.arange(parts)[:, None] * size, np.arange(size)[None, :] * parts
    overlaps: npt.NDArray[np.float64] = (
        np.minimum(part + size, pixel + parts) - np.maximum(part, pixel)
    ).clip(0).astype(np.float64)  # fmt: skip
    return overlaps


def near_same(one: Pixels, other: Pixels) -> npt.NDArray[np.bool_]:
    """Return which thumbnails of `one` [n, 20, 16, 3] are near-same to those of `other` [n, 20, 16, 3], pair by pair."""
    flat, reference = one.reshape(len(one), -1), other.reshape(len(other), -1)
    difference = np.abs(flat.astype(np.int16) - reference)
    foreground = np.minimum(flat, reference) < GROUND
    near: npt.NDArray[np.bool_] = (difference.sum(axis=1, dtype=np.int64) <= NEAR * flat.shape[1]) & (
        (difference * foreground).sum(axis=1, dtype=np.int64) <= NEAR_FOREGROUND * foreground.sum(axis=1)
    )
    return near


class NearPictures:
    """Takes pictures one after the other, then groups the near-same ones.

    Memory for each distinct thumbnail: 960 bytes, twice that while the groups are found, about 1 kB of the tree, about
    150 to know it again, and 16 for each candidate (of a real catalog 8 a picture). Equal thumbnails cost nothing.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self._thumbnails: list[Pixels] = []

    def add(self, pixels: Pixels, present: npt.NDArray[np.bool_]) -> Numbers:
        """Return the number [n] of each picture of `pixels` [n, H, W, 3]; equal thumbnails share it.

        It is -1 where there is no picture (`present` [n] is False), or a plain one: that shows no product, and a shop
        may have it under thousands. A faint product on white is not plain.
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

    def groups(self, *, progress: bool = False) -> Numbers:
        """Return the group of each distinct picture, by its number: near-same ones, and those linked by others, share it.

        No near-same pair is missed: a block mean's difference is never more than the mean difference in the block, so
        the tree's radius on 5 x 4 block means holds all of them.
        """
        groups = np.arange(len(self._known), dtype=np.int64)
        if not len(groups):
            return groups
        small = np.concatenate(self._thumbnails)
        sums = small.reshape(-1, HEIGHT // _BLOCK, _BLOCK, WIDTH // _BLOCK, _BLOCK, 3).sum(axis=(2, 4), dtype=np.int64)
        tree = cKDTree(sums.reshape(len(small), _FEATURES).astype(np.float64))
        pairs = tree.query_pairs(NEAR * _FEATURES * _BLOCK**2, p=1, output_type="ndarray")
        links = [np.zeros((0, 2), dtype=np.int64)]
        for at in tqdm(range(0, len(pairs), _CHUNK), desc="near-same pictures", unit="chunk", disable=not progress):
            some = pairs[at : at + _CHUNK]
            links.append(some[near_same(small[some[:, 0]], small[some[:, 1]])])
        return join(groups, np.concatenate(links))
