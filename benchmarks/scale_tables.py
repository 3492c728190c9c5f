"""Seconds, bytes and peak memory to plan and publish millions of products without pictures, and to look products up.

    PYTHONPATH=. python benchmarks/scale_tables.py LAKE --products 10000000     # LAKE has a champion

The first of two nights publishes all products; on the second one in a hundred has changed. Random data replaces the other
steps of a night: valid records, and predictions for the products that the plan tags. `python -m jobs plan` and `publish` run
as in a night. Peak memory is that of all their processes together.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from cma_clip_core.registry import read_taxonomy
from jobs.lake import storage
from jobs.lake.layout import PRODUCTS, Lake
from jobs.models import champion_pointer
from jobs.nightly.shards import metadata
from jobs.settings import Settings
from schemas.documents import Plan, Validation
from schemas.tables import PREDICTIONS, VALID
from schemas.taxonomy import Taxonomy

FIRST = date(2026, 11, 1)
ROWS_PER_FILE = 250_000  # in a file of records
NOW = datetime(2026, 11, 1, 3, tzinfo=UTC)


def main() -> None:
    """Run both nights and the lookups, and print their costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=Path, help="a lake with a champion")
    parser.add_argument("--products", type=int, default=10_000_000)
    parser.add_argument("--nights", type=int, choices=(1, 2), default=2)
    parser.add_argument(
        "--changed", type=float, default=0.01, help="share of the products that change on the second night"
    )
    parser.add_argument("--attributes", type=int, default=4, help="attributes of each product")
    parser.add_argument("--lookups", type=int, default=200)
    parser.add_argument("--scratch", type=Path, default=None, help="parent of the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        settings = Settings(root=folder)
        lake = Lake(settings.root)
        shutil.copytree(options.lake / "models", Path(folder) / "models")
        taxonomy = read_taxonomy(lake.models / str(champion_pointer.champion(settings)))
        attributes = [a.name for a in taxonomy.attributes if not a.multi_valued][: options.attributes]
        for night, changed in enumerate((0.0, options.changed)[: options.nights]):
            ds = (FIRST + timedelta(days=night)).isoformat()
            write_records(lake, ds, options.products, changed)
            planned = step(folder, "plan", "--ds", ds)
            plan = lake.read_plan(str(planned["run_id"]))
            write_predictions(lake, plan, taxonomy, attributes)
            step(folder, "publish", "--run", plan.run_id)
            for name in ("plan", "publish"):
                report(lake, plan.run_id, name)
            print(f"  {sizes(Path(folder))}", flush=True)
            if night + 1 < options.nights:  # make room for the next night: these are published and not read again
                for folder_to_remove in (lake.valid(ds), lake.predictions(plan.run_id)):
                    storage.remove_folder(folder_to_remove)
        look_up(lake, options.products, attributes[0], options.lookups)


def step(root: str, *arguments: str) -> dict[str, object]:
    """Run a step in its own process and return its result."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments], stdout=subprocess.PIPE, text=True, check=False,
        env=os.environ | {"TAGGING_ROOT": root, "TAGGING_PROGRESS": "false"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.returncode)
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def ids_and_hashes(first: int, count: int, changed: float) -> tuple[pa.Array, pa.Array]:
    """Return the ids of products and the hashes of their records; a share of the hashes differs from the first night."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)  # as uniform as a real hash
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    other = (mixed >> np.uint64(40)) < np.uint64(int(changed * 2**24))
    hashes = [f"{value:032x}" for value in (mixed ^ (other.astype(np.uint64) << np.uint64(7))).tolist()]
    return pa.array([f"sku-{number:09d}" for number in numbers.tolist()]), pa.array(hashes)


def write_records(lake: Lake, ds: str, products: int, changed: float) -> None:
    """Write the day's valid records and their validation document."""
    valid, quarantine = lake.valid(ds) / "drawn", lake.quarantine(ds) / "drawn"
    for folder in (valid, quarantine):
        Path(str(folder)).mkdir(parents=True)
    for first in tqdm(range(0, products, ROWS_PER_FILE), desc=f"records of {ds}", unit_scale=ROWS_PER_FILE):
        count = min(ROWS_PER_FILE, products - first)
        ids, hashes = ids_and_hashes(first, count, changed)
        columns = {
            "product_id": ids,
            "title": pc.binary_join_element_wise("Shirt", ids, " "),
            "source_hash": hashes,
            "ds": pa.repeat(ds, count),
        }
        arrays = [columns[f.name] if f.name in columns else pa.nulls(count, f.type) for f in VALID]
        table = pa.Table.from_arrays(arrays, schema=VALID)
        pq.write_table(table, Path(str(valid)) / f"part-{first // ROWS_PER_FILE:05d}.parquet", compression="zstd")
    document = Validation(
        ds=ds, version=f"drawn-{changed}", passed=True, failures=(), raw=products, unparsable=0, quarantined=0,
        superseded=0, valid=products, reasons={}, valid_path=lake.relative(valid),
        quarantine_path=lake.relative(quarantine), data_docs_path="", created_at=NOW,
    )  # fmt: skip
    storage.write_document(lake.valid(ds) / "current.json", document)


def write_predictions(lake: Lake, plan: Plan, taxonomy: Taxonomy, attributes: list[str]) -> None:
    """Write random predictions for each shard of the plan."""
    for shard in tqdm(plan.shards, desc=f"predictions of {plan.ds}", unit="shard"):
        planned = pq.read_table(lake.plan_file(plan.run_id, shard.id), partitioning=None)
        rng = np.random.default_rng(shard.id)
        schema = PREDICTIONS.with_metadata({**(PREDICTIONS.metadata or {}), **metadata(plan, shard)})
        table = pa.Table.from_batches(draw_predictions(planned, taxonomy, attributes, rng), PREDICTIONS)
        with storage.whole_file(lake.prediction_file(plan.run_id, shard.id)) as path:
            pq.write_table(table.replace_schema_metadata(schema.metadata), path, compression="zstd")


def draw_predictions(
    planned: pa.Table, taxonomy: Taxonomy, attributes: list[str], rng: np.random.Generator
) -> Iterator[pa.RecordBatch]:
    """Yield random predictions for the products of a shard, one value per attribute."""
    rows, each = planned.num_rows, len(attributes)
    ends = pa.array(np.arange(0, rows * each + 1, each, dtype=np.int32))
    struct = PREDICTIONS.field("predictions").type.value_type
    values = [np.array(taxonomy[name].value_names, dtype=object) for name in attributes]
    chosen = np.stack([v[rng.integers(0, len(v), rows)] for v in values], axis=1).ravel()
    confidence: npt.NDArray[np.float32] = rng.random(rows * each, dtype=np.float32)
    text = rng.random(rows * each, dtype=np.float32)
    names = pa.array(attributes * rows)
    predictions = pa.StructArray.from_arrays(
        [names, pa.array(chosen, pa.string()), pa.array(confidence), pa.array(confidence > 0.5), pa.array(text), pa.array(1 - text)],
        fields=list(struct),
    )  # fmt: skip
    columns = {
        "product_id": planned["product_id"].combine_chunks(),
        "source_hash": planned["source_hash"].combine_chunks(),
        "modality": pa.repeat("text", rows),
        "image_status": pa.repeat("absent", rows),
        "labels": pa.array([[]] * rows, PREDICTIONS.field("labels").type),
        "applicable": pa.ListArray.from_arrays(ends, names, type=PREDICTIONS.field("applicable").type),
        "predictions": pa.ListArray.from_arrays(ends, predictions, type=PREDICTIONS.field("predictions").type),
        "tagged_at": pa.repeat(pa.scalar(NOW, PREDICTIONS.field("tagged_at").type), rows),
    }
    yield pa.RecordBatch.from_arrays([columns[f.name] for f in PREDICTIONS], schema=PREDICTIONS)


def report(lake: Lake, run_id: str, name: str) -> None:
    """Print the cost of a step."""
    took = json.loads((lake.reports(run_id) / "steps" / f"{name}.json").read_text())
    print(
        f"{run_id[:10]} {name}: {took['seconds']:.1f} s, {took['rows']:,} rows, peak {took['peak_rss_bytes'] / 1e6:,.0f} MB",
        flush=True,
    )


def sizes(root: Path) -> str:
    """Return the number of files and their bytes for each part of the lake."""
    parts = []
    for part in sorted(path for path in root.iterdir() if path.is_dir()):
        files = [path.stat().st_size for path in part.rglob("*") if path.is_file()]
        parts.append(f"{part.name} {len(files)} files, {sum(files) / 1e9:.2f} GB")
    return "; ".join(parts)


def look_up(lake: Lake, products: int, attribute: str, times: int) -> None:
    """Look up single products in the published tables, as an analyst does, and print the latencies."""
    manifest = lake.read_manifest(lake.current_run() or "")
    assert manifest is not None
    files = [str(lake.root / file.path) for file in manifest.files if file.table == attribute]
    every = [str(lake.root / file.path) for file in manifest.files if file.table != PRODUCTS]
    states = [str(lake.root / file.path) for file in manifest.files if file.table == PRODUCTS]
    rng = np.random.default_rng(0)
    with duckdb.connect() as connection:
        for subject, searched in ((f"its {attribute}", files), ("all its attributes", every), ("its state", states)):
            query = f"select * from read_parquet({searched!r}, hive_partitioning = false) where product_id = ?"
            taken = []
            for number in rng.integers(0, products, times):
                start = time.perf_counter()
                rows = connection.execute(query, [f"sku-{number:09d}"]).fetchall()
                taken.append(1000 * (time.perf_counter() - start))
                assert rows
            cuts = statistics.quantiles(taken, n=100)
            print(
                f"DuckDB, one product, {subject}, {len(searched)} files: median {statistics.median(taken):.1f} ms, "
                f"99 % under {cuts[98]:.1f} ms, first {taken[0]:.1f} ms"
            )


if __name__ == "__main__":
    main()
