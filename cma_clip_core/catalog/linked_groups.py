"""Groups of items that links hold together: the connected components of a graph."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from cma_clip_core.arrays import Integers


def linked_groups(items: int, links: Integers) -> tuple[int, Integers]:
    """Return the number of groups, and the group [items] of each item, counted from 0.

    Args:
        items: the number of items.
        links: [m, 2], pairs of linked items.
    """
    ones = np.ones(len(links), dtype=np.int8)
    graph = sparse.coo_array((ones, (links[:, 0], links[:, 1])), shape=(items, items))
    count, groups = connected_components(graph, directed=False)
    return count, groups.astype(np.int64)


def merge_groups(groups: Integers, links: Integers) -> Integers:
    """Return `groups` [n] with linked groups merged.

    Args:
        groups: [n], numbers below n, before and after.
        links: [m, 2], pairs of groups.
    """
    _, merged = linked_groups(len(groups), links)
    result: Integers = merged[groups]
    return result
