"""Time that training steps lose waiting for their batches, with steps that keep the interpreter as busy as feeding a GPU.

    PYTHONPATH=. python benchmarks/feed_rate.py LAKE SET --taxonomy fashion --model-config fashion --step-ms 37

It needs no GPU: a busy loop of --step-ms milliseconds stands for the step. A process and a thread make the batches, in turns.
SET is the folder of a labelled set (`python -m jobs dataset` prints it).
"""

from __future__ import annotations

import time
from collections.abc import Generator

import torch
from train_rate import loop_of, options

from cma_clip_core.config import load_config
from cma_clip_core.inputs.batches import Batch


def main() -> None:
    """Measure, and print the share of the time spent in steps, and the longest wait."""
    parser = options(__doc__)
    parser.add_argument("--batch-size", type=int, help="default: that of the configuration")
    parser.add_argument("--step-ms", type=float, default=37.0, help="duration of a step")
    parser.add_argument("--batches", type=int, default=400, help="batches per turn")
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
    """Return the total and the longest wait of `count` steps for their batches, in seconds, without the first batch."""
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
