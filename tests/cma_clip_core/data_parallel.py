"""Trains on the examples in one folder and writes the weights into another: what test_loop.py does in processes.

They are forked from a server that has loaded torch, since that takes a process longer than these trainings.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from cma_clip_core.config import ModelConfig
from cma_clip_core.errors import CoreError
from cma_clip_core.inputs import distributed
from cma_clip_core.inputs.batches import Batch
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.model_documents import Epoch
from cma_clip_core.training.fit import fit
from cma_clip_core.training.loop import Loop
from cma_clip_core.training.pretraining import pretrain
from tests.cma_clip_core import drawn


def config(dropout: float, text_dropout: float, freeze: Sequence[str] = ()) -> ModelConfig:
    """Without dropout nothing is drawn by torch: its numbers depend on how the rows are dealt out."""
    document = drawn.config(
        epochs=2, batch_size=32, word_dropout=0.2, text_dropout=text_dropout, freeze=tuple(freeze)
    ).model_dump()
    document["fusion"]["dropout"] = dropout
    document["backbone"]["patch_dropout"] = dropout
    # Odd, so that the processes have different numbers of rows.
    document["pretraining"] |= {"epochs": 2, "batch_size": 31}
    return ModelConfig.model_validate(document)


def start(processes: int, *arguments: str | Path, says_steps: Connection | None = None) -> list[BaseProcess]:
    """Start processes that train together, as `torchrun` does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started: list[BaseProcess] = []
    for rank in range(processes):
        # `--apart`: as the first process of a machine each.
        world = {"RANK": rank, "LOCAL_RANK": 0 if "--apart" in arguments else rank, "WORLD_SIZE": processes}
        environment = {name: str(value) for name, value in world.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        process = context.Process(target=main, args=(environment, [str(a) for a in arguments], says_steps), daemon=True)
        process.start()
        started.append(process)
    return started


def run(processes: int, *arguments: str | Path) -> list[int | None]:
    """Run processes that train together and return their exit codes."""
    started = start(processes, *arguments)
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def main(environment: dict[str, str], arguments: Sequence[str], says_steps: Connection | None) -> None:
    """Train, and write `out`/<rank>.safetensors and the epochs' losses; with `says_steps`, send each step's number first.

    What is found wrong is written into `out`/<rank>.error, and the exit code is 2.
    """
    os.environ.update(environment)
    parser = argparse.ArgumentParser()
    parser.add_argument("examples", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--text-dropout", type=float, default=0.2)
    parser.add_argument("--work", type=Path, help="where checkpoints are, one at each step")
    parser.add_argument("--apart", action="store_true", help="each process has a folder of its own for checkpoints")
    parser.add_argument("--freeze", action="append", default=[], help="a tower that is not trained")
    parser.add_argument("--pretrain", action="store_true", help="train the towers on pairs")
    parser.add_argument("--kill-at", type=int, help="step before which every process is killed")
    chosen = parser.parse_args(arguments)
    if chosen.kill_at is not None:
        _before_steps(lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == chosen.kill_at else None)
    if says_steps is not None:
        _before_steps(says_steps.send)
    torch.set_num_threads(1)
    world = distributed.join(torch.device("cpu"))
    work = chosen.work / str(world.rank) if chosen.apart else chosen.work
    try:
        model, epochs = _train(config(chosen.dropout, chosen.text_dropout, chosen.freeze), chosen, work, world)
    except CoreError as error:
        (chosen.out / f"{world.rank}.error").write_text(f"{type(error).__name__}: {error}")
        sys.exit(2)
    save_file(dict(model.state_dict()), chosen.out / f"{world.rank}.safetensors")
    (chosen.out / f"{world.rank}.txt").write_text("\n".join(repr(epoch.loss) for epoch in epochs))
    distributed.leave()


def _train(
    config: ModelConfig, chosen: argparse.Namespace, work: Path | None, world: distributed.World
) -> tuple[nn.Module, Sequence[Epoch]]:
    problem = drawn.problem(config, drawn.index(chosen.examples, selection=config.selection))
    compute = Compute(torch.device("cpu"), world, progress=False)
    if chosen.pretrain:
        towers, metrics = pretrain(problem, compute, folder=work)
        return towers, metrics.epochs
    model, fitted = fit(problem, compute, folder=work, checkpoint_seconds=0.0)
    return model, fitted.epochs


def _before_steps(act: Callable[[int], None]) -> None:
    """Let `act` be called with each step's number, counted from 1, before it is taken."""
    steps, step = itertools.count(1), Loop.step

    def counted(self: Loop, batch: Batch) -> float:
        act(next(steps))
        return step(self, batch)

    Loop.step = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    main({}, sys.argv[1:], None)
