"""Measurements of a step. `make test TESTS=tests/jobs/runtime/test_step_metrics.py`."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jobs.lake import storage
from jobs.runtime import peak_memory
from jobs.runtime.step_metrics import measure
from schemas.documents import StepMetrics

MB = 10**6


def peak(folder: Path, step: str) -> int:
    metrics = storage.read_document(folder / "steps" / f"{step}.json", StepMetrics)
    assert metrics is not None
    return metrics.peak_rss_bytes


def test_peak_memory_is_that_of_all_processes_and_of_this_step_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak_memory, "_SECONDS", 0.05)
    before = peak_memory.PeakMemory()
    before.measure()
    own = before.bytes  # including a JVM that other tests may have left
    grandchild = "import time; held = b'x' * 300_000_000; time.sleep(0.5)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    with measure("large", tmp_path):
        subprocess.run([sys.executable, "-c", child], check=True)  # gone before the step ends, as Spark's JVM is
    with measure("small", tmp_path):
        time.sleep(0.1)
    assert own + 300 * MB < peak(tmp_path, "large") < own + 500 * MB
    assert peak(tmp_path, "small") < own + 100 * MB


def test_a_step_that_fails_is_no_longer_watched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), measure("failed", tmp_path):
        raise ValueError("no")
    assert not (tmp_path / "steps").exists()
    assert "peak memory" not in {thread.name for thread in threading.enumerate()}
