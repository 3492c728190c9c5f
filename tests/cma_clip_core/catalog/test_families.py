"""Tests of near-duplicates and product families: `pytest tests/cma_clip_core/catalog/test_families.py`."""

from __future__ import annotations

import io
import itertools
import random
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cma_clip_core.arrays import Pixels
from cma_clip_core.catalog.families import FamilyFinder
from cma_clip_core.catalog.near_pictures import NearPictures, near_duplicate, thumbnails
from cma_clip_core.catalog.near_texts import COLOURS, NearTexts, compared_words

SIZE = (80, 64)
WORDS = [
    f"{a}{b}" for a in ("ba", "co", "di", "fu", "ga", "lo", "mi", "nu") for b in ("ra", "ton", "lek", "shi", "voo")
]


@dataclass(frozen=True)
class Product:
    """A product to link."""

    product_id: str
    text: tuple[str, str, str]  # title, brand, description
    picture: Pixels | None


def families_of(products: list[Product], batch: int = 7) -> dict[str, int]:
    """Return the family of each product by its id."""
    finder = FamilyFinder()
    for at in range(0, len(products), batch):
        some = products[at : at + batch]
        blank = np.zeros((*SIZE, 3), dtype=np.uint8)
        pixels = np.stack([blank if p.picture is None else p.picture for p in some])
        present = np.array([p.picture is not None for p in some])
        finder.add([p.product_id for p in some], [p.text for p in some], pixels, present)
    return dict(zip([p.product_id for p in products], finder.families().tolist(), strict=True))


