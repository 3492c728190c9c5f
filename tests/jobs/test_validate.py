"""Validate: every bad record ends in quarantine with its reason and its raw text, and the lines add up.

Run with ``make test TESTS=tests/jobs/test_validate.py``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest

from jobs import expectations, records, row_filter, storage
from jobs.errors import CriticalDataError, JobError
from jobs.lake import Lake
from jobs.plan import plan
from jobs.settings import Settings
from jobs.storage import Place
from jobs.validate import _has_doubled_ids, last_days, validate
from schemas.documents import Validation
from schemas.rules import load_rules
from tests.conftest import DAY1, DAY2, settings_for, write_raw
from tests.dirty import DIRTY

pytestmark = [pytest.mark.spark, pytest.mark.usefixtures("spark_session")]

EXPECTED_REASONS = {
    "not_json": "unparsable",
    "not_an_object": "unparsable",
    "bad_utf8": "unparsable",
    "title_number": "wrong_type",
    "title_object": "wrong_type",
    "price_word": "wrong_type",
    "attributes_list": "wrong_type",
    "id_missing": "missing_product_id",
    "id_null": "missing_product_id",
    "id_blank": "missing_product_id",
    "id_doubled": "newer_record_with_this_id",
    "id_path": "unsafe_product_id",
    "id_absolute": "unsafe_product_id",
    "id_file_uri": "unsafe_product_id",
    "id_metadata_service": "unsafe_product_id",
    "nothing_to_tag": "nothing_to_tag",
    "text_8_mb": "description_too_long",
    "picture_dotdot": "picture_outside_roots",
    "picture_absolute": "picture_outside_roots",
    "picture_file_uri": "picture_outside_roots",
    "picture_metadata_service": "picture_outside_roots",
    "picture_nul": "picture_outside_roots",
    "picture_backslash": "picture_outside_roots",
}


def good(n: int, prefix: str = "good") -> list[dict[str, Any]]:
    common = {"description": "A shirt.", "price": 10, "image_uri": "ab/1.jpg"}
    return [{"product_id": f"{prefix}-{i}", "title": f"Blue shirt {i}"} | common for i in range(n)]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.fixture(params=["interpreted", "compiled"])
def few_and_many_rows(request: pytest.FixtureRequest, spark_session: Any) -> Iterator[None]:
    """How Spark evaluates a small catalog's queries, and how a large one's."""
    if request.param == "interpreted":
        yield
        return
    options = {"spark.sql.codegen.wholeStage": "true", "spark.sql.codegen.factoryMode": "FALLBACK"}
    before = {name: spark_session.conf.get(name) for name in options}
    for name, value in options.items():
        spark_session.conf.set(name, value)
    yield
    for name, value in before.items():
        spark_session.conf.set(name, value)


@pytest.fixture
def settings(lake: Lake) -> Settings:
    return settings_for(lake.root)


def table(lake: Lake, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pads.dataset(lake.root / path, format="parquet").to_table().to_pylist()
    return found


@pytest.mark.usefixtures("few_and_many_rows")
def test_every_kind_of_bad_record(lake: Lake, settings: Settings) -> None:
    lines = [line for dirty in DIRTY.values() for line in dirty.lines]
    # Enough good ones that the batch as a whole can be trusted.
    write_raw(lake, DAY1, [*good(400), *lines])
    result = validate(settings, DAY1)
    assert result.raw == 400 + len(lines)
    assert result.raw == result.unparsable + result.quarantined + result.superseded + result.valid

    rejected = {row["raw"]: row for row in table(lake, result.quarantine_path)}
    valid = {row["product_id"]: row for row in table(lake, result.valid_path)}
    assert len(rejected) == result.unparsable + result.quarantined + result.superseded
    assert len(valid) == result.valid
    for kind, dirty in DIRTY.items():
        last = dirty.lines[-1]
        if dirty.outcome == "valid":
            assert f"dirty-{kind}" in valid, kind
            assert last not in rejected, kind
        else:
            row = rejected[last]  # byte for byte what the shop wrote
            assert row["kind"] == dirty.outcome, kind
            assert EXPECTED_REASONS[kind] in row["reasons"], kind
            assert row["source_file"] == "part-00000.jsonl.gz"
    assert {row["reasons"][0] for row in rejected.values()} <= set(result.reasons) | {"newer_record_with_this_id"}

    docs = (lake.root / result.data_docs_path).parent
    pages = "".join(page.read_text() for page in docs.rglob("*.html"))
    assert "wrong_types" in pages
    assert "implausible" in pages or "price" in pages


def test_line_with_more_than_one_value_is_no_record(lake: Lake, settings: Settings) -> None:
    after = (b"x", b"{}", b", {}", b"]", b'{"product_id": "y", "title": "t"}')
    lines = [b'{"product_id": "x", "title": "t"} ' + rest for rest in after]
    write_raw(lake, DAY1, [*good(100), *lines])
    result = validate(settings, DAY1)
    assert (result.unparsable, result.valid) == (5, 100)
    assert sorted(row["raw"] for row in table(lake, result.quarantine_path)) == sorted(lines)


def test_labels_keep_their_words_and_forms_that_are_not_known_are_told_by_name(
    lake: Lake, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    labels = {"colour": "Blue", "details": ["Pocket", "Logo"], "neck": 5, "<b>fit": {"en": "Slim"}, "size": None}
    write_raw(lake, DAY1, [*good(20), {"product_id": "x", "title": "t", "attributes": labels}])
    result = validate(settings, DAY1)
    found = {r["product_id"]: r for r in table(lake, result.valid_path)}["x"]
    assert dict(found["labels"]) == {"colour": ["Blue"], "details": ["Pocket", "Logo"], "neck": ["5"]}
    assert dict(found["mistyped_labels"]) == {"<b>fit": '{"en":"Slim"}'}
    assert result.unread_labels == {"<b>fit": 1}
    assert "1 labels of '<b>fit' are of no known form" in caplog.text
    page = (lake.root / result.data_docs_path).read_text()
    assert "Labels that cannot be read" in page
    assert "<b>fit" not in page


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        ("2026-11-19T00:00:00Z", "2026-11-20T00:00:00Z", "second"),
        ("2026-11-20T00:00:00Z", "2026-11-19T00:00:00Z", "first"),
        ("2026-11-20T00:30:00+01:00", "2026-11-20T00:00:00Z", "second"),  # the first is half an hour older
        (None, None, "second"),  # equally new: the last line
        ("not a time", "2026-11-19T00:00:00Z", "second"),
    ],
)
def test_newest_of_doubled_ids_wins(lake: Lake, settings: Settings, first: str, second: str, winner: str) -> None:
    doubled = [
        {"product_id": "x", "title": "first", "updated_at": first},
        {"product_id": "x", "title": "second", "updated_at": second},
    ]
    write_raw(lake, DAY1, [*good(20), *doubled])
    result = validate(settings, DAY1)
    assert {r["product_id"]: r for r in table(lake, result.valid_path)}["x"]["title"] == winner
    assert (result.superseded, result.valid) == (1, 21)


def test_broken_newer_record_does_not_displace_a_good_one(lake: Lake, settings: Settings) -> None:
    doubled = [
        {"product_id": "x", "title": "good", "updated_at": "2026-11-19T00:00:00Z"},
        {"product_id": "x", "title": 5, "updated_at": "2026-11-20T00:00:00Z"},
    ]
    write_raw(lake, DAY1, [*good(20), *doubled])
    result = validate(settings, DAY1)
    assert {r["product_id"]: r for r in table(lake, result.valid_path)}["x"]["title"] == "good"
    assert (result.superseded, result.quarantined) == (0, 1)


def test_source_hash_tells_every_change_that_matters(lake: Lake, settings: Settings) -> None:
    base = {"product_id": "0", "title": "a", "brand": "b", "description": "c", "image_uri": "p", "image_version": "1"}
    changes: list[dict[str, Any]] = [
        {}, {"title": "A"}, {"brand": "B"}, {"description": "C"}, {"image_uri": "q"}, {"image_version": "2"},
        {"attributes": {"colour": "Blue"}}, {"attributes": {"colour": ["Blue", "Red"]}}, {"title": None},
        {"title": "ab", "brand": None}, {"title": None, "brand": "ab"},
    ]  # fmt: skip
    same = [{"price": 7}, {"updated_at": "2026-11-20T00:00:00Z"}]
    write_raw(lake, DAY1, [base | change | {"product_id": str(i)} for i, change in enumerate([*changes, *same])])
    found = {r["product_id"]: r["source_hash"] for r in table(lake, validate(settings, DAY1).valid_path)}
    hashes = [found[str(i)] for i in range(len(changes) + len(same))]
    assert len(set(hashes[: len(changes)])) == len(changes)
    assert set(hashes[len(changes) :]) == {hashes[0]}


def test_line_ends_in_ids_and_uris_and_an_id_of_a_million_dots(lake: Lake, settings: Settings) -> None:
    ids = ["x\n", "x\r\n", "x\u2028", "x\x85", "x.", "x..y", ".x", "x" + ".x" * 500_000]
    uris = ["a.jpg\n", "a\u2028/../../b.jpg", ".."]
    bad = [{"product_id": name, "title": "t"} for name in ids]
    bad += [{"product_id": f"uri-{i}", "title": "t", "image_uri": uri} for i, uri in enumerate(uris)]
    fine = [{"product_id": "a.b-c_d:e@f.9", "title": "t"}, {"product_id": "z", "title": "t", "image_uri": "\u2028.jpg"}]
    write_raw(lake, DAY1, [*good(100), *fine, *bad])
    result = validate(settings, DAY1)
    reasons = {row["product_id"]: row["reasons"][0] for row in table(lake, result.quarantine_path)}
    expected = dict.fromkeys(ids, "unsafe_product_id") | {ids[-1]: "product_id_too_long"}
    assert reasons == expected | {f"uri-{i}": "picture_outside_roots" for i in range(len(uris))}
    assert result.valid == 102


def test_missing_day_is_named(settings: Settings) -> None:
    with pytest.raises(JobError, match=r"ds=2026-11-20 does not exist: run `python -m jobs import-catalog"):
        validate(settings, DAY1)


def test_day_without_manifest_is_not_complete(lake: Lake, settings: Settings) -> None:
    write_raw(lake, DAY1, good(3))
    (lake.raw(DAY1) / "_manifest.json").unlink()
    with pytest.raises(JobError, match="not complete"):
        validate(settings, DAY1)


@pytest.mark.parametrize("damage", ["half-written", "changed", "gone"])
def test_damaged_raw_file_is_named(lake: Lake, settings: Settings, damage: str) -> None:
    write_raw(lake, DAY1, good(50))
    path = lake.raw(DAY1) / "part-00000.jsonl.gz"
    data = path.read_bytes()
    if damage == "half-written":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.unlink()
    with pytest.raises(JobError, match=r"part-00000\.jsonl\.gz .*import the day again"):
        validate(settings, DAY1)
    assert not (lake.valid(DAY1) / "current.json").exists()


def test_empty_day_is_refused(lake: Lake, settings: Settings) -> None:
    write_raw(lake, DAY1, [])
    with pytest.raises(CriticalDataError, match="empty"):
        validate(settings, DAY1)


def test_batch_that_breaks_a_critical_rule_stops_the_night(lake: Lake, settings: Settings) -> None:
    write_raw(lake, DAY1, [*good(30), *[b"no json"] * 10])
    with pytest.raises(CriticalDataError, match=r"unparsable: 10 of 40 rows \(25.0%; 10% allowed\)"):
        validate(settings, DAY1)
    # What was found can still be looked at, but nothing can be planned from it.
    written = storage.read_document(lake.valid(DAY1) / "current.json", Validation)
    assert written is not None
    assert not written.passed
    assert (written.valid, written.unparsable) == (30, 10)
    with pytest.raises(CriticalDataError):
        plan(settings, DAY1)


def test_half_an_export_is_refused(lake: Lake, settings: Settings) -> None:
    write_raw(lake, DAY1, good(40))
    validate(settings, DAY1)
    assert last_days(lake, DAY2) == [40]
    write_raw(lake, DAY2, good(15))
    with pytest.raises(CriticalDataError, match="row_count: 15 rows"):
        validate(settings, DAY2)


def test_finished_validation_is_not_done_again(lake: Lake, settings: Settings) -> None:
    write_raw(lake, DAY1, good(20))
    first = validate(settings, DAY1)
    stamp = (lake.valid(DAY1) / "current.json").stat().st_mtime_ns
    assert validate(settings, DAY1) == first
    assert (lake.valid(DAY1) / "current.json").stat().st_mtime_ns == stamp
    write_raw(lake, DAY1, good(21))
    assert validate(settings, DAY1).valid == 21


def test_suite_and_filter_find_the_same_rows(lake: Lake, spark_session: Any, tmp_path: Path) -> None:
    """Great Expectations and the Spark filter are built from one table: rule by rule they must count the same."""
    from pyspark.sql import functions as F

    # One kind of failure a rule, so that the counts differ from rule to rule.
    bad: list[bytes | dict[str, Any]] = [b"no json"]
    bad += [{"product_id": f"w{i}", "title": i} for i in range(2)]
    bad += [{"title": "no id"}] * 3
    bad += [{"product_id": f"../{i}", "title": "t"} for i in range(4)]
    bad += [{"product_id": "x" * 129 + str(i), "title": "t"} for i in range(5)]
    bad += [{"product_id": f"p{i}", "image_uri": "/etc/passwd"} for i in range(6)]
    bad += [{"product_id": f"n{i}"} for i in range(7)]
    bad += [{"product_id": f"l{i}", "title": "t" * 10_001} for i in range(8)]
    bad += [{"product_id": f"d{i}", "description": "t" * 200_001} for i in range(9)]
    bad += [{"product_id": f"c{i}", "title": "t", "price": -1} for i in range(10)]
    write_raw(lake, DAY1, [*good(5), *bad])
    shipped = load_rules("default")
    # Nothing is allowed to fail, so that every rule tells what it counted.
    rules = shipped.model_copy(
        update={"row_rules": tuple(r.model_copy(update={"max_failed_share": 0.0}) for r in shipped.row_rules)}
    )
    roots = (lake.pictures,)
    lines = records.read_lines(spark_session, [lake.raw(DAY1) / "part-00000.jsonl.gz"])
    frame = records.parse(lines, tmp_path / "parsed")
    by_filter = {rule.name: frame.where(~row_filter.passes(rule, roots)).count() for rule in rules.row_rules}
    assert all(by_filter.values()), "each rule must be broken at least once for this test to mean something"
    gate = expectations.check(frame, rules, roots, [], tmp_path / "docs", ds=DAY1)
    told = {failure.split(":")[0]: failure for failure in gate.failures}
    for rule in rules.row_rules:
        n = by_filter[rule.name]
        # A rule on a value is about the rows that have one.
        whole = frame if rule.check in ("is_null", "not_null") else frame.where(F.col(rule.column).isNotNull())
        assert told[rule.name].startswith(f"{rule.name}: {n} of {whole.count()} rows"), (rule.name, n, told[rule.name])


def test_docs_show_failing_values_and_passing_rules_alike(lake: Lake, settings: Settings) -> None:
    """The examples are looked for in a second round, for failing rules alone: each rule is told once, with all it counted."""
    bad = [{"product_id": f"../{i}", "title": "t"} for i in range(2)]
    write_raw(lake, DAY1, [*good(50), *bad])
    result = validate(settings, DAY1)
    assert result.passed  # a few failing rows are allowed, and shown
    (page,) = (lake.root / result.data_docs_path).parent.rglob("validations/**/*.html")
    text = " ".join(re.sub(r"<[^>]+>", " ", page.read_text()).split())
    assert {"../0", "../1"} <= set(text.split())
    assert "Evaluated Expectations 13 Successful Expectations 13" in text
    assert text.count("% of the time") == 12  # each rule but that of the row count


def test_docs_of_a_clean_day_ask_for_no_examples(
    lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from great_expectations.datasource.fluent.interfaces import Batch

    write_raw(lake, DAY1, good(50))
    monkeypatch.setattr(Batch, "validate", None)
    assert validate(settings, DAY1).valid == 50


def test_doubled_ids_are_seen_in_rejected_records_too(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for at, ids in enumerate((["a", None], ["b", None])):
        pq.write_table(pa.table({"product_id": pa.array(ids, pa.string())}), tmp_path / f"part-{at}.parquet")
    assert not _has_doubled_ids(tmp_path, tmp_path)
    pq.write_table(pa.table({"product_id": ["c", "a"]}), tmp_path / "part-2.parquet")
    assert _has_doubled_ids(tmp_path, tmp_path)


def test_data_docs_on_their_way_to_s3_leave_nothing_behind(
    on_s3: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with expectations._sent(on_s3 / "docs") as made:
        (made / "index.html").write_text("docs")
    assert storage.read_bytes(on_s3 / "docs" / "index.html") == b"docs"
    with contextlib.suppress(ValueError), expectations._sent(on_s3 / "half") as made:
        (made / "index.html").write_text("docs")
        raise ValueError
    assert not storage.exists(on_s3 / "half")
    assert list(tmp_path.iterdir()) == []
