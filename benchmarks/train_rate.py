"""Training rate from examples on disk, compared with the same steps on batches in memory and with the matrix peak.

    PYTHONPATH=. python benchmarks/train_rate.py LAKE SET --taxonomy fashion --model-config fashion

SET is the folder of a labelled set (`python -m jobs dataset` prints it). Both sides take the same optimizer steps on the same
products, in turns. One side reads, decodes, tokenises, augments and batches them, and the other has them in memory.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from cma_clip_core.catalog.examples import read_index
from cma_clip_core.config import ModelConfig, load_config
from cma_clip_core.inputs.batches import Batch
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.devices import resolve_device
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.model.methods import build_model
from cma_clip_core.training.loop import Loop
from cma_clip_core.training.objectives import MultiTask
from jobs.lake.layout import LABELLED_TABLE
from schemas.taxonomy import load_taxonomy

WARM_UP = 16  # steps: a GPU loads each kernel at its first use


def main() -> None:
    """Measure, and print the rates of each turn and the ratio of their sums."""
    parser = options(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--batches",
        type=int,
        default=64,
        help="batches per turn; those of a whole shuffle buffer, so that none is prepared in vain",
    )
    parser.add_argument("--turns", type=int, default=4)
    chosen = parser.parse_args()
    device = resolve_device(chosen.device)
    loop = loop_of(load_config(chosen.model_config), chosen, device)
    loop.objective.model.train()
    held = list(itertools.islice(loop.objective.batches(1), chosen.batches))
    products = sum(len(batch) for batch in held)
    with FlopCounterMode(display=False) as counter:
        loop.step(held[0])
    flops = counter.get_total_flops() / len(held[0])
    start = time.perf_counter()
    for batch in held[:WARM_UP]:
        loop.step(batch)
    print(f"{WARM_UP} steps to warm up: {time.perf_counter() - start:.1f} s", flush=True)
    seconds = {"memory": 0.0, "disk": 0.0}
    for turn in range(1, chosen.turns + 1):
        took = {}
        for side in ("memory", "disk") if turn % 2 else ("disk", "memory"):
            batches = held if side == "memory" else from_disk(loop, chosen.batches)
            start = time.perf_counter()
            for batch in batches:
                loop.step(batch)
            took[side] = time.perf_counter() - start
            seconds[side] += took[side]
        print(
            f"turn {turn}: " + ", ".join(f"{side} {products / s:.0f} products/s" for side, s in took.items()),
            flush=True,
        )
    peak = matrix_peak(device)
    rate = chosen.turns * products / seconds["disk"]
    print(f"disk over memory: {seconds['memory'] / seconds['disk']:.2f}")
    print(f"{rate:.0f} products/s of {flops / 1e6:.0f} MFLOP each, forward and backward of the first batch")
    print(
        f"{rate * flops / 1e9:.0f} GFLOP/s of the {peak / 1e9:.0f} GFLOP/s of a matrix product: {rate * flops / peak:.2f}"
    )


def options(doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of the common options of training benchmarks."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=Path)
    parser.add_argument("set", type=Path, help="a labelled set's folder")
    parser.add_argument("--taxonomy", default="fashion")
    parser.add_argument("--model-config", default="fashion")
    return parser


def loop_of(
    config: ModelConfig, chosen: argparse.Namespace, device: torch.device, separate_process: bool | None = None
) -> Loop:
    """Return a new training on the labelled set; `separate_process` is that of `Loop`."""
    taxonomy = load_taxonomy(chosen.taxonomy)
    problem = LearningProblem.build(config, taxonomy, read_index(chosen.set / LABELLED_TABLE, chosen.lake))
    objective = MultiTask(build_model(config, taxonomy).to(device), problem, device)
    return Loop(objective, config.training, Compute(device, progress=False), separate_process=separate_process)


def from_disk(loop: Loop, count: int) -> Iterator[Batch]:
    """Return `count` batches, made as in training."""
    stream = (batch for batch in loop.stream() if batch is not None)
    if (
        loop.separate_process
    ):  # reach the steady state, in which the next buffer is prepared while this one is trained on
        for batch in itertools.islice(stream, -(-loop.config.shuffle_buffer // loop.config.batch_size)):
            loop.step(batch)
    return itertools.islice(stream, count)


def matrix_peak(device: torch.device) -> float:
    """Return the best FLOP/s of ten large matrix products."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    one, other = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        product = one @ other
        float(product[0, 0])  # waits for a GPU
        best = max(best, 2 * 2048**3 / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    main()
