"""`make compose-night`: runs a night of the sample catalog in the containers and tags every product again."""

from __future__ import annotations

import sys
import time
from typing import Final

from jobs.compose.prepare_services import DAY
from jobs.orchestration.airflow_api import AirflowApi

DAG: Final = "nightly_tagging"


def main() -> None:
    """Start the night, print the states of its tasks, and exit with 1 if it fails.

    Reads the admin's password from standard input.
    """
    api = AirflowApi("http://api-server:8080", "admin", sys.stdin.readline().strip())
    try:
        api.wait_for(DAG)
    except TimeoutError as error:
        print(
            f"error: {error}; `docker compose ps` and `docker compose logs api-server dag-processor` say why",
            file=sys.stderr,
        )
        sys.exit(1)
    api.switch_on(DAG)
    start = time.monotonic()
    run = api.trigger(DAG, {"ds": DAY, "retag": True})
    seen: dict[tuple[str, int], str] = {}
    while True:
        state = api.state(DAG, run)
        for task in api.tasks(DAG, run):
            key, now = (str(task["task_id"]), int(task["map_index"])), str(task["state"])
            if now not in ("None", "scheduled", "queued") and seen.get(key) != now:
                seen[key] = now
                shard = f" shard {key[1]}" if key[1] >= 0 else ""
                print(
                    f"{time.monotonic() - start:6.1f} s  {key[0]}{shard}: {now}  {task.get('hostname') or ''}",
                    flush=True,
                )
        if state in ("success", "failed"):
            break
        time.sleep(1)
    print(f"{DAG}: {state} after {time.monotonic() - start:.0f} s")
    sys.exit(state != "success")


if __name__ == "__main__":
    main()
