"""Reuse of predictions that other runs of the same day have made for the same examples with the same model.

A day is planned again if another run was published meanwhile, or if it is tagged again with other options. The model
would predict the same for the same example.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from cma_clip_core.content.paths import AnyPath, open_parquet
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.nightly.shards import Wanted, is_finished, wanted_products
from schemas.documents import Plan
from schemas.tables import PREDICTIONS


def take_known(lake: Lake, plan: Plan, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """Yield the existing predictions of wanted products, and remove these products from `wanted`.

    A folder without any remaining wanted product is removed too.

    Args:
        lake: the lake.
        plan: the plan of the run that needs the predictions.
        wanted: the products of the run by the folder of their examples. Products with a prediction are removed from it.
    """
    folders = storage.children(lake.predictions(plan.run_id).parent, f"run={plan.ds}-")
    runs = [folder.name.removeprefix("run=") for folder in folders]
    if plan.retag:  # a person wants new predictions, so only those of the stale run that this one replaces are reused
        runs = [run_id for run_id in runs if run_id == plan.replaces]
    for run_id in sorted(runs):
        other = lake.find_plan(run_id) if run_id != plan.run_id else None
        if other is None or other.model_version != plan.model_version:
            continue
        for shard in other.shards:
            path = lake.prediction_file(run_id, shard.id)
            if not wanted:
                return
            if is_finished(path, other, shard):
                yield from _take(path, wanted, wanted_products(lake, other, shard))


def _take(path: AnyPath, wanted: Wanted, tagged: Wanted) -> Iterator[pa.RecordBatch]:
    """Yield the wanted predictions in the file at `path`, which holds those of `tagged`, and update `wanted`."""
    known = {product: (folder, hash_) for folder, products in tagged.items() for product, hash_ in products.items()}

    def is_known(product: str, source: AnyPath, source_hash: str) -> bool:
        folder, hash_ = known.get(product, (None, ""))
        # The run that made an example refers to its own folder; a later run refers to the shard folder in it.
        return (
            folder is not None
            and hash_ == source_hash
            and (storage.is_below(source, folder) or storage.is_below(folder, source))
        )

    reusable = {
        product
        for source, products in wanted.items()
        for product, source_hash in products.items()
        if is_known(product, source, source_hash)
    }
    if not reusable:
        return
    with open_parquet(path) as file:
        for batch in file.iter_batches(columns=PREDICTIONS.names):
            rows = batch.filter(pc.is_in(batch["product_id"], value_set=pa.array(reusable)))
            if rows.num_rows:
                yield rows.cast(PREDICTIONS)
    for source, products in list(wanted.items()):
        for product in reusable & products.keys():
            del products[product]
        if not products:
            del wanted[source]
