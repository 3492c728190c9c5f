"""`make test TESTS=tests/jobs/demo/test_sample_catalog.py`."""

from __future__ import annotations

import gzip
import io
import json
import random
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cma_clip_core.content.pictures import PictureError, PictureSpec, decode, fetch
from jobs.demo.garments import COLOURS, Design, draw
from jobs.demo.sample_catalog import generate, next_day
from jobs.errors import JobError
from jobs.importing.import_catalog import import_catalog
from jobs.lake.layout import Lake
from jobs.records.rejected_lines import read_rejected
from jobs.settings import Settings
from schemas.taxonomy import load_taxonomy
from tests.conftest import split_raw
from tests.dirty import DIRTY

PRODUCTS = 400
DAYS = ("2026-11-20", "2026-11-21")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop") / "day1"
    generate(folder, products=PRODUCTS)
    next_day(folder, folder.with_name("day2"), "sample", changed=0.05, new=0.05, removed=0.05)
    return folder


@pytest.fixture(scope="module")
def imported(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, list[list[Any]]]:
    """The lake, and the lines of its two days: objects, or bytes where they are none."""
    settings = Settings(root=tmp_path_factory.mktemp("lake"), progress=False)
    lake = Lake(settings.root)
    days = []
    for day, folder in zip(DAYS, (drawn, drawn.with_name("day2")), strict=True):
        manifest = import_catalog(settings, folder, day, "sample")
        lines = b"".join(gzip.decompress((lake.raw(day) / f.name).read_bytes()) for f in manifest.files).split(b"\n")
        days.append([parsed(line) for line in lines[:-1]])
    return lake, days


def parsed(line: bytes) -> Any:
    try:
        value = json.loads(line)
    except ValueError:
        return line
    return value if isinstance(value, dict) and read_rejected(line) is None else line


def clean(records: list[Any]) -> list[dict[str, Any]]:
    return [r for r in records if isinstance(r, dict) and str(r["product_id"]).startswith("S1")]


def test_the_same_seed_draws_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    generate(tmp_path / "same", products=PRODUCTS)
    generate(tmp_path / "other", products=PRODUCTS, seed=8)
    for name in ("catalog.jsonl", "pictures.zip"):
        assert (tmp_path / "same" / name).read_bytes() == (drawn / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (drawn / name).read_bytes()
    next_day(drawn, tmp_path / "next", "sample", changed=0.05, new=0.05, removed=0.05)
    assert (tmp_path / "next" / "catalog.jsonl").read_bytes() == (
        drawn.with_name("day2") / "catalog.jsonl"
    ).read_bytes()


def test_every_kind_of_dirty_record_is_planted(imported: tuple[Lake, list[list[Any]]]) -> None:
    lake, (records, _) = imported
    text = b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in records)
    for kind, dirty in DIRTY.items():
        if kind == "attributes_list":  # the sample's mapping makes labels of it
            continue
        assert kind.encode() in text or kind.replace("_", " ").encode() in text, kind
        found = [r for r in records if isinstance(r, dict) and r["product_id"] == f"dirty-{kind}"]
        expected = dirty.records[0]
        if dirty.outcome == "unparsable":
            assert dirty.lines[0] in records
        elif kind == "text_8_mb":
            assert len(found[0]["description"]) == 8_000_000
        elif dirty.picture is not None or kind == "picture_missing":
            assert fetched(lake, found[0]["image_uri"]) == dirty.image_status
        elif found and isinstance(expected, dict):
            assert {f: found[0][f] for f in ("title", "price")} == {f: expected[f] or None for f in ("title", "price")}
            # A name that leads out of the export costs the picture alone.
            uri = found[0]["image_uri"]
            assert uri == expected["image_uri"] or uri.startswith("missing/"), kind


def fetched(lake: Lake, uri: str) -> str:
    try:
        decode(fetch(uri, [lake.pictures]), PictureSpec(64, 48))
    except PictureError as error:
        return error.status
    return "ok"


def test_clean_products_can_be_had_alone(tmp_path: Path) -> None:
    generate(tmp_path, products=50, dirty=False)
    lines = (tmp_path / "catalog.jsonl").read_bytes().splitlines()
    assert len(lines) == 50
    assert all(json.loads(line)["sku"].startswith("S1") for line in lines)


def test_labels_are_missing_wrong_and_many_as_promised(imported: tuple[Lake, list[list[Any]]]) -> None:
    taxonomy = load_taxonomy("sample")
    products = clean(imported[1][0])
    assert len(products) == PRODUCTS
    labels = [
        {field: value if isinstance(value, list) else [value] for field, value in product["attributes"].items()}
        for product in products
    ]
    known = []
    for each in labels:
        found, unknown = taxonomy.normalise(each)
        known.append(found)
        assert not unknown
    share = {name: sum(name in k for k in known) / PRODUCTS for name in taxonomy.names}
    assert 0.85 < share["article_type"] < 0.95
    assert 0.5 < share["colour"] < 0.7
    assert 0.1 < share["details"] < 0.6
    assert any(len(k.get("details", ())) > 1 for k in known)
    for name in taxonomy.names:
        assert {v for k in known for v in k.get(name, ())} == set(taxonomy[name].value_names), name


