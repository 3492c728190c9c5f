"""Plan and preprocess: every kind of picture and text gives an example with its status and the taxonomy's labels.

Only the examples that are needed are made.

Run with ``make test TESTS=tests/jobs/nightly/test_preprocess.py``.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from cma_clip_core.config import BUILT_IN
from cma_clip_core.content import pictures
from jobs.demo.dirty_records import drawing, jpeg
from jobs.errors import CriticalDataError, JobError
from jobs.lake import parquet, storage
from jobs.lake.layout import Lake
from jobs.nightly import preprocess as module
from jobs.nightly.plan import plan
from jobs.nightly.preprocess import ExampleMaker, preprocess
from jobs.settings import Settings
from jobs.validation.validate import validate
from schemas.documents import Plan
from schemas.tables import EXAMPLES, LABELS
from schemas.taxonomy import load_taxonomy
from tests.conftest import DAY1, settings_for, write_raw
from tests.dirty import DIRTY, write_pictures

pytestmark = [pytest.mark.spark, pytest.mark.usefixtures("spark_session")]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, spark_session: Any) -> tuple[Lake, Plan]:  # noqa: ARG001
    """A preprocessed day with every kind of bad record among good ones."""
    lake = Lake(tmp_path_factory.mktemp("prepared") / "lake")
    settings = settings_for(lake.root, shard_rows=100)
    write_pictures(lake.pictures)
    upright = next(d for d in DIRTY.values() if d.kind == "picture_exif_rotated")
    good = [
        {
            "product_id": f"good-{i}",
            "title": f"Blue shirt {i}",
            "image_uri": "dirty/picture_exif_rotated.jpg",
            "attributes": {"kind": "T-shirt", "colour": "  bLUE "},
        }
        for i in range(300)
    ]
    assert upright.picture is not None
    write_raw(lake, DAY1, [*good, *[line for dirty in DIRTY.values() for line in dirty.lines]])
    validate(settings, DAY1)
    made = plan(settings, DAY1, prepare=True)
    preprocess(settings, made.run_id)
    return lake, made


def examples(lake: Lake, run_id: str) -> dict[str, dict[str, Any]]:
    folder = lake.examples(run_id)
    paths = [str(p) for p in sorted(folder.rglob("*.parquet"))]
    table = pads.dataset(paths, format="parquet").to_table()
    assert table.schema.equals(EXAMPLES)
    by_product = {row["product_id"]: row for row in table.to_pylist()}
    assert len(by_product) == table.num_rows
    return by_product


def test_each_picture_says_what_is_wrong_with_it(prepared: tuple[Lake, Plan]) -> None:
    lake, made = prepared
    by_product = examples(lake, made.run_id)
    assert len(by_product) == made.to_preprocess == made.new
    pixels = made.picture_height * made.picture_width * 3
    for kind, dirty in DIRTY.items():
        if dirty.outcome == "valid":
            row = by_product[f"dirty-{kind}"]
            assert row["image_status"] == dirty.image_status, kind
            assert (row["image"] is not None) == (dirty.image_status == "ok"), kind
            assert row["image"] is None or len(row["image"]) == pixels, kind
            assert (row["image_detail"] is None) == (dirty.image_status in ("ok", "absent")), kind
    manifest = lake.read_examples_manifest(made.run_id)
    assert manifest is not None
    assert sum(manifest.image_statuses.values()) == len(by_product)
    assert manifest.image_statuses["broken"] >= 2


def test_pixels_are_those_of_the_one_decoder(prepared: tuple[Lake, Plan]) -> None:
    lake, made = prepared
    by_product = examples(lake, made.run_id)
    spec = pictures.PictureSpec(made.picture_height, made.picture_width)
    for kind in ("picture_exif_rotated", "picture_cmyk", "picture_16_bit", "picture_transparent"):
        data = DIRTY[kind].picture
        assert data is not None
        row = np.frombuffer(by_product[f"dirty-{kind}"]["image"], np.uint8).reshape(spec.height, spec.width, 3)
        np.testing.assert_array_equal(row, pictures.decode(data, spec))


def test_labels_are_in_the_taxonomys_words(prepared: tuple[Lake, Plan]) -> None:
    lake, made = prepared
    by_product = examples(lake, made.run_id)
    assert dict(by_product["good-0"]["labels"]) == {"article_type": ["T-shirt"], "colour": ["Blue"]}
    assert dict(by_product["dirty-label_unknown"]["unknown_labels"]) == {"colour": ["Octarine"]}
    assert "colour" not in dict(by_product["dirty-label_unknown"]["labels"])
    assert dict(by_product["dirty-label_number"]["labels"]) == {"article_type": ["T-shirt"]}


def test_texts_are_clean(prepared: tuple[Lake, Plan]) -> None:
    lake, made = prepared
    by_product = examples(lake, made.run_id)
    title = by_product["dirty-control_characters"]["title"]
    assert "Blue" in title
    assert not any(ord(c) < 32 or c in "\u202e\u202c\u200b\ufeff" for c in title)
    assert "<" not in by_product["dirty-markup"]["description"]
    assert by_product["dirty-placeholders"]["brand"] == ""


@pytest.mark.long
def test_examples_are_in_large_row_groups(tmp_path: Path) -> None:
    """Row groups determine the samples of a training. Published tables have small ones: `test_published_tables.py`."""
    side = 512
    config = (BUILT_IN / "tiny.yaml").read_text().replace("height: 32, width: 24", f"height: {side}, width: {side}")
    (tmp_path / "large.yaml").write_text(config)
    settings = settings_for(tmp_path / "lake", shard_rows=100, model_config_name=str(tmp_path / "large.yaml"))
    lake = Lake(settings.root)
    write_pictures(lake.pictures)
    picture = "dirty/picture_exif_rotated.jpg"
    write_raw(lake, DAY1, [{"product_id": f"{i}", "title": "Shirt", "image_uri": picture} for i in range(64)])
    validate(settings, DAY1)
    run_id = plan(settings, DAY1, prepare=True).run_id
    assert preprocess(settings, run_id) == 64
    (path,) = lake.examples(run_id).rglob("*.parquet")
    metadata = pq.read_metadata(path)
    assert metadata.num_rows * side * side * 3 > 5 * parquet.LOOKED_UP
    assert metadata.num_row_groups == 1


def test_finished_preprocess_is_not_done_again(prepared: tuple[Lake, Plan]) -> None:
    lake, made = prepared
    settings = settings_for(lake.root)
    paths = sorted(lake.examples(made.run_id).rglob("*.parquet"))
    stamps = [p.stat().st_mtime_ns for p in paths]
    assert preprocess(settings, made.run_id) == made.to_preprocess
    assert [p.stat().st_mtime_ns for p in paths] == stamps


def test_half_done_preprocess_is_done_again(prepared: tuple[Lake, Plan]) -> None:
    lake, made = prepared
    before = examples(lake, made.run_id)
    (lake.examples(made.run_id) / "_manifest.json").unlink()
    broken = sorted(lake.examples(made.run_id).rglob("*.parquet"))
    broken[0].write_bytes(broken[0].read_bytes()[:1000])
    broken[-1].unlink()
    assert preprocess(settings_for(lake.root), made.run_id) == made.to_preprocess
    assert examples(lake, made.run_id) == before


def test_work_is_spread_evenly(prepared: tuple[Lake, Plan]) -> None:
    _, made = prepared
    rows = [shard.rows for shard in made.shards]
    assert len(rows) == 4  # 300 good and some 20 others, at most about 100 a shard
    assert max(rows) < 1.5 * min(rows)


def test_plan_without_validation_or_model_says_what_to_run(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "lake")
    with pytest.raises(JobError, match=r"python -m jobs validate --ds 2026-11-20"):
        plan(settings, DAY1)
    lake = Lake(settings.root)
    write_raw(lake, DAY1, [{"product_id": "1", "title": "Blue shirt"}])
    validate(settings, DAY1)
    with pytest.raises(JobError, match=r"no model exists yet.*jobs prepare"):
        plan(settings, DAY1)


def test_a_root_without_pictures_makes_none_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "mount"
    settings = settings_for(tmp_path / "lake", picture_roots=(root,))
    lake = Lake(settings.root)
    write_raw(lake, DAY1, [{"product_id": "1", "title": "Blue shirt", "image_uri": f"{root}/1.png"}])
    validate(settings, DAY1)
    run_id = plan(settings, DAY1, prepare=True).run_id
    with pytest.raises(JobError, match=r"mount: No such file or directory; TAGGING_PICTURE_ROOTS names it"):
        preprocess(settings, run_id)
    root.mkdir()
    with pytest.raises(JobError, match=r"mount: the folder is empty"):
        preprocess(settings, run_id)
    picture = root / "1.png"
    picture.write_bytes(pictures_of("picture_1x1"))

    def unmounted(*arguments: Any) -> dict[str, int]:
        picture.unlink()
        return make(*arguments)

    make = module._preprocess
    with monkeypatch.context() as patch:
        patch.setattr(module, "_preprocess", unmounted)
        with pytest.raises(JobError, match=r"mount: the folder is empty"):
            preprocess(settings, run_id)
    picture.write_bytes(pictures_of("picture_1x1"))
    assert preprocess(settings, run_id) == 1
    assert examples(lake, run_id)["1"]["image_status"] == "ok"


def test_a_root_that_lacks_most_pictures_stops_before_anything_is_tagged(tmp_path: Path) -> None:
    """A bucket or mount with the wrong files is not empty, so the check of empty roots does not find it."""
    root = tmp_path / "mount"
    root.mkdir()
    (root / "other.png").write_bytes(pictures_of("picture_1x1"))
    settings = settings_for(tmp_path / "lake", picture_roots=(root,))
    lake = Lake(settings.root)
    records = [{"product_id": str(i), "title": "Blue shirt", "image_uri": f"{root}/{i}.png"} for i in range(51)]
    text_alone = [{"product_id": f"text-{i}", "title": "Blue shirt"} for i in range(400)]
    write_raw(lake, DAY1, [*records, *text_alone])
    validate(settings, DAY1)
    run_id = plan(settings, DAY1, prepare=True).run_id
    with pytest.raises(
        CriticalDataError, match=r"51 of 51 pictures are missing \(100%; 30% is allowed\).*mount.*Nothing is"
    ):
        preprocess(settings, run_id)
    assert lake.read_examples_manifest(run_id) is None
    (root / "0.png").write_bytes(pictures_of("picture_1x1"))  # so few may always be missing
    assert preprocess(settings, run_id) == 451


def pictures_of(kind: str) -> bytes:
    data = DIRTY[kind].picture
    assert data is not None
    return data


def test_a_fault_of_the_disk_fails_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "1.png").write_bytes(pictures_of("picture_1x1"))
    monkeypatch.setattr(os, "read", fail)
    columns = {"product_id": ["1"], "source_hash": ["x"], "title": ["t"], "brand": [""], "description": [""]}
    picture = {
        "image_uri": ["1.png"],
        "image_version": pa.array([None], pa.string()),
        "image_uris": pa.array([None], pa.list_(pa.string())),
    }
    batch = pa.RecordBatch.from_pydict(columns | picture | {"labels": pa.array([[]], LABELS)})
    make = ExampleMaker(pictures.PictureSpec(8, 8), (tmp_path,), load_taxonomy("sample"))
    with pytest.raises(OSError, match=r"Input/output error: '.*1\.png'"):
        list(make(iter([batch]), {}))


def damaged(data: bytes, how: str) -> bytes:
    return {
        "whole": data, "gone": b"", "empty": b"", "lacks a little": data[:-20], "lacks half": data[: len(data) // 2],
        "bit flipped": data[:300] + bytes([data[300] ^ 4]) + data[301:], "grown": data + bytes(33 * 2**20),
    }[how]  # fmt: skip


@pytest.mark.parametrize("how", ["whole", "gone", "empty", "lacks a little", "lacks half", "bit flipped", "grown"])
def test_a_picture_that_differs_from_the_imported_one_is_refused(tmp_path: Path, how: str) -> None:
    data = jpeg(drawing())
    digest = hashlib.sha1(data).hexdigest()
    uri = f"{digest[:2]}/{digest}.jpg"
    (tmp_path / uri).parent.mkdir()
    if how != "gone":
        (tmp_path / uri).write_bytes(damaged(data, how))
    columns = {"product_id": ["1"], "source_hash": ["x"], "title": ["t"], "brand": [""], "description": [""]}
    make = ExampleMaker(pictures.PictureSpec(8, 8), (tmp_path,), load_taxonomy("sample"))

    def made(version: str | None) -> list[pa.RecordBatch]:
        picture = {
            "image_uri": [uri],
            "image_version": pa.array([version], pa.string()),
            "image_uris": pa.array([None], pa.list_(pa.string())),
        }
        return list(
            make(iter([pa.RecordBatch.from_pydict(columns | picture | {"labels": pa.array([[]], LABELS)})]), {})
        )

    if how == "whole":
        assert made(digest)[0].column("image_status").to_pylist() == ["ok"]
    else:
        with pytest.raises(
            JobError, match=rf"{digest}\.jpg: .* picture that was imported.*import the export of the day again"
        ):
            made(digest)
    made(None)  # the shop's own name, which only looks like an imported one
    empty = hashlib.sha1(b"").hexdigest()
    uri = f"{empty[:2]}/{empty}.jpg"
    (tmp_path / uri).parent.mkdir(exist_ok=True)
    (tmp_path / uri).write_bytes(b"")
    assert made(empty)[0].column("image_status").to_pylist() == ["empty"]  # as the shop delivered it


def test_unknown_run_is_reported(settings: Settings) -> None:
    with pytest.raises(JobError, match="the plan does not exist"):
        preprocess(settings, "2026-11-20-00000000")


def test_broken_plan_is_reported(lake: Lake, settings: Settings) -> None:
    storage.write_bytes(lake.plan("2026-11-20-00000000") / "plan.json", b'{"run_id": ')
    with pytest.raises(JobError, match=r"plan\.json: not a Plan"):
        preprocess(settings, "2026-11-20-00000000")
