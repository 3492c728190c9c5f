"""Fixtures shared by all tests: one Spark session, and a small lake with a trained model to start a night from."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.records.rejected_lines import read_rejected
from jobs.settings import Settings
from jobs.spark import sessions
from jobs.startup import step_client
from schemas.documents import RawFile, RawManifest

DAY1, DAY2, DAY3, DAY4 = "2026-11-20", "2026-11-21", "2026-11-22", "2026-11-23"

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
# This must be set before torch is loaded. The suite runs one process per core. With more threads, the processes wait
# for each other at every small step, and a training takes ten times the CPU time. `test_loop.py` has a training with
# two threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Spark's features for large tables (several partitions after each shuffle, adaptive plans) slow down a night of few
# rows. The end-to-end nights keep them.
FOR_FEW_ROWS = {"spark.sql.shuffle.partitions": "2", "spark.sql.adaptive.enabled": "false"}


# Folders with the slowest files. They run first, so that none is left to run alone at the end.
SLOWEST = ("e2e", "jobs/runs", "jobs/validation", "jobs/training", "jobs/upkeep", "jobs/startup", "jobs/nightly")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of SLOWEST first."""
    folders = [Path(__file__).parent / folder for folder in SLOWEST]

    def rank(item: pytest.Item) -> int:
        return next((n for n, folder in enumerate(folders) if folder in item.path.parents), len(folders))

    items.sort(key=rank)


def settings_for(root: Path, **changes: Any) -> Settings:
    """Return the settings of a small test lake."""
    defaults: dict[str, Any] = {
        "root": root,
        "model_config_name": "tiny",
        "candidates": ("cma-clip",),  # the linear members need seconds more
        "spark_master": "local[2]",
        "shard_rows": 40,
        "spark_options": FOR_FEW_ROWS,
        "progress": False,
    }
    return Settings(**(defaults | changes))


def write_raw(lake: Lake, ds: str, lines: Iterable[bytes | dict[str, Any]]) -> None:
    """Write a day's raw catalog from lines or records, in the format of `import-catalog`."""
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    data = gzip.compress(b"".join(line + b"\n" for line in encoded), 1, mtime=0)
    folder = lake.raw(ds)
    shutil.rmtree(folder, ignore_errors=True)
    storage.write_bytes(folder / "part-00000.jsonl.gz", data)
    file = RawFile(
        name="part-00000.jsonl.gz", bytes=len(data), rows=len(encoded), sha256=hashlib.sha256(data).hexdigest()
    )
    manifest = RawManifest(ds=ds, source="test", files=(file,), rows=len(encoded), created_at=datetime.now(UTC))
    storage.write_document(folder / "_manifest.json", manifest)


def read_raw(lake: Lake, ds: str) -> list[dict[str, Any]]:
    """Return the records of a day's raw catalog."""
    return [json.loads(line) for line in raw_lines(lake, ds)]


def split_raw(lake: Lake, ds: str) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return the records of a day's raw catalog, and the lines that are not records, as the shop wrote them."""
    records, others = [], []
    for line in raw_lines(lake, ds):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        rejected = read_rejected(line)
        if isinstance(record, dict) and rejected is None:
            records.append(record)
        else:
            others.append(rejected.raw if rejected else line)
    return records, others


def raw_lines(lake: Lake, ds: str) -> list[bytes]:
    """Return the lines of a day's raw catalog, records or not."""
    paths = sorted(lake.raw(ds).glob("*.jsonl.gz"))
    return [line for path in paths for line in gzip.decompress(path.read_bytes()).splitlines() if line]


