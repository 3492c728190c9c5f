"""As much of Airflow's API as is needed to start a run and wait for it. No Airflow is imported."""

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

_NOT_YET: Final = (
    HTTPStatus.NOT_FOUND,
    *(status for status in HTTPStatus if status >= HTTPStatus.INTERNAL_SERVER_ERROR),
)


@dataclass(slots=True)
class AirflowApi:
    """Airflow at an address, for a user of its; without one, where it asks for no login."""

    url: str
    user: str = ""
    password: str = field(default="", repr=False)
    _token: str = field(default="", repr=False)

    def call(self, path: str, method: str = "GET", body: object = None) -> dict[str, Any]:
        """Return what ``/api/v2<path>`` answers. Raises HTTPError where it refuses."""
        if not self._token:
            login = {"username": self.user, "password": self.password}
            found = self._call("/auth/token", "POST", login) if self.user else self._call("/auth/token", "GET", None)
            self._token = found["access_token"]
        return self._call(f"/api/v2{path}", method, body)

    def _call(self, path: str, method: str, body: object) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self._token}"} if self._token else {}
        )
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        for left in reversed(range(10)):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    found: dict[str, Any] = json.loads(answer.read() or b"{}")
                    return found
            except urllib.error.HTTPError as error:
                if error.code != 503 or not left:  # SQLite is locked: to be asked again
                    raise
                time.sleep(1)
        raise AssertionError

    def wait_for(self, dag: str, seconds: float = 300, every: float = 2.0) -> None:
        """Return when Airflow answers and knows a DAG, as it does a minute or so after it was started.

        Raises:
            TimeoutError: it does not in so many seconds.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.call(f"/dags/{dag}")
                return
            except OSError as error:
                if isinstance(error, urllib.error.HTTPError) and error.code not in _NOT_YET:
                    raise
                if time.monotonic() > deadline:
                    why = f"does not answer, or knows no DAG {dag} ({error})"
                    raise TimeoutError(f"{self.url}: Airflow {why} after {seconds:.0f} s") from error
            time.sleep(every)

    def switch_on(self, dag: str) -> None:
        """Let a DAG run."""
        self.call(f"/dags/{dag}", "PATCH", {"is_paused": False})

    def trigger(self, dag: str, conf: Mapping[str, object]) -> str:
        """Start a run and return its id."""
        return str(self.call(f"/dags/{dag}/dagRuns", "POST", {"logical_date": None, "conf": dict(conf)})["dag_run_id"])

    def state(self, dag: str, run: str) -> str:
        """Return the state of a run: queued, running, success or failed."""
        return str(self.call(f"/dags/{dag}/dagRuns/{quote(run, safe='')}")["state"])

    def tasks(self, dag: str, run: str) -> list[dict[str, Any]]:
        """Return the task instances of a run, all of them."""
        path, found = f"/dags/{dag}/dagRuns/{quote(run, safe='')}/taskInstances", list[dict[str, Any]]()
        while page := self.call(f"{path}?limit=100&offset={len(found)}")["task_instances"]:
            found += page
        return found

    def wait(self, dag: str, run: str, seconds: float = 3600, every: float = 1.0) -> str:
        """Return the state in which a run ends. Raises TimeoutError where it does not in so many seconds."""
        deadline = time.monotonic() + seconds
        while (state := self.state(dag, run)) not in ("success", "failed"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{dag} {run} is {state} after {seconds:.0f} s")
            time.sleep(every)
        return state
