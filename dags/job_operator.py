"""The operator that runs a step of the command line, and the link to the page that the step wrote. This file has no DAG."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator, BaseOperatorLink, Context, XComArg
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from jobs.settings import Settings
from jobs.startup import step_client
from schemas.step_results import StepResult

REPOSITORY = Path(__file__).resolve().parents[1]
WRONG_INPUT = 2  # exit code of a step with wrong input or settings: a retry would not help
GRACE_SECONDS = 3  # Airflow's supervisor kills the task, including `on_kill`, after five seconds
MOST_LINES = 20  # lines of an error in the exception and the alert; the log has all of them
NOISE = "WARNING: Using incubator modules"  # printed by Java whenever Spark starts it


class ReportLink(BaseOperatorLink):
    """The button *Report* of a task. It opens the page that the step wrote, which the plugin in `dags/plugins` serves."""

    name = "Report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 - part of the interface
        """Return the page's address, or "" if the step wrote none."""
        result: StepResult | None = getattr(operator, "result", None)
        page = result.html_page() if result is not None else ""
        start = f"{Settings().root}/"
        if not page.startswith(start):
            return ""
        return f"{os.environ.get('TAGGING_REPORTS_URL', '/catalog').rstrip('/')}/{page.removeprefix(start)}"


class JobOperator(BaseOperator):
    """An operator that runs one step of the command line in its own process group and returns the JSON that it prints.

    The step is started from an argument list, so no argument can be interpreted by a shell. Its standard error goes to the
    task's log. Its result is the last line of its standard output.
    """

    template_fields: Sequence[str] = ("arguments", "shard")
    operator_extra_links = (ReportLink(),)

    def __init__(self, *, arguments: list[Any], prints: type[StepResult], shard: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arguments = arguments
        self.prints = prints
        self.shard = shard  # for a mapped task: the value of --shard, such as "7" or "0-2"
        self.result: StepResult | None = None
        self._process: subprocess.Popen[str] | step_client.Step | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the step. Empty arguments are left out.

        Raises:
            AirflowFailException: the input or the settings are wrong; Airflow does not retry.
            AirflowException: the step failed for another reason; Airflow retries.
        """
        arguments = [text for argument in self.arguments if (text := str(argument))]
        if self.shard is not None:
            arguments += ["--shard", str(self.shard)]
        self.log.info("python -m jobs %s", " ".join(arguments))
        self._process = process = self._start(arguments)
        assert process.stdout is not None
        assert process.stderr is not None
        output: list[str] = []
        reader = threading.Thread(target=output.extend, args=(process.stdout,), daemon=True)
        reader.start()
        last_error: list[str] = []  # lines since the last one that begins with "error:"
        for line in process.stderr:
            if not line.strip() or line.startswith(NOISE):
                continue
            if line.startswith("error:") or not (last_error and last_error[0].startswith("error:")):
                last_error.clear()
            last_error.append(line.rstrip())
            self.log.info("%s", line.rstrip())
        code = process.wait()
        reader.join()
        why = "\n".join(last_error[:MOST_LINES])
        if code == WRONG_INPUT:
            raise AirflowFailException(why)
        if code != 0:
            raise AirflowException(f"{arguments[0]} ended with exit code {code}: {why}")
        self.result = self.prints.model_validate_json(output[-1])
        result = self.result.model_dump(mode="json")
        for asset in self.outlets:
            context["outlet_events"][asset].extra = result
        return result

    def field(self, name: str) -> XComArg:
        """Return a field of the step's result, for use by later tasks.

        Raises:
            KeyError: the result has no such field. This happens when the DAG is loaded.
        """
        if name not in self.prints.model_fields:
            raise KeyError(
                f"{self.prints.__name__} has no field {name!r}; it has {', '.join(self.prints.model_fields)}"
            )
        return self.output[name]

    def _start(self, arguments: list[str]) -> subprocess.Popen[str] | step_client.Step:
        environment = step_client.LINES_OF_PROGRESS | os.environ
        if address := os.environ.get(step_client.VARIABLE):
            try:
                return step_client.start(Path(address), arguments, environment, REPOSITORY)
            except OSError as error:
                self.log.warning(
                    "%s: no step server answers (%s); the step starts without it and loads its libraries itself",
                    address,
                    error,
                )
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )

    def on_kill(self) -> None:
        """End the step and all processes that it started (Spark's JVM, data loaders); kill them if they do not end in time."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            os.killpg(process.pid, signal.SIGKILL)
