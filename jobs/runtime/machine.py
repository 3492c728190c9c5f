"""What the machine, or the container, lets a job use."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import joblib
import psutil

_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of cgroups v2, v1


def cores() -> int:
    """Return how many cores there are to run on: by affinity and a container's quota."""
    return int(joblib.cpu_count())


def memory() -> int:
    """Return how much memory there is, used or not, in bytes: the machine's, or a container's limit."""
    found = int(psutil.virtual_memory().total)
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # of another version, or "max"
            found = min(found, int(Path(path).read_text()))
    return found
