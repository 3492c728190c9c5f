"""Tagging of shards: `pytest tests/jobs/nightly/test_tag.py`"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cma_clip_core import registry
from cma_clip_core.model.cma_clip import CmaClip
from cma_clip_core.model_documents import Metrics, Threshold
from cma_clip_core.training.fit import Trained
from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.nightly.tag import tag
from jobs.settings import Settings
from schemas.documents import Plan, Shard, StepMetrics, Validation
from schemas.tables import PREDICTIONS
from tests import small_disk
from tests.cma_clip_core import drawn

RUN = "2026-11-20-0123abcd"
OLD = "examples/ds=2026-11-19/run=2026-11-19-0123abcd/shard=0"
NEW = f"examples/ds=2026-11-20/run={RUN}"
THRESHOLDS = {
    name: Threshold(threshold=0.5, target_precision=0.9, precision=0.9, accepted=20, candidates=20)
    for name in drawn.taxonomy().names
}


@dataclass
class Night:
    """A planned night with two shards of fresh examples and one of examples from the day before."""

    settings: Settings
    lake: Lake
    plan: Plan

    def file(self, shard: int) -> Path:
        return self.lake.prediction_file(RUN, shard)

    def products(self, shard: int) -> list[str]:
        products: list[str] = pq.read_table(self.file(shard), partitioning=None)["product_id"].to_pylist()
        return products

    def freeze(self, plan: Plan) -> None:
        storage.write_document(self.lake.plan(RUN) / "plan.json", plan)


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A model version with random weights, because its predictions do not matter here."""
    torch.manual_seed(0)
    metrics = Metrics(
        train_examples=0, validation_examples=0, test_examples=0, families=0, best_epoch=1, epochs=(), seconds=0.0,
        device="cpu", validation={}, test={},
    )  # fmt: skip
    return Trained(CmaClip(drawn.config(), drawn.taxonomy()).eval(), THRESHOLDS, metrics)


@pytest.fixture
def night(tmp_path: Path, trained: Trained) -> Night:
    settings = Settings(root=tmp_path, device="cpu", progress=False, batch_size=16)
    lake = Lake(settings.root)
    version = registry.save(trained, drawn.config(), drawn.taxonomy(), lake.models, drawn.NOW)
    table = drawn.examples(100)
    other = table.set_column(1, table.schema.field(1), pa.array(["older"] * 100))
    drawn.write(lake.root / NEW / "shard=0", table.slice(0, 40))
    drawn.write(lake.root / NEW / "shard=1", table.slice(40, 30))
    # The old folder holds more products than the shard wants, and older states of today's products.
    drawn.write(lake.root / OLD, pa.concat_tables([table.slice(70), other.slice(0, 40)]))
    plan_rows(lake, 0, table.slice(0, 40), None)
    plan_rows(lake, 1, table.slice(40, 30), None)
    plan_rows(lake, 2, table.slice(70, 25), OLD)
    now = datetime.now(UTC)
    validation = Validation(
        ds="2026-11-20", version="v", passed=True, failures=(), raw=100, unparsable=0, quarantined=0, superseded=0,
        valid=100, reasons={}, valid_path="", quarantine_path="", data_docs_path="", created_at=now,
    )  # fmt: skip
    plan = Plan(
        run_id=RUN, ds="2026-11-20", base_run=None, backfill=False, prepare_only=False, model_version=version,
        taxonomy_path=f"models/{version}/taxonomy.yaml", taxonomy_fingerprint=drawn.taxonomy().fingerprint,
        picture_height=32, picture_width=24, validation=validation,
        shards=(
            Shard(id=0, rows=40, example_paths=(f"{NEW}/shard=0",)),
            Shard(id=1, rows=30, example_paths=(f"{NEW}/shard=1",)),
            Shard(id=2, rows=25, example_paths=(OLD,)),
        ),
        new=70, changed=0, model_changed=25, unchanged=0, removed=0, held=0, to_preprocess=70, created_at=now,
    )  # fmt: skip
    night = Night(settings, lake, plan)
    night.freeze(plan)
    return night


def plan_rows(lake: Lake, shard: int, table: pa.Table, example_path: str | None) -> None:
    rows = table.num_rows
    folder = lake.plan(RUN) / "products" / f"shard={shard}"
    folder.mkdir(parents=True, exist_ok=True)
    columns = {
        "product_id": table["product_id"],
        "reason": pa.array(["new"] * rows),
        "example_path": pa.array([example_path] * rows, pa.string()),
        "source_hash": table["source_hash"],
    }
    pq.write_table(pa.table(columns), folder / "part-0.parquet")


def test_every_planned_product_once_in_files_of_the_contract(night: Night) -> None:
    assert tag(night.settings, RUN) == 95
    table = drawn.examples(100)["product_id"].to_pylist()
    assert night.products(0) == table[:40]
    assert night.products(1) == table[40:70]
    assert night.products(2) == table[70:95]
    with pq.ParquetFile(night.file(0)) as file:
        assert file.schema_arrow.equals(PREDICTIONS)
        metadata = file.schema_arrow.metadata
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert metadata[b"run_id"] == RUN.encode()
    assert (metadata[b"shard"], metadata[b"rows"]) == (b"0", b"40")
    assert metadata[b"model_version"] == str(night.plan.model_version).encode()
    hashes = pq.read_table(night.file(0), partitioning=None)["source_hash"].to_pylist()
    assert hashes == [f"h{i}" for i in range(40)]
    step = storage.read_document(night.lake.reports(RUN) / "steps" / "tag-00002.json", StepMetrics)
    assert step is not None
    assert step.rows == 25
    assert {"read", "prepare", "wait", "forward", "assemble", "write", "device", "both"} <= step.details.keys()


