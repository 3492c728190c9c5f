"""Training in several processes of this machine, each with its share of every batch and of the cores.

torch's own launcher starts them and watches them, as `torchrun` does for those of several machines.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from cma_clip_core.errors import CoreError
from jobs.errors import JobError, TransientError
from jobs.runtime import process_pool
from schemas.loading import ContractError

T = TypeVar("T")

_HERE: Final = "127.0.0.1"
_TOLD = (JobError, CoreError, ContractError)  # what the command line tells without a traceback
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # that torch's launcher handles


def together(processes: int | None, device: str, run: Callable[..., T], *arguments: object) -> T:
    """Run a training in so many processes that train together, and return what the first one returns.

    Args:
        processes: how many; None: one a GPU. On a CPU one, whose threads share the work: several, each of which prepares
            all batches and takes all of the optimizer's steps, were 9 % faster with `fashion`, 15 % slower with `sample`.
        device: setting of that name.
        run: the training, at the top of a module; where `torchrun` started this process, it is run here.
        arguments: what it is called with; they, and what it returns, are pickled.

    Raises:
        JobError, CoreError, ContractError: as `run`, in whichever process; or there are fewer GPUs.
        TransientError: a process was killed.
        RuntimeError: `run` has a bug; its traceback is in the log.
        SystemExit: this process was told to end.
    """
    if "RANK" in os.environ:
        return run(*arguments)
    gpus = _gpus(device)
    if gpus and processes is not None and processes > gpus:
        raise JobError(f"--processes {processes}: there are {gpus} GPUs, and each process takes one")
    if processes is None:
        processes = gpus or 1
    if processes == 1 or (device == "cuda" and not gpus):  # which `run` refuses
        return run(*arguments)
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint=f"{_HERE}:0", local_addr=_HERE, logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )  # fmt: skip
    threads = process_pool.threads_of_each(processes)
    with tempfile.TemporaryDirectory() as told, _handlers_kept():
        try:
            found: T = elastic_launch(config, _member)(threads, Path(told), run, arguments)[0]
        except ChildFailedError as error:
            # Of those that end because another one did, none has anything to tell.
            if words := sorted(Path(told).iterdir()):
                raise pickle.loads(words[0].read_bytes()) from None
            rank, failure = error.get_first_failure()
            raise _ended(rank, processes, failure.exitcode) from error
        except SignalException as error:
            raise SystemExit(128 + error.sigval) from error
    return found


def _gpus(device: str) -> int:
    if device == "cpu":
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _ended(rank: int, processes: int, code: int) -> Exception:
    """Return the error of a process that ended without a word of what a user can do."""
    if code >= 0:
        return RuntimeError(f"process {rank} of the {processes} that train together failed; its traceback is above")
    why = ", most likely for want of memory" if -code == signal.SIGKILL else ""
    return TransientError(
        f"process {rank} of the {processes} that train together was killed by signal {-code}{why}; start it again, and it goes "
        f"on where its last checkpoint is, or from the beginning with fewer (--processes)"
    )


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put the signal handlers back that the launcher replaces."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _member(threads: int, told: Path, run: Callable[..., T], arguments: tuple[object, ...]) -> T:
    """Be one of the processes; leave what a user can act on in the folder `told`, for the one that started it to tell."""
    process_pool.set_up_process(threads)
    try:
        return run(*arguments)
    except _TOLD as error:
        temporary = told.with_name(f"{told.name}.{os.environ['RANK']}")
        temporary.write_bytes(pickle.dumps(error))
        temporary.replace(told / os.environ["RANK"])
        sys.exit(1)
