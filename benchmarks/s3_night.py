"""A night on S3 compared with one on a disk: the same catalog and model in turns, and the requests that a night makes.

    PYTHONPATH=. python benchmarks/s3_night.py LAKE CATALOG --mapping fashion-products     # LAKE has a champion; limit: 1.3

The S3 server (versitygw, `make s3-server`) runs on this machine, on the same disk and cores. After the full night, --nights
nights with 1 % changed follow. Requests must not grow with the history.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path

from jobs.demo.next_day import next_day
from jobs.lake import s3_files, storage
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from tests import s3

FIRST = date(2026, 11, 1)


def step(root: AnyPath, environment: Mapping[str, str], *arguments: str) -> tuple[float, dict[str, object]]:
    """Run a step in its own process; return its seconds, including the start, and its result."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments], capture_output=True, text=True, check=False,
        env=dict(environment) | {"TAGGING_ROOT": str(root), "TAGGING_PROGRESS": "false"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return time.perf_counter() - start, result


def requests(log: Path) -> Counter[str]:
    """Count the requests in the server's log by operation, and empty the log."""
    counts = Counter[str](re.findall(r" s3_(\w+) ", log.read_text()))
    os.truncate(log, 0)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=Path)
    parser.add_argument("catalog", type=Path)
    parser.add_argument("--mapping", default="fashion-products")
    parser.add_argument("--nights", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=None, help="parent of the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch, log = Path(folder), Path(folder) / "requests.log"
        with s3.server(scratch / "s3", log=log) as address:
            os.environ.update(s3.KEYS, AWS_ENDPOINT_URL=address)
            roots: dict[str, AnyPath] = {
                "disk": scratch / "lake", "S3": s3_files.s3_path(f"s3://{s3.BUCKET}/lake"),
            }  # fmt: skip
            catalogs = [options.catalog, scratch / "next"]
            next_day(catalogs[0], catalogs[1], options.mapping, changed=0.01, new=0.0, removed=0.0)
            for night in range(1 + options.nights):
                ds = (FIRST + timedelta(days=night)).isoformat()
                catalog = catalogs[night % 2]
                seconds: dict[str, float] = {}
                for name, root in roots.items():
                    arguments = ("import-catalog", str(catalog), "--ds", ds, "--mapping", options.mapping)
                    imported, _ = step(root, os.environ, *arguments)
                    if night == 0:
                        copy_models(options.lake, Lake(root))
                    requests(log)
                    seconds[name], result = step(root, os.environ, "night", "--ds", ds)
                    print(
                        f"{ds} on {name}: import {imported:.1f} s, night {seconds[name]:.1f} s, {result['products']} products",
                        flush=True,
                    )
                print(
                    f"  S3 to disk: {seconds['S3'] / seconds['disk']:.2f}; {sorted(requests(log).items())}", flush=True
                )


def copy_models(source: Path, target: Lake) -> None:
    """Copy the models into a lake."""
    if storage.on_disk(target.root):
        shutil.copytree(source / "models", target.root / "models")
    else:
        storage.send_folder(source / "models", target.models)


if __name__ == "__main__":
    main()
