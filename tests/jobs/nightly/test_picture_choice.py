"""The choice among a product's several pictures: `pytest tests/jobs/nightly/test_picture_choice.py`. It needs no Spark."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cma_clip_core.content.pictures import PictureSpec
from jobs.errors import JobError
from jobs.nightly.preprocess import ExampleMaker
from schemas.tables import LABELS
from schemas.taxonomy import load_taxonomy


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def stored(folder: Path, data: bytes) -> str:
    """Write a picture as import does, and return its URI."""
    digest = hashlib.sha1(data).hexdigest()
    path = folder / digest[:2] / f"{digest}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return f"{digest[:2]}/{digest}.png"


def examples(folder: Path, *products: Sequence[str] | None) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the examples of products with these pictures, and the numbers of pictures by status."""
    count = len(products)
    firsts = [uris[0] if uris else None for uris in products]
    versions = [
        None if uri is None or uri.startswith("missing/") else uri[3:].partition(".")[0] if "/" in uri else None
        for uri in firsts
    ]
    columns = {
        "product_id": [str(n) for n in range(count)], "source_hash": ["x"] * count, "title": ["t"] * count,
        "brand": [""] * count, "description": [""] * count, "image_uri": pa.array(firsts, pa.string()),
        "image_version": pa.array(versions, pa.string()), "labels": pa.array([[]] * count, LABELS),
        "image_uris": pa.array([uris and (list(uris) if len(uris) > 1 else None) for uris in products], pa.list_(pa.string())),
    }  # fmt: skip
    statuses: dict[str, int] = {}
    make = ExampleMaker(PictureSpec(8, 8), (folder,), load_taxonomy("sample"))
    return [row for b in make(iter([pa.RecordBatch.from_pydict(columns)]), statuses) for row in b.to_pylist()], statuses


def colour(example: dict[str, Any]) -> tuple[int, ...] | None:
    return None if example["image"] is None else tuple(np.frombuffer(example["image"], np.uint8)[:3].tolist())


def test_the_first_picture_that_can_be_decoded_is_used_and_named(tmp_path: Path) -> None:
    red, blue, page = stored(tmp_path, png("red")), stored(tmp_path, png("blue")), stored(tmp_path, b"<html>no</html>")
    rows, statuses = examples(
        tmp_path, [red, blue], [page, blue, red], ["missing/ab/a.jpg", page, red], [red], None, [page, page], [page]
    )
    red_pixel, blue_pixel = (255, 0, 0), (0, 0, 255)
    assert [(row["image_used"], colour(row)) for row in rows] == [
        (red, red_pixel), (blue, blue_pixel), (red, red_pixel), (red, red_pixel), (None, None), (None, None), (None, None),
    ]  # fmt: skip
    assert [row["image_status"] for row in rows] == ["ok", "ok", "ok", "ok", "absent", "broken", "broken"]
    assert statuses["ok"] == 4
    assert rows[5]["image_detail"] == rows[6]["image_detail"]


def test_products_of_one_batch_do_not_get_each_others_pixels(tmp_path: Path) -> None:
    colours = ["red", "blue", "lime", "black"]
    uris = {name: stored(tmp_path, png(name)) for name in colours}
    broken = stored(tmp_path, b"<html>no</html>")
    products = [[broken, uris[name]] if n % 2 else [broken, broken] for n, name in enumerate(colours * 20)]
    rows, _ = examples(tmp_path, *products)
    assert [row["image_used"] for row in rows] == [each[1] if n % 2 else None for n, each in enumerate(products)]
    assert {row["image_used"]: colour(row) for row in rows if row["image"]} == {
        uris["blue"]: (0, 0, 255),
        uris["black"]: (0, 0, 0),
    }


def test_a_further_picture_that_differs_from_the_imported_one_is_refused(tmp_path: Path) -> None:
    page, red = stored(tmp_path, b"<html>no</html>"), stored(tmp_path, png("red"))
    (tmp_path / red).write_bytes(png("blue"))
    with pytest.raises(JobError, match="it is not the picture that was imported"):
        examples(tmp_path, [page, red])
