"""Time of importing a drawn export of a million rows, beside polars reading the same file and writing it as Parquet.

`python -m benchmarks.import_speed --rows 1000000 --formats csv parquet jsonl`: the import and polars run in a process each.
The import checks each row, maps it to our column names and writes it as gzipped JSON lines; polars checks nothing.

Measured with 100,000 rows on two cores: CSV 10.3 s beside 0.15 s, Parquet 7.3 s beside 0.09 s, JSON lines 7.9 s beside 0.14 s.
Most of the time goes into mapping and checking each value in Python, not into reading.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
from tqdm import tqdm

from jobs.importing.import_catalog import import_catalog
from jobs.settings import Settings

MAPPING = """{records: 'items.*', product_id: id, title: title, description: description, brand: brand, price: price,
    labels: [colour, pattern, sleeve]}"""
_WORDS = (
    "soft",
    "warm",
    "cotton",
    "summer",
    "shirt",
    "dress",
    "long",
    "short",
    "wide",
    "new",
    "classic",
    "slim",
    "linen",
)
_BATCH = 100_000


def draw(rows: int, seed: int) -> pl.DataFrame:
    """Return a table of `rows` drawn products."""
    choose = random.Random(seed)
    texts = [" ".join(choose.choices(_WORDS, k=12)) for _ in range(1000)]
    return pl.DataFrame(
        {
            "id": [f"P{number:09d}" for number in tqdm(range(rows), desc="draw", leave=False)],
            "title": [f"{choose.choice(_WORDS)} {choose.choice(_WORDS)} {number}" for number in range(rows)],
            "description": choose.choices(texts, k=rows),
            "brand": choose.choices(["Acme", "Umbra", "Nord, Süd & Co"], k=rows),
            "price": [choose.randrange(500, 20_000) / 100 for _ in range(rows)],
            "colour": choose.choices(["Red", "Blue", "Green", ""], k=rows),
            "pattern": choose.choices(["Striped", "Plain", ""], k=rows),
            "sleeve": choose.choices(["Long", "Short", ""], k=rows),
        }
    )


def write(table: pl.DataFrame, path: Path) -> None:
    """Write `table` in the format that the ending of `path` names."""
    if path.suffix == ".csv":
        table.write_csv(path)
    elif path.suffix == ".parquet":
        table.write_parquet(path)
    else:
        table.write_ndjson(path)


def measure(step: str, folder: Path) -> None:
    """Run one step on the only file in `folder` and print its seconds and peak memory as JSON."""
    path = next(folder.glob("items.*"))
    start = time.perf_counter()
    if step == "polars":
        read = {".csv": pl.read_csv, ".parquet": pl.read_parquet, ".jsonl": pl.read_ndjson}[path.suffix]
        read(path).write_parquet(folder / "polars.parquet")
    else:
        mapping = folder / "mapping.yaml"
        mapping.write_text(MAPPING)
        import_catalog(Settings(root=folder / "lake", progress=False), folder, "2026-11-20", str(mapping))
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def main() -> None:
    """Draw the exports, run both steps on each and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--formats", nargs="+", default=["csv", "parquet", "jsonl"], choices=["csv", "parquet", "jsonl"]
    )
    parser.add_argument("--step", choices=["import", "polars"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        measure(options.step, options.folder)
        return
    table = draw(options.rows, seed=7)
    print(
        "| format | file (MB) | import (s) | polars (s) | ratio | rows/s | import (MB of memory) |\n|---|---|---|---|---|---|---|"
    )
    for name in options.formats:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / f"items.{name}"
            write(table, path)
            results = []
            for step in ("import", "polars"):
                command = [sys.executable, "-m", "benchmarks.import_speed", "--step", step, "--folder", temporary]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                results.append(json.loads(done.stdout.splitlines()[-1]))
            (seconds, memory), (fast, _) = results
            size = path.stat().st_size / 1e6
            speed = f"{seconds:.1f} | {fast:.2f} | {seconds / fast:.1f} | {options.rows / seconds:,.0f}"
            print(f"| {name} | {size:.0f} | {speed} | {memory:.0f} |")


if __name__ == "__main__":
    main()
