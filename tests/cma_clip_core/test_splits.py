"""`pytest tests/cma_clip_core/test_splits.py`"""

from __future__ import annotations

from collections import Counter

from cma_clip_core.config import SelectionConfig
from cma_clip_core.splits import family_key, side_of

SELECTION = SelectionConfig()


def test_one_product_in_four_colours_is_one_family() -> None:
    described = [
        family_key(f"Roadster Men {colour} Shirt", "Roadster", f"A {colour} shirt of fine cotton, cut for summer.")
        for colour in ("Blue", "RED", "navy blue", "Off White")
    ]
    bare = [family_key(f"Roadster Men {colour} Shirt", "Roadster", "NA") for colour in ("Blue", "Red", "Green", "Pink")]
    assert len(set(described)) == 1
    assert len(set(bare)) == 1


def test_different_products_are_different_families() -> None:
    text = "A shirt of fine cotton, cut for summer."
    keys = {
        family_key("Shirt", "Roadster", text),
        family_key("Shirt", "Turtle", text),
        family_key("Shirt", "Roadster", text + " With two pockets."),
        family_key("Shirt", "Roadster", ""),
        family_key("Trousers", "Roadster", ""),
    }
    assert len(keys) == 5


def test_sides_have_their_shares_and_never_change() -> None:
    sides = [side_of(f"brand | product {i}", SELECTION) for i in range(20_000)]
    shares = {side: n / len(sides) for side, n in Counter(sides).items()}
    assert abs(shares["train"] - 0.7) < 0.01
    assert abs(shares["validation"] - 0.1) < 0.01
    assert abs(shares["test"] - 0.2) < 0.01
    # Written down once: a split that moved would put yesterday's test products into today's training.
    assert [side_of(f"family {i}", SELECTION) for i in range(8)] == [
        "test",
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
    ]
