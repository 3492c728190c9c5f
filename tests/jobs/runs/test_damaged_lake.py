"""A night on a lake with one damaged file: it names the file and the remedy in an error, or gives the right tables.

There must never be a traceback or a wrong row. ``make test-damage`` tries every kind of file in every way.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest

from jobs.errors import JobError
from jobs.lake.layout import Lake
from jobs.models import champion_pointer
from jobs.runs.whole_night import night
from jobs.settings import Settings
from jobs.upkeep import published_tables
from tests.conftest import DAY1, DAY2, DAY3, DAY4, read_raw, settings_for, write_raw
from tests.jobs.runs.test_whole_night import steps_to

pytestmark = pytest.mark.spark

# By what the table in docs/lake.md calls them. `{ds}` and `{run}` are the newest night's, `{first}` is the first.
KINDS = {
    "raw records": "catalog/raw/ds={ds}/part-00000.jsonl.gz",
    "raw manifest": "catalog/raw/ds={ds}/_manifest.json",
    "picture": "catalog/pictures/{picture}",
    "valid records": "catalog/valid/ds={ds}/*/*.parquet",
    "quarantine": "catalog/quarantine/ds={ds}/*/*.parquet",
    "validation": "catalog/valid/ds={ds}/current.json",
    "plan": "plans/ds={ds}/run={run}/plan.json",
    "planned products": "plans/ds={ds}/run={run}/products/shard=0/part-00000.parquet",
    "removed products": "plans/ds={ds}/run={run}/removed/*.parquet",
    "examples": "examples/ds={ds}/run={run}/shard=0/*.parquet",
    "examples of the first night": "examples/ds={day1}/run=*/shard=0/*.parquet",
    "examples manifest": "examples/ds={ds}/run={run}/_manifest.json",
    "predictions": "predictions/run={run}/shard=00000.parquet",
    "attribute table": "attribute_tables/runs/{run}/{attribute}/part-00000.parquet",
    "state": "attribute_tables/runs/{run}/_products/part-00000.parquet",
    "base table": "attribute_tables/runs/{second}/{attribute}/part-00000.parquet",
    "base state": "attribute_tables/runs/{second}/_products/part-00000.parquet",
    "base manifest": "attribute_tables/runs/{second}/manifest.json",
    "run manifest": "attribute_tables/runs/{run}/manifest.json",
    "first run's manifest": "attribute_tables/runs/{first}/manifest.json",
    "pointer": "attribute_tables/current",
    "history of attributes": "attribute_history/ds={ds}/run={run}/attributes/part-00000.parquet",
    "history of products": "attribute_history/ds={ds}/run={run}/products/part-00000.parquet",
    "first history of attributes": "attribute_history/ds={day1}/run={first}/attributes/part-00000.parquet",
    "first history of products": "attribute_history/ds={day1}/run={first}/products/part-00000.parquet",
    "history index": "attribute_history/index.json",
    "left index": "attribute_history/left/{first}.json",
    "weights": "models/{model}/model.safetensors",
    "configuration": "models/{model}/config.json",
    "taxonomy": "models/{model}/taxonomy.yaml",
    "thresholds": "models/{model}/thresholds.json",
    "metrics": "models/{model}/metrics.json",
    "card": "models/{model}/MODEL_CARD.md",
    "plot": "models/{model}/calibration.svg",
    "hashes": "models/{model}/SHA256SUMS",
    "champion": "models/champion",
    "ledger": "reports/ds={ds}/run={run}/ledger.json",
    "first ledger": "reports/ds={day1}/run={first}/ledger.json",
    "page": "reports/ds={ds}/run={run}/report.html",
    "cost of a step": "reports/ds={ds}/run={run}/steps/plan.json",
    "first cost of a step": "reports/ds={day1}/run={first}/steps/plan.json",
    "list of nights": "reports/index.html",
    "labelled set": "labelled/ds={day1}/set=*/products.parquet",
    "labelled manifest": "labelled/ds={day1}/set=*/manifest.json",
}


def _flip(at: float) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(int(len(data) * at), len(data) - 1)] ^= 0x04
        path.write_bytes(data)

    return flip


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "bit flipped": _flip(0.4),
    "bit flipped near its end": _flip(0.95),
    "empty": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
    "garbage": lambda path: path.write_bytes(bytes(range(255, -1, -1)) * 8),
}


@dataclass(frozen=True)
class Damaged:
    """A lake with two finished nights and a tagged one. Each case starts with a copy of it in the same folder."""

    root: Path
    copies: Path
    names: dict[str, dict[str, str]]  # of each scenario
    expected: dict[str, dict[str, Any]]  # the tables that each scenario ends with

    def start(self, scenario: str) -> Settings:
        shutil.rmtree(self.root)
        source = self.copies / ("tagged" if scenario == "taken up" else "two nights")
        shutil.copytree(source, self.root, copy_function=shutil.copy2)
        return settings_for(self.root)

    def find(self, scenario: str, kind: str) -> Path:
        found = sorted(self.root.glob(KINDS[kind].format(**self.names[scenario])))
        assert found, (scenario, kind)
        return found[0]


SCENARIOS = {"same night": DAY3, "next night": DAY4, "backfill": DAY2, "taken up": DAY4}


def values(settings: Settings) -> dict[str, Any]:
    """Return the live tables and those of each day, without confidences and times, which vary from run to run."""
    lake = Lake(settings.root)
    with duckdb.connect() as connection:
        columns = "product_id, attribute, value, source, catalog_value, model_value, ds"
        live = connection.read_parquet(lake.current_lines(), hive_partitioning=False)
        found = {"live": live.project(columns).order("all").fetchall()}
        for ds in lake.read_history_index().days:
            of_day = published_tables.as_of(connection, settings, ds)
            found[ds] = of_day.project(columns).order("all").fetchall()
    return found


@pytest.fixture(scope="module")
def damaged(trained: Lake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Damaged]:
    folder = tmp_path_factory.mktemp("damaged")
    root, copies = folder / "lake", folder / "copies"
    shutil.copytree(trained.root, root, ignore=shutil.ignore_patterns("scratch"))
    shutil.rmtree(root / "catalog" / "valid")
    lake, settings = Lake(root), settings_for(root)
    records = read_raw(lake, DAY1)
    bad = {"product_id": "bad one", "title": ["a list"]}
    changes = {
        DAY2: [*records[:2], bad, *records[3:], records[5] | {"product_id": "new-2"}],
        DAY3: [records[0] | {"title": "A red dress"}, *records[2:], records[6] | {"product_id": "new-3"}, bad],
        DAY4: [*records[1:], records[6] | {"product_id": "new-4"}, records[7] | {"product_id": "new-5"}, bad],
    }
    for ds, lines in changes.items():
        write_raw(lake, ds, lines)
    first, second = night(settings, DAY1)[0].run_id, night(settings, DAY3)[0].run_id
    shutil.copytree(root, copies / "two nights", ignore=shutil.ignore_patterns("scratch"))
    third = steps_to("tag", settings, DAY4)
    shutil.copytree(root, copies / "tagged", ignore=shutil.ignore_patterns("scratch"))
    manifest = lake.read_manifest(second)
    assert manifest is not None
    attribute = max(manifest.files, key=lambda file: (not file.table.startswith("_"), file.rows)).table
    common = {
        "day1": DAY1,
        "first": first,
        "second": second,
        "attribute": attribute,
        "model": champion_pointer.champion(settings) or "",
        "picture": records[7]["image_uri"],  # of a product that the fourth day tags
    }
    names = {
        scenario: common | ({"ds": DAY4, "run": third} if scenario == "taken up" else {"ds": DAY3, "run": second})
        for scenario in SCENARIOS
    }
    made = Damaged(root, copies, names, {})
    for scenario, ds in SCENARIOS.items():
        own = made.start(scenario)
        night(own, ds)
        made.expected[scenario] = values(own)
    yield made
    shutil.rmtree(folder)


def outcome(damaged: Damaged, scenario: str, kind: str, damage: str) -> str:
    """Damage one file, run the night, and return how it ended: 'right', or the error."""
    settings = damaged.start(scenario)
    path = damaged.find(scenario, kind)
    DAMAGES[damage](path)
    try:
        night(settings, SCENARIOS[scenario])
        found = values(settings)
    except JobError as error:
        told = str(error)
        named = path.name in told or str(path.parent) in told
        assert named, f"the file is not named: {told}"
        return told
    assert found == damaged.expected[scenario], "wrong rows"
    return "right"


OF_A_NIGHT = ("raw records", "raw manifest", "valid records", "quarantine", "validation", "plan", "planned products",
    "removed products", "examples", "examples manifest", "predictions", "cost of a step")  # fmt: skip
PUBLISHED = ("attribute table", "state", "run manifest", "pointer", "history of attributes", "history of products",
    "history index", "left index")  # fmt: skip
EARLIER = ("first run's manifest", "first history of attributes", "first history of products", "first ledger",
    "first cost of a step", "examples of the first night")  # fmt: skip
RELEVANT = {
    "next night": tuple(KINDS),
    "same night": (*OF_A_NIGHT, *PUBLISHED, "ledger", "page", "list of nights"),
    "backfill": (*PUBLISHED, *EARLIER),
    "taken up": (*OF_A_NIGHT, "examples of the first night", "base table", "base state", "base manifest", "pointer",
        "history index", "weights", "taxonomy", "hashes", "champion"),
}  # fmt: skip
CASES = [(scenario, kind, damage) for scenario, kinds in RELEVANT.items() for kind in kinds for damage in DAMAGES]
TELLING = [
    ("next night", "picture", "truncated"),
    ("next night", "picture", "deleted"),
    ("next night", "attribute table", "empty"),
    ("next night", "state", "bit flipped"),
    ("next night", "history index", "deleted"),
    ("next night", "pointer", "garbage"),
    ("next night", "first ledger", "bit flipped"),
    ("backfill", "first history of attributes", "bit flipped"),
    ("taken up", "base table", "bit flipped near its end"),
    ("taken up", "removed products", "empty"),
    ("taken up", "valid records", "bit flipped"),
    ("taken up", "predictions", "bit flipped"),
]


@pytest.mark.long
@pytest.mark.parametrize(("scenario", "kind", "damage"), TELLING, ids=lambda value: value.replace(" ", "-"))
def test_a_damaged_file_is_named_or_the_tables_are_right(
    damaged: Damaged, scenario: str, kind: str, damage: str
) -> None:
    outcome(damaged, scenario, kind, damage)


@pytest.mark.damage
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_any_file_damaged_in_any_way(damaged: Damaged, scenario: str) -> None:
    wrong = []
    for of, kind, damage in CASES:
        if of == scenario:
            try:
                outcome(damaged, of, kind, damage)
            except Exception as error:
                wrong.append(f"{kind}, {damage}: {type(error).__name__}: {str(error)[:200]}")
    assert not wrong, "\n".join(wrong)
