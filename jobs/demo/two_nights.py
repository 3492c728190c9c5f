"""The demo of ``make run``: takes a catalog, trains a model on it, runs two nights through Airflow, shows the result.

Each step runs in its own process, as a user would start it, and its command line is shown. All output of the demo lies in
one folder, which a new run removes first, so the same run always shows the same result.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from cma_clip_core.content.paths import parquet_files
from jobs.demo.next_day import next_day
from jobs.errors import JobError
from jobs.lake import duckdb_sql, storage
from jobs.lake.layout import Lake
from jobs.orchestration import local_airflow
from jobs.pages.display_text import plain
from jobs.settings import Settings
from schemas.documents import Ledger

REPOSITORY = Path(__file__).resolve().parents[2]
DAYS = ("2026-11-20", "2026-11-21")
MARKER = ".demo"  # only a folder with this file is ever removed
TAIL = 40  # lines of the log to show when a command fails

# Only the jobs' own log lines and errors are shown. Everything else goes to the log file.
_JOB_LINE = re.compile(r"(\d\d:\d\d:\d\d (INFO|WARNING|ERROR) |error: )")
_TASK_LINE = re.compile(r"\[\w+ *\] (?P<text>.*?) +\[airflow\.task\.operators\.\S*JobOperator\]")
_STATE_LINE = re.compile(r"Marking run .* (?P<state>successful|failed)")

BY_ATTRIBUTE = """\
SELECT attribute, count(DISTINCT product_id) AS products, count(catalog_value) AS given_by_catalog,
       count(*) FILTER (source = 'model') AS filled_by_model, count(*) FILTER (conflict) AS suspected_wrong
FROM read_parquet(getvariable('files')) GROUP BY attribute ORDER BY attribute;"""
TEN_PRODUCTS = """\
WITH tagged AS (
    SELECT *, row_number() OVER (PARTITION BY product_id ORDER BY source = 'model' DESC, confidence DESC) AS row_rank
    FROM read_parquet(getvariable('files')) WHERE value IS NOT NULL),
valid AS (SELECT product_id, title FROM read_parquet({valid})),  -- held products have no title here
ten AS (
    SELECT product_id, title FROM tagged JOIN valid USING (product_id) GROUP BY product_id, title
    ORDER BY bool_or(source = 'model') DESC, md5(product_id) LIMIT 10)
SELECT product_id, coalesce(nullif(title, ''), '(no title)'), attribute, value, source,
       CASE source WHEN 'model' THEN format('{{:.2f}}', confidence) END
FROM tagged JOIN ten USING (product_id)
WHERE row_rank <= 3 ORDER BY product_id, attribute"""


@dataclass(slots=True)
class Console:
    """A console that runs commands, shows the important lines of their output, and logs all of it to a file."""

    log: Path
    environment: dict[str, str]

    def run(self, *command: str) -> list[str]:
        """Run ``python -m jobs ...`` or ``airflow ...`` and return its output lines. Raises JobError if it fails."""
        shown = shlex.join(command)
        print(f"\n$ {shown}", flush=True)
        start = time.perf_counter()
        arguments = command[1:] if command[0] == "python" else ("-m", *command)
        lines: list[str] = []
        with self.log.open("a") as log:
            log.write(f"\n$ {shown}\n")
            with subprocess.Popen(
                [sys.executable, *arguments],
                cwd=REPOSITORY,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="backslashreplace",
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    log.write(line)
                    lines.append(line.rstrip())
                    if text := _worth_showing(lines[-1]):
                        print(f"  {text}", flush=True)
        if process.returncode != 0:
            print("\n".join(["", f"the last lines of {self.log}:", *lines[-TAIL:]]))
            raise JobError(f"`{shown}` failed with exit code {process.returncode}; {self.log} has its whole output")
        print(f"  {time.perf_counter() - start:.1f} s", flush=True)
        return lines

    def job(self, *arguments: str) -> dict[str, Any]:
        """Run a step and return its result."""
        lines = self.run("python", "-m", "jobs", *arguments)
        result: dict[str, Any] = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
        return result


def _worth_showing(line: str) -> str | None:
    if _JOB_LINE.match(line):
        return line
    if match := _TASK_LINE.search(line):
        text = match["text"].strip()
        if text.startswith("python -m jobs"):
            return f"[task] {text}"
        return f"  {text}" if _JOB_LINE.match(text) else None
    if match := _STATE_LINE.search(line):
        return f"[run] {match['state']}"
    return None


def demo(settings: Settings, folder: Path, catalog: Path | None, mapping: str) -> None:
    """Run two days of a catalog in `folder`: the generated catalog, or the export at `catalog` in the layout of `mapping`.

    Settings from ``TAGGING_*`` variables or flags apply, except that the lake is always ``<folder>/lake``.
    """
    start = time.perf_counter()
    folder = folder.resolve()
    if catalog is not None and not catalog.is_dir():
        raise JobError(f"{catalog}: the folder does not exist; CATALOG must name the folder of an export")
    _start_clean(folder)
    lake = Lake(folder / "lake")
    changes = _environment(settings, folder, real=catalog is not None)
    # AIRFLOW* variables of the caller could name the database of another Airflow.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    console = Console(folder / "demo.log", inherited | changes)
    print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in changes.items()))

    if catalog is None:
        mapping, days = "sample", (folder / "catalog", folder / "catalog-day2")
        console.run("python", "-m", "jobs", "sample-catalog", str(days[0]))
    else:
        mapping = str(Path(mapping).resolve()) if Path(mapping).is_file() else mapping
        days = (catalog.resolve(), folder / "catalog-day2")

    console.job("import-catalog", str(days[0]), "--ds", DAYS[0], "--mapping", mapping)
    console.job("prepare", "--ds", DAYS[0])
    console.job("train", "--ds", DAYS[0])

    console.run("airflow", "db", "migrate")
    console.run("airflow", "pools", "set", "gpu", "1", "GPUs that tag")
    _night(console, DAYS[0])
    if catalog is not None:
        _draw_next_day(days[0], days[1], mapping)
    console.job("import-catalog", str(days[1]), "--ds", DAYS[1], "--mapping", mapping)
    _night(console, DAYS[1])

    ledgers = [_ledger(lake, ds) for ds in DAYS]
    show(lake, ledgers)
    print(f"\nTotal: {time.perf_counter() - start:.0f} s. Everything is in {folder}; the whole log is {console.log}.")


def _start_clean(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise JobError(f"{folder} has files that no demo wrote; name another folder with --folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def _environment(settings: Settings, folder: Path, *, real: bool) -> dict[str, str]:
    """Return the variables of the demo's commands, to be added to those of the caller."""
    name = "fashion" if real else "sample"
    defaults: dict[str, Any] = {"taxonomy": name, "model_config_name": name, "progress": False}
    if not real:
        defaults["shard_rows"] = 1600  # small, so that the generated catalog shows several shards
        defaults["candidates"] = ("bag-of-words", "cma-clip")  # picture features would cost the demo a minute
    ours = {field: value for field, value in defaults.items() if field not in settings.model_fields_set}
    chosen = settings.model_copy(update=ours | {"root": folder / "lake"})
    airflow = local_airflow.connection(chosen) | local_airflow.home(folder / "airflow")
    return chosen.variables() | airflow | {"TAGGING_RETRY_DELAY": "5"}


