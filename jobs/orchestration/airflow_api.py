"""A client for the part of Airflow's API that starts a run and waits for it. Does not import Airflow."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

_STARTING_UP: Final = (  # answers of an Airflow that is still starting
    HTTPStatus.NOT_FOUND,
    *(status for status in HTTPStatus if status >= HTTPStatus.INTERNAL_SERVER_ERROR),
)


@dataclass(slots=True)
class AirflowApi:
    """A client of the Airflow at an address. Leave the user empty if that Airflow needs no login."""

    url: str
    user: str = ""
    password: str = field(default="", repr=False)
    _token: str = field(default="", repr=False)

    def call(self, path: str, method: str = "GET", body: object = None) -> dict[str, Any]:
        """Return the answer of ``/api/v2<path>``. Raises HTTPError if Airflow refuses."""
        if not self._token:
            login = {"username": self.user, "password": self.password}
            answer = self._call("/auth/token", "POST", login) if self.user else self._call("/auth/token", "GET", None)
            self._token = answer["access_token"]
        return self._call(f"/api/v2{path}", method, body)

    def _call(self, path: str, method: str, body: object) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self._token}"} if self._token else {}
        )
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        for left in reversed(range(10)):
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    answer: dict[str, Any] = json.loads(response.read() or b"{}")
                    return answer
            except urllib.error.HTTPError as error:
                if error.code != 503 or not left:  # 503: SQLite is locked, so try again
                    raise
                time.sleep(1)
        raise AssertionError

    def wait_for(self, dag: str, seconds: float = 300, every: float = 2.0) -> None:
        """Wait until Airflow answers and knows a DAG; both take about a minute after its start.

        Raises:
            TimeoutError: it did not within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.call(f"/dags/{dag}")
                return
            except OSError as error:
                if isinstance(error, urllib.error.HTTPError) and error.code not in _STARTING_UP:
                    raise
                if time.monotonic() > deadline:
                    why = f"does not answer, or knows no DAG {dag} ({error})"
                    raise TimeoutError(f"{self.url}: Airflow {why} after {seconds:.0f} s") from error
            time.sleep(every)

    def switch_on(self, dag: str) -> None:
        """Unpause a DAG."""
        self.call(f"/dags/{dag}", "PATCH", {"is_paused": False})

    def trigger(self, dag: str, conf: Mapping[str, object]) -> str:
        """Start a run and return its id."""
        return str(self.call(f"/dags/{dag}/dagRuns", "POST", {"logical_date": None, "conf": dict(conf)})["dag_run_id"])

    def state(self, dag: str, run: str) -> str:
        """Return the state of a run: queued, running, success or failed."""
        return str(self.call(f"/dags/{dag}/dagRuns/{quote(run, safe='')}")["state"])

    def tasks(self, dag: str, run: str) -> list[dict[str, Any]]:
        """Return all task instances of a run."""
        path, tasks = f"/dags/{dag}/dagRuns/{quote(run, safe='')}/taskInstances", list[dict[str, Any]]()
        while page := self.call(f"{path}?limit=100&offset={len(tasks)}")["task_instances"]:
            tasks += page
        return tasks

    def wait(self, dag: str, run: str, seconds: float = 3600, every: float = 1.0) -> str:
        """Wait for the end of a run and return its state. Raises TimeoutError if it takes longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while (state := self.state(dag, run)) not in ("success", "failed"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{dag} {run} is {state} after {seconds:.0f} s")
            time.sleep(every)
        return state
