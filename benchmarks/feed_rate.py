"""How much of a training step's time is lost waiting for its batch, where the step keeps the interpreter as busy as feeding a GPU does.

    PYTHONPATH=. python benchmarks/feed_rate.py LAKE SET --taxonomy fashion --model-config fashion --step-ms 37

It needs no GPU: a loop of so many milliseconds stands for the step. Batches are made by a process of its own and by a thread, in
turns. SET is a labelled set's folder (`python -m jobs dataset` prints it).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Generator
from pathlib import Path

import torch

from cma_clip_core.batches import Batch
from cma_clip_core.classes import ClassLayout
from cma_clip_core.config import ModelConfig, load_config
from cma_clip_core.examples import read_index
from cma_clip_core.loop import Loop
from cma_clip_core.methods import build_model
from cma_clip_core.objectives import MultiTask
from cma_clip_core.tokens import Tokenizer
from jobs.lake import LABELLED_TABLE
from schemas.taxonomy import load_taxonomy


def main() -> None:
    """Measure, and print the share of the time that was spent in steps, and the longest wait."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=Path)
    parser.add_argument("set", type=Path, help="a labelled set's folder")
    parser.add_argument("--taxonomy", default="fashion")
    parser.add_argument("--model-config", default="fashion")
    parser.add_argument("--batch-size", type=int, help="the configuration's where left out")
    parser.add_argument("--step-ms", type=float, default=37.0, help="how long a step takes")
    parser.add_argument("--batches", type=int, default=400, help="in a turn")
    parser.add_argument("--turns", type=int, default=2)
    chosen = parser.parse_args()
    config = load_config(chosen.model_config)
    if chosen.batch_size:
        training = config.training.model_copy(update={"batch_size": chosen.batch_size})
        config = config.model_copy(update={"training": training})
    torch.set_num_threads(1)
    for turn in range(1, chosen.turns + 1):
        for apart in (True, False) if turn % 2 else (False, True):
            spent, longest = waits(stream(config, chosen, apart), chosen.batches, chosen.step_ms / 1000)
            share = chosen.batches * chosen.step_ms / 1000 / (chosen.batches * chosen.step_ms / 1000 + spent)
            print(
                f"turn {turn}, by {'a process' if apart else 'a thread'}: {share:.3f} of the time in steps, "
                f"waits {1000 * spent / chosen.batches:.2f} ms on average, {1000 * longest:.0f} at most",
                flush=True,
            )


def stream(config: ModelConfig, chosen: argparse.Namespace, apart: bool) -> Generator[Batch | None]:
    """Return the batches as training gets them."""
    taxonomy = load_taxonomy(chosen.taxonomy)
    layout, tokenizer, device = ClassLayout(taxonomy), Tokenizer(config), torch.device("cpu")
    index = read_index(chosen.set / LABELLED_TABLE, chosen.lake)
    objective = MultiTask(build_model(config, taxonomy), index, config, layout, tokenizer, device)
    return Loop(objective, config.training, device, progress=False, apart=apart).stream()


def waits(batches: Generator[Batch | None], count: int, step: float) -> tuple[float, float]:
    """Return how long so many steps waited for their batches, in all and at most, in seconds; the first batch apart."""
    next(batches)
    spent = longest = 0.0
    for _ in range(count):
        start = time.perf_counter()
        next(batches)
        wait = time.perf_counter() - start
        spent, longest = spent + wait, max(longest, wait)
        end = time.perf_counter() + step
        while time.perf_counter() < end:
            pass
    batches.close()
    return spent, longest


if __name__ == "__main__":
    main()
