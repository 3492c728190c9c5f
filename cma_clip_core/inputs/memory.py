"""Return of a process's freed memory to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

import pyarrow as pa


def release() -> None:
    """Return the freed memory that Arrow and the C library still hold to the system.

    Tensors whose shapes vary from batch to batch fragment the heap. Over hours of training it grows to several times
    the memory in use.
    """
    pa.default_memory_pool().release_unused()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    return trim
