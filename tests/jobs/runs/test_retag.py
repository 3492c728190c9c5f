"""Products that another model tags again: only the chosen attributes, or a share of the products each night.

Run with ``make test TESTS=tests/jobs/runs/test_retag.py``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
import torch

from cma_clip_core import registry
from cma_clip_core.model_documents import Metrics, Threshold
from cma_clip_core.training.fit import Trained
from jobs.lake import history, storage
from jobs.lake.layout import PRODUCTS, Lake
from jobs.models import champion_pointer
from jobs.nightly.plan import plan
from jobs.nightly.publish import publish
from jobs.nightly.tag import tag
from jobs.runs.whole_night import night
from jobs.settings import Settings
from jobs.upkeep import published_tables
from schemas.documents import Plan
from tests.conftest import DAY1, DAY2, DAY3, DAY4, read_raw, settings_for, write_raw
from tests.jobs.runs.test_whole_night import second_day, steps_to

pytestmark = pytest.mark.spark

Rows = dict[tuple[str, str], set[tuple[Any, ...]]]  # by product and attribute
SAYS = ("value", "source", "catalog_value", "model_value", "confidence", "accepted", "conflict")


def by_key(rows: Iterable[dict[str, Any]]) -> Rows:
    """Return whole rows of the attribute table by their key."""
    grouped: Rows = {}
    for row in rows:
        grouped.setdefault((row["product_id"], row["attribute"]), set()).add(tuple(row.items()))
    return grouped


def live(lake: Lake) -> Rows:
    return by_key(row for line in lake.current_lines() for row in pq.read_table(line).to_pylist())


def as_of(settings: Settings, ds: str) -> Rows:
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        return by_key(published_tables.as_of(connection, settings, ds).to_arrow_table().to_pylist())


def states_as_of(lake: Lake, ds: str) -> dict[str, dict[str, Any]]:
    """Return the state of each product on a day, by its id."""
    files = [str(file) for file in history.files_until(lake, lake.read_history_index(), "products", ds)]
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        source = f"read_parquet({files!r}, hive_partitioning = false)"
        rows = connection.execute(history.as_of_query("products", source)).to_arrow_table().to_pylist()
    return {row["product_id"]: row for row in rows}


def live_states(lake: Lake) -> dict[str, dict[str, Any]]:
    manifest = lake.read_manifest(lake.current_run() or "")
    assert manifest is not None
    (path,) = (lake.root / file.path for file in manifest.files if file.table == PRODUCTS)
    return {row["product_id"]: row for row in pq.read_table(path).to_pylist()}


def other_model(lake: Lake) -> str:
    """Save a model that predicts other values than the champion and accepts more, and return its version."""
    folder = lake.models / str(champion_pointer.champion(settings_for(lake.root)))
    model, taxonomy = registry.load_model(folder), registry.read_taxonomy(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    threshold = Threshold(threshold=0.3, target_precision=0.9, precision=0.9, accepted=20, candidates=20)
    metrics = registry.read_json(folder / registry.METRICS, Metrics)
    trained = Trained(model, dict.fromkeys(taxonomy.names, threshold), metrics)
    return registry.save(
        trained, registry.read_config(folder), taxonomy, lake.models, datetime(2099, 12, 31, tzinfo=UTC)
    )


def said(lake: Lake, made: Plan) -> Rows:
    """Return the predictions of a run by product and attribute, in the columns `SAYS`."""
    taxonomy = registry.read_taxonomy(lake.models / str(made.model_version))
    found: Rows = {}
    files = [lake.prediction_file(made.run_id, shard.id) for shard in made.shards]
    for product in (row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()):
        for attribute in product["applicable"]:
            given: list[str] = dict(product["labels"]).get(attribute, [])
            others: list[str] = dict(product["unlisted"]).get(attribute, [])
            guesses = {g["value"]: g for g in product["predictions"] if g["attribute"] == attribute}
            pairs = [(next(iter([*given, *others]), None), next(iter(guesses.values()), None))]
            if taxonomy[attribute].multi_valued and (given or others or guesses):
                pairs = [(v if v in [*given, *others] else None, guesses.get(v)) for v in {*given, *others, *guesses}]
            for catalog, guess in pairs:
                accepted = guess is not None and guess["accepted"]
                source = "model" if accepted and not given and not others else None
                source = source if catalog is None else "catalog" if catalog in given else "catalog_unlisted"
                model = guess["value"] if guess else None
                value = model if source == "model" else catalog
                conflict = bool(accepted and given and model not in given)
                row = (value, source, catalog, model, guess["confidence"] if guess else None, accepted, conflict)
                found.setdefault((product["product_id"], attribute), set()).add(row)
    return found


def check_replaced(lake: Lake, made: Plan, before: Rows, after: Rows, whole: set[str], removed: set[str]) -> None:
    """Check that a run replaced all rows of the products `whole`, and only the chosen attributes of the others."""

    says = said(lake, made)
    tagged = {product for product, _ in says}

    def is_replaced(key: tuple[str, str]) -> bool:
        product, attribute = key
        return product in whole or (attribute in made.attributes and product in tagged)

    kept = {key: rows for key, rows in before.items() if key[0] not in removed and not is_replaced(key)}
    assert {key: rows for key, rows in after.items() if not is_replaced(key)} == kept  # to the last bit
    fresh = {key: [dict(row) for row in rows] for key, rows in after.items() if is_replaced(key)}
    found = {key: {tuple(row[name] for name in SAYS) for row in rows} for key, rows in fresh.items()}
    assert found == {key: rows for key, rows in says.items() if is_replaced(key)}
    by = {(row["model_version"], row["ds"], row["run_id"]) for rows in fresh.values() for row in rows}
    assert by == {(made.model_version, made.ds, made.run_id)}


@pytest.mark.long
def test_a_night_and_then_a_backfill_of_one_attribute(first_night: tuple[Lake, Settings]) -> None:
    lake, settings = first_night
    other = other_model(lake)
    first, states = live(lake), live_states(lake)
    day = second_day(lake)
    whole, removed = {*day["changed"], *day["new"]}, set(day["removed"])
    ledger, page = night(settings, DAY2, model=other, attributes=("details",))
    assert (ledger.new, ledger.changed, ledger.model_changed, ledger.unchanged) == (2, 3, 92, 0)
    assert "A new model tagged 92 products again: Details alone" in page.read_text()
    made = lake.read_plan(ledger.run_id)
    second, states_then = live(lake), live_states(lake)
    check_replaced(lake, made, first, second, whole, removed)
    assert as_of(settings, DAY2) == second
    assert as_of(settings, DAY1) == first
    # The state of unchanged products stays, so that a later night sees that their other attributes are of another
    # model.
    rest = states.keys() - whole - removed
    assert {product: states_then[product] for product in rest} == {product: states[product] for product in rest}
    assert {states_then[product]["model_version"] for product in whole} == {other}
    assert states_as_of(lake, DAY2) == states_then
    later = plan(settings, DAY2, model=other)
    assert (later.model_changed, later.unchanged, later.attributes) == (92, 5, ())

    # The previous day is run again, with records of its own, for an attribute that not all products have.
    pointer = lake.current.read_bytes()
    records = read_raw(lake, DAY1)
    changed, gone = records[20], records.pop(30)
    changed["title"] = "Wool sweater with a high neck"
    write_raw(lake, DAY1, [*records, records[40] | {"product_id": "late"}])
    run_id = steps_to("tag", settings, DAY1, model=other, attributes=("neck",))
    made = lake.read_plan(run_id)
    assert made.backfill
    assert (made.new, made.changed, made.model_changed, made.removed) == (1, 1, 98, 1)
    publish(settings, run_id)
    whole, removed = {changed["product_id"], "late"}, {gone["product_id"]}
    check_replaced(lake, made, first, as_of(settings, DAY1), whole, removed)
    rest = states.keys() - whole - removed
    states_then = states_as_of(lake, DAY1)
    assert {product: states_then[product] for product in rest} == {product: states[product] for product in rest}
    assert states_then.keys() == rest | whole
    assert as_of(settings, DAY2) == live(lake) == second
    assert states_as_of(lake, DAY2) == live_states(lake)
    assert lake.current.read_bytes() == pointer


def planned(lake: Lake, made: Plan) -> dict[str, str]:
    """Return the reason of each product in a plan."""
    files = [lake.plan_file(made.run_id, shard.id) for shard in made.shards]
    rows = [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
    return {row["product_id"]: row["reason"] for row in rows}


@pytest.mark.long
def test_a_share_of_the_products_each_night(
    first_night: tuple[Lake, Settings], caplog: pytest.LogCaptureFixture
) -> None:
    lake, _ = first_night
    settings = settings_for(lake.root, max_retag_share=0.5)
    first = str(champion_pointer.champion(settings))
    second = f"20991231-{first[-8:]}"  # the same weights: a version ends with their hash
    shutil.copytree(lake.models / first, lake.models / second)
    champion_pointer.promote(settings, second)
    day = second_day(lake)
    caplog.set_level("INFO", "jobs.nightly.plan")
    made = lake.read_plan(steps_to("tag", settings, DAY2))
    assert (made.new, made.changed, made.removed, made.held) == (2, 3, 2, 3)
    assert made.model_changed + made.waiting == made.unchanged + made.model_changed == 92
    assert 34 <= made.model_changed <= 64  # about 49, half of the 97
    assert f"{made.unchanged} unchanged ({made.waiting} of them wait for a later night)" in caplog.text
    # The same inputs, the same products.
    chosen = planned(lake, made)
    assert {product for product, reason in chosen.items() if reason != "model_changed"} == {
        *day["new"],
        *day["changed"],
    }
    shutil.rmtree(lake.plan(made.run_id))
    again = plan(settings, DAY2)
    assert planned(lake, again) == chosen
    ledger = publish(settings, made.run_id)
    assert (ledger.unchanged, ledger.waiting) == (made.unchanged, made.waiting)

    # Two more nights of the same records.
    for ds in (DAY3, DAY4):
        same = lake.read_validation(DAY2).model_copy(update={"ds": ds})
        storage.write_document(lake.valid(ds) / "current.json", same)
    third = plan(settings, DAY3)
    assert (third.new, third.changed, third.model_changed + third.waiting) == (0, 0, made.waiting)
    assert third.model_changed > made.waiting / 2
    tag(settings, third.run_id)
    publish(settings, third.run_id)
    last = plan(settings, DAY4)
    assert (last.new, last.changed, last.model_changed, last.waiting) == (0, 0, third.waiting, 0)
    left = {product for product, state in live_states(lake).items() if state["model_version"] != second}
    assert left == {*planned(lake, last), *day["held"]}
