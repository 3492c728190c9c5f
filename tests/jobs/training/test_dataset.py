"""The labelled set: `pytest tests/jobs/training/test_dataset.py`"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cma_clip_core.catalog.examples import read_index
from cma_clip_core.catalog.label_mentions import SpokenFinder
from cma_clip_core.catalog.near_pictures import thumbnails
from cma_clip_core.catalog.splits import SIDES
from cma_clip_core.config import load_config
from jobs.cli import app
from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.settings import Settings
from jobs.training import dataset as step
from jobs.training.dataset import dataset, example_folders
from jobs.training.labelled_rows import count_labels_of_sides, read_batches
from jobs.training.labelled_summary import Summary
from schemas.documents import LabelledManifest
from schemas.tables import LABELLED
from tests.cma_clip_core import drawn
from tests.cma_clip_core.catalog.test_families import jaccard, near_pictures
from tests.jobs.training.test_train import RUN, add_examples, options_of, settings_of

DAY = "2026-11-20"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path)


def rows_of(settings: Settings, ds: str = DAY) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(dataset(settings, ds).table).to_pylist()
    return found


def altered(changes: dict[int, dict[str, Any]], count: int = 60) -> pa.Table:
    """Drawn examples, some of their columns others."""
    rows = drawn.examples(count).to_pylist()
    for row, change in changes.items():
        rows[row] |= change
    return pa.Table.from_pylist(rows, schema=drawn.examples(1).schema)


def test_a_row_says_where_its_example_is_and_what_counts_of_its_labels(settings: Settings) -> None:
    lake = Lake(settings.root)
    add_examples(lake, RUN, drawn.examples(300))
    found = dataset(settings, DAY)
    table = pq.read_table(found.table)
    assert [(f.name, f.nullable, f.metadata) for f in table.schema] == [
        (f.name, f.nullable, f.metadata) for f in LABELLED
    ]
    examples = {row["product_id"]: row for row in drawn.examples(300).to_pylist()}
    for row in table.to_pylist():
        here = pq.read_table(lake.root / row["example_file"]).slice(row["example_row"], 1).to_pylist()[0]
        assert (here["product_id"], here["source_hash"]) == (row["product_id"], row["source_hash"])
        labels = [(x["attribute"], x["value"]) for x in row["labels"]]
        given = examples[row["product_id"]]["labels"]
        assert labels == [(name, value) for name, values in given for value in values]
        assert row["article_type"] == dict(given)["article_type"][0]
    assert found.manifest.products == table.num_rows
    assert found.manifest.labels == sum(len(row["labels"]) for row in table.to_pylist())


def test_labels_are_marked_as_the_spoken_finder_marks_them(settings: Settings) -> None:
    add_examples(Lake(settings.root), RUN, altered({0: {"brand": "Red Linen", "title": "Shirt, striped"}}, 200))
    taxonomy = drawn.taxonomy()
    classes = [(a.name, v) for a in taxonomy.attributes for v in a.value_names]
    examples = {
        row["product_id"]: row
        for row in altered({0: {"brand": "Red Linen", "title": "Shirt, striped"}}, 200).to_pylist()
    }
    mentions = {"spoken": 0, "silent": 0}
    for row in rows_of(settings):
        example = examples[row["product_id"]]
        for label in row["labels"]:
            target = np.array([[(label["attribute"], label["value"]) == known for known in classes]])
            bits = (
                SpokenFinder(taxonomy)
                .find([tuple(example[f] for f in ("title", "brand", "description"))], target)
                .max()
            )
            assert label["named_in"] == [f for n, f in enumerate(("title", "brand", "description")) if bits >> n & 1]
            mentions["spoken" if label["named_in"] else "silent"] += 1
    assert min(mentions.values()) > 50
    found = dataset(settings, DAY)
    lake = Lake(settings.root)
    index = read_index(found.table, lake.root)
    assert found.manifest.silent == mentions["silent"]
    counts = Counter(
        (row["side"], x["attribute"], not x["named_in"]) for row in rows_of(settings) for x in row["labels"]
    )
    assert {
        (side, attribute, silent): n
        for attribute, sides in count_labels_of_sides(found.table, lake, index).items()
        for side, count in sides.items()
        for silent, n in ((True, count.silent), (False, count.labels - count.silent))
        if n
    } == counts
    sample = index.sample(60)
    of_sample = count_labels_of_sides(found.table, lake, sample)["article_type"]
    assert {side: count.labels for side, count in of_sample.items()} == {
        side: n for side in SIDES if (n := sample.count(side))
    }


def test_labels_that_do_not_apply_are_left_out_and_counted(settings: Settings) -> None:
    watch = [
        ("article_type", ["Watch"]),
        ("colour", ["Red"]),
        ("pattern", ["Striped"]),
        ("material", ["Wool", "Linen"]),
    ]
    add_examples(
        Lake(settings.root),
        RUN,
        altered(
            {
                0: {"labels": watch},
                1: {"labels": [("pattern", ["Solid"]), ("colour", ["Red"])]},
                2: {"labels": [("pattern", ["Solid"])]},
                3: {"labels": []},
                4: {"title": "", "description": "", "image": None, "image_status": "broken"},
            }
        ),
    )
    rows = {row["product_id"]: row for row in rows_of(settings)}
    manifest = dataset(settings, DAY).manifest
    assert [(x["attribute"], x["value"]) for x in rows["p00000"]["labels"]] == [
        ("article_type", "Watch"),
        ("colour", "Red"),
    ]
    assert [(x["attribute"], x["value"]) for x in rows["p00001"]["labels"]] == [("colour", "Red")]
    assert rows["p00001"]["article_type"] is None
    assert not rows.keys() & {"p00002", "p00003", "p00004"}
    assert (manifest.unlabelled, manifest.empty) == (2, 1)
    # Of products in the set: the third has no other label.
    assert manifest.not_applicable == {"pattern": 2, "material": 1}


def test_every_example_is_accounted_for(settings: Settings) -> None:
    lake, table = Lake(settings.root), drawn.examples(200)
    add_examples(lake, "2026-11-18-0123abcd", table)
    add_examples(lake, RUN, table.slice(0, 50))
    found = dataset(settings, DAY)
    manifest = found.manifest
    assert manifest.examples == 250
    assert manifest.examples == manifest.products + manifest.superseded + manifest.unlabelled + manifest.empty
    assert manifest.superseded == 50
    assert sum(manifest.sides.values()) == manifest.products
    newest = {row["product_id"] for row in rows_of(settings) if RUN in row["example_file"]}
    assert newest <= set(table["product_id"].slice(0, 50).to_pylist())
    assert len(newest) >= 49  # one of them may have neither text nor picture


def test_a_family_that_holds_much_of_the_catalog_is_told(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    one = {"brand": "Acme", "description": "our shop sends all that you order within two days, and takes it back"}
    add_examples(Lake(settings.root), RUN, altered(dict.fromkeys(range(105), one), count=300))
    dataset(settings, DAY)
    assert re.search(r"one family holds 1\d\d of \d+ products, all on one side", caplog.text)


def test_the_index_is_the_tables(settings: Settings) -> None:
    add_examples(Lake(settings.root), RUN, drawn.examples(300))
    found, rows = dataset(settings, DAY), rows_of(settings)
    index = read_index(found.table, settings.root)
    assert [str(index.files[n].relative_to(settings.root)) for n in index.file] == [r["example_file"] for r in rows]
    assert index.row.tolist() == [r["example_row"] for r in rows]
    assert index.family.tolist() == [r["family"] for r in rows]
    assert {side: index.count(side) for side in ("train", "validation", "test")} == found.manifest.sides  # type: ignore[arg-type]
    assert index.families == found.manifest.families


def test_the_split_does_not_depend_on_the_order_of_files_and_rows(settings: Settings, tmp_path: Path) -> None:
    table = drawn.examples(300)
    add_examples(Lake(settings.root), RUN, table)
    mixed = table.take(random.Random(3).sample(range(300), 300))
    (tmp_path / "other").mkdir()
    other = settings_of(tmp_path / "other")
    add_examples(Lake(other.root), RUN, mixed)

    def split(of: Settings) -> list[tuple[Any, ...]]:
        return sorted((r["product_id"], r["family"], r["side"], str(r["labels"])) for r in rows_of(of))

    assert split(settings) == split(other)


def test_no_near_duplicate_crosses_in_a_drawn_catalog(trained: Lake) -> None:
    """Compare all pairs of the demo's products by brute force."""
    tables = list((trained.root / "labelled").rglob("products.parquet"))
    assert len(tables) == 1
    examples: dict[str, Any] = {}
    for path in (trained.root / "examples").rglob("*.parquet"):
        examples |= {row["product_id"]: row for row in pq.read_table(path).to_pylist()}
    rows = pq.read_table(tables[0]).to_pylist()
    picture = load_config("tiny").picture
    small = {}
    for row in rows:
        pixels = examples[row["product_id"]]["image"]
        if pixels is not None:
            array = np.frombuffer(pixels, dtype=np.uint8).reshape(1, picture.height, picture.width, 3)
            # as a picture of 80 x 64, of which the test's own code takes block means
            small[row["product_id"]] = thumbnails(array)[0].repeat(4, axis=0).repeat(4, axis=1)
    near = 0
    for one, other in itertools.combinations(rows, 2):
        a, b = (examples[r["product_id"]] for r in (one, other))
        texts = [(x["title"], x["brand"], x["description"]) for x in (a, b)]
        same_text = a["brand"].lower() == b["brand"].lower() and jaccard(*texts) >= 0.7
        if same_text or near_pictures(small.get(a["product_id"]), small.get(b["product_id"])):
            near += 1
            assert one["family"] == other["family"]
            assert one["side"] == other["side"]
    assert near >= 5


