"""Pool of parallel processes, each with its share of the machine's cores.

Small models gain little from a second thread. Two of them finish sooner in parallel, with one core each, than one after
the other with both cores.
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
from jobs.runtime.step_metrics import set_up_logging

P = ParamSpec("P")
T = TypeVar("T")

_MEMORY = 3 << 30  # bytes reserved for each training process
# Up to this number of parameters, launching kernels from the interpreter dominates a step, and a GPU is almost idle
# (docs/lab/2026-11-gpu.md). `fashion` has 8 million; ViT-B/32, which keeps a GPU busy, has 160 million.
_SMALL = 50_000_000
_ON_GPU = 6  # processes that share a GPU; each has its own context and batches in GPU memory


def default_processes(most: int) -> int:
    """Return the number of parallel processes: one per core, limited by free memory and by `most`, and at least one."""
    free = min(psutil.virtual_memory().available, machine.memory())
    return max(1, min(machine.cores(), int(free // _MEMORY), most))


def default_processes_on_gpu(most: int, parameters: int) -> int:
    """Return the number of parallel processes on one GPU.

    A small model gets as many as `default_processes` gives, but at most six. A larger model keeps the GPU busy by
    itself and gets one.

    Args:
        most: the number of trainings to run.
        parameters: the number of parameters of the model.
    """
    return 1 if parameters > _SMALL else min(default_processes(most), _ON_GPU)


def executor(processes: int) -> Executor:
    """Return an executor with the given number of processes. With one, this process does the work as it is submitted.

    The processes end together with this one, even if it is killed.
    """
    if processes == 1:
        return _InProcessExecutor()
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    return ProcessPoolExecutor(
        processes,
        mp_context=context,
        initializer=_set_up_pool_process,
        initargs=(threads_of_each(processes), context.Value("i", 0), context.RLock()),
    )


def threads_of_each(processes: int) -> int:
    """Return the number of threads per process, so that all processes together use the machine's cores."""
    return max(1, machine.cores() // processes)


def set_up_process(threads: int) -> None:
    """Set up the threads and the log of a new process, and let it end when its parent ends, even if that is killed."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # read when the libraries are loaded
        os.environ[name] = str(threads)
    import torch

    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    torch.set_num_threads(threads)
    threadpoolctl.threadpool_limits(threads)
    set_up_logging()


class _InProcessExecutor(Executor):
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _set_up_pool_process(threads: int, taken: Synchronized[int], bars: object) -> None:
    """Set up a new process, with its own line for its progress bar."""
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
