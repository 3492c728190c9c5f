"""Values outside the taxonomy, from the export to the published tables: the shop's own words are never overwritten.

Run with ``make test TESTS=tests/jobs/runs/test_unlisted_values.py``.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cma_clip_core import registry
from cma_clip_core.model_documents import Metrics, Threshold
from cma_clip_core.training.fit import Trained
from jobs.errors import JobError
from jobs.importing.import_catalog import import_catalog
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.models import champion_pointer
from jobs.nightly.attribute_rows import attributes
from jobs.nightly.publish import check_predictions
from jobs.nightly.reuse_predictions import take_known
from jobs.nightly.shards import is_finished, wanted_products
from jobs.runs.prepare_examples import prepare
from jobs.runs.whole_night import night
from jobs.settings import Settings
from jobs.training.dataset import dataset
from jobs.training.train import train
from schemas.documents import ExamplesManifest, Plan
from schemas.tables import EXAMPLES, PREDICTIONS
from schemas.taxonomy import Taxonomy, load_taxonomy
from tests.cma_clip_core import drawn
from tests.conftest import DAY1, settings_for

pytestmark = pytest.mark.spark

TAXONOMY: dict[str, Any] = {
    "name": "drinks",
    "article_type": "kind",
    "attributes": [
        {"name": "kind", "label": "Kind", "field": "Category", "values": ["Wine", "Beer", "Cider"]},
        {"name": "package", "label": "Package", "field": "package", "values": [{"name": "Glass bottle", "aliases": ["Bottle"]}, "Can"]},
        {"name": "notes", "label": "Notes", "field": "notes", "multi_valued": True, "values": ["Fruity", "Dry", "Smoky"]},
        {"name": "size", "label": "Size", "field": "size", "values": ["33", "75"]},
        {"name": "vegan", "label": "Vegan", "field": "tags", "unlisted": "ignore", "values": ["Vegan", "Not vegan"]},
    ],
}  # fmt: skip
MAPPING = {
    "records": ["drinks.jsonl"], "product_id": "id", "title": "name", "labels": ["category", "tags"], "label_objects": ["facts"],
    "list_separator": "|",
}  # fmt: skip
# Packages in the shop's own words: unlisted in the taxonomy, or with two meanings.
BOXES = ("bag in box", "Hanapakkaus", "PET\u00ad bottle ", "Can|Bottle")


def drink(number: int) -> dict[str, Any]:
    """Return a record. Three of six drinks have a listed package, two an unlisted one, and one has none."""
    kind, package = (
        ("Wine", "Beer", "Cider")[number % 3],
        ("Bottle", "", "CAN", "glass\u00a0bottle", "", "Bottle")[number % 6],
    )
    facts: list[dict[str, Any]] = [{"name": "size", "value": (33, 75.0)[number % 2]}]
    notes = ["fruity"] if number % 4 else ["Dry", f"Hint of {('plum', 'oak')[number % 2]}"]
    facts.append({"name": "notes", "options": notes})
    if number % 6 in (1, 4):
        package = BOXES[number % len(BOXES)]
    if number % 6 != 5:
        facts.append({"name": "package", "value": package})
    return {
        "id": f"d{number:03d}", "name": f"{kind} number {number} of the house, {package} of {(33, 75)[number % 2]} cl",
        "category": f"{kind}." if number % 2 else kind.upper(), "facts": facts, "tags": "sale|new|vegan" if number % 2 else "sale",
    }  # fmt: skip


@pytest.fixture(scope="module")
def drinks(tmp_path_factory: pytest.TempPathFactory, spark_session: Any) -> Settings:  # noqa: ARG001
    """A lake with the examples of a list of drinks. Only read it, or work on another run of its day."""
    folder = tmp_path_factory.mktemp("drinks")
    (folder / "export").mkdir()
    (folder / "export" / "drinks.jsonl").write_text("".join(json.dumps(drink(n)) + "\n" for n in range(240)))
    (folder / "mapping.yaml").write_text(yaml.safe_dump(MAPPING))
    (folder / "taxonomy.yaml").write_text(yaml.safe_dump(TAXONOMY))
    settings = settings_for(folder / "lake", taxonomy=str(folder / "taxonomy.yaml"), shard_rows=200)
    import_catalog(settings, folder / "export", DAY1, str(folder / "mapping.yaml"))
    prepare(settings, DAY1)
    return settings


def test_a_labelled_set_distinguishes_gaps_from_unlisted_values(
    drinks: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = dataset(drinks, DAY1)
    given = {name: (n.listed, n.unlisted, n.gaps) for name, n in found.manifest.given.items()}
    assert given == {
        "kind": (240, 0, 0), "package": (120, 80, 40), "notes": (240, 0, 0), "size": (240, 0, 0), "vegan": (120, 0, 120),
    }  # fmt: skip
    logged = [record.getMessage() for record in caplog.records if "not in the taxonomy: " in record.getMessage()]
    assert len(logged) == 2
    assert "'Can|Bottle' (20; several values: Can, Glass bottle)" in logged[0]
    assert "'Hanapakkaus' (20; nearest none)" in logged[0]
    assert "'Hint of plum' (60; nearest none)" in logged[1]
    assert any("40 % of the values are not in the taxonomy" in record.getMessage() for record in caplog.records)
    page = found.page.read_text()
    assert "several values: Can, Glass bottle" in page
    assert page.count("Hanapakkaus") == 1


def test_a_taxonomy_that_lists_no_word_of_the_catalog_is_reported_with_the_words(tmp_path: Path) -> None:
    lake, settings = Lake(tmp_path / "lake"), settings_for(tmp_path / "lake")
    rows = drawn.examples(40).to_pylist()
    for row in rows:
        row |= {"labels": [], "unknown_labels": [("colour", ["Hue" * 100])]}
    folder = lake.examples(f"{DAY1}-0123abcd")
    drawn.write(folder / "shard=0", pa.Table.from_pylist(rows, schema=EXAMPLES))
    picture, fingerprint = drawn.config().picture, load_taxonomy("sample").fingerprint
    manifest = ExamplesManifest(
        run_id=f"{DAY1}-0123abcd", ds=DAY1, picture_height=picture.height, picture_width=picture.width,
        taxonomy_fingerprint=fingerprint, rows=40, image_statuses={}, created_at=datetime.now(UTC),
    )  # fmt: skip
    storage.write_document(folder / "_manifest.json", manifest)
    with pytest.raises(
        JobError, match=r"no example has a label that counts: .* such as colour = 'HueHue.*check the `field`"
    ) as error:
        dataset(settings, DAY1)
    assert len(str(error.value)) < 600


def accept_all(settings: Settings) -> str:
    """Train a model that accepts all its predictions, and make it the champion."""
    lake = Lake(settings.root)
    folder = lake.models / train(settings, DAY1)
    model, taxonomy = registry.load_model(folder), registry.read_taxonomy(folder)
    threshold = Threshold(threshold=0.0, target_precision=0.9, precision=0.9, accepted=20, candidates=20)
    metrics = registry.read_json(folder / registry.METRICS, Metrics)
    trained = Trained(model, dict.fromkeys(taxonomy.names, threshold), metrics)
    version = registry.save(
        trained, registry.read_config(folder), taxonomy, lake.models, datetime(2099, 12, 31, tzinfo=UTC)
    )
    champion_pointer.promote(settings, version, champion_pointer.champions(settings))
    return version


def test_no_product_that_has_a_value_is_filled(drinks: Settings) -> None:
    lake = Lake(drinks.root)
    accept_all(drinks)
    ledger, page = night(drinks, DAY1)
    assert ledger.published_products == 240
    rows = [row for line in lake.current_lines() for row in pq.read_table(line, partitioning=None).to_pylist()]
    packages = {row["product_id"]: row for row in rows if row["attribute"] == "package"}
    assert len(packages) == 240
    for number in range(240):
        row, fact = packages[f"d{number:03d}"], drink(number)["facts"][-1]
        assert row["accepted"]
        said = (row["value"], row["source"], row["catalog_value"], row["conflict"])
        if fact["name"] != "package":
            assert said == (row["model_value"], "model", None, False)
        elif fact["value"] in BOXES:
            assert said == (fact["value"], "catalog_unlisted", fact["value"], False)
            assert row["model_value"] in ("Glass bottle", "Can")
            assert row["confidence"] is not None
        else:
            assert row["source"] == "catalog"
            assert row["value"] in ("Glass bottle", "Can")
    # Several values are kept, each with its own source. No value of the model is filled in.
    notes = [row for row in rows if row["attribute"] == "notes"]
    oaks = {(row["value"], row["source"]) for row in notes if row["product_id"] == "d000" and row["value"]}
    assert oaks == {("Dry", "catalog"), ("Hint of plum", "catalog_unlisted")}
    assert not [row for row in notes if row["source"] == "model"]
    assert not [row for row in rows if row["attribute"] == "vegan" and row["source"] == "catalog_unlisted"]
    # The page distinguishes gaps from unlisted values: 40 packages and 120 vegans.
    text = page.read_text()
    assert "160 of 160 gaps filled" in text
    assert "33.3% not listed" in text


OLD = pa.schema([field for field in PREDICTIONS if field.name != "unlisted"], metadata=PREDICTIONS.metadata)


def test_predictions_of_a_version_without_unlisted_values_are_made_again(drinks: Settings) -> None:
    lake = Lake(drinks.root)
    run = lake.current_run()
    if run is None:
        accept_all(drinks)
        run = night(drinks, DAY1)[0].run_id
    made = lake.read_plan(run)
    shard = made.shards[0]
    path = lake.prediction_file(run, shard.id)
    kept = path.read_bytes()
    other: Plan = made.model_copy(update={"run_id": f"{DAY1}-ffffffff"})
    wanted = wanted_products(lake, made, shard)
    n = sum(map(len, wanted.values()))
    assert sum(batch.num_rows for batch in take_known(lake, other, wanted_products(lake, made, shard))) == n
    try:
        table = pq.read_table(path, partitioning=None)
        pq.write_table(table.drop_columns(["unlisted"]), path)
        assert not is_finished(path, made, shard)
        assert not list(take_known(lake, other, wanted))
        with pytest.raises(
            JobError, match=r"lacks unlisted, as files of an older version do.*jobs tag --run .* --shard 0"
        ):
            check_predictions(lake, made)
        assert check_predictions(lake, made, whole=False).total() == made.to_tag  # its tables are made
    finally:
        path.write_bytes(kept)
    assert is_finished(path, made, shard)


def row_of(
    labels: dict[str, list[str]], unlisted: dict[str, list[str]] | None, *guesses: tuple[str, str, bool]
) -> dict[str, Any]:
    return {
        "product_id": "p", "source_hash": "h", "modality": "text", "image_status": "absent", "labels": list(labels.items()),
        "unlisted": None if unlisted is None else list(unlisted.items()), "applicable": ["package", "notes"],
        "predictions": [
            {"attribute": a, "value": v, "confidence": 0.9, "accepted": accepted, "text_weight": 1.0, "image_weight": 0.0}
            for a, v, accepted in guesses
        ],
        "tagged_at": datetime(2026, 11, 20, tzinfo=UTC),
    }  # fmt: skip


NOTHING = [(None, None, None, None, False)]
CAN, FRUITY, DRY = ("package", "Can", True), ("notes", "Fruity", True), ("notes", "Dry", False)


@pytest.mark.parametrize(
    ("row", "package", "notes"),
    [
        (row_of({}, {"package": ["Keg"]}, CAN), [("Keg", "catalog_unlisted", "Keg", "Can", False)], NOTHING),
        (row_of({}, {}, CAN, FRUITY), [("Can", "model", None, "Can", False)], [("Fruity", "model", None, "Fruity", False)]),
        # A file of an older version has no unlisted values.
        (row_of({}, None, CAN), [("Can", "model", None, "Can", False)], NOTHING),
        (row_of({"package": ["Glass bottle"]}, {}, CAN), [("Glass bottle", "catalog", "Glass bottle", "Can", True)], NOTHING),
        # An example of an older version has the first of two words, or both.
        (row_of({}, {"package": ["Keg", "Tin"]}, CAN), [("Keg|Tin", "catalog_unlisted", "Keg|Tin", "Can", False)], NOTHING),
        (
            row_of({"notes": ["Dry"]}, {"notes": ["Oak", "Plum"]}, FRUITY, DRY),
            NOTHING,
            [
                ("Dry", "catalog", "Dry", "Dry", False), ("Oak", "catalog_unlisted", "Oak", None, False),
                ("Plum", "catalog_unlisted", "Plum", None, False), (None, None, None, "Fruity", True),
            ],
        ),
        (
            row_of({}, {"notes": ["Oak"]}, FRUITY),
            NOTHING,
            [("Oak", "catalog_unlisted", "Oak", None, False), (None, None, None, "Fruity", False)],
        ),
    ],
)  # fmt: skip
def test_rows_of_listed_and_unlisted_values(
    spark_session: Any,
    tmp_path: Path,
    row: dict[str, Any],
    package: list[tuple[Any, ...]],
    notes: list[tuple[Any, ...]],
) -> None:
    from schemas.tables import spark_schema

    made = Plan.model_construct(model_version="m", ds=DAY1, run_id=f"{DAY1}-0123abcd")
    pq.write_table(pa.Table.from_pylist([row], schema=PREDICTIONS), tmp_path / "p.parquet")
    frame = spark_session.read.schema(spark_schema(PREDICTIONS)).parquet(str(tmp_path / "p.parquet"))
    found = attributes(frame, made, Taxonomy.model_validate(TAXONOMY)).collect()
    for name, expected in (("package", package), ("notes", notes)):
        said = [(r.value, r.source, r.catalog_value, r.model_value, r.conflict) for r in found if r.attribute == name]
        assert sorted(said, key=str) == sorted(expected, key=str)
