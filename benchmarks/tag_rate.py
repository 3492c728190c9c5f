"""Tagging rate of a model, compared with the rate of its forward pass alone.

    PYTHONPATH=. python benchmarks/tag_rate.py --model lake/models/20261123-1f3a09bc --examples lake/examples/ds=2026-11-20

It measures the forward pass on inputs in memory, and then tagging from Parquet to Parquet. It prints both as one line of
JSON, with the machine and the time of each phase. Both run on the same examples, after one warm-up round. The best round
counts, because other work on the machine can only slow it down.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import torch

from cma_clip_core.catalog.examples import example_files, read_examples
from cma_clip_core.engine import Engine, Timings
from cma_clip_core.inputs.batches import prepare
from cma_clip_core.inputs.devices import precision
from cma_clip_core.tagger import load_engine
from schemas.tables import PREDICTIONS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model version")
    parser.add_argument("--examples", type=Path, required=True, help="folder of example files")
    parser.add_argument("--products", type=int, default=4096, help="products in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--batch-size", type=int, default=256)
    arguments = parser.parse_args()
    engine = load_engine(arguments.model, arguments.device, arguments.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "examples.parquet"
        rows = copy_examples(example_files([arguments.examples]), source, arguments.products)
        forward = min(forward_seconds(engine, source) for _ in range(arguments.rounds + 1))
        rounds = [tag_seconds(engine, source, Path(folder) / "out.parquet") for _ in range(arguments.rounds + 1)]
    seconds, timings = min(rounds, key=lambda measured: measured[0])
    result = {
        "products": rows,
        "forward_per_second": round(rows / forward, 1),
        "tag_per_second": round(rows / seconds, 1),
        "tag_over_forward": round(forward / seconds, 3),
        "seconds": timings.as_dict(),
        "device": str(engine.device),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {platform.system()}, torch {torch.__version__}",
    }
    print(json.dumps(result))


def copy_examples(files: list[Path], target: Path, products: int) -> int:
    """Copy the first `products` examples into one file and return their number."""
    rows = 0
    with pq.ParquetWriter(target, pq.read_schema(files[0]), compression="lz4") as writer:
        for batch in read_examples(files):
            batch = batch.slice(0, products - rows)
            writer.write_batch(batch)
            rows += batch.num_rows
            if rows >= products:
                break
    return rows


@torch.inference_mode()
def forward_seconds(engine: Engine, source: Path) -> float:
    """Return the seconds of the model alone on tokenised examples in memory."""
    inputs = []
    for batch in read_examples([source]):
        prepared = prepare(batch, engine.config, engine.tokenizer)
        inputs += [prepared.inputs(rows, engine.tokenizer) for rows in prepared.by_length(engine.batch_size)]
    start = time.perf_counter()
    for part in inputs:
        with precision(engine.device):
            output = engine.model(*part.to(engine.device))
        output.logits.cpu()  # waits for a GPU
    return time.perf_counter() - start


def tag_seconds(engine: Engine, source: Path, target: Path) -> tuple[float, Timings]:
    """Return the seconds of tagging, from the example file to the prediction file, in total and by phase."""
    timings = Timings()
    start = time.perf_counter()
    with pq.ParquetWriter(target, PREDICTIONS, compression="zstd") as writer:
        for batch in engine.predict(read_examples([source]), datetime.now(UTC), timings):
            writer.write_batch(batch)
    return time.perf_counter() - start, timings


if __name__ == "__main__":
    main()
