"""How fast a model tags, and what the pipeline around it costs.

    PYTHONPATH=. python benchmarks/tag_rate.py --model lake/models/20261123-1f3a09bc --examples lake/examples/ds=2026-11-20

Measures the model's own forward rate on inputs that lie ready in memory, then tagging from Parquet to Parquet, and
prints both as one line of JSON, with the machine and where the time went. Both run on the same examples, after one
round that is not counted; the best of some rounds is taken, since other work on the machine can only slow it.
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
    seconds, timings = min(rounds, key=lambda found: found[0])
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
    """Copy the first examples into one file and return how many there are."""
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
    """Return how long the model alone takes on examples that are tokenised and in memory."""
    inputs = []
    for batch in read_examples([source]):
        prepared = prepare(batch, engine.config, engine.tokenizer)
        inputs += [prepared.inputs(rows, engine.tokenizer) for rows in prepared.by_length(engine.batch_size)]
    start = time.perf_counter()
    for part in inputs:
        with precision(engine.device):
            output = engine.model(*part.to(engine.device))
        output.logits.cpu()  # waits for a GPU to be done
    return time.perf_counter() - start


def tag_seconds(engine: Engine, source: Path, target: Path) -> tuple[float, Timings]:
    """Return how long tagging takes, from the example file to the prediction file, and where the time went."""
    timings = Timings()
    start = time.perf_counter()
    with pq.ParquetWriter(target, PREDICTIONS, compression="zstd") as writer:
        for batch in engine.predict(read_examples([source]), datetime.now(UTC), timings):
            writer.write_batch(batch)
    return time.perf_counter() - start, timings


if __name__ == "__main__":
    main()
