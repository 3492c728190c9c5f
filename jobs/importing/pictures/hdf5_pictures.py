"""Read pictures from the datasets of an HDF5 file, as in Fashion-Gen: an array of pixels for each record."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import h5py
import numpy as np
from PIL import Image

from cma_clip_core.content.pictures import MAX_BYTES, PictureError

MAGIC: Final = b"\x89HDF\r\n\x1a\n"
_NAME: Final = re.compile(r"(.+)/(\d{1,12})\.png")
_CHANNELS: Final = (1, 3, 4)


class Hdf5Pictures:
    """The pictures in an HDF5 file. The n-th picture of the dataset ``input_image`` has the name ``input_image/n.png``."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self._datasets: dict[str, h5py.Dataset] = {}

        def visit(name: str, node: object) -> None:
            # Data in other files is not read. The shape is B x H x W or B x H x W x C.
            if not isinstance(node, h5py.Dataset) or node.external or node.is_virtual or node.dtype != np.uint8:
                return
            if len(node.shape) == 3 or (len(node.shape) == 4 and node.shape[3] in _CHANNELS):
                self._datasets[name] = node

        file.visititems(visit)

    def read(self, name: str) -> bytes | None:
        """Return the picture of this name as PNG; None if it does not exist.

        Raises:
            PictureError: it is too large, or its bytes are damaged.
        """
        match = _NAME.fullmatch(name)
        dataset = self._datasets.get(match[1]) if match else None
        if match is None or dataset is None or int(match[2]) >= dataset.shape[0]:
            return None
        size = int(np.prod(dataset.shape[1:], dtype=np.int64))
        if size > MAX_BYTES:
            raise PictureError("too_large", f"{size:,} bytes")
        try:
            pixels = np.asarray(dataset[int(match[2])])
        except (OSError, RuntimeError, ValueError) as error:
            raise PictureError("broken", f"{type(error).__name__}: {error}"[:300]) from error
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def names(self) -> Iterator[tuple[str, str]]:
        """Yield each picture's name twice: in the form that `read` takes, and in readable form."""
        for dataset, values in self._datasets.items():
            for index in range(values.shape[0]):
                yield f"{dataset}/{index}.png", f"{dataset}/{index}.png"
