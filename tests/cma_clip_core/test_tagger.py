"""Inputs of the library, and how it reads them: `pytest tests/cma_clip_core/test_tagger.py`"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from cma_clip_core.engine import Engine
from cma_clip_core.errors import DataError
from cma_clip_core.model.cma_clip import CmaClip
from cma_clip_core.tagger import Tagger
from schemas.taxonomy import Taxonomy
from tests.cma_clip_core import drawn

PICTURE = Image.new("RGB", (24, 32), "white")
EMPTY_CELLS = (None, float("nan"), np.float32("nan"), pandas.NA, pandas.NaT)


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    torch.manual_seed(0)
    config, document = drawn.config(), drawn.taxonomy().model_dump(mode="json")
    document["attributes"][0] |= {"ignore": ["NA"]}
    document["attributes"][0]["values"] = [{"name": "Shirt", "aliases": ["Shirts", "Top"]}, "Watch"]
    taxonomy = Taxonomy.model_validate(document)
    return Tagger(Engine(CmaClip(config, taxonomy), config, taxonomy, {}, torch.device("cpu")))


def said(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["modality"], row["image_status"]) for row in found]


@pytest.mark.parametrize("image", [*EMPTY_CELLS, "", " "])
def test_an_empty_cell_is_no_picture(tagger: Tagger, image: object) -> None:
    found = tagger.tag([{"title": "Shirt", "image": image}, {"image": PICTURE}])
    assert said(found) == [("text", "absent"), ("image", "ok")]


@pytest.mark.parametrize("text", [*EMPTY_CELLS, ""])
def test_an_empty_cell_is_no_text(tagger: Tagger, text: object) -> None:
    found = tagger.tag([{"title": text, "brand": text, "description": text, "image": PICTURE}, {"title": "Shirt"}])
    assert said(found) == [("image", "ok"), ("text", "absent")]


def test_a_path_that_cannot_be_read_loses_its_picture_alone(
    tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PICTURE.save(tmp_path / "there.png")
    read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name in ("locked.png", "failing.png"):
            raise {"locked.png": PermissionError, "failing.png": OSError}[path.name](5, "cannot be read", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)  # root may read everything
    paths = ["nowhere.png", "", "a\0b.png", "\ud800.png", "x" * 5000, "there.png/x.png", "locked.png", "failing.png"]
    images = [tmp_path / path for path in paths]
    found = tagger.tag([*({"title": "Shirt", "image": image} for image in images), {"image": tmp_path / "there.png"}])
    assert said(found) == [("text", "missing")] * len(images) + [("image", "ok")]
    assert said(tagger.tag([{"title": "Shirt", "image": str(image)} for image in images])) == said(found)[:-1]


def test_an_opened_image_that_cannot_be_decoded_is_broken(tagger: Tagger) -> None:
    file = io.BytesIO()
    Image.effect_noise((200, 200), 50).save(file, format="PNG")
    cut = Image.open(io.BytesIO(file.getvalue()[:2000]))  # reads the header alone
    assert said(tagger.tag([{"title": "Shirt", "image": cut}, {"image": PICTURE}])) == [
        ("text", "broken"), ("image", "ok")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("product", "words"),
    [
        ({"image": 3}, "product 1: its image is of type int; give a path, the bytes"),
        ({"image": ["a.png"]}, "product 1: its image is of type list"),
        ({"title": ["a"]}, "product 1: its title is of type list; give a text"),
        ({"brand": 3.5}, "product 1: its brand is of type float"),
        ({"description": b"soft"}, "product 1: its description is of type bytes"),
        (["title"], "product 1: it is of type list, not a mapping"),
        ({3: "a", "titel": "b"}, "product 1: unknown fields"),
    ],
)
def test_another_type_is_named_with_its_product(tagger: Tagger, product: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        tagger.tag([{"title": "Shirt"}, product])


@pytest.mark.parametrize("word", ["Shirt", " shirt", "TOP", "shirts"])
@pytest.mark.parametrize("several", [False, True])
def test_a_known_article_type_decides_what_applies(tagger: Tagger, word: str, several: bool) -> None:
    """Names and aliases are accepted in any case, alone or in a list, as in the pipeline."""
    given = {"article_type": [None, word] if several else word}
    for kind, expected in ((given, {"pattern", "material"}), ({"article_type": ("Watch",)}, set())):
        (found,) = tagger.tag([{"title": "fine Watch", "labels": kind}])
        assert {p["attribute"] for p in found["predictions"]} == {"article_type", "colour"} | expected


@pytest.mark.parametrize(
    "labels", [*EMPTY_CELLS, {}, {"article_type": None}, {"article_type": []}, {"article_type": "na"}]
)
def test_labels_that_say_nothing_decide_nothing(tagger: Tagger, labels: object) -> None:
    given, plain = tagger.tag([{"title": "fine Watch", "labels": labels}, {"title": "fine Watch"}])
    assert [p["attribute"] for p in given["predictions"]] == [p["attribute"] for p in plain["predictions"]]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            {"articletype": "Shirt"},
            "product 1: its labels name 'articletype', which is not an attribute .* article_type, colour",
        ),
        ({"article_type": "Hat"}, "product 1: its label article_type = 'Hat' is not in this taxonomy"),
        ({"colour": ["Red", "Infrared"]}, r"product 1: its label colour = 'Red\|Infrared'"),
        ({"colour": 3}, "product 1: its label colour is of type int; give a text, or a list of texts"),
        ({"colour": ["Red", 3]}, "product 1: its label colour is of type int"),
        ({"colour": b"Red"}, "product 1: its label colour is of type bytes"),
        ({"colour": {"Red": 1}}, "product 1: its label colour is of type dict"),
        (["article_type"], "product 1: its labels are of type list, not a mapping"),
    ],
)
def test_labels_that_the_taxonomy_does_not_know_are_an_error(tagger: Tagger, labels: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        tagger.tag([{"title": "Shirt"}, {"title": "Shirt", "labels": labels}])
