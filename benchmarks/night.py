"""Cost of a night: a full one, one with 1 % changed, one with nothing changed; time by step, memory by process.

    PYTHONPATH=. python benchmarks/night.py LAKE CATALOG --mapping fashion-products     # LAKE has a champion; see docs/results.md
    PYTHONPATH=. python benchmarks/night.py LAKE CATALOG --times 10                     # the catalog ten times: is memory flat?

The lake's models are used. Everything else is written to a temporary folder and removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from raw_day import Record, rewrite
from watch import Cost, watch

from jobs.demo.next_day import next_day
from jobs.lake.layout import Lake

DAYS = ("2026-11-20", "2026-11-21", "2026-11-22")


def multiply(lake: Lake, ds: str, times: int) -> None:
    """Repeat the day's records `times` times with other ids; pictures are shared."""

    def change(records: Iterable[Record]) -> Iterator[Record]:
        for n in range(times):
            for record in records:
                yield record | {"product_id": f"{record['product_id']}-{n}"}

    rewrite(lake, ds, change)


def steps(lake: Lake, run_id: str, ds: str) -> dict[str, float]:
    """Return the seconds of each step of a run."""
    plan = lake.read_plan(run_id)
    folders = [lake.root / "reports" / f"ds={ds}" / f"validation-{plan.validation.version}", lake.reports(run_id)]
    seconds: dict[str, float] = {}
    for folder in folders:
        for path in sorted((folder / "steps").glob("*.json")):
            metrics = json.loads(path.read_text())
            seconds[metrics["step"]] = seconds.get(metrics["step"], 0.0) + metrics["seconds"]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=Path, help="a lake with a champion")
    parser.add_argument("catalog", type=Path)
    parser.add_argument("--mapping", default="fashion-products")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument(
        "--nights", type=int, default=3, choices=(1, 2, 3), help="number of nights to run, of the three"
    )
    parser.add_argument("--scratch", type=Path, default=None, help="parent of the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        lake = Lake(scratch / "lake")
        shutil.copytree(options.lake / "models", lake.models)
        environment = os.environ | {"TAGGING_ROOT": str(lake.root), "TAGGING_PROGRESS": "false"}
        catalogs = {DAYS[0]: options.catalog, DAYS[1]: scratch / "next"}
        next_day(options.catalog, catalogs[DAYS[1]], options.mapping, changed=0.01, new=0.0, removed=0.0)
        costs: dict[str, tuple[Cost, dict[str, float]]] = {}
        names = ("full", "1 % changed", "nothing changed")[: options.nights]
        for name, ds in zip(names, DAYS, strict=False):
            catalog = catalogs.get(ds, catalogs[DAYS[1]])
            command = ["jobs", "import-catalog", str(catalog), "--ds", ds, "--mapping", options.mapping]
            imported = watch(command, environment)
            print(f"{name}: one import of the catalog: {imported.seconds:.1f} s; {imported.memory()}", flush=True)
            if options.times > 1:
                multiply(lake, ds, options.times)
            cost = watch(["jobs", "night", "--ds", ds], environment)
            result = json.loads(cost.output.strip().splitlines()[-1])
            costs[name] = cost, steps(lake, result["run_id"], ds)
            print(
                f"{name}: {cost.seconds:.1f} s, {result['products']:,} products, {result['rows']:,} rows; {cost.memory()}",
                flush=True,
            )
        all_steps = list(dict.fromkeys(step for _, by_step in costs.values() for step in by_step))
        print(
            f"\n| night | all in | ratio | {' | '.join(all_steps)} | start and stop |\n|---|---|---|{'---|' * len(all_steps)}---|"
        )
        full = costs["full"][0].seconds
        for name, (cost, by_step) in costs.items():
            rest = cost.seconds - sum(by_step.values())
            cells = " | ".join(f"{by_step.get(step, 0.0):.1f}" for step in all_steps)
            print(f"| {name} | {cost.seconds:.1f} | {cost.seconds / full:.2f} | {cells} | {rest:.1f} |")


if __name__ == "__main__":
    main()
