"""Search for products with missing pictures, in Spark's Python workers. Imports only what the search needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from cma_clip_core.content import pictures
from jobs.lake import storage
from jobs.lake.layout import MISSING
from jobs.lake.storage import AnyPath
from schemas import tables


class MissingPictureFinder:
    """A function that selects the products with missing pictures. Spark sends it to its workers."""

    def __init__(self, roots: Sequence[AnyPath]) -> None:
        self._names = tuple(str(root) for root in roots)  # names, because connections cannot be sent to the workers

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the `product_id` of each row whose `picture` is unreadable. Raises OSError if a disk or store fails."""
        roots = [storage.as_path(name) for name in self._names]
        for batch in batches:
            uris = batch.column("picture").to_pylist()
            # Import could not find pictures with this prefix, so they are not looked for again.
            candidates = [None if uri.startswith(f"{MISSING}/") else uri for uri in uris]
            # A picture that is too large exists, and will not become usable by waiting.
            missing = [
                uri is None or (error is not None and error.status != "too_large")
                for uri, error in zip(candidates, pictures.check_all(candidates, roots), strict=True)
            ]
            yield batch.filter(pa.array(missing, pa.bool_())).select(tables.REMOVED.names)
