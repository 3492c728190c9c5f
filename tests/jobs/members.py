"""Functions for the processes of test_train.py. Imports little, because each process imports it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from cma_clip_core.inputs import distributed
from schemas.loading import ContractError


def refuse_first(problem: str) -> None:
    """Fail in the first process only, while the other one waits for it."""
    world = distributed.join(torch.device("cpu"))
    if world.is_first:
        raise ContractError(problem)
    world.wait()


def kill_the_second(folder: Path) -> None:
    if os.environ["RANK"] == "1":
        while not (folder / "pid").is_file():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    temporary = folder / "new"
    temporary.write_text(str(os.getpid()))
    temporary.rename(folder / "pid")
    time.sleep(60)


def fail() -> None:
    raise ZeroDivisionError


def wait(folder: Path) -> None:
    (folder / os.environ["RANK"]).touch()
    time.sleep(60)