def test_texts_are_noisy_and_families_share_theirs(imported: tuple[Lake, list[list[Any]]]) -> None:
    products = clean(imported[1][0])
    labelled = [p for p in products if "colour" in p["attributes"] and p["title"]]
    named = [p for p in labelled if p["attributes"]["colour"].casefold() in p["title"].casefold()]
    assert 0.3 < len(named) / len(labelled) < 0.7
    texts = [p["description"].split("\n\n")[0] for p in products if p["description"]]
    assert len(set(texts)) < 0.9 * len(texts)
    assert sum(p["image_uri"] is None for p in products) > 0
    assert sum(p["title"] is None and p["description"] is None for p in products) > 0


def design(**changes: Any) -> Design:
    values: dict[str, Any] = {"kind": "T-shirt", "colour": "Red", "pattern": "Solid", "sleeve_length": "Short Sleeves",
                              "neck": "Round Neck", "fabric": "Cotton", "details": ()}  # fmt: skip
    return Design(**values | changes)


def drawn_pixels(of: Design, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    data = draw(of, np.random.default_rng(seed), random.Random(seed))
    return np.asarray(Image.open(io.BytesIO(data)), dtype=float)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_garment_has_its_colour(colour: str) -> None:
    middle = np.mean(
        [drawn_pixels(design(colour=colour), seed)[55:95, 38:58].mean(axis=(0, 1)) for seed in range(8)], axis=0
    )
    nearest = min(
        COLOURS,
        key=lambda name: float(np.abs(middle / middle.max() - np.array(COLOURS[name]) / max(COLOURS[name])).sum()),
    )
    greys = {"Black", "White", "Grey"}
    assert nearest == colour or {nearest, colour} <= greys


@pytest.mark.parametrize(
    "changes",
    [{"pattern": "Striped"}, {"pattern": "Dotted"}, {"pattern": "Checked"}, {"pattern": "Printed"}, {"kind": "Dress"},
     {"sleeve_length": "Long Sleeves"}, {"sleeve_length": "Sleeveless"}, {"neck": "V-Neck"}, {"neck": "High Neck"},
     {"details": ("Pocket",)}, {"details": ("Buttons",)}, {"details": ("Logo",)}, {"kind": "Trousers", "details": ("Belt",)}],
)  # fmt: skip
def test_every_attribute_but_the_fabric_can_be_seen(changes: dict[str, Any]) -> None:
    difference = np.abs(drawn_pixels(design(**changes)) - drawn_pixels(design()))
    assert (difference.max(axis=-1) > 60).sum() > 15
    np.testing.assert_array_equal(drawn_pixels(design(fabric="Wool")), drawn_pixels(design()))


def test_three_thousand_products_are_quick(tmp_path: Path) -> None:
    start = time.process_time()
    generate(tmp_path, products=300)
    assert time.process_time() - start < 4  # measured: 0.5 s, and 3.9 s for 3,000


# --- the next day


def test_a_day_later_some_products_are_changed_new_or_gone(imported: tuple[Lake, list[list[Any]]]) -> None:
    _, days = imported
    first, second = ({r["product_id"]: r for r in clean(day)} for day in days)
    gone, new = first.keys() - second.keys(), second.keys() - first.keys()
    changed = [i for i in first.keys() & second.keys() if first[i] != second[i]]
    texts = [i for i in changed if first[i]["title"] != second[i]["title"]]
    pictures = [i for i in changed if first[i]["image_version"] != second[i]["image_version"]]
    assert all(2 <= len(part) <= 0.12 * PRODUCTS for part in (gone, new, changed))
    assert texts
    assert pictures
    assert sorted(texts + pictures) == sorted(changed)
    for i in changed:
        assert second[i]["updated_at"] > first[i]["updated_at"]
    for i in new:
        assert second[i]["title"] != first[i.rsplit("-", 1)[0]]["title"]


def test_the_pictures_of_the_next_day_are_links(drawn: Path) -> None:
    day2 = drawn.with_name("day2")
    assert (day2 / "pictures.zip").samefile(drawn / "pictures.zip")  # no copy
    assert len(list((day2 / "pictures").iterdir())) < 0.1 * PRODUCTS


MAPPING = "{records: [a.jsonl.gz, a.csv], pictures: %s, picture_name: 'p/{id}.jpg', product_id: id, title: name}"


def small(folder: Path, *, csv: bool = False, loose: bool = False) -> Path:
    """Write 300 products with numbers for ids."""
    src = folder / "src"
    (src / "p").mkdir(parents=True)
    if csv:
        rows = "".join(f'{i},"Shirt, no. {i}"\n' for i in range(300))
        (src / "a.csv").write_text(f"id,name\n{rows}9,one,too many\n")
    else:
        lines = [json.dumps({"id": i, "name": f"Shirt {i}"}) for i in range(300)]
        (src / "a.jsonl.gz").write_bytes(gzip.compress("\n".join([*lines, "no json", ""]).encode()))
    if loose:
        for i in range(300):
            (src / "p" / f"{i}.jpg").write_bytes(b"picture %d" % i)
    else:
        (src / "p").rmdir()
        with zipfile.ZipFile(src / "p.zip", "w") as archive:
            for i in range(300):
                archive.writestr(f"p/{i}.jpg", b"picture %d" % i)
    return src


@pytest.mark.parametrize("csv", [False, True])
@pytest.mark.parametrize(("pictures", "loose"), [("[p, p.zip]", False), ("[p, p.zip]", True), ("[p.zip]", False)])
def test_the_next_day_of_any_layout(tmp_path: Path, pictures: str, csv: bool, loose: bool) -> None:
    src = small(tmp_path, csv=csv, loose=loose)
    (tmp_path / "m.yaml").write_text(MAPPING % pictures)
    before = {path: path.read_bytes() for path in src.rglob("*") if path.is_file()}
    next_day(src, tmp_path / "dst", str(tmp_path / "m.yaml"), changed=0.1, new=0.1, removed=0.1)
    assert {path: path.read_bytes() for path in src.rglob("*") if path.is_file()} == before
    settings = Settings(root=tmp_path / "lake", progress=False)
    days = []
    for day, folder in zip(DAYS, (src, tmp_path / "dst"), strict=True):
        manifest = import_catalog(settings, folder, day, str(tmp_path / "m.yaml"))
        lines = gzip.decompress((Lake(settings.root).raw(day) / manifest.files[0].name).read_bytes()).splitlines()
        days.append({r["product_id"]: r for line in lines if isinstance(r := parsed(line), dict)})
    first, second = days
    new = second.keys() - first.keys()
    assert len(first) == 300
    assert 10 < len(new) < 60
    assert 10 < len(first.keys() - second.keys()) < 60
    assert any(first[i]["image_version"] != second[i]["image_version"] for i in first.keys() & second.keys())
    for record in second.values():
        assert record["image_version"] is not None


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_next_day_of_a_csv_is_read_as_the_import_reads_it(tmp_path: Path, delimiter: str) -> None:
    """Its delimiter, texts longer than Python's own limit of a CSV field, wrong quotes, and a last line without an end."""
    src = tmp_path / "src"
    src.mkdir()
    lines = [delimiter.join((str(i), f"Shirt no. {i}", "x" * (200_000 if i < 3 else 10))) for i in range(100)]
    lines.insert(50, delimiter.join(("wrong", '"a "fine" shirt"', "x")))
    text = "\n".join([delimiter.join(("id", "name", "text")), *lines])
    (src / "a.csv").write_text(text)
    (tmp_path / "m.yaml").write_text("{records: a.csv, product_id: id, title: name, description: text}")
    next_day(src, tmp_path / "same", str(tmp_path / "m.yaml"), changed=0, new=0, removed=0)
    assert (tmp_path / "same" / "a.csv").read_text() == text  # to the byte
    next_day(src, tmp_path / "dst", str(tmp_path / "m.yaml"), changed=0, new=1, removed=0)
    settings = Settings(root=tmp_path / "lake", progress=False)
    import_catalog(settings, tmp_path / "dst", DAYS[0], str(tmp_path / "m.yaml"))
    records, others = split_raw(Lake(settings.root), DAYS[0])
    assert [line.decode() for line in others] == [lines[50]]
    assert [r["product_id"] for r in records[::2]] == [str(i) for i in range(100)]
    assert all(r["title"].startswith(f"Shirt no. {i // 2}") for i, r in enumerate(records))
    assert [len(r["description"]) for r in records] == [200_000] * 6 + [10] * 194


def test_the_next_day_of_json_lines_without_a_last_line_end(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    (src / "a.jsonl").write_text('{"id": "1", "name": "Shirt"}')
    (tmp_path / "m.yaml").write_text("{records: a.jsonl, product_id: id, title: name}")
    next_day(src, tmp_path / "dst", str(tmp_path / "m.yaml"), changed=0, new=1, removed=0)
    assert len([json.loads(line) for line in (tmp_path / "dst" / "a.jsonl").read_text().splitlines()]) == 2


def test_a_csv_that_the_import_refuses_has_no_next_day(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    (src / "a.csv").write_text('id,name\n1,"never\nclosed\n')
    (tmp_path / "m.yaml").write_text("{records: a.csv, product_id: id, title: name}")
    with pytest.raises(JobError, match=r"a\.csv: line 2: a quote is never closed"):
        next_day(src, tmp_path / "dst", str(tmp_path / "m.yaml"))


def test_a_folder_that_is_no_next_day_is_never_replaced(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(JobError, match="files that no earlier call wrote"):
        next_day(drawn, tmp_path, "sample")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(JobError, match="no records"):
        next_day(tmp_path, tmp_path / "out", "sample")
