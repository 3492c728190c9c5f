"""Kill a night in each of its steps, start it again each time, and compare its tables with an undisturbed night's.

    PYTHONPATH=. python benchmarks/killed_night.py LAKE --ds 2026-11-20

LAKE has the day's raw catalog, a champion, and the night of that day published with that champion. A copy is made of its raw
catalog, pictures and models. The night of the copy is killed at a random moment after the start of each step. SIGKILL goes to
the whole process group.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import duckdb

from jobs.lake.layout import Lake

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = {  # step: latest moment of the kill, in seconds after its start
    "validate": 3.0, "plan": 2.0, "preprocess": 3.0, "tag-00000": 3.0, "tag-00001": 3.0, "publish": 3.0, "report": 0.3
}  # fmt: skip


def killed_at(step: str, delay: float, command: list[str], environment: dict[str, str]) -> bool:
    """Start the night, kill it `delay` seconds after the start of `step`, and return True; return False if it ended before."""
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if f"{step}: started" in line:
            time.sleep(delay)
            ended = process.poll() is not None
            if not ended:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return not ended
    process.wait()
    return False


def export_rows(lake: Lake, path: Path) -> None:
    """Write the live table as sorted CSV, without the columns that differ from run to run."""
    with duckdb.connect() as connection:
        connection.execute(
            f"copy (select * exclude (run_id, tagged_at) from read_parquet($1, hive_partitioning = false) order by all) to '{path}'",
            [lake.current_lines()],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=Path)
    parser.add_argument("--ds", required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    delays = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, lake = Lake(options.lake.resolve()), Lake(Path(folder) / "lake")
        live = whole.read_manifest(whole.current_run() or "none")
        if live is None or live.ds != options.ds:
            published = "nothing" if live is None else f"the night of {live.ds}"
            sys.exit(
                f"{options.lake}: {published} is live, not that of {options.ds}: `python -m jobs tables rollback` to it"
            )
        shutil.copytree(whole.raw(options.ds), lake.raw(options.ds))
        shutil.copytree(whole.models, lake.models)
        lake.pictures.symlink_to(whole.pictures)
        environment = os.environ | {"TAGGING_ROOT": str(lake.root), "TAGGING_PROGRESS": "false"}
        command = [sys.executable, "-m", "jobs", "night", "--ds", options.ds]
        for step, latest in STEPS.items():
            delay = delays.uniform(0.05, latest)
            outcome = "killed" if killed_at(step, delay, command, environment) else "ended before it could be killed"
            print(f"{step}: {outcome} {delay:.1f} s after its start", flush=True)
        subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, stdout=subprocess.DEVNULL)
        tables = []
        for name, source in (("undisturbed", whole), ("killed", lake)):
            path = Path(folder) / f"{name}.csv"
            export_rows(source, path)
            tables.append(path.read_bytes())
        undisturbed, killed = (table.splitlines()[1:] for table in tables)
        other = Counter(undisturbed) - Counter(killed)
        print(f"{len(undisturbed):,} rows undisturbed, {len(killed):,} killed; ", end="")
        print(f"{other.total():,} differ" if tables[0] != tables[1] else "the tables are the same")
        for row in list(other)[:5]:
            print(row.decode())
        sys.exit(0 if tables[0] == tables[1] else 1)


if __name__ == "__main__":
    main()
