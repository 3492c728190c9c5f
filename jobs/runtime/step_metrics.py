"""Logging, timing and peak memory of a step, and the metrics file that the report reads."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.storage import AnyPath
from jobs.runtime.peak_memory import PeakMemory
from schemas.documents import StepMetrics

log = logging.getLogger("jobs")


def set_up_logging() -> None:
    """Log to standard error, so that standard output carries only the result of a step.

    In a training with several processes, the first one logs everything, and the others only warnings and errors.
    """
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(
        stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    for noisy in ("py4j", "great_expectations", "PIL", "aiobotocore", "botocore", "s3fs"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def refuse_several(step: str) -> None:
    """Raise JobError if `torchrun` started several processes of a step that must run in one.

    They would all do the same work in the same folder.
    """
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise JobError(
            f"{step} runs in one process: start it without torchrun, `python -m jobs {step}`; only `pretrain` and `train` "
            "run in several"
        )


@dataclass(slots=True)
class Measured:
    """The measurements that a step fills in while it runs."""

    rows: int = 0
    details: dict[str, float | int | str] = field(default_factory=dict)
    folder: AnyPath | None = None  # the run's report folder, once the step knows it


@contextlib.contextmanager
def measure(step: str, folder: AnyPath | None = None, *, name: str = "") -> Iterator[Measured]:
    """Time a step, log its rate, and write ``<folder>/steps/<name or step>.json`` if it succeeds."""
    measured, memory = Measured(folder=folder), PeakMemory()
    started_at, start = datetime.now(UTC), time.perf_counter()
    log.info("%s: started", name or step)
    with memory.watch():
        yield measured
    seconds = time.perf_counter() - start
    rate = f", {measured.rows / seconds:,.0f} rows/s" if measured.rows else ""
    log.info(
        "%s: done in %.1f s, %s rows%s, peak memory of all processes %.0f MB",
        name or step, seconds, f"{measured.rows:,}", rate, memory.bytes / 1e6,
    )  # fmt: skip
    if measured.folder is not None:
        metrics = StepMetrics(
            step=step,
            seconds=seconds,
            rows=measured.rows,
            peak_rss_bytes=memory.bytes,
            started_at=started_at,
            details=measured.details,
        )
        storage.write_document(measured.folder / "steps" / f"{name or step}.json", metrics)
