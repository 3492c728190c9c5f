"""The night's report, on lakes written by hand from the schemas. `make test TESTS=tests/jobs/report/test_nightly_report.py`."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from jobs.pages import example_pictures
from jobs.pages.display_text import percent, plain, visible
from jobs.report import costs
from jobs.report.findings import findings
from jobs.report.gather import gather_night
from jobs.report.night_page import equations
from jobs.report.nightly_report import _write_index, report
from jobs.settings import Settings
from schemas import tables
from schemas.documents import (
    HistoryDay,
    HistoryIndex,
    Ledger,
    Plan,
    PublishedFile,
    RawManifest,
    RunManifest,
    Shard,
    StepMetrics,
    Validation,
)
from schemas.loading import parse_yaml
from schemas.rules import load_rules
from schemas.taxonomy import Taxonomy
from tests import s3

HEIGHT, WIDTH = 32, 24
MODEL = "20261101-0123abcd"
FIRST, SECOND, PAST = "2026-11-20-aaaaaaaa", "2026-11-21-bbbbbbbb", "2026-11-19-cccccccc"
NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
TAXONOMY = """
name: shop
article_type: kind
attributes:
  - {name: kind, label: Kind, field: kind, values: [Shirt, Dress]}
  - {name: colour, label: Colour, field: colour, values: [Red, Blue, Green]}
  - {name: details, label: Details <b>, field: details, multi_valued: true, values: [Pocket, Logo]}