def test_the_page_stands_alone_and_says_what_the_table_does(settings: Settings) -> None:
    product = {"title": "<script>alert(1)</script> Shirt", "labels": [("article_type", ["Shirt"]), ("colour", ["Red"])]}
    watch = {"labels": [("article_type", ["Watch"]), ("pattern", ["Striped"])]}
    add_examples(Lake(settings.root), RUN, altered(dict.fromkeys(range(0, 40, 2), product) | {1: watch}, 300))
    found = dataset(settings, DAY)
    page, manifest = found.page.read_text(), found.manifest
    assert "<script" not in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert page.count("data:image/jpeg;base64,") >= 10
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", page)
    for n in (manifest.products, manifest.families, manifest.labels, *manifest.sides.values()):
        assert f">{n:,}<" in page, n
    assert manifest.not_applicable == {"pattern": 1}


def test_the_pages_counts_are_the_tables(settings: Settings) -> None:
    add_examples(Lake(settings.root), RUN, drawn.examples(300))
    rows, taxonomy = rows_of(settings), drawn.taxonomy()
    index = read_index(dataset(settings, DAY).table, settings.root)
    summary = Summary(taxonomy, index)
    for batch in read_batches(taxonomy, index):
        summary.add(batch)
    for attribute, counted in zip(taxonomy.attributes, summary.attributes(), strict=True):
        labels = [(r["side"], x) for r in rows for x in r["labels"] if x["attribute"] == attribute.name]
        silent = sum(not x["named_in"] for _, x in labels)
        title = sum("title" in x["named_in"] for _, x in labels)
        assert counted.n == len(labels)
        assert counted.mentions == (title, len(labels) - title - silent, silent)
        assert counted.sides == tuple(sum(s == side for s, _ in labels) for side in ("train", "validation", "test"))
        for value in counted.values:
            assert value.n == sum(x["value"] == value.value for _, x in labels)
        assert [v.n for v in counted.values] == sorted((v.n for v in counted.values), reverse=True)
    sizes = Counter(r["family"] for r in rows)
    assert sum(s.families for s in summary.family_sizes()) == len(sizes)
    assert sum(s.products for s in summary.family_sizes()) == len(rows)
    assert [f.size for f in summary.largest_families()] == sorted((n for n in sizes.values() if n > 1), reverse=True)[
        :8
    ]
    assert summary.words["title"].sum() == len(rows)
    for shown in summary.largest_families():
        assert len({next(r["family"] for r in rows if r["product_id"] == p.product_id) for p in shown.products}) == 1


