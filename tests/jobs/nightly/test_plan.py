"""The taxonomy of a night, and the id of its run: `pytest tests/jobs/nightly/test_plan.py`.

The content of plans is tested in tests/jobs/runs/test_whole_night.py.
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml

from cma_clip_core import registry
from cma_clip_core.content.pictures import MAX_BYTES
from cma_clip_core.model.cma_clip import CmaClip
from cma_clip_core.model_documents import Metrics
from cma_clip_core.training.fit import Trained
from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.models import champion_pointer
from jobs.nightly.missing_pictures import MissingPictureFinder
from jobs.nightly.plan import _collect_inputs, plan
from jobs.settings import Settings
from schemas.documents import HistoryIndex, Plan, Validation
from schemas.taxonomy import Taxonomy
from tests.cma_clip_core import drawn
from tests.jobs.nightly.test_tag import THRESHOLDS

DAY = "2026-11-20"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A lake with a validated day and a champion that was trained on the generated taxonomy."""
    settings = Settings(root=tmp_path / "lake")
    lake = Lake(settings.root)
    torch.manual_seed(0)
    metrics = Metrics(
        train_examples=0, validation_examples=0, test_examples=0, families=0, best_epoch=1, epochs=(), seconds=0.0,
        device="cpu", validation={}, test={},
    )  # fmt: skip
    trained = Trained(CmaClip(drawn.config(), drawn.taxonomy()).eval(), THRESHOLDS, metrics)
    champion_pointer.promote(settings, registry.save(trained, drawn.config(), drawn.taxonomy(), lake.models, drawn.NOW))
    validation = Validation(
        ds=DAY, version="v", passed=True, failures=(), raw=1, unparsable=0, quarantined=0, superseded=0, valid=1,
        reasons={}, valid_path="", quarantine_path="", data_docs_path="", created_at=datetime.now(UTC),
    )  # fmt: skip
    storage.write_document(lake.valid(DAY) / "current.json", validation)
    return settings.root