"""
THRESHOLDS: dict[str, dict[str, Any]] = {
    "kind": {"threshold": 0.625, "target_precision": 0.9, "precision": 0.93, "accepted": 8, "candidates": 10},
    "colour": {"threshold": 0.8, "target_precision": 0.9, "precision": 0.91, "accepted": 8, "candidates": 10},
    "details": {"threshold": None, "target_precision": 0.9, "precision": None, "accepted": 0, "candidates": 10},
}
FINGERPRINT = parse_yaml(TAXONOMY, Taxonomy, "taxonomy").fingerprint


@dataclass
class Row:
    """A row of the attribute table, in short."""

    attribute: str
    catalog: str | None = None
    model: str | None = None
    confidence: float = 0.5
    image_weight: float = 0.25


@dataclass
class Product:
    """A product of a lake made by hand."""

    id: str
    rows: Sequence[Row] = ()
    title: str = "A shirt"
    modality: str = "both"
    colour: tuple[int, int, int] | None = (200, 30, 30)
    status: str = "ok"
    detail: str | None = None
    unknown: dict[str, list[str]] = field(default_factory=dict)
    size: tuple[int, int] = (HEIGHT, WIDTH)  # of its example's picture


def write(path: Path, schema: pa.Schema, rows: Iterable[dict[str, Any]], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema), path, **options)


class Shop:
    """A lake, written as the steps write it."""

    def __init__(self, root: Path) -> None:
        self.settings = Settings(root=root)
        self.lake = Lake(self.settings.root)
        model = self.lake.models / MODEL
        model.mkdir(parents=True)
        (model / "taxonomy.yaml").write_text(TAXONOMY)
        (model / "thresholds.json").write_text(json.dumps(THRESHOLDS))

    def night(
        self,
        run: str,
        products: Sequence[Product],
        *,
        tagged: Sequence[str] | None = None,
        parent: str | None = None,
        backfill: bool = False,
        attributes: tuple[str, ...] = (),
        quarantine: Sequence[dict[str, Any]] = (),
        valid: Sequence[dict[str, Any]] = (),
        **counts: int,
    ) -> Ledger:
        """Write a finished night whose tables are `products`; those in `tagged` (None: all) are its own work."""
        lake, ds = self.lake, run[:10]
        own = [p for p in products if tagged is None or p.id in tagged]
        self._rejected(ds, quarantine, valid)
        reasons = [reason for line in quarantine for reason in line["reasons"] if line["kind"] != "superseded"]
        kinds = [line["kind"] for line in quarantine]
        noted = Counter(note.split(":")[0] for record in valid for _, note in record.get("notes", []))
        by = {m: counts.pop(f"tagged_{m}", sum(p.modality == m for p in own)) for m in ("both", "text", "image")}
        n_tagged = sum(by.values()) + counts.get("untaggable", 0)
        n_valid = n_tagged + counts.get("unchanged", 0)
        rejected = {kind: counts.pop(kind, kinds.count(kind)) for kind in ("unparsable", "quarantined", "superseded")}
        validation = Validation(
            ds=ds, version="v1", passed=True, failures=(), raw=n_valid + sum(rejected.values()), **rejected,
            valid=n_valid, reasons={r: reasons.count(r) for r in dict.fromkeys(reasons)}, notes=dict(noted),
            valid_path=f"catalog/valid/ds={ds}/v1", quarantine_path=f"catalog/quarantine/ds={ds}/v1",
            data_docs_path=f"reports/ds={ds}/validation-v1/data_docs", created_at=NOW,
        )  # fmt: skip
        docs = lake.root / validation.data_docs_path / "index.html"
        docs.parent.mkdir(parents=True, exist_ok=True)
        docs.write_text("rules")
        why = {"new": n_tagged, "changed": 0, "model_changed": 0} | {
            k: counts.pop(k) for k in ("new", "changed", "model_changed") if k in counts
        }
        shards: tuple[Shard, ...] = ()
        if own:
            path = f"examples/ds={ds}/run={run}/shard=0"
            shards = (Shard(id=0, rows=len(own), example_paths=(path,)),)
            self._work(run, own)
        both = {
            "unchanged": counts.get("unchanged", 0),
            "waiting": counts.get("waiting", 0),
            "removed": counts.get("removed", 0),
            "held": counts.get("held", 0),
        }
        storage.write_document(
            lake.plan(run) / "plan.json",
            Plan(
                run_id=run, ds=ds, base_run=parent, backfill=backfill, prepare_only=False, model_version=MODEL,
                attributes=attributes, taxonomy_path=f"models/{MODEL}/taxonomy.yaml", taxonomy_fingerprint=FINGERPRINT,
                picture_height=HEIGHT,
                picture_width=WIDTH, validation=validation, shards=shards, to_preprocess=len(own), created_at=NOW,
                **why, **both,
            ),
        )  # fmt: skip
        rows = [self._row(p, r, run if p in own else str(parent), ds) for p in products for r in p.rows]
        if own or not parent:
            if backfill:
                self._history(run, products, rows)
            else:
                self._tables(run, products, rows, parent, own)
        ledger = Ledger(
            run_id=run, ds=ds, model_version=MODEL, backfill=backfill, raw=validation.raw, **rejected, valid=n_valid,
            tagged_both=by["both"], tagged_text=by["text"], tagged_image=by["image"],
            untaggable=counts.get("untaggable", 0), published_products=n_valid + both["held"],
            published_rows=len(rows), created_at=NOW, **why, **both,
        )  # fmt: skip
        storage.write_document(lake.reports(run) / "ledger.json", ledger)
        return ledger

    def _rejected(self, ds: str, quarantine: Sequence[dict[str, Any]], valid: Sequence[dict[str, Any]]) -> None:
        lines = [{"product_id": None, "source_file": "part-0.jsonl", "ds": ds, **line} for line in quarantine]
        write(self.lake.quarantine(ds) / "v1" / "part-0.parquet", tables.QUARANTINE, lines)
        records = [{"source_hash": "h", "ds": ds, "labels": [], "mistyped_labels": [], **record} for record in valid]
        write(self.lake.valid(ds) / "v1" / "part-0.parquet", tables.VALID, records)

    def _work(self, run: str, products: Sequence[Product]) -> None:
        examples = [
            {
                "product_id": p.id, "source_hash": f"h-{p.id}", "title": p.title, "brand": "", "description": "",
                "image": bytes(p.colour) * (p.size[0] * p.size[1]) if p.colour and p.status == "ok" else None,
                "image_status": p.status, "image_detail": p.detail, "labels": [], "unknown_labels": list(p.unknown.items()),
            }
            for p in products
        ]  # fmt: skip
        write(self.examples_file(run), tables.EXAMPLES, examples, compression="zstd", row_group_size=20)
        planned = [{"product_id": p.id, "reason": "new", "shard": 0, "source_hash": f"h-{p.id}"} for p in products]
        without = pa.schema([f for f in tables.PLAN if f.name != "shard"])
        write(self.lake.plan(run) / "products" / "shard=0" / "part-0.parquet", without, planned)
        predictions = [
            {
                "product_id": p.id, "source_hash": f"h-{p.id}", "modality": p.modality, "image_status": p.status,
                "labels": [], "applicable": [], "predictions": [], "tagged_at": NOW,
            }
            for p in products
        ]  # fmt: skip
        write(self.lake.prediction_file(run, 0), tables.PREDICTIONS, predictions)

    def examples_file(self, run: str) -> Path:
        return self.lake.examples(run) / "shard=0" / "part-00000.parquet"

    def _row(self, product: Product, row: Row, run: str, ds: str) -> dict[str, Any]:
        threshold = THRESHOLDS[row.attribute]["threshold"]
        accepted = row.model is not None and threshold is not None and row.confidence >= threshold
        given = [r.catalog for r in product.rows if r.attribute == row.attribute and r.catalog]
        source = "catalog" if row.catalog else "model" if accepted and not given else None
        return {
            "product_id": product.id, "attribute": row.attribute, "catalog_value": row.catalog, "model_value": row.model,
            "value": row.catalog if source == "catalog" else row.model if source == "model" else None, "source": source,
            "confidence": row.confidence if row.model else None, "accepted": accepted,
            "conflict": bool(accepted and given and row.model not in given),
            "text_weight": 1 - row.image_weight if row.model else None,
            "image_weight": row.image_weight if row.model else None, "model_version": MODEL,
            "source_hash": f"h-{product.id}", "ds": ds, "run_id": run, "tagged_at": NOW,
        }  # fmt: skip

    def _state(self, product: Product, run: str) -> dict[str, Any]:
        return {
            "product_id": product.id, "source_hash": f"h-{product.id}", "model_version": MODEL,
            "modality": product.modality, "image_status": product.status,
            "example_path": f"examples/ds={run[:10]}/run={run}/shard=0", "ds": run[:10],
            "example_spec": f"{product.size[0]}x{product.size[1]}-{'f' * 12}", "run_id": run, "tagged_at": NOW,
        }  # fmt: skip

    def _tables(
        self,
        run: str,
        products: Sequence[Product],
        rows: Sequence[dict[str, Any]],
        parent: str | None,
        own: Sequence[Product],
    ) -> None:
        files = []
        for name in ("kind", "colour", "details"):
            path, found = self.lake.run(run) / name / "part-00000.parquet", [r for r in rows if r["attribute"] == name]
            write(path, tables.ATTRIBUTES, found)
            files.append((path, name, len(found)))
        path = self.lake.run(run) / "_products" / "part-00000.parquet"
        write(path, tables.PRODUCTS, [self._state(p, run if p in own else str(parent)) for p in products])
        files.append((path, "_products", len(products)))
        published = tuple(
            PublishedFile(path=self.lake.relative(p), table=t, rows=n, bytes=1, sha256="0") for p, t, n in files
        )
        self._manifest(run, parent, published, len(products))
        storage.write_bytes(self.lake.current, "".join(f"{p}\n" for p, t, _ in files if t != "_products").encode())
        self._history(run, products, rows, manifest=False)

    def _history(
        self, run: str, products: Sequence[Product], rows: Sequence[dict[str, Any]], *, manifest: bool = True
    ) -> None:
        ds, folder = run[:10], self.lake.history_run(run[:10], run)
        change = {"change": "upsert", "change_ds": ds}
        write(folder / "attributes" / "part-00000.parquet", tables.ATTRIBUTE_HISTORY, [r | change for r in rows])
        states = [self._state(p, run) | change for p in products]
        write(folder / "products" / "part-00000.parquet", tables.PRODUCT_HISTORY, states)
        day = HistoryDay(run_id=run, path=self.lake.relative(folder), rows=len(rows))
        index = self.lake.history_index
        known = storage.read_document(index, HistoryIndex, "make it again") or HistoryIndex()
        storage.write_document(index, HistoryIndex(days=known.days | {ds: day}))
        if manifest:
            self._manifest(run, None, (), 0)

    def _manifest(self, run: str, parent: str | None, files: tuple[PublishedFile, ...], products: int) -> None:
        storage.write_document(
            self.lake.run(run) / "manifest.json",
            RunManifest(
                run_id=run, ds=run[:10], parent=parent, model_version=MODEL, taxonomy_fingerprint=FINGERPRINT,
                raw_version="v1", files=files, rows=sum(f.rows for f in files if f.table != "_products"),
                products=products, history={}, history_files=(), history_base={}, created_at=NOW,
            ),
        )  # fmt: skip

    def step(self, run: str, name: str, **values: Any) -> None:
        """Leave the measurements of a step."""
        folder = self.lake.reports(run) if name != "validate" else self.lake.reports(run).parent / "validation-v1"
        metrics = {
            "step": name.split("-")[0],
            "rows": 0,
            "peak_rss_bytes": 300_000_000,
            "started_at": NOW,
            "seconds": 1.0,
        }
        storage.write_document(folder / "steps" / f"{name}.json", StepMetrics.model_validate(metrics | values))

    def page(self, run: str) -> str:
        """Write the report of a run and return it."""
        return report(self.settings, run).read_text()


def seen(page: str) -> str:
    """Return a page's text as a person sees it, blanks collapsed."""
    page = re.sub(r"<(style|head|title)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page))).strip()


def section(page: str, name: str) -> str:
    """Return the text of one section of a page."""
    found = re.search(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)
    assert found, f"no section {name}"
    return seen(found[1])


def catalog(n: int = 10, red: int = 6) -> list[Product]:
    """Return products: a kind from the catalog, a colour from the model."""
    return [
        Product(
            f"p{i:02}",
            [
                Row("kind", "Shirt", "Shirt", 0.9),
                Row("colour", None, "Red" if i < red else "Blue", 0.85),
                Row("details"),
            ],
        )
        for i in range(n)
    ]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    # A folder's name may hold what SQL and glob patterns give a meaning.
    return Shop(tmp_path / "a shop's (1) lake")


def test_numbers_are_the_ledgers(shop: Shop) -> None:
    ledger = shop.night(
        FIRST, catalog(), tagged_both=10007, tagged_text=211, tagged_image=37, untaggable=13, unparsable=17,
        quarantined=131, superseded=53, unchanged=0, new=10201, changed=59, model_changed=8,
    )  # fmt: skip
    assert not ledger.differences()
    text = section(shop.page(FIRST), "ledger")
    for part in (
        "✓ 10,469 raw lines = 17 unparsable + 131 quarantined + 53 superseded + 10,268 valid",
        "✓ 10,268 valid = 0 unchanged + 10,007 tagged by both + 211 by text + 37 by picture + 13 untaggable",
        "✓ 10,268 tagged or untaggable = 10,201 new + 59 changed + 8 model changed",
        "✓ 10,268 products published = 10,268 valid + 0 held",
    ):
        assert part in text
    drawn = {"131 quarantined", "53 superseded", "17 unparsable", "10,007 tagged by both", "211 tagged by text"}
    assert all(f"{n} " in text for n in drawn)


def test_a_ledger_that_does_not_add_up_is_wrong(shop: Shop) -> None:
    ledger = shop.night(FIRST, catalog())
    broken = ledger.model_copy(update={"raw": ledger.raw + 1})
    assert [holds for *_, holds in equations(broken)] == [False, True, True, True]
    storage.write_document(shop.lake.reports(FIRST) / "ledger.json", broken)
    page = shop.page(FIRST)
    assert "✗ 11 raw lines" in section(page, "ledger")
    assert "Night of 2026-11-20 Wrong" in seen(page)


def test_a_run_without_a_ledger_is_refused(shop: Shop) -> None:
    shop.night(FIRST, catalog())
    (shop.lake.reports(FIRST) / "ledger.json").unlink()
    with pytest.raises(JobError, match=f"ledger.json is missing.*jobs publish --run {FIRST}"):
        report(shop.settings, FIRST)
    assert not (shop.lake.reports(FIRST) / "report.html").exists()


def test_quarantine_shows_reasons_and_rows(shop: Shop) -> None:
    lines = [
        {
            "kind": "quarantined",
            "reasons": ["implausible_price", "unsafe_product_id"],
            "product_id": "a/b",
            "raw": b"{1}",
        },
        {"kind": "quarantined", "reasons": ["implausible_price"], "product_id": "c", "raw": b'{"price": -1}'},
        {"kind": "unparsable", "reasons": ["unparsable"], "raw": b"\xff\xfe<b>no"},
        {"kind": "superseded", "reasons": ["newer_record_with_this_id"], "product_id": "d", "raw": b"{4}"},
    ]
    shop.night(FIRST, catalog(), quarantine=lines)
    text = section(shop.page(FIRST), "quarantine")
    assert "implausible price 2 " in text
    assert "newer record with this id 1 " in text
    assert "The price is negative or implausibly high." in text  # the rule's own words
    assert all(part in text for part in ("a/b", '{"price": -1}', r"\xff\xfe<b>no", "part-0.jsonl"))


def test_few_rows_of_a_reason_are_read(shop: Shop) -> None:
    lines = [
        {"kind": "quarantined", "reasons": ["wrong_type"], "raw": b"x" * 5000 + str(i).encode()} for i in range(50)
    ]
    shop.night(FIRST, catalog(), quarantine=lines)
    (reason,) = gather_night(shop.lake, FIRST, load_rules("default")).reasons
    assert reason.lines == 50
    assert len(reason.examples) == 3
    assert {(len(e.raw), e.size) for e in reason.examples} <= {(600, 5001), (600, 5002)}


def test_hostile_texts_are_trimmed_and_do_nothing(shop: Shop) -> None:
    evil = "<script>alert('x')</script>\u202e\x00\u200b"
    huge = evil + "A" * 8_000_000
    product = Product(
        "p<i>1",
        [Row("kind", "Shirt", "Dress", 0.99)],
        title=huge,
        unknown={"colour": [huge]},
        status="broken",
        detail=huge,
    )
    shop.night(
        FIRST,
        [product],
        quarantine=[{"kind": "quarantined", "reasons": ["wrong_type"], "product_id": evil, "raw": huge.encode()}],
        valid=[{"product_id": evil, "mistyped_labels": [(evil, huge)], "notes": [(evil, f"{evil[:9]}: {huge}")]}],
    )
    page = shop.page(FIRST)
    assert len(page) < 100_000
    assert "<script" not in page.lower()
    assert "<i>1" not in page
    assert not {"\u202e", "\x00", "\u200b"} & set(page)
    for name in ("quarantine", "notes", "labels", "pictures", "conflicts", "tagged"):
        assert "<script>alert('x')</script> U+202E ␀ U+200B" in section(page, name), name
    assert "… of 8.0 MB" in section(page, "quarantine")
    assert "Details <b>" in section(page, "attributes")
    assert """<meta http-equiv="Content-Security-Policy" content="default-src 'none'""" in page


def test_the_page_stands_alone(shop: Shop) -> None:
    shop.night(FIRST, catalog())
    page = shop.page(FIRST)
    index = shop.lake.root / "reports" / "index.html"
    for file, text in ((shop.lake.reports(FIRST) / "report.html", page), (index, index.read_text())):
        code = re.sub(r"base64,[A-Za-z0-9+/=]*", "", text)
        assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<script|<iframe", code, re.IGNORECASE)
        for target in re.findall(r'(?:href|src)="([^"]*)"', text):
            if target.startswith("#"):
                assert f'id="{target[1:]}"' in text
            elif not target.startswith("data:image/jpeg;base64,"):
                assert (file.parent / target).is_file(), target
    assert "ds=2026-11-20/run=" in index.read_text()
    assert "validation-v1/data_docs/index.html" in page


def test_labels_and_pictures_that_cannot_be_used(shop: Shop) -> None:
    products = catalog()
    for product in products[:3]:
        product.unknown = {"colour": ["Octarine"]}
    products[4].unknown = {"colour": ["Infrared"], "kind": ["Toga"]}
    products[5].status, products[5].detail = "broken", "image file is truncated"
    products[6].status = products[7].status = "absent"
    records: list[dict[str, Any]] = [
        {"product_id": "m1", "mistyped_labels": [("colour", "5")]},
        {"product_id": "m2", "mistyped_labels": []},
    ]
    shop.night(FIRST, products, valid=records)
    page = shop.page(FIRST)
    labels = section(page, "labels")
    assert "Outside the taxonomy: 5" in labels
    assert "Colour Octarine 3 p00" in labels
    assert "Kind Toga 1 p04" in labels
    assert "Cannot be read: 1" in labels
    assert "colour 5 1 m1" in labels
    assert "absent 2 p06 p07 broken 1 p05 image file is truncated" in section(page, "pictures")
    assert "30.0% of the tagged products have no usable picture." in seen(page)


def test_fields_that_are_not_used_are_counted_and_shown(shop: Shop) -> None:
    records: list[dict[str, Any]] = [
        {"product_id": f"m{i}", "notes": [("price", 'unreadable_price: "on request"')]} for i in range(5)
    ]
    records += [{"product_id": "n0", "notes": [("image_uri", 'first_of_several: a list of 2, ["a.jpg","b.jpg"]')]}]
    records += [{"product_id": "n1"}]
    shop.night(FIRST, catalog(), valid=records)
    page = shop.page(FIRST)
    fields = section(page, "notes")
    assert 'unreadable price The price is not a number. 5 m0 price : "on request" m1' in fields
    assert (
        "first of several The record gives several pictures. The first one is the product's. 1 n0 image_uri" in fields
    )
    assert "m3" not in fields
    assert "5 fields of records are not used." in seen(page)  # a second picture is no loss of a field
    shop.night(SECOND, catalog(), parent=FIRST)
    assert "Every field of the valid records is used." in section(shop.page(SECOND), "notes")


def test_what_the_import_noticed_is_on_the_page_escaped(shop: Shop) -> None:
    shop.night(FIRST, catalog())
    manifest = RawManifest(
        ds=FIRST[:10], source="export", files=(), rows=0, created_at=NOW, notes={"prices with <b>commas</b>": 1_200}
    )
    storage.write_document(shop.lake.raw(FIRST[:10]) / "_manifest.json", manifest)
    page = shop.page(FIRST)
    assert "prices with &lt;b&gt;commas&lt;/b&gt;" in page
    assert "1,200" in section(page, "notes")


def test_labels_are_those_of_the_products_tagged(shop: Shop) -> None:
    products = catalog()
    for product in products:
        product.unknown = {"colour": [f"of {product.id}"]}
    shop.night(FIRST, products)
    shop.night(SECOND, products, tagged=["p01", "p02"], parent=FIRST, unchanged=8)
    # p01's example is of the first night; the plan names the folder, which holds others too.
    planned = shop.lake.plan(SECOND) / "products" / "shard=0" / "part-0.parquet"
    rows = pq.read_table(planned, partitioning=None).to_pylist()
    rows[0]["example_path"] = f"examples/ds=2026-11-20/run={FIRST}/shard=0"
    write(planned, pa.schema([f for f in tables.PLAN if f.name != "shard"]), rows)
    plan = shop.lake.read_plan(SECOND)
    folders = (rows[0]["example_path"], *plan.shards[0].example_paths)
    shards = (plan.shards[0].model_copy(update={"example_paths": folders}),)
    storage.write_document(shop.lake.plan(SECOND) / "plan.json", plan.model_copy(update={"shards": shards}))
    found = gather_night(shop.lake, SECOND, load_rules("default")).unknown_labels
    assert [(c.text, c.n) for c in found] == [("of p01", 1), ("of p02", 1)]


def test_coverage_confidence_and_attention(shop: Shop) -> None:
    several = [Row("details", "Pocket", "Pocket", 0.9), Row("details", "Logo"), Row("details", None, "Logo", 0.3)]
    products = [
        Product("a", [Row("kind", "Shirt", "Shirt", 0.95, 0.2), *several]),
        Product("b", [Row("kind", None, "Dress", 0.65, 0.4), Row("details")]),
        Product("c", [Row("kind", None, "Dress", 0.11, 1.0), Row("details", "Logo")], modality="image"),
        Product("d", [Row("kind")], modality="none"),
    ]
    shop.night(FIRST, products, tagged_both=2, tagged_image=1, untaggable=1)
    page = shop.page(FIRST)
    kind, colour, details = gather_night(shop.lake, FIRST, load_rules("default")).attributes
    assert (kind.products, kind.from_catalog, kind.from_model, kind.missing) == (4, 1, 1, 2)
    assert (kind.predicted, kind.accepted) == (3, 2)
    assert {i: n for i, n in enumerate(kind.histogram) if n != (0, 0)} == {38: (1, 0), 26: (1, 0), 4: (0, 1)}
    assert kind.image_weight == pytest.approx(0.3)  # of the products of which it saw both
    assert (colour.products, colour.image_weight) == (0, None)
    # A product counts once, however many values it has.
    assert (details.products, details.from_catalog, details.from_model, details.missing) == (3, 2, 0, 1)
    text = section(page, "attributes")
    assert "Kind 4 products 25.0% catalog · 25.0% model · 50.0% none ≥ 0.625" in text
    assert "66.7% promised 90.0%, 93.0% in validation 70% text 30% picture" in text
    assert "no threshold keeps 90.0%" in text
    assert "No threshold keeps the promised precision for Details" in seen(page)


def test_conflicts_are_the_surest_with_their_own_pictures(shop: Shop) -> None:
    products = [
        Product(f"k{i}", [Row("kind", "Shirt", "Dress", 0.9 + i / 1000)], colour=(10 * i, 0, 0)) for i in range(25)
    ]
    products.append(Product("c1", [Row("colour", "Blue", "Green", 0.81)], title="The green one", colour=(0, 220, 0)))
    products.append(Product("u1", [Row("kind", "Shirt", "Dress", 0.2)]))  # not accepted: no conflict
    shop.night(FIRST, products)
    night = gather_night(shop.lake, FIRST, load_rules("default"))
    ids = [c.product.product_id for c in night.conflicts]
    # The surest first; one attribute does not keep another out.
    assert ids == [f"k{i}" for i in range(24, 5, -1)] + ["c1"]
    green = night.conflicts[-1]
    assert (green.value.catalog, green.value.model, green.product.title) == (("Blue",), "Green", "The green one")
    for conflict, expected in ((green, (0, 220, 0)), (night.conflicts[0], (240, 0, 0))):
        assert conflict.product.picture is not None
        data = base64.b64decode(conflict.product.picture.removeprefix("data:image/jpeg;base64,"))
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size == (WIDTH, HEIGHT)
            pixel = picture.convert("RGB").getpixel((5, 5))
        assert isinstance(pixel, tuple)
        assert all(abs(a - b) < 12 for a, b in zip(pixel, expected, strict=True))
    text = section(shop.page(FIRST), "conflicts")
    assert "26 labels in all" in text
    assert "The green one c1 Colour catalog Blue model Green 0.810" in text
    assert "u1" not in text


def test_conflicts_of_products_that_the_model_learnt_from_are_counted_and_not_shown(shop: Shop) -> None:
    shop.night(FIRST, [Product(f"k{i}", [Row("kind", "Shirt", "Dress", 0.9)]) for i in range(5)])
    page = shop.page(FIRST)
    assert "models that have not" not in section(page, "conflicts")
    assert "5 labels of the products tagged in this run look wrong." in page
    table = shop.lake.labelled(FIRST[:10], "0123abcd") / "products.parquet"
    table.parent.mkdir(parents=True)
    nothing = {f.name: [] if pa.types.is_map(f.type) or pa.types.is_list(f.type) else None for f in tables.LABELLED}
    rows = [
        nothing | {"product_id": f"k{i}", "side": side}
        for i, side in enumerate(("train", "train", "validation", "test"))
    ]
    pq.write_table(
        pa.Table.from_pylist(rows, schema=pa.schema([f.with_nullable(True) for f in tables.LABELLED])), table
    )
    metrics = shop.lake.models / MODEL / "metrics.json"
    metrics.write_text(json.dumps({"labelled_set": shop.lake.relative(table.parent)}))
    night = gather_night(shop.lake, FIRST, load_rules("default"))
    assert sorted(c.product.product_id for c in night.conflicts) == ["k2", "k3", "k4"]
    page = shop.page(FIRST)
    assert "3 labels of the products tagged in this run look wrong." in page
    text = section(page, "conflicts")
    assert "5 labels in all. 2 of them belong to products that the model was trained on and are not shown" in text
    metrics.write_text(json.dumps({"labelled_set": "../elsewhere"}))
    assert len(gather_night(shop.lake, FIRST, load_rules("default")).conflicts) == 5


def test_first_night_has_nothing_to_compare_with(shop: Shop) -> None:
    shop.night(FIRST, catalog())
    page = shop.page(FIRST)
    assert "No earlier tables exist to compare with: this is the first night." in section(page, "shares")
    assert "Colour Red 60.0% Blue 40.0%" in section(page, "shares")
    assert "nothing earlier to compare with" in seen(page)
    assert "this run" not in section(page, "conflicts")


def test_shares_are_compared_with_the_parent(shop: Shop) -> None:
    before = [*catalog(100, red=60), Product("g", [Row("colour", None, "Green", 0.85)])]
    shop.night(FIRST, before)
    shop.night(SECOND, catalog(100, red=80), tagged=["p60", "p61"], parent=FIRST, unchanged=98, removed=1)
    night = gather_night(shop.lake, SECOND, load_rules("default"))
    colour = {s.value: (s.n, round(s.now, 3), round(s.before or 0, 3)) for s in night.attributes[1].shares}
    # A value that is gone is still there to see.
    assert colour == {"Red": (80, 0.8, 0.594), "Blue": (20, 0.2, 0.396), "Green": (0, 0.0, 0.01)}
    assert [s.value for s in night.shifts[:2]] == ["Red", "Blue"]
    page = shop.page(SECOND)
    assert f"compared with {FIRST}" in section(page, "shares")
    assert "Colour Red +20.6 pp 59.4% → 80.0%" in section(page, "shares")
    assert "Colour: the share of Red moved by +20.6 pp." in seen(page)
    assert "p60" in section(page, "tagged")
    assert "p00" not in section(page, "tagged")


def test_a_changed_product_is_shown_as_it_is_now(shop: Shop) -> None:
    old = Product("a", [Row("kind", "Shirt", "Dress", 0.9)], title="Old title")
    new = Product("a", [Row("kind", "Shirt", "Dress", 0.9)], title="New title")
    same = Product("b", [Row("kind", "Shirt", "Dress", 0.8)], title="Same title")  # its example is the first night's
    shop.night(FIRST, [old, same])
    shop.night(SECOND, [new, same], tagged=["a"], parent=FIRST, unchanged=1)
    text = section(shop.page(SECOND), "conflicts")
    assert "New title a this run" in text
    assert "Same title b Kind" in text
    assert "Old title" not in text


def test_a_held_product_is_shown_with_the_picture_size_of_its_own_example(shop: Shop) -> None:
    """The second night's model takes other pictures; the held product's example is still of the first one's size."""
    held = Product("held", [Row("kind", "Shirt", "Dress", 0.9)], colour=(0, 220, 0), size=(20, 10))
    shop.night(FIRST, [held])
    fresh = Product("new", [Row("kind", "Shirt", "Dress", 0.8)])
    shop.night(SECOND, [held, fresh], tagged=["new"], parent=FIRST, held=1)
    shown = [conflict.product for conflict in gather_night(shop.lake, SECOND, load_rules("default")).conflicts]
    sizes = {}
    for product in shown:
        assert product.picture is not None
        data = base64.b64decode(product.picture.removeprefix("data:image/jpeg;base64,"))
        with Image.open(io.BytesIO(data)) as picture:
            sizes[product.product_id] = picture.size
    assert sizes == {"held": (10, 20), "new": (WIDTH, HEIGHT)}


def test_an_attribute_that_is_new_has_not_shifted(shop: Shop) -> None:
    shop.night(FIRST, [Product("a", [Row("kind", "Shirt")])])
    shop.night(SECOND, [Product("a", [Row("kind", "Shirt"), Row("colour", "Red")])], parent=FIRST)
    shares = gather_night(shop.lake, SECOND, load_rules("default")).attributes[1].shares
    assert [(s.value, s.before, s.shift) for s in shares] == [("Red", None, 0.0)]


def test_a_night_that_changed_nothing(shop: Shop) -> None:
    shop.night(FIRST, catalog())
    shop.night(SECOND, catalog(), tagged=[], parent=FIRST, unchanged=10)
    assert shop.lake.read_manifest(SECOND) is None
    page = shop.page(SECOND)
    assert f"Nothing changed; the tables are those of {FIRST}." in seen(page)
    assert f"tables of {FIRST}" in seen(page)
    assert f"{SECOND} no change" in seen((shop.lake.root / "reports" / "index.html").read_text())
    assert "No product was tagged." in section(page, "pictures")
    assert "Kind 10 products 100% catalog" in section(page, "attributes")
    assert f"the shares are those of {FIRST}" in section(page, "shares")
    assert "none was tagged in this run" in section(page, "tagged")
    assert page.count("data:image/jpeg") == 10


def test_a_backfill_shows_its_own_day(shop: Shop) -> None:
    shop.night(FIRST, catalog(10, red=6))
    shop.night(PAST, catalog(10, red=3), parent=FIRST, backfill=True)
    page = shop.page(PAST)
    assert "Colour Blue 70.0% Red 30.0%" in section(page, "shares")
    assert "this is the first day of the history" in section(page, "shares")
    assert "backfill: history only" in seen(page)
    assert "it wrote the history of 2026-11-19" in section(page, "ledger")
    assert "in the tables" not in section(page, "ledger")
    assert page.count("data:image/jpeg") == 10
    # The day after it in the catalog, done again, is compared with it.
    shop.night("2026-11-20-dddddddd", catalog(10, red=5), parent=FIRST, backfill=True)
    assert "compared with 2026-11-19 (the black tick)" in section(shop.page("2026-11-20-dddddddd"), "shares")


def test_only_the_pictures_shown_are_read(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    products = [Product(f"p{i:03}", [Row("kind", "Shirt", "Dress", 0.7 + i / 10_000)]) for i in range(400)]
    shop.night(FIRST, products)
    read: list[str] = []
    thumbnails = example_pictures.thumbnails

    def counted(locations: dict[str, example_pictures.ExampleLocation], height: int, width: int) -> dict[str, str]:
        read.extend(locations)
        return thumbnails(locations, height, width)

    monkeypatch.setattr("jobs.report.gather.thumbnails", counted)
    # Whatever reads another row group's pictures fails: their bytes are no longer what was written.
    shown = gather_night(shop.lake, FIRST, load_rules("default"))
    wanted = {c.product.product_id for c in shown.conflicts} | {p.product_id for p in shown.tagged}
    assert set(read) == wanted
    assert len(wanted) <= 40
    file = shop.examples_file(FIRST)
    spoilt = _spoil_pictures(file, keep={int(name[1:]) // 20 for name in wanted})
    assert spoilt >= 1
    again = gather_night(shop.lake, FIRST, load_rules("default"))
    assert [p.picture for p in again.tagged] == [p.picture for p in shown.tagged]


def _spoil_pictures(file: Path, keep: set[int]) -> int:
    """Overwrite the pictures of all row groups but those of `keep`; return how many row groups that was."""
    data, metadata = bytearray(file.read_bytes()), pq.read_metadata(file)
    column = tables.EXAMPLES.names.index("image")
    groups = [group for group in range(metadata.num_row_groups) if group not in keep]
    for group in groups:
        chunk = metadata.row_group(group).column(column)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(data)
    return len(groups)


def test_products_without_a_picture_are_shown_by_their_text(shop: Shop) -> None:
    product = Product(
        "t1", [Row("colour", None, "Red", 0.85)], title="No picture of it", modality="text", status="missing"
    )
    shop.night(FIRST, [product, *catalog(2)])
    text = section(shop.page(FIRST), "tagged")
    assert "no picture: missing No picture of it t1 text only Colour Red 0.85" in text


def test_time_of_each_step(shop: Shop) -> None:
    shop.night(FIRST, catalog())
    shop.step(FIRST, "validate", seconds=10.0, rows=1000)
    shop.step(FIRST, "plan", seconds=5.0, rows=1000, started_at=NOW + timedelta(hours=2))
    shop.step(FIRST, "tag-00000", seconds=4.0, rows=100, started_at=NOW + timedelta(hours=2, seconds=5))
    shop.step(FIRST, "tag-00001", seconds=3.0, rows=60, started_at=NOW + timedelta(hours=2, seconds=6))
    shop.step(FIRST, "report", seconds=99.0)  # an earlier page of the same run
    found = costs.read_costs(shop.lake, shop.lake.read_plan(FIRST), costs.newest_reports(shop.lake, 14))
    assert [(c.name, c.bars[0].offset) for c in found.steps] == [
        ("validate", 0.0), ("plan", 10.0), ("tag-00000", 15.0), ("tag-00001", 16.0),
    ]  # fmt: skip
    assert (found.busy, found.paused) == (19.0, 7190.0)
    text = section(shop.page(FIRST), "time")
    assert "worked for 19.0 s, with 1 h 59 min of pauses between them" in text.replace("119 min 50 s", "1 h 59 min")
    assert "validate 10.0 s 1,000 100 300.0 MB" in text
    assert "99.0 s" not in text


def test_many_shards_are_one_step(shop: Shop) -> None:
    shop.night(FIRST, catalog())
    for i in range(20):
        at = NOW + timedelta(seconds=i)
        details = {"forward": 1.5, "wait": 0.5, "device": "cpu"}
        shop.step(FIRST, f"tag-{i:05}", seconds=2.0, rows=10, started_at=at, details=details, peak_rss_bytes=i * 10**6)
    (step,) = costs.read_costs(shop.lake, shop.lake.read_plan(FIRST), costs.newest_reports(shop.lake, 14)).steps
    assert (step.name, len(step.bars), step.seconds, step.rows) == ("tag, 20 shards", 20, 40.0, 200)
    text = section(shop.page(FIRST), "time")
    assert "worked for 21.0 s." in text
    assert "tag, 20 shards cpu model 75.0% · waiting for input 25.0% 40.0 s 200 5.0 19.0 MB" in text


def test_fixed_part_of_a_step() -> None:
    fitted = costs.fit([(100, 11.0), (1000, 20.0), (500, 15.0)])
    assert fitted is not None
    assert [fitted.fixed, fitted.per_row] == pytest.approx([10.0, 0.01])
    assert costs.fit([(1000, 20.0)]) is None
    assert costs.fit([(1000, 20.0), (1001, 20.01)]) is None  # too alike to tell
    assert costs.fit([(100, 20.0), (1000, 2.0)]) is None  # something else made the difference


def test_what_to_look_at_is_sorted(shop: Shop) -> None:
    lines = [{"kind": "quarantined", "reasons": ["wrong_type"], "raw": b"{}"}]
    shop.night(FIRST, catalog(20))
    shop.night(
        SECOND,
        catalog(20),
        tagged=["p00"],
        parent=FIRST,
        unchanged=19,
        removed=5,
        held=2,
        quarantine=lines,
        new=0,
        model_changed=1,
    )
    found = findings(gather_night(shop.lake, SECOND, load_rules("default")))
    levels = [f.level for f in found]
    assert levels == sorted(levels, key=("wrong", "look", "note").index)
    texts = " ".join(f.text for f in found)
    assert "2 products keep their published values" in texts
    assert "4.8% of the raw lines are not usable" in texts
    assert "18.5% of the products are gone" in texts
    assert "2 held as they were" in section(shop.page(SECOND), "ledger")


def test_what_waits_for_a_later_night_is_told(shop: Shop) -> None:
    shop.night(FIRST, catalog(20))
    shop.night(SECOND, catalog(20), tagged=["p00"], parent=FIRST, unchanged=19, waiting=17, new=0, model_changed=1)
    found = findings(gather_night(shop.lake, SECOND, load_rules("default")))
    assert "17 products wait for a later night to be tagged by the new model." in [f.text for f in found]
    text = section(shop.page(SECOND), "ledger")
    assert "✓ 20 valid = 19 unchanged (17 of them waiting) + 1 tagged by both" in text
    assert "17 of the unchanged products wait for a later night" in text
    assert "wait" not in section(shop.page(FIRST), "ledger")


def test_which_attributes_were_replaced_is_told(shop: Shop) -> None:
    shop.night(FIRST, catalog())
    shop.night(
        SECOND, catalog(), tagged=["p00"], parent=FIRST, unchanged=9, new=0, model_changed=1, attributes=("colour",)
    )
    found = findings(gather_night(shop.lake, SECOND, load_rules("default")))
    assert "A new model tagged 1 product again and replaced only Colour; other values are unchanged." in [
        f.text for f in found
    ]
    assert "For unchanged products, only colour was replaced." in section(shop.page(SECOND), "ledger")
    assert "only" not in section(shop.page(FIRST), "ledger")


def test_the_list_of_nights(shop: Shop) -> None:
    shop.night(FIRST, catalog())
    shop.night(SECOND, catalog(), tagged=["p01"], parent=FIRST, unchanged=9)
    shop.page(SECOND)
    text = (shop.lake.root / "reports" / "index.html").read_text()
    assert seen(text).index("2026-11-21") < seen(text).index("2026-11-20")
    assert f"{SECOND} live" in seen(text)
    assert f'href="ds=2026-11-21/run={SECOND}/report.html"' in text
    assert f"run={FIRST}/report.html" not in text  # it has no page yet
    shop.page(FIRST)
    assert f"run={FIRST}/report.html" in (shop.lake.root / "reports" / "index.html").read_text()


def test_the_report_is_measured_and_written_again(shop: Shop) -> None:
    shop.night(FIRST, catalog())
    first = shop.page(FIRST)
    metrics = storage.read_document(shop.lake.reports(FIRST) / "steps" / "report.json", StepMetrics)
    assert metrics is not None
    assert metrics.rows == 30
    again = shop.page(FIRST)
    assert section(again, "tagged") == section(first, "tagged")


def test_texts() -> None:
    assert str(visible("a<b")) == "<bdi>a&lt;b</bdi>"
    assert str(visible("x" * 500, 10)) == '<bdi>xxxxxxxxxx<span class="cut">…</span></bdi>'
    assert "e\u0301" in visible("e\u0301")  # an accent is no attack
    assert visible("e" + "\u0301" * 50, 200).count("\u0301") == 2
    assert "none" in visible(None)
    assert plain("a\tb\x1b[31m\u202e" + "e\u0301\u0301\u0301", 60) == "a<⇥>b<U+001B>[31m<U+202E>e\u0301\u0301<U+0301>"
    assert len(plain("\x1b" * 500, 60)) == 60
    assert [percent(x) for x in (0.0, 0.0002, 0.5, 0.9999, 1.0)] == ["0%", "<0.1%", "50.0%", ">99.9%", "100%"]


def test_loads_neither_torch_nor_spark() -> None:
    code = (
        "import sys, jobs.report.nightly_report\n"
        "heavy = {'torch', 'pyspark', 'great_expectations', 'airflow', 'pandas', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(f'loaded: {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_report_takes_as_many_lists_however_many_nights_there_were(
    shop: Shop, faulty: tuple[AnyPath, s3.Proxy]
) -> None:
    place, proxy = faulty
    lake, ledger = Lake(place), shop.night(FIRST, catalog())
    storage.write_document(lake.history_index, HistoryIndex(live=ledger.run_id))
    lists = []
    for day in range(1, 16):
        run = f"2026-10-{day:02}-aaaaaaaa"
        own = ledger.model_copy(update={"run_id": run, "ds": run[:10]})
        storage.write_document(lake.reports(run) / "ledger.json", own)
        storage.write_bytes(lake.reports(run) / "steps" / "notes.txt", b"no step")
        if day % 2:
            storage.write_bytes(lake.reports(run) / "report.html", b"")
        storage.write_bytes(lake.models_reports / f"model-{day}" / "steps" / "plan.json", b"no day's")
        proxy.seen.clear()
        newest = costs.newest_reports(lake, 10)
        assert [folder.name for folder in newest][-1] == f"run={run}"
        assert len(newest) == min(day, 10)
        _write_index(lake, newest, run)
        assert costs._points(newest) == {}
        assert not [path for method, path in proxy.seen if method == "HEAD"]
        lists.append(sum("list-type=2" in path for _, path in proxy.seen))
    assert set(lists) == {2}
    text = (lake.root / "reports" / "index.html").read_text()
    assert [f"2026-10-{day:02}" in text for day in (5, 6, 15)] == [False, True, True]
    pages = [f"run=2026-10-{day:02}-aaaaaaaa/report.html" in text for day in (13, 14, 15)]
    assert pages == [True, False, True]
