"""Golden test of a record's example and of the model's input from it, to the token and the pixel.

Trained models rely on these values, so a change needs new models. `make test TESTS=tests/jobs/nightly/test_golden.py`.
"""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from cma_clip_core.content.pictures import PictureSpec
from cma_clip_core.engine import Engine
from cma_clip_core.inputs.batches import prepare
from cma_clip_core.model.cma_clip import CmaClip
from cma_clip_core.model.tokenizer import Tokenizer
from cma_clip_core.tagger import Tagger
from jobs.nightly.preprocess import ExampleMaker
from schemas.tables import LABELS
from schemas.taxonomy import load_taxonomy
from tests.cma_clip_core import drawn

RECORD = {
    "title": " Turtle &amp; Co  Red <b>Shirt</b>",
    "brand": "NA",
    "description": "Cotton\u200b and wool",
}
# <start> turtle & co red shirt . cotton and wool <end>, in open_clip's vocabulary
TOKENS = [49406, 10912, 261, 1320, 736, 2523, 269, 7050, 537, 13283, 49407]


def picture() -> tuple[np.ndarray[Any, np.dtype[np.uint8]], bytes]:
    """Return pixels in the model's picture size, and a lossless picture file of them."""
    pixels = np.arange(32 * 24 * 3, dtype=np.uint32).reshape(32, 24, 3) * 7 % 256
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return pixels.astype(np.uint8), file.getvalue()


def test_a_record_to_the_token_and_the_pixel(tmp_path: Path) -> None:
    pixels, file = picture()
    (tmp_path / "1.png").write_bytes(file)
    columns = {"product_id": ["1"], "source_hash": ["x"], **{name: [text] for name, text in RECORD.items()}}
    labels = pa.array([[("kind", ["T-shirt"]), ("colour", [" bLUE "])]], LABELS)
    batch = pa.RecordBatch.from_pydict(
        columns
        | {
            "image_uri": ["1.png"],
            "image_version": pa.array([None], pa.string()),
            "image_uris": pa.array([None], pa.list_(pa.string())),
            "labels": labels,
        }
    )
    (example,) = ExampleMaker(PictureSpec(32, 24), (tmp_path,), load_taxonomy("sample"))(iter([batch]), {})
    assert example.to_pylist() == [
        {
            "product_id": "1", "source_hash": "x", "title": "Turtle & Co Red Shirt", "brand": "",
            "description": "Cotton and wool", "image": pixels.tobytes(), "image_status": "ok", "image_detail": None,
            "image_used": "1.png", "labels": [("article_type", ["T-shirt"]), ("colour", ["Blue"])], "unknown_labels": [],
        }
    ]  # fmt: skip

    config = drawn.config()
    prepared = prepare(example, config, Tokenizer(config))
    assert prepared.texts == [TOKENS]
    np.testing.assert_array_equal(prepared.pixels[0], pixels)

    # The library predicts from the raw record the same as the pipeline from the example.
    torch.manual_seed(0)
    engine = Engine(CmaClip(config, drawn.taxonomy()), config, drawn.taxonomy(), {}, torch.device("cpu"))
    (predicted,) = engine.predict(
        [example.drop_columns(["labels"]).append_column("labels", pa.array([[]], LABELS))], datetime.now(UTC)
    )
    (tagged,) = Tagger(engine).tag([{**RECORD, "image": file}])
    assert tagged["predictions"] == predicted.to_pylist()[0]["predictions"]
    assert tagged["predictions"]
