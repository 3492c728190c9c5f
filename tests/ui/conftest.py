"""A real Airflow, started as users start it, and a real browser that is logged in. `make test-ui`."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from jobs.demo.next_day import next_day
from jobs.demo.sample_catalog import generate
from jobs.importing.import_catalog import import_catalog
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.orchestration.airflow_api import AirflowApi
from schemas.documents import Ledger
from tests.conftest import settings_for
from tests.jobs.orchestration.test_alerts import MailServer, Webhook, served

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURES = REPOSITORY / "docs" / "images"  # written if TAGGING_KEEP_SCREENSHOTS is set
FAILURES = REPOSITORY / "build" / "ui-failures"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BROWSER_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
DAYS = ("2026-11-20", "2026-11-21", "2026-11-22", "2026-11-23", "2026-11-24")
WAIT = 600.0  # seconds for a whole night on a busy machine

expect.set_options(timeout=60_000)


@dataclass
class Airflow:
    """The Airflow under test: its address, its lake, its alerts, and calls of its API."""

    url: str
    password: str
    lake: Lake
    webhook: Webhook
    mail: MailServer

    def __post_init__(self) -> None:
        self._api = AirflowApi(self.url, "admin", self.password)

    def api(self, path: str, method: str = "GET", body: object = None) -> dict[str, Any]:
        """Call Airflow's public API."""
        return self._api.call(path, method, body)

    def runs(self, dag: str) -> list[dict[str, Any]]:
        """Return the runs of a DAG, newest first."""
        runs: list[dict[str, Any]] = self.api(f"/dags/{dag}/dagRuns?order_by=-run_after&limit=50")["dag_runs"]
        return runs

    def state(self, dag: str, run: str) -> str:
        return self._api.state(dag, run)

    def task(self, dag: str, run: str, task: str, index: int = -1) -> dict[str, Any]:
        path = f"/dags/{dag}/dagRuns/{quote(run, safe='')}/taskInstances/{task}"
        return self.api(path if index < 0 else f"{path}/{index}")

    def tasks(self, dag: str, run: str) -> list[dict[str, Any]]:
        return self._api.tasks(dag, run)

    def wait(self, dag: str, run: str, state: str = "success", seconds: float = WAIT) -> None:
        """Wait until a run is in a state; fail if it ends in another one."""
        until(lambda: self.state(dag, run) in {state, "success", "failed"}, f"{dag} {run} to end", seconds)
        reached = self.state(dag, run)
        tasks = {t["task_id"]: t["state"] for t in self.tasks(dag, run)}
        assert reached == state, f"{dag} {run} is {reached}: {tasks}"

    def alerts(self, word: str) -> list[str]:
        """Return the messages at the webhook that contain this word."""
        return [post["text"] for post in self.webhook.posted if word in post["text"]]

    def ledgers(self, ds: str) -> list[Ledger]:
        """Return a day's ledgers, oldest first."""
        pages = (self.lake.root / "reports" / f"ds={ds}").glob("run=*/ledger.json")
        return sorted(
            (storage.from_bytes(p, p.read_bytes(), Ledger) for p in pages), key=lambda ledger: ledger.created_at
        )


def until(condition: Callable[[], bool], event: str, seconds: float = WAIT, every: float = 1.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {event}"
        time.sleep(every)


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory, trained: Lake) -> Iterator[Airflow]:
    """`python -m jobs airflow` for a lake with a model and five imported days."""
    folder = tmp_path_factory.mktemp("ui")
    lake = Lake(folder / "lake")
    shutil.copytree(trained.models, lake.models)
    settings = settings_for(lake.root)
    generate(folder / "catalog-0", products=300)  # enough that a challenger can be judged
    for at, ds in enumerate(DAYS):
        if at:
            next_day(
                folder / f"catalog-{at - 1}", folder / f"catalog-{at}", "sample", changed=0.08, new=0.05, removed=0.03,
                seed=at,
            )  # fmt: skip
        import_catalog(settings, folder / f"catalog-{at}", ds, "sample")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    servers = (served(Webhook()), served(MailServer()))
    webhook, mail = next(servers[0]), next(servers[1])
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "TAGGING_"))}
    environment = inherited | {
        "PYTHONPATH": str(REPOSITORY),
        "TAGGING_TAXONOMY": "sample",
        "TAGGING_MODEL_CONFIG_NAME": "tiny",
        "TAGGING_SHARD_ROWS": "150",
        "TAGGING_SPARK_MASTER": "local[2]",
        "TAGGING_RETRY_DELAY": "1",
        "TAGGING_EXPORT_POKE_SECONDS": "2",
        "TAGGING_LATE_AFTER_MINUTES": "2",
        "TAGGING_ALERT_WEBHOOK": f"http://127.0.0.1:{webhook.server_port}/",
        "TAGGING_ALERT_TO": "on-call@example.com",
        "TAGGING_ALERT_SMTP": f"smtp://127.0.0.1:{mail.server_address[1]}",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
    }
    command = ["-m", "jobs", "--root", str(lake.root), "airflow", "--folder", str(folder / "home"), "--port", str(port)]
    log = folder / "start.log"
    with log.open("w") as output, subprocess.Popen(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT
    ) as process:  # fmt: skip
        try:
            until(lambda: "Ctrl-C" in log.read_text() or process.poll() is not None, "Airflow to start", 300)
            output_text = log.read_text()
            assert process.poll() is None, output_text
            password = next(line.split(": ")[1] for line in output_text.splitlines() if line.startswith("  admin: "))
            started = Airflow(f"http://127.0.0.1:{port}", password, lake, webhook, mail)
            until(lambda: len(started.api("/dags")["dags"]) == 4, "the DAGs to be read", 180)
            yield started
        finally:
            process.terminate()
            process.wait(60)
            for server in servers:
                next(server, None)


