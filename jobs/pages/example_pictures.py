"""Thumbnails of the few products that a page shows, read from example files."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from cma_clip_core.content.paths import AnyPath, open_parquet

_BATCH = 64  # pictures in memory at a time
_SIDE, _QUALITY = 176, 82


@dataclass(frozen=True, slots=True, order=True)
class ExampleLocation:
    """The file and row of an example."""

    file: AnyPath
    row: int


def thumbnails(locations: Mapping[str, ExampleLocation], height: int, width: int) -> dict[str, str]:
    """Return each product's picture as a ``data:`` URI of a small JPEG."""
    products: dict[AnyPath, dict[int, str]] = {}
    for product, location in locations.items():
        products.setdefault(location.file, {})[location.row] = product
    return {
        product: _jpeg(pixels, height, width)
        for file, rows in products.items()
        for product, pixels in _pixels(file, rows).items()
    }


def _pixels(file: AnyPath, wanted: Mapping[int, str]) -> dict[str, bytes]:
    """Return the pictures in some rows of a file, reading only what is needed.

    Args:
        file: a Parquet file of examples.
        wanted: row -> product id.

    Returns:
        product id -> its pixels.
    """
    pictures = {}
    with open_parquet(file, memory_map=True) as parquet:
        first = 0
        for group in range(parquet.metadata.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            here = sorted(row - first for row in wanted if first <= row < first + rows)
            start = 0
            batches = parquet.iter_batches(_BATCH, row_groups=[group], columns=["image"])
            while here:
                column = next(batches).column("image")
                while here and here[0] < start + len(column):
                    row = here.pop(0)
                    pixels = column[row - start].as_py()
                    if pixels is not None:
                        pictures[wanted[first + row]] = pixels
                start += len(column)
            first += rows
    return pictures


def _jpeg(pixels: bytes, height: int, width: int) -> str:
    picture = Image.frombytes("RGB", (width, height), pixels)
    picture.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
