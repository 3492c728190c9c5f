"""What `torchrun` starts in test_loop.py: trains on the examples in one folder, writes the weights into another."""

from __future__ import annotations

import argparse
import itertools
import os
import signal
from pathlib import Path

import torch
from safetensors.torch import save_file

from cma_clip_core import distributed
from cma_clip_core.batches import Batch
from cma_clip_core.config import ModelConfig
from cma_clip_core.loop import Loop
from cma_clip_core.training import fit
from tests.cma_clip_core import drawn


def config(dropout: float) -> ModelConfig:
    """Without dropout nothing is drawn by torch: its numbers depend on how the rows are dealt out."""
    document = drawn.config(epochs=2, batch_size=32, word_dropout=0.2, text_dropout=0.2).model_dump()
    document["fusion"]["dropout"] = dropout
    return ModelConfig.model_validate(document)


def main() -> None:
    """Train, and write `out`/<rank>.safetensors and the epochs' losses."""
    parser = argparse.ArgumentParser()
    parser.add_argument("examples", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--work", type=Path, help="where checkpoints are, one at each step")
    parser.add_argument("--kill-at", type=int, help="step before which every process is killed")
    chosen = parser.parse_args()
    if chosen.kill_at is not None:
        _kill_at(chosen.kill_at)
    torch.set_num_threads(1)
    world = distributed.join(torch.device("cpu"))
    chosen_config = config(chosen.dropout)
    index = drawn.index(chosen.examples, selection=chosen_config.selection)
    model, fitted = fit(
        chosen_config, drawn.taxonomy(), index, torch.device("cpu"), folder=chosen.work, world=world, progress=False,
        checkpoint_seconds=0.0,
    )  # fmt: skip
    save_file(dict(model.state_dict()), chosen.out / f"{world.rank}.safetensors")
    (chosen.out / f"{world.rank}.txt").write_text("\n".join(repr(epoch.loss) for epoch in fitted.epochs))
    distributed.leave()


def _kill_at(last: int) -> None:
    """Let this process be killed before step number `last`, counted from 1."""
    steps, step = itertools.count(1), Loop.step

    def mortal(self: Loop, batch: Batch) -> float:
        if next(steps) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch)

    Loop.step = mortal  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