def taxonomy_file(folder: Path, **changes: Any) -> str:
    document = drawn.taxonomy().model_dump(mode="json")
    document["attributes"][2] |= changes
    path = folder / "taxonomy.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def planned_with(settings: Settings) -> Taxonomy:
    lake = Lake(settings.root)
    inputs = _collect_inputs(settings, lake, DAY, lake.read_validation(DAY), HistoryIndex(), prepare=False, retag=False)
    return inputs.taxonomy


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"values": [{"name": "Solid"}, {"name": "Dotted"}]},
            "pattern: without Striped, Checked; pattern: with Dotted",
        ),
        ({"applies_to": "all"}, "pattern: applies to Watch, products of unknown type too now"),
        ({"target_precision": 0.97}, "pattern: the target precision is 0.97 now, not 0.9"),
        ({"ignore": ["NA"]}, "pattern: ignored by one of them alone: 'na'"),
    ],
)
def test_a_named_taxonomy_that_is_not_the_champions_is_refused_with_the_difference(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    path = taxonomy_file(tmp_path, **changes)
    version = champion_pointer.champion(Settings(root=root))
    said = rf"the taxonomy '{path}' is not the one that the champion {version} was trained on: {words}\. Train a model"
    with pytest.raises(JobError, match=said):
        plan(Settings(root=root, taxonomy=path), DAY)
    monkeypatch.setenv("TAGGING_TAXONOMY", path)
    with pytest.raises(JobError, match=said):
        plan(Settings(root=root), DAY)


def test_the_champions_own_taxonomy_holds_where_none_or_the_same_one_is_named(root: Path, tmp_path: Path) -> None:
    assert planned_with(Settings(root=root)) == drawn.taxonomy()  # the user did not set the default, `sample`
    assert planned_with(Settings(root=root, taxonomy=taxonomy_file(tmp_path))) == drawn.taxonomy()
    for_people = taxonomy_file(tmp_path, label="Muster")
    assert planned_with(Settings(root=root, taxonomy=for_people)) == drawn.taxonomy()


def test_a_broken_champion_says_what_to_do(root: Path) -> None:
    version = champion_pointer.champion(Settings(root=root))
    path = root / "models" / str(version) / registry.TAXONOMY
    path.write_text(path.read_text().replace("Red", "Rot"))
    with pytest.raises(JobError, match=rf"the champion {version} is broken: .*taxonomy\.yaml.*models rollback"):
        plan(Settings(root=root), DAY)


def test_errors_about_a_missing_model_or_attribute_name_the_existing_ones(root: Path) -> None:
    settings = Settings(root=root)
    version = champion_pointer.champion(settings)
    with pytest.raises(JobError, match=rf"'20991231-00000000' is no model version in .*; existing: \['{version}'\]"):
        plan(settings, DAY, model="20991231-00000000")
    said = (
        f"--attributes neck,size: no such attribute; the champion {version} has article_type, colour, pattern, material"
    )
    with pytest.raises(JobError, match=said):
        plan(settings, DAY, attributes=("neck", "colour", "size"))


def inputs(root: Path, *, share: float = 0.5, **asked: Any) -> Any:
    settings = Settings(root=root, max_retag_share=share)
    lake = Lake(settings.root)
    asked = {"prepare": False, "retag": False, **asked}
    return _collect_inputs(settings, lake, DAY, lake.read_validation(DAY), HistoryIndex(), **asked)


def test_a_share_limits_ordinary_nights_only(root: Path) -> None:
    version = champion_pointer.champion(Settings(root=root))
    assert inputs(root).share == 0.5
    for asked in ({"retag": True}, {"model": version}, {"attributes": ("colour",)}, {"prepare": True}):
        assert inputs(root, **asked).share == 1, asked


def test_the_run_id_changes_only_with_the_options(root: Path) -> None:
    version = champion_pointer.champion(Settings(root=root))
    ordinary = dataclasses.replace(inputs(root, share=1.0), model_version="20261120-0123abcd")
    assert ordinary.run_id == "2026-11-20-ba1c9a7e"  # the id from before shares and chosen attributes existed
    ids = {
        inputs(root, share=share, **asked).run_id
        for share, asked in [
            (1.0, {}), (0.5, {}), (0.25, {}), (1.0, {"retag": True}), (1.0, {"attributes": ("colour",)}),
            (1.0, {"attributes": ("colour", "pattern")}), (1.0, {"attributes": ("colour",), "retag": True}),
        ]
    }  # fmt: skip
    assert len(ids) == 7
    same = [{"attributes": ("pattern", "colour")}, {"attributes": ("colour", "pattern", "colour"), "model": version}]
    assert {inputs(root, **asked).run_id for asked in same} <= ids
    # Naming all attributes of the model is the same as naming none.
    assert inputs(root, share=1.0, attributes=drawn.taxonomy().names).run_id == inputs(root, share=1.0).run_id


def test_a_plan_of_an_older_version_is_read(root: Path) -> None:
    counts = dict.fromkeys(("new", "changed", "model_changed", "unchanged", "removed", "held", "to_preprocess"), 0)
    document = {
        "run_id": "2026-11-20-0123abcd", "ds": DAY, "base_run": None, "backfill": False, "prepare_only": False,
        "model_version": "m", "taxonomy_path": "", "taxonomy_fingerprint": "", "picture_height": 1, "picture_width": 1,
        "validation": Lake(root).read_validation(DAY), "shards": (), "created_at": datetime.now(UTC), **counts,
    }  # fmt: skip
    read = Plan.model_validate(document)
    assert (read.attributes, read.waiting) == ((), 0)


def test_missing_pictures_are_detected_without_reading_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    (root / "folder.jpg").mkdir(parents=True)
    (root / "there.jpg").write_bytes(b"x")
    (root / "empty.jpg").touch()
    with (root / "large.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    (root / "link.jpg").symlink_to("there.jpg")
    (root / "out.jpg").symlink_to("/etc/passwd")
    pictures = {
        "there.jpg": False, "link.jpg": False, "large.jpg": False, f"file://{root}/there.jpg": False,
        "empty.jpg": True, "nowhere.jpg": True, "folder.jpg": True, "out.jpg": True, "../x.jpg": True,
        "https://cdn.example/x.jpg": True, "missing/there.jpg": True,
    }  # fmt: skip

    def read(*_: object) -> None:
        raise AssertionError("a picture was read")

    monkeypatch.setattr("os.open", read)
    batch = pa.RecordBatch.from_pydict({"product_id": list(pictures), "picture": list(pictures)})
    (missing,) = MissingPictureFinder([root])(iter([batch]))
    assert missing["product_id"].to_pylist() == [uri for uri, lacks in pictures.items() if lacks]
