"""A saved model as a library: tag a few products from Python, by the same code as the nightly pipeline."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import ImageOps
from PIL.Image import Image

from cma_clip_core import registry
from cma_clip_core.devices import resolve_device
from cma_clip_core.engine import Engine
from cma_clip_core.errors import DataError
from cma_clip_core.pictures import PictureError, PictureSpec, decode
from cma_clip_core.text import clean
from schemas.tables import EXAMPLES

FIELDS = frozenset({"title", "brand", "description", "image", "labels"})


def load_engine(folder: str | Path, device: str = "auto", batch_size: int = 256) -> Engine:
    """Return the engine of a saved model version.

    Raises:
        ModelError: the folder is no model version, or its files are broken.
        DeviceError: cuda was asked for and is absent.
    """
    folder = Path(folder)
    resolved = resolve_device(device)
    return Engine(
        registry.load_model(folder),
        registry.read_config(folder),
        registry.read_taxonomy(folder),
        registry.read_thresholds(folder),
        resolved,
        batch_size,
    )


def load(folder: str | Path, device: str = "auto") -> Tagger:
    """Return the tagger of a saved model version. Raises as `load_engine`."""
    return Tagger(load_engine(folder, device))


class Tagger:
    """Predicts the attributes of products given as Python objects."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def tag(self, products: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return for each product what the model says.

        Args:
            products: each with any of title, brand, description (text), image (path, bytes of a picture file, or a PIL
                image), and labels (attribute name to known values: a known article type decides what applies).

        Returns:
            for each product: modality (both, text, image or none), image_status (ok, absent, or why it is unusable),
            and predictions: a list of attribute, value, confidence, accepted, text_weight, image_weight.

        Raises:
            DataError: a product has a field of another name.
        """
        if not products:
            return []
        examples = pa.RecordBatch.from_pylist(
            [self._example(str(i), product) for i, product in enumerate(products)], schema=EXAMPLES
        )
        (rows,) = self.engine.predict([examples], datetime.now(UTC))
        return [{name: row[name] for name in ("modality", "image_status", "predictions")} for row in rows.to_pylist()]

    def _example(self, name: str, product: Mapping[str, Any]) -> dict[str, Any]:
        if unknown := set(product) - FIELDS:
            raise DataError(f"product {name}: unknown fields {sorted(unknown)}; known are {sorted(FIELDS)}")
        pixels, status, detail = self._pixels(product.get("image"))
        return {
            "product_id": name,
            "source_hash": "",
            **{field: clean(product.get(field)) for field in ("title", "brand", "description")},
            "image": pixels,
            "image_status": status,
            "image_detail": detail,
            "labels": list((product.get("labels") or {}).items()),
            "unknown_labels": [],
        }

    def _pixels(self, image: str | Path | bytes | Image | None) -> tuple[bytes | None, str, str | None]:
        picture = self.engine.config.picture
        if image is None:
            return None, "absent", None
        try:
            if isinstance(image, Image):
                data = _as_file(image)
            else:
                data = image if isinstance(image, bytes) else Path(image).read_bytes()
            return decode(data, PictureSpec(picture.height, picture.width)).tobytes(), "ok", None
        except FileNotFoundError as error:
            return None, "missing", str(error)
        except PictureError as error:
            return None, error.status, error.detail


def _as_file(image: Image) -> bytes:
    """Return a PIL image as a PNG file: lossless, so that there is one way in, a picture file."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode not in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"):
        upright = upright.convert("RGB")  # PNG has no CMYK
    buffer = io.BytesIO()
    upright.save(buffer, format="PNG")
    return buffer.getvalue()
