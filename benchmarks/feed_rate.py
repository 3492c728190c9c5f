"""How much of a training step's time is lost waiting for its batch, where the step keeps the interpreter as busy as feeding a GPU does.

    PYTHONPATH=. python benchmarks/feed_rate.py LAKE SET --taxonomy fashion --model-config fashion --step-ms 37

It needs no GPU: a loop of so many milliseconds stands for the step. Batches are made by a process of its own and by a thread, in
turns. SET is a labelled set's folder (`python -m jobs dataset` prints it).
"""

from __future__ import annotations

import time
from collections.abc import Generator

import torch
from train_rate import loop_of, options

from cma_clip_core.config import load_config
from cma_clip_core.inputs.batches import Batch


def main() -> None:
    """Measure, and print the share of the time that was spent in steps, and the longest wait."""
    parser = options(__doc__)
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
            stream = loop_of(config, chosen, torch.device("cpu"), apart).stream()
            spent, longest = waits(stream, chosen.batches, chosen.step_ms / 1000)
            steps = chosen.batches * chosen.step_ms / 1000
            print(
                f"turn {turn}, by {'a process' if apart else 'a thread'}: {steps / (steps + spent):.3f} of the time in "
                f"steps, waits {1000 * spent / chosen.batches:.2f} ms on average, {1000 * longest:.0f} at most",
                flush=True,
            )


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
