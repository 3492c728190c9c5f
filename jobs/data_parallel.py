"""Training in several processes of this machine, each with its share of every batch and of the cores.

torch's own launcher starts them and watches them, as `torchrun` does for those of several machines.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable
from typing import Final, TypeVar

from cma_clip_core.errors import CoreError
from jobs import side_by_side
from jobs.errors import JobError, TransientError

log = logging.getLogger(__name__)

T = TypeVar("T")

_HERE: Final = "127.0.0.1"


def together(processes: int | None, device: str, run: Callable[..., T], *arguments: object) -> T:
    """Run a training in so many processes that train together, and return what the first one returns.

    Args:
        processes: how many; None: one a GPU, or on a CPU one a core, as far as memory allows.
        device: setting of that name; decides what None means.
        run: the training, at the top of a module; where `torchrun` started this process, it is run here.
        arguments: what it is called with; they, and what it returns, are pickled.

    Raises:
        JobError, CoreError: as `run`.
        TransientError: a process ended in the middle; its own words are in the log.
    """
    if "RANK" in os.environ:
        return run(*arguments)
    processes = _default(device) if processes is None else processes
    if processes == 1:
        return run(*arguments)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint=f"{_HERE}:0", local_addr=_HERE,
    )  # fmt: skip
    try:
        outcomes = elastic_launch(config, _member)(side_by_side.threads_of_each(processes), run, arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise TransientError(
            f"process {rank} of the {processes} that train together ended, {_how(failure.exitcode)}; start it again, and it goes "
            f"on where its last checkpoint is, or with --processes {processes - 1} from the beginning"
        ) from error
    except SignalException as error:
        raise KeyboardInterrupt from error
    for outcome in outcomes.values():
        if isinstance(outcome, JobError | CoreError):
            raise outcome
    found: T = outcomes[0]
    return found


def _default(device: str) -> int:
    if device != "cpu":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.device_count()
    return side_by_side.default_processes(os.cpu_count() or 1)


def _how(code: int) -> str:
    return f"killed by signal {-code}, most likely for want of memory" if code < 0 else "and says above why"


def _member(threads: int, run: Callable[..., T], arguments: tuple[object, ...]) -> T | JobError | CoreError:
    """Be one of the processes; what is wrong with the settings or the data is an outcome, not a failure of the process."""
    side_by_side.set_up_process(threads)
    try:
        return run(*arguments)
    except (JobError, CoreError) as error:
        if os.environ["RANK"] != "0":  # the first one, which waits for this one, will only know that it is gone
            log.error("process %s: %s", os.environ["RANK"], error)
        return error
