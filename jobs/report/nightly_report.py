"""Step 6, report: one self-contained HTML page about the night, with its styles, plots and pictures."""

from __future__ import annotations

import logging
import time

from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from jobs.report.costs import Reports, newest_reports, read_costs
from jobs.report.gather import gather_night
from jobs.report.night_page import render_index, render_night
from jobs.runtime.step_metrics import measure
from jobs.settings import Settings
from schemas.documents import Ledger
from schemas.rules import load_rules

log = logging.getLogger(__name__)

_NIGHTS = 120  # days and runs in the list of nights


def report(settings: Settings, run_id: str) -> AnyPath:
    """Write a finished run's page ``report.html`` and the list of nights ``reports/index.html``.

    Returns:
        the path of the run's page.

    Raises:
        JobError: the run is not published, or its model is gone.
    """
    lake = Lake(settings.root)
    start = time.perf_counter()
    with measure("report", lake.reports(run_id)) as measured:
        night = gather_night(lake, run_id, load_rules(settings.rules))
        folder = lake.reports(run_id)
        newest = newest_reports(lake, _NIGHTS)
        costs = read_costs(lake, night.plan, newest)
        page = render_night(night, costs, folder, time.perf_counter() - start)
        storage.write_bytes(folder / "report.html", page.encode())
        _write_index(lake, newest, run_id)
        measured.rows = night.ledger.published_rows
        measured.details["bytes"] = len(page)
    log.info("report: %s", folder / "report.html")
    return folder / "report.html"


def _ledger(folder: AnyPath) -> Ledger | None:
    """Return the ledger of a past run, or None if it is damaged: then only its own line of the list is affected."""
    run_id = folder.name.removeprefix("run=")
    remedy = f"the list of nights says so; `python -m jobs publish --run {run_id}` writes it again"
    return storage.find_document(folder / "ledger.json", Ledger, remedy)


def _write_index(lake: Lake, newest: Reports, run_id: str) -> None:
    """Write the list of the newest nights. The page of `run_id` already exists."""
    with_ledger = [folder for folder, files in newest.items() if "ledger.json" in files]
    by_run = {folder.name.removeprefix("run="): _ledger(folder) for folder in with_ledger}
    broken = sorted((run for run, ledger in by_run.items() if ledger is None), reverse=True)
    ledgers = [ledger for ledger in by_run.values() if ledger is not None]
    ledgers = sorted(ledgers, key=lambda ledger: (ledger.ds, ledger.created_at), reverse=True)[:_NIGHTS]
    reported = {folder.name.removeprefix("run=") for folder, files in newest.items() if "report.html" in files}
    page = render_index(ledgers, frozenset(reported | {run_id}), lake.read_history_index().live, broken)
    storage.write_bytes(lake.root / "reports" / "index.html", page.encode())
