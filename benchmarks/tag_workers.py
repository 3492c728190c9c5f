"""Rate of several tag workers, with one core each, compared with one worker on the same shards.

    PYTHONPATH=. python benchmarks/tag_workers.py LAKE --ds 2026-11-20     # LAKE has a champion, and that day is validated

The plan of the day tags every product again, and nothing is published. A worker takes the next remaining shard and tags it in
a new process pinned to its core, as Airflow's workers do. The measured time runs until the last shard is written, and includes
the start of the processes.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobs.lake import storage
from jobs.lake.layout import Lake

STEP = (sys.executable, "-m", "jobs", "--no-progress")


def main() -> None:
    """Plan, tag with one worker and with several in turns, and print products per second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=Path)
    parser.add_argument("--ds", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-rows", type=int, default=4000)
    parser.add_argument("--shards", type=int, default=None, help="tag only this many shards of the plan; default: all")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    environment = os.environ | {
        "TAGGING_ROOT": str(options.lake), "TAGGING_SHARD_ROWS": str(options.shard_rows), "TAGGING_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    planned = subprocess.run(
        [*STEP, "plan", "--ds", options.ds, "--retag"], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    lake = Lake(options.lake)
    plan = lake.read_plan(json.loads(planned.stdout.splitlines()[-1])["run_id"])
    if plan.to_preprocess:
        subprocess.run([*STEP, "preprocess", "--run", plan.run_id], env=environment, check=True)
    shards = plan.shards[: options.shards]
    products = sum(shard.rows for shard in shards)
    print(f"{products:,} products in {len(shards)} shards", flush=True)
    for number in range(options.rounds):
        rates = {}
        for workers in (1, options.workers) if number % 2 == 0 else (options.workers, 1):
            storage.remove_folder(lake.predictions(plan.run_id))
            seconds = tag([shard.id for shard in shards], plan.run_id, workers, environment)
            rates[workers] = products / seconds
            print(f"{workers} worker(s): {seconds:.1f} s, {rates[workers]:.0f} products/s", flush=True)
        print(f"{options.workers} to 1: {rates[options.workers] / rates[1]:.2f}", flush=True)


def tag(shards: list[int], run_id: str, workers: int, environment: dict[str, str]) -> float:
    """Tag the shards with `workers` workers and return the seconds until all are done."""
    left: queue.SimpleQueue[int] = queue.SimpleQueue()
    for shard in shards:
        left.put(shard)

    def work(core: int) -> None:
        while True:
            try:
                shard = left.get_nowait()
            except queue.Empty:
                return
            subprocess.run(
                ["taskset", "--cpu-list", str(core), *STEP, "tag", "--run", run_id, "--shard", str(shard)],
                env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, sorted(os.sched_getaffinity(0))[:workers]))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
