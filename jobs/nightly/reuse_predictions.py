"""Predictions that other runs of the same day have made of the same examples, by the same model: not made again.

A day is planned anew where another run was published meanwhile, or where it is tagged again with other choices; the model
would say the same of the same example.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from cma_clip_core.content.paths import AnyPath, open_parquet
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.nightly.shards import Wanted, finished, wanted_of
from schemas.documents import Plan
from schemas.tables import PREDICTIONS


def take_known(lake: Lake, plan: Plan, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """Yield the predictions of wanted products that there are, and take these products out of `wanted`.

    A folder of which nothing is wanted any more is taken out too.

    Args:
        lake: where.
        plan: of the run that wants them.
        wanted: its products, by the folder of their examples; those that are found are removed.
    """
    found = storage.children(lake.predictions(plan.run_id).parent, f"run={plan.ds}-")
    runs = [folder.name.removeprefix("run=") for folder in found]
    if plan.retag:  # a person wants the model to look again: once, not once more for each other run
        runs = [run_id for run_id in runs if run_id == plan.replaces]
    for run_id in sorted(runs):
        other = lake.find_plan(run_id) if run_id != plan.run_id else None
        if other is None or other.model_version != plan.model_version:
            continue
        for shard in other.shards:
            path = lake.prediction_file(run_id, shard.id)
            if not wanted:
                return
            if finished(path, other, shard):
                yield from _take(path, wanted, wanted_of(lake, other, shard))


def _take(path: AnyPath, wanted: Wanted, there: Wanted) -> Iterator[pa.RecordBatch]:
    known = {product: (folder, hash_) for folder, products in there.items() for product, hash_ in products.items()}

    def is_known(product: str, source: AnyPath, source_hash: str) -> bool:
        folder, hash_ = known.get(product, (None, ""))
        # The run that made an example names its own folder, a later one the shard in it.
        return (
            folder is not None
            and hash_ == source_hash
            and (storage.below(source, folder) or storage.below(folder, source))
        )

    found = {
        product
        for source, products in wanted.items()
        for product, source_hash in products.items()
        if is_known(product, source, source_hash)
    }
    if not found:
        return
    with open_parquet(path) as file:
        for batch in file.iter_batches(columns=PREDICTIONS.names):
            rows = batch.filter(pc.is_in(batch["product_id"], value_set=pa.array(found)))
            if rows.num_rows:
                yield rows.cast(PREDICTIONS)
    for source, products in list(wanted.items()):
        for product in found & products.keys():
            del products[product]
        if not products:
            del wanted[source]
