"""Cores and memory that a job may use on this machine or in this container."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import joblib
import psutil

_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of cgroups v2, v1


def cores() -> int:
    """Return the number of usable cores, by CPU affinity and a container's quota."""
    return int(joblib.cpu_count())


def memory() -> int:
    """Return the total memory in bytes, used or not: the machine's, or a container's limit."""
    limit = int(psutil.virtual_memory().total)
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # another cgroup version, or "max"
            limit = min(limit, int(Path(path).read_text()))
    return limit