def test_a_finished_shard_is_skipped(night: Night) -> None:
    tag(night.settings, RUN)
    before = [night.file(shard).stat().st_mtime_ns for shard in range(3)]
    assert tag(night.settings, RUN) == 95
    assert tag(night.settings, RUN, "1") == 30
    assert [night.file(shard).stat().st_mtime_ns for shard in range(3)] == before


def truncate(night: Night) -> None:
    night.file(1).write_bytes(night.file(1).read_bytes()[:-100])


def lose_rows(night: Night) -> None:
    table = pq.read_table(night.file(1), partitioning=None)
    pq.write_table(table.slice(0, 29), night.file(1))


def of_another_model(night: Night) -> None:
    table = pq.read_table(night.file(1), partitioning=None)
    metadata = (table.schema.metadata or {}) | {b"model_version": b"20260101-00000000"}
    pq.write_table(table.replace_schema_metadata(metadata), night.file(1))


def of_another_shard(night: Night) -> None:
    night.file(1).write_bytes(night.file(0).read_bytes())


@pytest.mark.parametrize("spoil", [truncate, lose_rows, of_another_model, of_another_shard])
def test_a_spoilt_shard_is_tagged_again_and_no_other(night: Night, spoil: Callable[[Night], None]) -> None:
    tag(night.settings, RUN)
    before = [night.file(shard).stat().st_mtime_ns for shard in range(3)]
    spoil(night)
    tag(night.settings, RUN)
    assert night.products(1) == drawn.examples(100)["product_id"].to_pylist()[40:70]
    after = [night.file(shard).stat().st_mtime_ns for shard in range(3)]
    assert [a != b for a, b in zip(after, before, strict=True)] == [False, True, False]


def test_missing_examples_are_named_and_no_file_is_left(night: Night) -> None:
    drawn.write(night.lake.root / NEW / "shard=1", drawn.examples(100).slice(40, 15))
    with pytest.raises(JobError, match=r"no example of 15 of 30 products, such as p00055.*preprocess"):
        tag(night.settings, RUN, "1")
    assert list(night.lake.predictions(RUN).iterdir()) == []


def test_an_example_of_another_state_is_missing(night: Night) -> None:
    changed = drawn.examples(100).slice(40, 30)
    drawn.write(night.lake.root / NEW / "shard=1", changed.set_column(1, changed.schema.field(1), pa.array(["x"] * 30)))
    with pytest.raises(JobError, match="no example of 30 of 30"):
        tag(night.settings, RUN, "1")


def test_a_duplicate_example(night: Night) -> None:
    drawn.write(night.lake.root / NEW / "shard=1", drawn.examples(100).slice(50, 1), "part-1.parquet")
    with pytest.raises(JobError, match="product 'p00050' has two examples"):
        tag(night.settings, RUN, "1")


def test_no_folder_of_examples(night: Night) -> None:
    night.freeze(night.plan.model_copy(update={"shards": (Shard(id=0, rows=40, example_paths=("examples/none",)),)}))
    with pytest.raises(JobError, match="no such folder of examples"):
        tag(night.settings, RUN)


def test_a_half_copied_plan(night: Night) -> None:
    plan_rows(night.lake, 1, drawn.examples(100).slice(40, 29), None)
    with pytest.raises(JobError, match="29 rows of 29 products, but the plan has 30"):
        tag(night.settings, RUN, "1")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prepare_only": True}, "only makes examples"),
        ({"model_version": None}, "only makes examples"),
        ({"model_version": "20260101-00000000"}, "20260101-00000000"),
    ],
)
def test_plans_that_cannot_be_tagged(night: Night, change: dict[str, object], words: str) -> None:
    night.freeze(night.plan.model_copy(update=change))
    with pytest.raises(JobError, match=words):
        tag(night.settings, RUN)


def test_no_such_shard(night: Night) -> None:
    for asked in ("7", "0-7", "0,7"):
        with pytest.raises(JobError, match=r"no shard 7; it has 3, from 0 to 2"):
            tag(night.settings, RUN, asked)


def test_a_group_that_is_tried_again_does_only_what_is_missing(night: Night) -> None:
    assert tag(night.settings, RUN, "0-1") == 70
    assert not night.file(2).exists()
    before = {shard: night.file(shard).stat().st_mtime_ns for shard in (0, 1)}
    night.file(1).unlink()
    assert tag(night.settings, RUN, "0-1") == 70
    assert night.file(0).stat().st_mtime_ns == before[0]
    assert night.products(1) == drawn.examples(100)["product_id"].to_pylist()[40:70]
    assert not night.file(2).exists()


def test_a_full_disk_says_so_and_nothing_half_written_stays(night: Night) -> None:
    folder = night.file(0).parent
    folder.mkdir(parents=True)
    step = f"{sys.executable} -m jobs tag --run {RUN} --shard 0; code=$?; ls -A {folder}; exit $code"
    within = small_disk.command(folder, 8 << 10, step)
    environment = os.environ | {"TAGGING_ROOT": str(night.lake.root), "TAGGING_DEVICE": "cpu"}
    done = subprocess.run(within, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1, done.stderr  # not 2, so that Airflow retries
    assert f"error: {night.file(0)}: no room for it in {folder}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert tag(night.settings, RUN) == 95


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_is_requested_but_absent(night: Night) -> None:
    with pytest.raises(JobError, match="no GPU"):
        tag(night.settings.model_copy(update={"device": "cuda"}), RUN)
