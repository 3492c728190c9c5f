"""What the DAGs share: the operator that runs a job's command, and the day a run is for. No DAG of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

REPOSITORY = Path(__file__).resolve().parents[1]
WRONG_INPUT = 2  # exit code of a step whose input or settings are wrong: to try again would change nothing
GRACE_SECONDS = 10


class JobOperator(BaseOperator):
    """Run one step of the command line in its own process group and return the JSON that it prints.

    The step is started from an argument list, so nothing in it can be read as shell. Its log, standard error, goes to
    the task's log; its result is the last line of standard output.
    """

    template_fields: Sequence[str] = ("arguments", "shard")

    def __init__(self, *, arguments: list[Any], shard: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arguments = arguments
        self.shard = shard  # of a mapped task
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the step. Raises AirflowFailException, which is not retried, where its input or settings are wrong."""
        arguments = [str(argument) for argument in self.arguments]
        if self.shard is not None:
            arguments += ["--shard", str(self.shard)]
        self.log.info("python -m jobs %s", " ".join(arguments))
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "jobs", *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        output: list[str] = []
        reader = threading.Thread(target=output.extend, args=(process.stdout,), daemon=True)
        reader.start()
        last = ""
        for line in process.stderr:
            last = line.strip() or last
            self.log.info("%s", line.rstrip())
        code = process.wait()
        reader.join()
        if code == WRONG_INPUT:
            raise AirflowFailException(last)
        if code != 0:
            raise AirflowException(f"{arguments[0]} ended with exit code {code}: {last}")
        result: dict[str, Any] = json.loads(output[-1])
        for asset in self.outlets:
            context["outlet_events"][asset].extra = result
        return result

    def on_kill(self) -> None:
        """End the step and all that it started (Spark's JVM, data loaders), by force where it does not end in time."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            os.killpg(process.pid, signal.SIGKILL)


def partition_day(ds: str | None, interval_start: datetime | None) -> str:
    """Return the day a run is for: the one asked for, else the day on which its data interval starts.

    Raises:
        AirflowFailException: where there is neither, or `ds` is no day.
    """
    if not ds and interval_start is None:
        raise AirflowFailException(
            "this run has no data interval, so its day is unknown: trigger it with ds=YYYY-MM-DD"
        )
    if not ds:
        assert interval_start is not None
        return interval_start.astimezone(UTC).date().isoformat()
    try:
        # fromisoformat also reads 20261120 and 2026-W47-5: a partition has one spelling
        if datetime.fromisoformat(ds).date().isoformat() != ds:
            raise ValueError
    except ValueError:
        raise AirflowFailException(f"ds={ds!r} is not a day; write it as 2026-11-20") from None
    return ds
