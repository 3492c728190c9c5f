"""Overhead of Airflow: the same day by `python -m jobs night` and by the DAG under a real scheduler, in turns.

    PYTHONPATH=. python benchmarks/airflow_overhead.py LAKE --shards 10           # LAKE has a champion; limit: 60 s
    PYTHONPATH=. python benchmarks/airflow_overhead.py LAKE --shards 500 --only-dag   # all shards are scheduled

A random catalog of --products is cut into --shards shards. The lake's models are used. Everything else is written to a
temporary folder and removed. Each turn has its own lake.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.demo.sample_catalog import generate
from jobs.importing.import_catalog import import_catalog
from jobs.lake.layout import Lake
from jobs.orchestration.airflow_api import AirflowApi
from jobs.settings import Settings

DAY, DAG = "2026-11-20", "nightly_tagging"
PORT = 8123


def make_lake(scratch: Path, name: str, models: Path, catalog: Path) -> Lake:
    """Return a lake with a model and the day's raw catalog."""
    lake = Lake(scratch / name)
    shutil.copytree(models, lake.models)
    import_catalog(Settings(root=lake.root, progress=False), catalog, DAY, "sample")
    return lake


def by_night(lake: Lake, environment: Mapping[str, str]) -> float:
    """Return the seconds of `python -m jobs night`, including its start."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "jobs", "night", "--ds", DAY],
        env=dict(environment) | {"TAGGING_ROOT": str(lake.root)}, check=True, capture_output=True,
    )  # fmt: skip
    return time.perf_counter() - start


@contextmanager
def airflow(folder: Path, lake: Lake, environment: Mapping[str, str], slots: int | None) -> Iterator[AirflowApi]:
    """Run a real Airflow: scheduler, API server, DAG processor, triggerer."""
    command = [sys.executable, "-m", "jobs", "airflow", "--folder", str(folder), "--port", str(PORT)]
    command += ["--gpu-slots", str(slots)] if slots else []
    log = folder / "start.log"
    folder.mkdir(parents=True)
    settings = {"TAGGING_ROOT": str(lake.root), "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True"}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=dict(environment) | settings, stdout=output, stderr=subprocess.STDOUT)
    try:
        while "Ctrl-C" not in log.read_text():
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.5)
        api = AirflowApi(f"http://127.0.0.1:{PORT}")
        while DAG not in {dag["dag_id"] for dag in api.call("/dags")["dags"]}:
            time.sleep(0.5)
        yield api
    finally:
        process.terminate()
        process.wait(60)


def by_dag(api: AirflowApi) -> tuple[float, list[dict[str, Any]]]:
    """Return the seconds of the DAG's run from its trigger to its end, and its tasks.

    Switching the DAG on starts the scheduled night. The measured run is triggered once that night waits for its export,
    because Airflow normally has been running for a while when a night starts.
    """
    api.switch_on(DAG)
    waiting = f"/dags/{DAG}/dagRuns/~/taskInstances?task_ids=wait_for_export&state=deferred"
    while not api.call(waiting)["task_instances"]:
        time.sleep(0.5)
    start = time.perf_counter()
    run = api.trigger(DAG, {"ds": DAY})
    state = api.wait(DAG, run)
    seconds = time.perf_counter() - start
    tasks = api.tasks(DAG, run)
    if state != "success":
        raise SystemExit(f"the run failed: {[(t['task_id'], t['map_index'], t['state']) for t in tasks]}")
    return seconds, tasks


def describe(tasks: list[dict[str, Any]]) -> str:
    """Return the seconds of each task, and the number, the sum and the longest of the shards."""
    shards = [float(t["duration"]) for t in tasks if t["task_id"] == "tag"]
    parts = [f"{t['task_id']} {float(t['duration'] or 0):.1f}" for t in tasks if t["task_id"] != "tag"]
    return ", ".join([*parts, f"{len(shards)} shards {sum(shards):.1f}, longest {max(shards):.1f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=Path, help="a lake with a champion trained on the generated catalog")
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--products", type=int, help="default: 1,000, or ten per shard, so that none is empty")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--gpu-slots", type=int, help="shards that are tagged at once; default: as in `make airflow`")
    parser.add_argument("--only-dag", action="store_true", help="one round, without `jobs night`")
    options = parser.parse_args()
    options.products = options.products or max(1000, 10 * options.shards)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        generate(scratch / "catalog", products=options.products, dirty=False)
        environment = os.environ | {
            "TAGGING_SHARD_ROWS": str(-(-options.products // options.shards)),
            "TAGGING_PROGRESS": "false",
            "TAGGING_LATE_AFTER_MINUTES": "600",
        }
        nights: list[float] = []
        runs: list[float] = []
        for turn in range(1 if options.only_dag else options.rounds):
            if not options.only_dag:
                nights.append(
                    by_night(
                        make_lake(scratch, f"night-{turn}", options.lake / "models", scratch / "catalog"), environment
                    )
                )
                print(f"jobs night: {nights[-1]:.1f} s", flush=True)
            lake = make_lake(scratch, f"dag-{turn}", options.lake / "models", scratch / "catalog")
            with airflow(scratch / f"airflow-{turn}", lake, environment, options.gpu_slots) as api:
                seconds, tasks = by_dag(api)
            runs.append(seconds)
            print(f"the DAG: {seconds:.1f} s; {describe(tasks)}", flush=True)
        if nights:
            print(
                f"\nAirflow adds {min(runs) - min(nights):.1f} s to {min(nights):.1f} s (best of {len(runs)}); limit: 60"
            )


if __name__ == "__main__":
    main()