def test_the_same_inputs_are_the_same_set(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(settings.root)
    add_examples(lake, RUN, drawn.examples(200))
    first = dataset(settings, DAY)
    assert first.folder == lake.labelled(DAY, first.manifest.set_id)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    with monkeypatch.context() as patch:
        patch.setattr(step, "scan_examples", never)
        assert dataset(settings, DAY) == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before
    monkeypatch.setattr(step, "RULES", 10_000)
    other = dataset(settings, DAY)
    assert other.manifest.set_id != first.manifest.set_id
    add_examples(lake, "2026-11-20-prepare-1123abcd", drawn.examples(10, seed=5))
    assert dataset(settings, DAY).manifest.set_id not in (first.manifest.set_id, other.manifest.set_id)


@pytest.mark.parametrize("at", ["products.parquet", "index.html", "manifest.json"])
def test_a_set_cut_off_half_way_is_not_there_and_is_made_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    lake = Lake(settings.root)
    add_examples(lake, RUN, drawn.examples(200))
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if Path(target).name == at:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            dataset(settings, DAY)
    assert not list(lake.root.rglob("labelled/**/manifest.json"))
    assert not [path for path in lake.root.rglob("labelled/**/*") if path.is_file() and path.name.startswith(".")]
    found = dataset(settings, DAY)
    assert found.manifest.products == pq.read_metadata(found.table).num_rows
    assert storage.read_document(found.folder / "manifest.json", LabelledManifest) == found.manifest


def test_only_complete_folders_of_the_day_size_and_taxonomy_newest_first(settings: Settings) -> None:
    lake, table = Lake(settings.root), drawn.examples(4)
    older, newer = (add_examples(lake, f"2026-11-{day}-0123abcd", table) for day in (18, 20))
    add_examples(lake, "2026-11-19-0123abcd", table, complete=False)
    add_examples(lake, "2026-11-19-1123abcd", table, height=64)
    add_examples(lake, "2026-11-19-2123abcd", table, fingerprint="another")
    add_examples(lake, "2026-11-21-0123abcd", table)
    assert example_folders(lake, DAY, load_config("tiny"), drawn.taxonomy()) == [newer, older]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [("colour", ["Mauve"])]}, r"shard=0/part-0\.parquet: .*colour = 'Mauve'"),
        ({"image": b"short"}, r"shard=0/part-0\.parquet: product 'p00001'.* 5 bytes where the model needs 32 x 24"),
    ],
)
def test_an_example_that_does_not_fit_is_named_with_its_file(
    settings: Settings, change: dict[str, Any], words: str
) -> None:
    add_examples(Lake(settings.root), RUN, altered({1: change}))
    with pytest.raises(JobError, match=words):
        dataset(settings, DAY)