def _night(console: Console, ds: str) -> None:
    console.run("airflow", "dags", "test", "nightly_tagging", "--conf", json.dumps({"ds": ds}))


def _draw_next_day(folder: Path, out: Path, mapping: str) -> None:
    print(f"\nThe second day: {folder} with 1% of its products changed, some new, some removed -> {out}", flush=True)
    next_day(folder, out, mapping=mapping, seed=7)


def _ledger(lake: Lake, ds: str) -> Ledger:
    runs = [path.parent.name.removeprefix("run=") for path in lake.root.glob(f"reports/ds={ds}/*/ledger.json")]
    ledgers = [ledger for run in runs if (ledger := lake.read_ledger(run)) is not None]
    if not ledgers:
        raise JobError(f"{lake.root}/reports/ds={ds}: the night left no ledger")
    return max(ledgers, key=lambda ledger: ledger.created_at)


def show(lake: Lake, ledgers: Sequence[Ledger]) -> None:
    """Print the nights' ledgers, ten products, and a query of the tables."""
    print("\n== Two nights, every row accounted for ==\n")
    fields = [field for field in Ledger.model_fields if field not in ("created_at", "attribute_rows")]
    rows = [(field, *(_cell(getattr(ledger, field)) for ledger in ledgers)) for field in fields]
    _print_table(("", "first night", "second night"), rows)

    files = duckdb_sql.live_files(lake)
    with duckdb.connect() as connection:
        connection.execute(files)
        print("\n== Ten products, with what the model added ==\n")
        valid = parquet_files(lake.root / lake.read_validation(ledgers[-1].ds).valid_path)
        rows_of_ten = connection.execute(TEN_PRODUCTS.format(valid=duckdb_sql.listed(valid))).fetchall()
        _print_table(("title", "attribute", "value", "source", "confidence"), _first_of_each(rows_of_ten))
        print(f"\n== The tables, read with DuckDB ==\n\n{files}\n{BY_ATTRIBUTE}\n")
        counts = connection.execute(BY_ATTRIBUTE)
        _print_table([column[0] for column in counts.description or ()], counts.fetchall())

    print("\n== Reports ==\n")
    for ledger in ledgers:
        for page in storage.children(lake.reports(ledger.run_id)):
            if page.suffix == ".html":
                print(f"{ledger.ds}  {page.as_uri()}")


def _first_of_each(rows: Iterable[Sequence[object]]) -> list[Sequence[object]]:
    """Drop the first column, the product's id, and show each title only in the first row of its product."""
    shown: list[Sequence[object]] = []
    last: object = None
    for product_id, title, *rest in rows:
        shown.append(("" if product_id == last else title, *rest))
        last = product_id
    return shown


def _cell(value: object) -> str:
    return "yes" if value is True else "no" if value is False else str(value)


def _print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    texts = [["" if cell is None else plain(str(cell), 60) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *texts, strict=True)]
    for row in (list(head), ["-" * width for width in widths], *texts):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
