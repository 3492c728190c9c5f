"""Find products whose pictures are not there, in Spark's Python workers, which load nothing else for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from cma_clip_core.content import pictures
from jobs.lake import storage
from jobs.lake.layout import MISSING
from jobs.lake.storage import AnyPath
from schemas import tables


class PictureLooker:
    """Finds the products whose pictures are not there. Sent to Spark's workers."""

    def __init__(self, roots: Sequence[AnyPath]) -> None:
        self._names = tuple(str(root) for root in roots)  # connections are not sent to the workers

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the `product_id` of each row whose `picture` cannot be had. Raises OSError where a disk or a store fails."""
        roots = [storage.as_path(name) for name in self._names]
        for batch in batches:
            uris = batch.column("picture").to_pylist()
            # Import has looked for the others.
            there = [None if uri.startswith(f"{MISSING}/") else uri for uri in uris]
            # One that is too large is there, and will be no smaller tomorrow.
            lacks = [
                uri is None or (error is not None and error.status != "too_large")
                for uri, error in zip(there, pictures.check_all(there, roots), strict=True)
            ]
            yield batch.filter(pa.array(lacks, pa.bool_())).select(tables.REMOVED.names)
