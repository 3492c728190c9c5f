"""Tagging of a few products from Python with a saved model, by the same code as the nightly pipeline."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
from PIL import ImageOps
from PIL.Image import Image

from cma_clip_core import registry
from cma_clip_core.catalog.label_mentions import TEXT_FIELDS
from cma_clip_core.content.pictures import PictureError, PictureSpec, decode
from cma_clip_core.content.product_text import clean
from cma_clip_core.engine import Engine
from cma_clip_core.errors import DataError
from cma_clip_core.inputs.devices import resolve_device
from schemas.tables import EXAMPLES, ImageStatus

FIELDS = frozenset({*TEXT_FIELDS, "image", "labels"})


def load_engine(folder: str | Path, device: str = "auto", batch_size: int = 256) -> Engine:
    """Return the engine of a saved model version.

    Raises:
        ModelError: the folder is not a model version, or its files are broken.
        DeviceError: cuda was requested and is absent.
    """
    folder = Path(folder)
    resolved = resolve_device(device)
    methods = registry.read_methods(folder)
    return Engine(
        registry.load_model(folder),
        registry.read_config(folder),
        registry.read_taxonomy(folder),
        registry.read_thresholds(folder),
        resolved,
        batch_size,
        None if methods is None else {name: method.name for name, method in methods.attributes.items()},
    )


def load(folder: str | Path, device: str = "auto") -> Tagger:
    """Return the tagger of a saved model version. Raises as `load_engine`."""
    return Tagger(load_engine(folder, device))


class Tagger:
    """A saved model that predicts the attributes of products given as Python objects."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def tag(self, products: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the predictions for each product.

        Args:
            products: mappings with any of these fields. A field that is None, '' or one of pandas' missing values is absent.
                title, brand, description: text.
                image: a path, the bytes of a picture file, or a PIL image.
                labels: attribute name to one or more known values, by name or alias. A known article type decides which
                    attributes apply.

        Returns:
            for each product: modality (both, text, image or none), image_status (ok, absent, or why it is unusable),
            and predictions: a list of attribute, value, confidence, accepted, text_weight, image_weight,
            method.

        Raises:
            DataError: a product has an unknown field, a field of the wrong type, or a label that the taxonomy does not
                list. The message gives the product's position, counted from 0.
        """
        if not products:
            return []
        examples = pa.RecordBatch.from_pylist(
            [self._example(str(i), product) for i, product in enumerate(products)], schema=EXAMPLES
        )
        (rows,) = self.engine.predict([examples], datetime.now(UTC))
        return [{name: row[name] for name in ("modality", "image_status", "predictions")} for row in rows.to_pylist()]

    def _example(self, name: str, product: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(product, Mapping):
            raise DataError(f"product {name}: it is {_kind(product)}, not a mapping of fields to values")
        if unknown := set(product) - FIELDS:
            raise DataError(f"product {name}: unknown fields {sorted(unknown, key=str)}; known are {sorted(FIELDS)}")
        pixels, status, detail = self._pixels(name, product.get("image"))
        return {
            "product_id": name,
            "source_hash": "",
            **{field: clean(_text(name, field, product.get(field))) for field in TEXT_FIELDS},
            "image": pixels,
            "image_status": status,
            "image_detail": detail,
            "labels": list(self._labels(name, product.get("labels")).items()),
            "unknown_labels": [],
        }

    def _labels(self, name: str, given: Any) -> dict[str, list[str]]:
        """Return a product's labels in the taxonomy's words, as `preprocess` does, but raise where it would only report."""
        if _is_missing(given):
            return {}
        if not isinstance(given, Mapping):
            raise DataError(
                f"product {name}: its labels are {_kind(given)}, not a mapping of attribute names to values"
            )
        taxonomy = self.engine.taxonomy
        labels: dict[str, list[str]] = {}
        for attribute, values in given.items():
            if attribute not in taxonomy.names:
                raise DataError(
                    f"product {name}: its labels name {attribute!r}, which is not an attribute of this taxonomy; it has "
                    f"{', '.join(taxonomy.names)}"
                )
            raw = _words(name, attribute, values)
            known, unknown = taxonomy.normalise({taxonomy[attribute].field: raw})
            if attribute in unknown:
                raise DataError(
                    f"product {name}: its label {attribute} = {unknown[attribute][0]!r} is not in this taxonomy, by name "
                    "or alias"
                )
            if attribute in known:  # other attributes may be read from the same field
                labels[attribute] = known[attribute]
        return labels

    def _pixels(self, name: str, image: Any) -> tuple[bytes | None, ImageStatus, str | None]:
        picture = self.engine.config.picture
        if _is_missing(image) or (isinstance(image, str) and not image.strip()):
            return None, "absent", None
        try:
            return decode(_content(name, image), PictureSpec(picture.height, picture.width)).tobytes(), "ok", None
        except PictureError as error:
            return None, error.status, error.detail


def _is_missing(value: Any) -> bool:
    """Return whether `value` is missing: None, or what pandas puts in an empty cell (NaN, NA, NaT)."""
    return pandas.api.types.is_scalar(value) and bool(pandas.isna(value))


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"


def _text(name: str, field: str, value: Any) -> str | None:
    """Return a product's text, or None if it has none. Raises DataError if it is of another type."""
    if _is_missing(value):
        return None
    if not isinstance(value, str):
        raise DataError(f"product {name}: its {field} is {_kind(value)}; give a text, or None where there is none")
    return value


def _words(name: str, attribute: str, values: Any) -> list[str]:
    """Return the values of a label. Raises DataError if they are neither a text nor a list of texts."""
    if _is_missing(values):
        return []
    several = [values] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    words = [value for value in several if not _is_missing(value)]
    wrong = values if isinstance(values, bytes | Mapping) else next((v for v in words if not isinstance(v, str)), None)
    if wrong is not None:
        raise DataError(f"product {name}: its label {attribute} is {_kind(wrong)}; give a text, or a list of texts")
    return words


def _content(name: str, image: Any) -> bytes:
    """Return the bytes of the picture file that `image` holds or is the path of.

    Raises:
        PictureError: missing (nothing can be read at this path), or broken (Pillow cannot decode the image).
        DataError: it is of another type.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image):
        try:
            return _as_file(image)
        except Exception as error:  # an image that is not yet decoded raises nearly anything, as `decode` does
            raise PictureError("broken", f"{type(error).__name__}: {error}") from error
    if not isinstance(image, str | os.PathLike):
        raise DataError(
            f"product {name}: its image is {_kind(image)}; give a path, the bytes of a picture file, a PIL image, or None "
            "where there is none"
        )
    try:
        return Path(os.fsdecode(image)).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        raise PictureError("missing", str(error)) from error


def _as_file(image: Image) -> bytes:
    """Return a PIL image as a PNG file. PNG is lossless, so every image can take the one path of picture files."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode not in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"):
        upright = upright.convert("RGB")  # PNG has no CMYK
    buffer = io.BytesIO()
    upright.save(buffer, format="PNG")
    return buffer.getvalue()
