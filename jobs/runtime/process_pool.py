"""Work in processes side by side, each with its share of the machine's cores.

Small models gain little from a second thread: two that train side by side, a core each, are done sooner than one after the
other with both.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing.sharedctypes import Synchronized
from typing import ParamSpec, TypeVar

import psutil
import threadpoolctl
from tqdm import tqdm

from jobs.runtime import machine

P = ParamSpec("P")
T = TypeVar("T")

_MEMORY = 3 << 30  # bytes that a process which trains is reckoned with
# Parameters of a model whose steps are bound by the kernels that the interpreter starts one by one, so that a GPU does next to
# nothing meanwhile (docs/lab/2026-11-gpu.md): `fashion` has 8 million; ViT-B/32, which fills a GPU, 160.
_SMALL = 50_000_000
_ON_GPU = 6  # processes that share one: each has a context and batches of its own in its memory


def default_processes(most: int) -> int:
    """Return how many processes to run side by side: one a core, no more than free memory allows or `most`, but one."""
    free = min(psutil.virtual_memory().available, machine.memory())
    return max(1, min(machine.cores(), int(free // _MEMORY), most))


def default_processes_on_gpu(most: int, parameters: int) -> int:
    """Return how many processes to run side by side on one GPU: of a small model as `default_processes`, but no more than
    six; of another one, which keeps the GPU busy by itself, one.

    Args:
        most: trainings that there are to run.
        parameters: of the model.
    """
    return 1 if parameters > _SMALL else min(default_processes(most), _ON_GPU)


def executor(processes: int) -> Executor:
    """Return an executor of so many processes; of one: this process, where work is done as it is submitted.

    Its processes end with this one, however it ends.
    """
    if processes == 1:
        return _Here()
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    return ProcessPoolExecutor(
        processes,
        mp_context=context,
        initializer=_begin,
        initargs=(threads_of_each(processes), context.Value("i", 0), context.RLock()),
    )


def threads_of_each(processes: int) -> int:
    """Return how many threads each of so many processes has, so that together they have the machine's cores."""
    return max(1, machine.cores() // processes)


def set_up_process(threads: int) -> None:
    """Set a new process up: its threads, its logs; it ends with the one that started it, however that ends."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # of libraries that are yet to be loaded
        os.environ[name] = str(threads)
    import torch

    from jobs.runtime.step_metrics import set_up_logging

    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    torch.set_num_threads(threads)
    threadpoolctl.threadpool_limits(threads)
    set_up_logging()


class _Here(Executor):
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _begin(threads: int, taken: Synchronized[int], bars: object) -> None:
    """Set a new process up, with a line of its own for its progress bar."""
    set_up_process(threads)
    with taken.get_lock():
        os.environ["TQDM_POSITION"] = str(taken.value)
        taken.value += 1
    tqdm.set_lock(bars)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
