"""Tests of labels that texts name: `pytest tests/cma_clip_core/catalog/test_label_mentions.py`."""

from __future__ import annotations

import numpy as np
import pytest

from cma_clip_core.catalog.label_mentions import SpokenFinder, field_bits, words_of
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.model.class_layout import ClassLayout
from schemas.taxonomy import Taxonomy, load_taxonomy

TITLE, BRAND, DESCRIPTION = 1, 2, 4


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    return load_taxonomy("fashion")


def named(taxonomy: Taxonomy, attribute: str, value: str, *texts: str) -> int:
    """Return the fields of (title, brand, description) that name a value."""
    layout = ClassLayout(taxonomy)
    at = layout.slices[layout.position[attribute]].start + taxonomy[attribute].index[value]
    targets = np.zeros((1, layout.classes), dtype=bool)
    targets[0, at] = True
    found = SpokenFinder(taxonomy).find([(*texts, *[""] * (3 - len(texts)))], targets)
    assert not found[~targets].any()
    return int(found[0, at])


@pytest.mark.parametrize(
    ("attribute", "value", "texts", "fields"),
    [
        ("base_colour", "Navy Blue", ("Shirt in NAVY", "", "a blue shirt"), TITLE),  # by its alias Navy
        ("base_colour", "Grey Melange", ("Grey shirt", "", "of a grey, soft melange"), DESCRIPTION),  # all of its words
        ("base_colour", "Red", ("Credit wallet", "Redtape", "bored"), 0),  # only whole words count
        ("base_colour", "Red", ("red-black", "", ""), TITLE),
        ("article_type", "Shirts", ("Men Shirt", "Shirts & Co", "two shirts"), TITLE | BRAND | DESCRIPTION),
        ("article_type", "Dresses", ("A dress", "", ""), 0),  # a plural with more than an s needs an alias
        ("sleeve_length", "Short Sleeves", ("", "", "sleeves, short"), DESCRIPTION),
        ("neck", "V-Neck", ("v neck tee", "", "V-neckline"), TITLE),
    ],
)
def test_fields_that_name_a_value(
    taxonomy: Taxonomy, attribute: str, value: str, texts: tuple[str, ...], fields: int
) -> None:
    assert named(taxonomy, attribute, value, *texts) == fields


def test_words_and_bits() -> None:
    assert words_of("Boss GLASS_es—Jeans, as 3/4") == {"boss", "glass", "es", "jean", "as", "3", "4"}
    assert field_bits(("description", "title", "title")) == TITLE | DESCRIPTION
    assert field_bits(()) == 0


def test_a_text_without_names_says_all_else(taxonomy: Taxonomy) -> None:
    layout = ClassLayout(taxonomy)
    texts = [
        ("Levis Men NAVY Blue Shirts", "Navy & Co", "A shirt of blue denim; short sleeves."),
        ("Red shirt", "Red!", None),
        ("Red shirt", "", ""),
    ]
    chosen = np.zeros((3, layout.classes), dtype=bool)
    for row, attribute, value in (
        (0, "base_colour", "Navy Blue"),
        (0, "sleeve_length", "Short Sleeves"),
        (1, "base_colour", "Red"),
    ):
        chosen[row, layout.slices[layout.position[attribute]].start + taxonomy[attribute].index[value]] = True
    finder = SpokenFinder(taxonomy)
    found = finder.leave_out(texts, chosen)
    # The word blue stays in the description, which names neither Navy Blue nor Navy.
    assert found == [
        ("Levis Men Shirts", "& Co", "A shirt of blue denim; ."),
        ("shirt", "", ""),
        ("Red shirt", "", ""),
    ]
    assert finder.find(texts[:1], chosen[:1]).any()
    assert not finder.find(found, chosen).any()


def test_silent_depends_on_the_fields_that_are_read(taxonomy: Taxonomy) -> None:
    empty = Predictions.empty(taxonomy["fit"])
    predictions = Predictions(
        taxonomy["fit"], np.array(["a", "b"], dtype=object), np.array([1, 2]), np.zeros((2, 4), np.float32),
        np.eye(4, dtype=bool)[:2], np.array([[TITLE, 0, 0, 0], [0, DESCRIPTION, 0, 0]], np.uint8),
        np.zeros((2, 2), np.float32),
    )  # fmt: skip
    assert predictions.silent(("title",)).any(axis=1).tolist() == [False, True]
    assert predictions.silent(("title", "description")).any(axis=1).tolist() == [False, False]
    assert len(empty) == 0
    assert len(predictions.take(np.array([True, False]))) == 1
    assert np.allclose(predictions.probabilities(2.0), 0.25)