def test_broken_files_are_named(settings: Settings) -> None:
    lake = Lake(settings.root)
    folder = add_examples(lake, RUN, drawn.examples(60))
    whole = (folder / "shard=1" / "part-0.parquet").read_bytes()
    (folder / "shard=1" / "part-0.parquet").write_bytes(whole[:-20])
    again = r"`python -m jobs preprocess --run 2026-11-20-prepare-[0-9a-f]+` makes it again"
    with pytest.raises(JobError, match=rf"shard=1/part-0\.parquet: not a readable Parquet file.*{again}"):
        dataset(settings, DAY)
    (folder / "shard=1" / "part-0.parquet").write_bytes(whole)
    found = dataset(settings, DAY)
    found.table.write_bytes(b"PAR1")
    with pytest.raises(
        Exception,
        match=r"products\.parquet: not a readable.*run the step `dataset` of its day again",
    ):
        read_index(found.table, lake.root)


def test_no_label_at_all_says_what_to_look_at(settings: Settings) -> None:
    add_examples(Lake(settings.root), RUN, altered({n: {"labels": []} for n in range(20)}, 20))
    with pytest.raises(JobError, match=r"no example has a label.*taxonomy"):
        dataset(settings, DAY)


def test_the_command_prints_where_the_set_is(settings: Settings) -> None:
    add_examples(Lake(settings.root), RUN, drawn.examples(60))
    done = CliRunner().invoke(
        app, [*options_of(settings), "--no-progress", "dataset", "--ds", DAY], catch_exceptions=False
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert Path(result["table"]).is_file()
    assert result["products"] == dataset(settings, DAY).manifest.products
