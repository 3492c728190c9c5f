"""Run a command and measure its wall time and the peak memory of each of its processes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(slots=True)
class Cost:
    """The cost of a command."""

    seconds: float = 0.0
    returncode: int = 0
    peak_bytes: dict[str, int] = field(default_factory=dict)  # peak resident memory of one process, by kind
    output: str = ""

    def memory(self) -> str:
        """Return the peak memory by kind of process, in words."""
        return ", ".join(f"{kind} {peak / 2**20:,.0f} MB" for kind, peak in sorted(self.peak_bytes.items()))


def _kind(process: psutil.Process) -> str:
    command = process.cmdline()
    if "java" in command[0]:
        return "JVM"
    return "Spark's Python worker" if "jobs.nightly.spark_worker_daemon" in command else "Python"


def watch(command: Sequence[str], environment: Mapping[str, str]) -> Cost:
    """Run `python -m COMMAND` from the repository's root; sample the memory of its process tree twice a second."""
    cost, start = Cost(), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=REPOSITORY,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.5):
            try:
                tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for member in tree:
                try:
                    kind, used = _kind(member), member.memory_info().rss
                except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied, IndexError):
                    continue
                cost.peak_bytes[kind] = max(cost.peak_bytes.get(kind, 0), used)

    sampler = threading.Thread(target=sample)
    sampler.start()
    cost.output = process.communicate()[0]
    cost.seconds, cost.returncode = time.perf_counter() - start, process.returncode
    done.set()
    sampler.join()
    if cost.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{cost.output[-40000:]}")
    return cost