@pytest.fixture(scope="session")
def spark_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The Spark session of all tests. Jobs that run in the process of a test use it too."""
    with sessions.session(settings_for(tmp_path_factory.mktemp("spark")), rows=100) as session:
        yield session


@pytest.fixture(scope="session")
def step_server_address() -> Iterator[Path]:
    """The address of a step server that has loaded its libraries."""
    if not step_client.supported():
        pytest.skip("needs Linux")
    with tempfile.TemporaryDirectory(prefix="steps-") as folder:
        address, log = Path(folder) / "socket", Path(folder) / "log"
        process = step_client.launch(address, log, os.environ)
        deadline = time.monotonic() + 120
        while f"{step_client.LIBRARIES[-1]}: " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        assert "not loaded" not in log.read_text()
        yield address
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0, log.read_text()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, spark_session: Any) -> Lake:  # noqa: ARG001
    """A lake with one imported day of generated products, its examples, and a trained model. Copy it before use."""
    from jobs.demo.sample_catalog import generate
    from jobs.importing.import_catalog import import_catalog
    from jobs.nightly.plan import plan
    from jobs.nightly.preprocess import preprocess
    from jobs.training.train import train
    from jobs.validation.validate import validate

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # shared by all processes of this test run; the first that needs the lake makes it
    folder, done = base / "trained", base / "trained" / "done"
    settings = settings_for(folder / "lake")
    with storage.locked(folder):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a process that did not finish it
            generate(folder / "catalog", products=100, seed=3, dirty=False)
            import_catalog(settings, folder / "catalog", DAY1, "sample")
            validate(settings, DAY1)
            preprocess(settings, plan(settings, DAY1, prepare=True).run_id)
            train(settings, DAY1)
            done.touch()
    return Lake(settings.root)


def copy_trained(trained: Lake, root: Path) -> None:
    """Copy the lake, ready for the night of DAY1."""
    shutil.copytree(trained.root, root, ignore=shutil.ignore_patterns("scratch"))
    # The version of a validation depends on the picture roots, so the copied day must be validated again.
    shutil.rmtree(root / "catalog" / "valid")


@pytest.fixture
def lake(trained: Lake, tmp_path: Path) -> Lake:
    """A lake for a single test, ready for the night of DAY1."""
    root = tmp_path / "lake"
    copy_trained(trained, root)
    return Lake(root)


@pytest.fixture
def settings(lake: Lake) -> Settings:
    """The settings of `lake`."""
    return settings_for(lake.root)


@dataclass(frozen=True)
class Night:
    """Copies of a lake in the night of DAY1, restored to the original folder because published paths are absolute."""

    root: Path
    run_id: str
    copies: Path

    def keep(self, step: str) -> None:
        shutil.copytree(self.root, self.copies / step, ignore=shutil.ignore_patterns("scratch"))

    def after(self, step: str) -> Lake:
        shutil.rmtree(self.root)
        shutil.copytree(self.copies / step, self.root)
        return Lake(self.root)


@pytest.fixture(scope="session")
def night_of_day1(trained: Lake, tmp_path_factory: pytest.TempPathFactory) -> Night:
    """The night of DAY1, run once, with copies of the lake after tagging and at the end. Use the fixtures below."""
    from jobs.nightly.plan import plan
    from jobs.nightly.preprocess import preprocess
    from jobs.nightly.tag import tag
    from jobs.runs.whole_night import night
    from jobs.validation.validate import validate

    folder = tmp_path_factory.mktemp("night-of-day1")
    copy_trained(trained, folder / "lake")
    settings = settings_for(folder / "lake")
    validate(settings, DAY1)
    made = Night(settings.root, plan(settings, DAY1).run_id, folder)
    preprocess(settings, made.run_id)
    tag(settings, made.run_id)
    made.keep("tag")
    night(settings, DAY1)
    made.keep("report")
    return made


@pytest.fixture
def tagged(night_of_day1: Night) -> tuple[Lake, Settings, str]:
    """A lake whose night of DAY1 is tagged but not published, its settings, and the run's id."""
    lake = night_of_day1.after("tag")
    return lake, settings_for(lake.root), night_of_day1.run_id


@pytest.fixture
def first_night(night_of_day1: Night) -> tuple[Lake, Settings]:
    """A lake after the night of DAY1, and its settings."""
    lake = night_of_day1.after("report")
    return lake, settings_for(lake.root)