def drawing(rng: random.Random) -> Pixels:
    """Draw a thing of random shape, position and colours on a white background."""
    image = Image.new("RGB", (SIZE[1], SIZE[0]), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = rng.randint(4, 40), rng.randint(4, 50)
        box = (x, y, x + rng.randint(8, 20), y + rng.randint(8, 26))
        colour = tuple(rng.randint(0, 220) for _ in range(3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=colour)
    return np.asarray(image)


def as_jpeg(picture: Pixels, quality: int = 60) -> Pixels:
    """Return the picture, encoded again."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=quality)
    return np.asarray(Image.open(data))


def recoloured(picture: Pixels) -> Pixels:
    """Return the same thing in another colour."""
    other = picture.copy()
    thing = picture.min(axis=2) < 250
    other[thing] = 255 - picture[thing]
    return other


def sentence(rng: random.Random, words: int = 45) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def changed(text: str, rng: random.Random, words: int = 2) -> str:
    """Return the text with some words replaced. Each replaced word changes at most three shingles."""
    parts = text.split()
    for at in rng.sample(range(len(parts)), words):
        parts[at] = "anders"
    return " ".join(parts)


def catalog(seed: int, products: int = 60) -> list[Product]:
    """Return distinct products, most of them with a near-duplicate of some kind."""
    rng = random.Random(seed)
    found = []
    for number in range(products):
        one = Product(f"p{number}", (f"Shirt {number}", f"Brand {number % 5}", sentence(rng)), drawing(rng))
        elsewhere = (sentence(rng, 6), "Other", sentence(rng))
        twins = [
            replace(one, text=elsewhere, picture=as_jpeg(one.picture)),
            replace(one, picture=recoloured(one.picture)),
            replace(one, text=(*one.text[:2], changed(one.text[2], rng)), picture=drawing(rng)),
            replace(one, text=(*one.text[:2], f"{one.text[2]} red"), picture=None),
        ]
        found += [one, replace(twins[number % 5], product_id=f"twin{number}")] if number % 5 < 4 else [one]
    return found


def words_of(text: tuple[str, str, str]) -> list[str]:
    """Return the compared words according to the documented rule, without the code under test."""
    description = re.findall(r"\w+", text[2].lower())
    words = description if len("".join(description)) >= 20 else re.findall(r"\w+", text[0].lower())
    return [word for word in words if word not in COLOURS]


def jaccard(one: tuple[str, str, str], other: tuple[str, str, str]) -> float:
    a, b = ({tuple(w[i : i + 3]) for i in range(max(1, len(w) - 2))} for w in map(words_of, (one, other)))
    return len(a & b) / len(a | b)


def near_pictures(one: Pixels | None, other: Pixels | None) -> bool:
    """Compare block means of 4 x 4 pixels, in plain numpy."""
    if one is None or other is None:
        return False
    a, b = (p.reshape(20, 4, 16, 4, 3).astype(float).mean(axis=(1, 3)).round() for p in (one, other))
    if any(np.ptp(p.reshape(-1, 3), axis=0).max() <= 4 for p in (a, b)):
        return False  # plain: shows no product
    thing = np.minimum(a, b) < 240
    return bool(np.abs(a - b).mean() <= 3 and (not thing.any() or np.abs(a - b)[thing].mean() <= 10))


def near_pairs(products: list[Product]) -> list[tuple[str, str]]:
    """Return all near-duplicate pairs, by brute force."""
    return [
        (one.product_id, other.product_id)
        for one, other in itertools.combinations(products, 2)
        if (one.text[1].lower() == other.text[1].lower() and jaccard(one.text, other.text) >= 0.7)
        or near_pictures(one.picture, other.picture)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_families_are_what_brute_force_links(seed: int) -> None:
    """No near-duplicates are in different families, and nothing else is in the same one."""
    products = catalog(seed)
    families = families_of(products)
    component = {p.product_id: p.product_id for p in products}
    pairs = near_pairs(products)
    for one, other in pairs:
        old, new = component[one], component[other]
        component = {product: new if root == old else root for product, root in component.items()}
    assert len(pairs) >= 48
    for one, other in itertools.combinations(families, 2):
        assert (families[one] == families[other]) == (component[one] == component[other]), (one, other)


@pytest.mark.parametrize("seed", range(3))
def test_planted_twins_stay_together_and_different_products_apart(seed: int) -> None:
    products = catalog(seed)
    families = families_of(products)
    own = {families[f"p{n}"] for n in range(60)}
    assert len(own) == 60
    for name in families:
        if name.startswith("twin"):
            assert families[name] == families[name.replace("twin", "p")]


def test_families_do_not_depend_on_order_or_batches() -> None:
    products = catalog(9)
    families = families_of(products)
    for seed, batch in ((0, 1), (1, 50), (2, 1000)):
        mixed = random.Random(seed).sample(products, len(products))
        assert families_of(mixed, batch) == families
    # Fixed values, since a changed number would move products to other sides.
    assert sorted(families.values())[0] == -9144896674189277946


def test_a_family_is_linked_through_others() -> None:
    """A product linked to one by text and to another by picture joins all three, though the other two share nothing."""
    rng = random.Random(1)
    text, picture = ("Shirt", "Brand", sentence(rng)), drawing(rng)
    ends = [Product("text", text, None), Product("picture", ("Cap", "Else", sentence(rng)), picture)]
    assert len(set(families_of(ends).values())) == 2
    assert len(set(families_of([*ends, Product("both", text, picture)]).values())) == 1


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        # Colours aside; the description says nothing, so the title counts.
        (("Turtle Men Blue Shirt", "Turtle", "NA"), ("Turtle Men OFF-White Shirt", "turtle ", ""), True),
        (("Turtle Men Blue Shirt", "Turtle", "NA"), ("Turtle Men Blue Trousers", "Turtle", "NA"), False),
        (("a", "Turtle", "Soft cotton for warm summer days"), ("b", "Turtle", "soft COTTON, for warm summer days."), True),
        (("a", "Turtle", "Soft cotton for warm summer days"), ("a", "Hare", "Soft cotton for warm summer days"), False),
        (("a", "Red Tape", "Soft cotton for warm summer days"), ("a", "Tape", "Soft cotton for warm summer days"), False),
        (("", "Turtle", ""), ("", "Turtle", ""), False),  # neither text says anything
        (("Red", "Turtle", ""), ("Blue", "Turtle", "NA"), False),
    ],
)  # fmt: skip
def test_texts(one: tuple[str, str, str], other: tuple[str, str, str], together: bool) -> None:
    families = families_of([Product("a", one, None), Product("b", other, None)])
    assert (families["a"] == families["b"]) is together


def test_only_the_words_that_tell_are_compared() -> None:
    assert compared_words("Blue Shirt", "A navy-blue shirt of fine Cotton!") == ["a", "shirt", "of", "fine", "cotton"]
    assert compared_words("Blue Shirt", "Style Note") == ["shirt"]


def test_many_near_same_texts_of_a_brand_are_one_group() -> None:
    """Texts of a template differ by one word: of thousands of pairs, none is needed once all are linked."""
    rng = random.Random(0)
    template = sentence(rng, 60)
    texts = NearTexts()
    for start in range(0, 3000, 500):
        texts.add([("", "Brand", f"{template} number {n}") for n in range(start, start + 500)])
    assert len(set(texts.groups().tolist())) == 1


@pytest.mark.parametrize("colour", [(250, 250, 250), (255, 255, 255), (200, 210, 220)])
def test_plain_pictures_link_nothing(colour: tuple[int, int, int]) -> None:
    """Many products of a shop may have no picture, or one of a single colour."""
    plain = np.full((*SIZE, 3), colour, dtype=np.uint8)
    products = [
        Product(f"p{n}", (f"thing {n}", "", ""), picture) for n, picture in enumerate([plain, plain, None, None])
    ]
    assert len(set(families_of(products).values())) == 4


def test_a_faint_product_on_white_is_no_plain_picture() -> None:
    """A faint picture, as bright as the background, is near-duplicate to a slightly darker one."""
    faint = np.full((*SIZE, 3), 255, dtype=np.uint8)
    faint[20:60, 16:48] = 241
    darker = faint.copy()
    darker[20:60, 16:48] = 236
    assert faint.min() >= 240 > darker.min()
    products = [Product("a", ("thing", "", ""), faint), Product("b", ("other", "", ""), darker)]
    assert near_pairs(products)
    assert len(set(families_of(products).values())) == 1


def test_a_small_thing_on_a_large_ground_must_be_the_same_thing() -> None:
    """Two watches on white differ little in the mean over the whole picture."""
    one = np.full((1, 20, 16, 3), 255, dtype=np.uint8)
    one[0, 8:10, 7:9] = 60
    other = one.copy()
    other[0, 8:10, 7:9] = 120
    assert np.abs(one.astype(int) - other).mean() <= 3
    assert not near_duplicate(one, other)[0]
    other[0, 8:10, 7:9] = 70
    assert near_duplicate(one, other)[0]


@pytest.mark.parametrize(("height", "width"), [(80, 64), (32, 24), (224, 224), (20, 16), (8, 9)])
def test_thumbnails_are_means_of_areas(height: int, width: int) -> None:
    pixels = np.random.default_rng(height).integers(0, 256, size=(3, height, width, 3), dtype=np.uint8)
    # Each pixel is split into 20 x 16 equal ones, so that every area has a whole number of them.
    fine = pixels.repeat(20, axis=1).repeat(16, axis=2).astype(float)
    means = fine.reshape(3, 20, height, 16, width, 3).mean(axis=(2, 4))
    assert np.abs(thumbnails(pixels) - means).max() <= 0.5 + 1e-9


def test_no_near_same_picture_is_missed() -> None:
    """A comparison with all pairs; noise puts pictures on both sides of the bounds."""
    rng = np.random.default_rng(0)
    bases = [drawing(random.Random(n)).astype(np.int16) for n in range(6)]
    noisy = [
        np.clip(base + rng.integers(-30, 31, size=(20, 16, 3)).repeat(4, 0).repeat(4, 1) * strength, 0, 255)
        for base in bases
        for strength in np.linspace(0, 0.6, 12)
    ]
    pixels = np.stack(noisy).astype(np.uint8)
    pictures = NearPictures()
    numbers = pictures.add(pixels, np.ones(len(pixels), dtype=np.bool_))
    groups = pictures.groups()[numbers]
    near = [(a, b) for a, b in itertools.combinations(range(len(pixels)), 2) if near_pictures(pixels[a], pixels[b])]
    assert len(near) > 60
    assert all(groups[a] == groups[b] for a, b in near)
    assert len(set(groups.tolist())) > len(bases)  # the noisiest are separate