@pytest.fixture(scope="session")
def browser_page(airflow: Airflow) -> Iterator[Page]:
    assert CHROMIUM, "the UI tests need Chromium: apt-get install -y chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_FLAGS)
        page = browser.new_context(viewport={"width": 1400, "height": 900}, locale="en-GB").new_page()
        page.goto(airflow.url)
        page.locator("input[name=username]").fill("admin")
        page.locator("input[name=password]").fill(airflow.password)
        page.locator("button[type=submit]").click()
        expect(page.get_by_role("link", name="Dags", exact=True).first).to_be_visible()
        yield page
        browser.close()


@dataclass(slots=True)
class Ui:
    """Actions of a person in the browser."""

    page: Page
    airflow: Airflow

    def open(self, path: str) -> None:
        self.page.goto(path if path == "about:blank" else self.airflow.url + path)

    def picture(self, name: str, height: int = 900) -> None:
        """Keep a screenshot for the docs after animations have ended; `height` cuts off paths at the bottom."""
        self.page.wait_for_timeout(1500)
        if os.environ.get("TAGGING_KEEP_SCREENSHOTS"):
            PICTURES.mkdir(parents=True, exist_ok=True)
            clip: Any = {"x": 0, "y": 0, "width": 1400, "height": height}
            self.page.screenshot(path=PICTURES / f"{name}.png", clip=clip)

    def form(self, dag: str) -> Any:
        """Open a DAG's trigger form and return it."""
        self.open(f"/dags/{dag}")
        self.page.get_by_role("button", name="Trigger").first.click()
        dialog = self.page.get_by_role("dialog")
        expect(dialog.get_by_text(f"Trigger Dag - {dag}")).to_be_visible()
        return dialog

    def submit(self, dialog: Any, dag: str) -> str:
        """Send the form and return the new run."""
        before = {run["dag_run_id"] for run in self.airflow.runs(dag)}
        dialog.get_by_role("button", name="Trigger").last.click()
        expect(dialog).to_be_hidden()
        self.page.goto("about:blank")  # save the processor time of an open page

        def made() -> set[str]:
            manual = [run for run in self.airflow.runs(dag) if run["run_type"] == "manual"]
            return {str(run["dag_run_id"]) for run in manual} - before

        until(lambda: bool(made()), f"a new run of {dag}", 60)
        return made().pop()

    def clear(self) -> None:
        """Clear the task instance on the page and all tasks after it."""
        self.page.get_by_role("button", name="Press shift+c to clear").click()
        self._confirm()

    def mark_failed(self) -> None:
        """Mark the task instance on the page as failed, which stops it if it is running."""
        self.page.get_by_role("button", name="Mark Task Instance as...").click()
        self.page.get_by_role("menuitem", name="Failed").click()
        self._confirm()

    def _confirm(self) -> None:
        dialog = self.page.get_by_role("dialog")
        expect(dialog.get_by_text(re.compile("Affected Tasks: [1-9]"))).to_be_visible()
        dialog.get_by_role("button", name="Confirm").click()
        expect(dialog).to_be_hidden()

    def pick(self, dialog: Any, day: str, time: str) -> None:
        """Fill in the next empty field for date and time."""
        dialog.get_by_text("Select date and time").first.click()
        self.page.get_by_placeholder("YYYY/MM/DD").fill(day.replace("-", "/"))
        self.page.keyboard.press("Enter")
        self.page.get_by_placeholder("HH:mm").fill(time)
        self.page.keyboard.press("Enter")
        self.page.keyboard.press("Escape")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep a screenshot of the browser when a test fails."""
    report = yield
    page = getattr(item, "funcargs", {}).get("ui")
    if report.when == "call" and report.failed and page is not None:
        FAILURES.mkdir(parents=True, exist_ok=True)
        page.page.screenshot(path=FAILURES / f"{item.name}.png")
        report.sections.append(("browser", f"{page.page.url}: {FAILURES / item.name}.png"))
    return report


@pytest.fixture
def ui(browser_page: Page, airflow: Airflow) -> Ui:
    return Ui(browser_page, airflow)
