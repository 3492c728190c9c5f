"""Validate: every bad record ends in quarantine with its reason and its raw text, and the lines add up.

Run with ``make test TESTS=tests/jobs/validation/test_validate.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest

from jobs.errors import CriticalDataError, JobError
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.nightly.plan import plan
from jobs.records.rejected_lines import RejectedLine
from jobs.settings import Settings
from jobs.validation import batch_rules, duplicate_ids, parse_records, row_rules
from jobs.validation.field_rules import field_rules
from jobs.validation.validate import last_days, validate
from schemas.documents import Validation
from schemas.rules import clears, load_rules
from tests.conftest import DAY1, DAY2, settings_for, write_raw
from tests.dirty import DIRTY

pytestmark = [pytest.mark.spark, pytest.mark.usefixtures("spark_session")]


def good(n: int, prefix: str = "good") -> list[dict[str, Any]]:
    common = {"description": "A shirt.", "price": 10, "image_uri": "ab/1.jpg"}
    return [{"product_id": f"{prefix}-{i}", "title": f"Blue shirt {i}"} | common for i in range(n)]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.fixture(params=["interpreted", "compiled"])
def few_and_many_rows(request: pytest.FixtureRequest, spark_session: Any) -> Iterator[None]:
    """Return the way in which Spark evaluates a small catalog's queries, and how a large one's."""
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
            assert last not in rejected, kind
            notes = dict(valid[f"dirty-{kind}"]["notes"])
            assert [note.split(":")[0] for note in notes.values()] == ([dirty.rule] if dirty.rule else []), kind
        else:
            row = rejected[last]  # byte for byte what the shop wrote
            assert row["kind"] == dirty.outcome, kind
            assert row["reasons"] == [dirty.rule], kind
            assert row["source_file"] == "part-00000.jsonl.gz"
    assert {row["reasons"][0] for row in rejected.values()} <= set(result.reasons) | {"newer_record_with_this_id"}
    assert result.line_errors == {"bad_utf8": 1, "not_json": 1, "not_object": 1}
    assert result.notes == {
        "picture_outside_roots": 6, "description_too_long": 1, "unreadable_attributes": 1, "unreadable_price": 1,
        "unreadable_title": 1,
    }  # fmt: skip
    assert list(result.notes) == sorted(result.notes, key=lambda name: (-result.notes[name], name))


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
    assert "1 labels of '<b>fit' have an unknown form" in caplog.text
    page = (lake.root / result.data_docs_path).read_text()
    assert "Labels that cannot be read" in page
    assert "<b>fit" not in page


OLD, NEW = "2026-11-19T00:00:00Z", "2026-11-20T00:00:00Z"
NEWER_EXISTS = ("superseded", ["newer_record_with_this_id"])
NOBODY_KNOWS = ("quarantined", ["several_rows_of_one_product"])


def timed(*times: str | None) -> list[dict[str, Any]]:
    return [{"title": f"row {i}", "updated_at": time} for i, time in enumerate(times)]


# By what is tried: rows of one id, the titles that are valid, and kind and reasons of the rows that are not.
DOUBLED: dict[str, tuple[list[dict[str, Any]], list[str], list[tuple[str, list[str]]]]] = {
    "the newer row wins": (timed(OLD, NEW), ["row 1"], [NEWER_EXISTS]),
    "whatever the order": (timed(NEW, OLD), ["row 0"], [NEWER_EXISTS]),
    "half an hour older in another zone": (timed("2026-11-20T00:30:00+01:00", NEW), ["row 1"], [NEWER_EXISTS]),
    "the time of a mail": (timed("Fri, 20 Nov 2026 08:30:00 +0000", NEW), ["row 0"], [NEWER_EXISTS]),
    "two older rows are alike": (timed(OLD, OLD, NEW), ["row 2"], [NEWER_EXISTS] * 2),
    "no times": (timed(None, None), [], [NOBODY_KNOWS] * 2),
    "one time twice": (timed(NEW, NEW), [], [NOBODY_KNOWS] * 2),
    "one row has no time": (timed(OLD, None), [], [NOBODY_KNOWS] * 2),
    "one time cannot be read": (timed("20/11/2026", OLD), [], [NOBODY_KNOWS] * 2),
    "no time can be read": (timed("20/11/2026", "21/11/2026"), [], [NOBODY_KNOWS] * 2),
    "the newest time twice": (timed(OLD, NEW, NEW), [], [NOBODY_KNOWS] * 3),
    "a row without a time among others": (timed(NEW, OLD, None), [], [NOBODY_KNOWS] * 3),
    "a row that only adds a picture": ([{"title": "Shirt", "image_uri": "1.jpg"}, {"image_uri": "2.jpg"}], [], [NOBODY_KNOWS] * 2),
    "equal rows without a time": ([{"title": "same"}] * 3, ["same"], [NEWER_EXISTS] * 2),
    "equal rows of one time": ([{"title": "same", "updated_at": NEW}] * 3, ["same"], [NEWER_EXISTS] * 2),
    "equal rows of an unreadable time": ([{"title": "same", "updated_at": "20/11/2026"}] * 3, ["same"], [NEWER_EXISTS] * 2),
    "equal rows are the newest": (
        [*timed(OLD), *[{"title": "same", "updated_at": NEW}] * 2], ["same"], [NEWER_EXISTS] * 2,
    ),
    "one row is no product": ([{"title": "row 0"}, {"title": None}], ["row 0"], [("quarantined", ["nothing_to_tag"])]),
}  # fmt: skip


@pytest.fixture(scope="module")
def doubled_day(tmp_path_factory: pytest.TempPathFactory, spark_session: Any) -> tuple[Lake, Validation]:  # noqa: ARG001
    """A day with an id for each of DOUBLED."""
    lake = Lake(tmp_path_factory.mktemp("doubled") / "lake")
    rows = [{"product_id": f"x{n}"} | row for n, (rows, _, _) in enumerate(DOUBLED.values()) for row in rows]
    write_raw(lake, DAY1, [*good(2000), *rows])
    return lake, validate(settings_for(lake.root), DAY1)


@pytest.mark.parametrize("case", DOUBLED)
def test_of_several_rows_of_one_id_the_newest_wins_or_nobody(doubled_day: tuple[Lake, Validation], case: str) -> None:
    lake, result = doubled_day
    assert result.raw == result.unparsable + result.quarantined + result.superseded + result.valid
    product = f"x{list(DOUBLED).index(case)}"
    valid = [row["title"] for row in table(lake, result.valid_path) if row["product_id"] == product]
    rejected = [
        (row["kind"], row["reasons"]) for row in table(lake, result.quarantine_path) if row["product_id"] == product
    ]
    assert (valid, rejected) == DOUBLED[case][1:]


def test_many_ids_with_several_rows_stop_the_night_and_are_shown(lake: Lake, settings: Settings) -> None:
    told = (
        r"several_rows_of_one_product: 18 of 109 rows \(16.5%; 2% allowed\)\. Several rows have this id.*`group_by` in the "
        r"mapping.*`updated_at`.*Examples: product good-0, 2 rows; product good-1, 2 rows; product good-2, 2 rows"
    )
    write_raw(lake, DAY1, [*good(100), *[{"product_id": f"good-{i}", "image_uri": "b.jpg"} for i in range(9)]])
    with pytest.raises(CriticalDataError, match=told) as error:
        validate(settings, DAY1)
    assert "ids_unique" not in str(error.value)  # one cause, one failure


def test_broken_newer_record_does_not_displace_a_good_one(lake: Lake, settings: Settings) -> None:
    doubled = [
        {"product_id": "x", "title": "good", "updated_at": "2026-11-19T00:00:00Z"},
        {"product_id": "x", "title": " ", "updated_at": "2026-11-20T00:00:00Z"},
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
    ids = ["x\ny", "x.", "x..y", ".x", "x" + ".x" * 500_000]
    uris = ["a.jpg\n", "a\u2028/../../b.jpg", ".."]
    bad = [{"product_id": name, "title": "t"} for name in ids]
    lost = [{"product_id": f"uri-{i}", "title": "t", "image_uri": uri} for i, uri in enumerate(uris)]
    trimmed = [
        {"product_id": f"y-{i}{end}", "title": "t"} for i, end in enumerate(["\n", "\r\n", "\u2028", "\x85", "\u200b"])
    ]
    fine = [{"product_id": "a.b-c_d:e@f.9", "title": "t"}, {"product_id": "z", "title": "t", "image_uri": "\u2028.jpg"}]
    write_raw(lake, DAY1, [*good(100), *fine, *trimmed, *lost, *bad])
    result = validate(settings, DAY1)
    reasons = {row["product_id"]: row["reasons"][0] for row in table(lake, result.quarantine_path)}
    assert reasons == dict.fromkeys(ids, "unsafe_product_id") | {ids[-1]: "product_id_too_long"}
    valid = {row["product_id"]: row for row in table(lake, result.valid_path)}
    assert {f"y-{i}" for i in range(5)} <= set(valid)
    for i in range(len(uris)):
        assert valid[f"uri-{i}"]["image_uri"] is None
        assert dict(valid[f"uri-{i}"]["notes"])["image_uri"].startswith("picture_outside_roots: ")
    assert result.valid == 100 + len(fine) + len(trimmed) + len(lost)


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
    assert [day.raw for day in last_days(lake, DAY2)] == [40]
    write_raw(lake, DAY2, good(15))
    with pytest.raises(CriticalDataError, match="row_count: 15 rows"):
        validate(settings, DAY2)


@pytest.mark.long
def test_finished_validation_is_not_done_again(lake: Lake, settings: Settings) -> None:
    write_raw(lake, DAY1, good(20))
    first = validate(settings, DAY1)
    stamp = (lake.valid(DAY1) / "current.json").stat().st_mtime_ns
    assert validate(settings, DAY1) == first
    assert (lake.valid(DAY1) / "current.json").stat().st_mtime_ns == stamp
    write_raw(lake, DAY1, good(21))
    assert validate(settings, DAY1).valid == 21


def test_suite_and_filter_count_the_same_rows_for_every_rule(lake: Lake, spark_session: Any, tmp_path: Path) -> None:
    """Great Expectations and the Spark filter are built from one table: rule by rule they must count the same."""
    # One kind of failure a rule, so that the counts differ from rule to rule.
    bad: list[bytes | dict[str, Any]] = [b"no json"] * 30
    bad += [{"title": "no id"}] * 3
    bad += [{"product_id": {"a": i}, "title": "t"} for i in range(2)]
    bad += [{"product_id": f"../{i}", "title": "t"} for i in range(4)]
    bad += [{"product_id": "x" * 129 + str(i), "title": "t"} for i in range(5)]
    bad += [{"product_id": f"p{i}", "title": "t", "image_uri": "/etc/passwd"} for i in range(6)]
    bad += [{"product_id": f"n{i}"} for i in range(7)]
    bad += [{"product_id": f"l{i}", "title": "t" * 10_001, "description": "d"} for i in range(8)]
    bad += [{"product_id": f"d{i}", "title": "t", "description": "t" * 200_001} for i in range(9)]
    bad += [{"product_id": f"c{i}", "title": "t", "price": -1} for i in range(10)]
    bad += [{"product_id": f"t{i}", "title": {"a": i}, "description": "d"} for i in range(11)]
    bad += [{"product_id": f"b{i}", "title": "t", "brand": {"a": i}} for i in range(12)]
    bad += [{"product_id": f"e{i}", "title": "t", "description": {"a": i}} for i in range(13)]
    bad += [{"product_id": f"q{i}", "title": "t", "price": "?"} for i in range(14)]
    bad += [{"product_id": f"i{i}", "title": "t", "image_uri": {"a": i}} for i in range(15)]
    bad += [{"product_id": f"v{i}", "title": "t", "image_version": {"a": i}} for i in range(16)]
    bad += [{"product_id": f"u{i}", "title": "t", "updated_at": "?"} for i in range(17)]
    bad += [{"product_id": f"a{i}", "title": "t", "attributes": ["a"]} for i in range(18)]
    bad += [{"product_id": f"r{i}", "image_uri": "/etc/passwd"} for i in range(19)]
    bad += [{"product_id": f"s{i // 2}", "title": f"t{i}"} for i in range(20)]
    write_raw(lake, DAY1, [*good(5), *bad])
    shipped = load_rules("default")
    # Nothing is allowed to fail, so that every rule tells what it counted.
    rules = shipped.model_copy(
        update={"row_rules": tuple(r.model_copy(update={"max_failed_share": 0.0}) for r in shipped.row_rules)}
    )
    roots = (lake.pictures,)
    lines = parse_records.read_lines(spark_session, [lake.raw(DAY1) / "part-00000.jsonl.gz"])
    parsed = parse_records.parse(lines, tmp_path / "parsed", field_rules(rules, roots))
    judged = parsed.withColumn("reasons", row_rules.reasons(rules, roots))
    frame = duplicate_ids.resolve(judged, tmp_path / "duplicates", has_duplicates=True).cache()
    outcomes = {
        outcome.rule.name: outcome
        for outcome in batch_rules.check(frame, rules, roots, [], ds=DAY1, has_duplicates=True)
    }
    marked = duplicate_ids.mark(frame, rules).cache()
    from pyspark.sql import functions as F

    for rule in rules.row_rules:
        outcome = outcomes[rule.name]
        by_filter = frame.where(row_rules.breaks(rule, rules, roots)).count()
        assert by_filter, f"{rule.name} must be broken at least once for this test to mean something"
        about = frame.where(row_rules.applies(rule)).count()
        assert (outcome.failed, outcome.rows, outcome.passed) == (by_filter, about, False), rule.name
        # And what is counted is what the rows say.
        if clears(rule):
            said = frame.where(row_rules.note(rule.column).startswith(f"{rule.name}: ")).count()
        else:
            said = marked.where(F.array_contains("reasons", rule.name)).count()
        assert said == by_filter, rule.name
    assert outcomes["unparsable"].rows == 5 + len(bad)
    assert outcomes["missing_product_id"].rows == 5 + len(bad) - 30
    assert (outcomes["missing_product_id"].failed, outcomes["nothing_to_tag"].failed) == (3, 7)
    assert outcomes["titles_given"].failed == 7 + 19  # a title that cannot be read was given


def test_lines_that_are_no_records_are_counted_by_one_rule_alone(lake: Lake, settings: Settings) -> None:
    """9 % of the lines are unparsable and 2 % of the records lack the id: each within its limit."""
    write_raw(lake, DAY1, [*good(89), *[{"title": "t"}] * 2, *[b"no json"] * 9])
    result = validate(settings, DAY1)
    assert result.reasons == {"unparsable": 9, "missing_product_id": 2}


def test_lines_that_are_no_records_fail_one_rule_and_say_why(lake: Lake, settings: Settings) -> None:
    def short(line: int) -> bytes:
        return RejectedLine(
            "csv_cells", "5 cells where the header has 6", "p.csv", line, b"a,b,<script>\x1b[31m"
        ).encoded()

    write_raw(lake, DAY1, [*good(20), *[short(line) for line in range(2, 40)], b"[1]"])
    with pytest.raises(CriticalDataError) as error:
        validate(settings, DAY1)
    (failure,) = str(error.value).splitlines()[1:-1]
    assert "unparsable: 39 of 59 rows (66.1%; 10% allowed)" in failure
    assert "Causes: 38 csv_cells, 1 not_object." in failure
    assert (
        "5 cells where the header has 6 (p.csv, line 2), part-00000.jsonl.gz has the line a,b,<script><U+001B>[31m"
        in failure
    )
    assert "a list of 1, [1] where an object should be" in failure
    (row,) = {row["raw"] for row in table(lake, str(result_of(lake).quarantine_path)) if b"a,b" in row["raw"]}
    assert row == b"a,b,<script>\x1b[31m"


def result_of(lake: Lake) -> Validation:
    found = storage.read_document(lake.valid(DAY1) / "current.json", Validation)
    assert found is not None
    return found


UNREADABLE = [
    ("title", {"en": "Shirt"}, "unreadable_title", 'an object, {"en":"Shirt"}'),
    ("updated_at", "20/11/2026", "unreadable_updated_at", '"20/11/2026"'),
    ("image_uri", "https://shop.example/1.jpg", "picture_outside_roots", '"https://shop.example/1.jpg"'),
    ("attributes", ["Blue"], "unreadable_attributes", 'a list of 1, ["Blue"]'),
]


def test_columns_that_are_unreadable_in_most_rows_stop_the_night_by_their_names(lake: Lake, settings: Settings) -> None:
    write_raw(lake, DAY1, [record | {field: value for field, value, _, _ in UNREADABLE} for record in good(30)])
    with pytest.raises(CriticalDataError) as error:
        validate(settings, DAY1)
    failures = {line.strip().split(":")[0]: line for line in str(error.value).splitlines()[1:-1]}
    assert failures.keys() == {rule for _, _, rule, _ in UNREADABLE}
    for field, _, rule, told in UNREADABLE:
        assert failures[rule].strip().startswith(f"{rule}: 30 of 30 rows (100.0%; ")
        assert f"Examples: product good-0, {field} is {told}; product good-1, {field} is {told}" in failures[rule]


def test_price_costs_no_product_and_no_night(lake: Lake, settings: Settings) -> None:
    prices = ["on request", float("nan"), -1, [1, 2], {"amount": 5}]
    write_raw(lake, DAY1, [record | {"price": prices[n % len(prices)]} for n, record in enumerate(good(30))])
    result = validate(settings, DAY1)
    assert (result.valid, sum(result.notes.values())) == (30, 30)
    assert {row["price"] for row in table(lake, result.valid_path)} == {None}


def test_one_bad_value_of_a_field_that_few_records_give_stops_nothing(lake: Lake, settings: Settings) -> None:
    bad = {
        "product_id": "x",
        "title": "t",
        "brand": {"a": 1},
        "attributes": ["a"],
        "updated_at": "?",
        "image_version": True,
    }
    write_raw(lake, DAY1, [*good(99), bad])
    result = validate(settings, DAY1)
    assert (result.valid, sum(result.notes.values())) == (100, 4)


def test_rows_that_lost_a_field_hash_like_rows_without_it(lake: Lake, settings: Settings) -> None:
    lost = [{"brand": {"a": 1}}, {"image_uri": "/x.jpg"}, {"price": "?"}, {"updated_at": "?"}, {"attributes": "?"}]
    rows = [{"product_id": f"x{i}", "title": "t"} | row for i, row in enumerate([{}, *lost])]
    write_raw(lake, DAY1, [*good(400), *rows])
    found = {row["product_id"]: row["source_hash"] for row in table(lake, validate(settings, DAY1).valid_path)}
    assert len({found[row["product_id"]] for row in rows}) == 1


def day(lake: Lake, settings: Settings, ds: str, *, named: int, missing: int, without: int = 0) -> Validation:
    rows = [{"product_id": f"p{i}", "title": "t", "image_uri": f"ab/{i}.jpg"} for i in range(named - missing)]
    rows += [{"product_id": f"m{i}", "title": "t", "image_uri": f"missing/{i}.jpg"} for i in range(missing)]
    rows += [{"product_id": f"w{i}", "title": "t"} for i in range(without)]
    write_raw(lake, ds, rows)
    return validate(settings, ds)


def test_pictures_that_import_could_not_find_stop_the_first_night(lake: Lake, settings: Settings) -> None:
    with pytest.raises(
        CriticalDataError, match=r"pictures_found: 13 of 40 rows \(32.5%; 30% allowed\).*product m0, missing/0"
    ):
        day(lake, settings, DAY1, named=40, missing=13, without=60)
    assert day(lake, settings, DAY2, named=40, missing=12).pictures_missing == 12


def test_more_missing_pictures_than_on_the_last_days_stop_the_night(lake: Lake, settings: Settings) -> None:
    first = day(lake, settings, DAY1, named=100, missing=5)
    assert (first.pictures_named, first.pictures_missing) == (100, 5)
    with pytest.raises(CriticalDataError, match=r"pictures_found: 16 of 100 rows \(16.0%; 15% allowed\)"):
        day(lake, settings, DAY2, named=100, missing=16)
    assert day(lake, settings, DAY2, named=100, missing=15).passed


def test_export_that_names_no_pictures_passes_only_where_none_ever_did(lake: Lake, settings: Settings) -> None:
    assert day(lake, settings, DAY1, named=0, missing=0, without=40).pictures_named == 0
    assert day(lake, settings, DAY2, named=30, missing=0, without=10).passed
    with pytest.raises(CriticalDataError, match=r"pictures_named: 40 of 40 rows \(100.0%; 81% allowed\)"):
        day(lake, settings, "2026-11-22", named=0, missing=0, without=40)


@pytest.mark.long
def test_pictures_are_compared_with_last_days_of_a_lake_that_did_not_count_them(lake: Lake, settings: Settings) -> None:
    first = day(lake, settings, DAY1, named=40, missing=0)
    path = lake.valid(DAY1) / "current.json"
    old = first.model_dump(mode="json", exclude={"pictures_named", "pictures_missing", "notes", "line_errors"})
    path.write_text(json.dumps(old))
    assert day(lake, settings, DAY2, named=0, missing=0, without=40).passed


HOSTILE = '<script src="https://evil.example/x.js"></script><img src=x onerror=alert(1)>'


def test_page_of_the_rules_runs_nothing_whatever_a_product_says(lake: Lake, settings: Settings) -> None:
    bad = [
        {"product_id": f"../{HOSTILE}{i}", "title": HOSTILE, "image_uri": f"https://x/{HOSTILE}", "price": HOSTILE}
        for i in range(3)
    ]
    bad += [{"product_id": f"c{i}", "title": {HOSTILE: HOSTILE}, "description": "d"} for i in range(3)]
    write_raw(lake, DAY1, [*good(60), *bad, f"{HOSTILE} no json".encode()])
    result = validate(settings, DAY1)
    docs = (lake.root / result.data_docs_path).parent
    pages = [path for path in docs.rglob("*") if path.is_file() and path.suffix != ".json"]
    assert pages == [docs / "index.html"]  # Great Expectations writes none
    page = pages[0].read_text()
    assert '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';' in page
    assert "&lt;script src=" in page  # shown, escaped
    assert not re.search(r"<(script|img|iframe|link|object|base|form)\b", page)
    assert not re.search(r"(src|href)=[\"']?(https?:|//|javascript:|data:)", page)
    assert len(page) < 100_000


def test_page_of_the_rules_tells_each_rule_once_with_what_was_counted(lake: Lake, settings: Settings) -> None:
    bad = [{"product_id": f"../{i}", "title": "t"} for i in range(2)]
    write_raw(lake, DAY1, [*good(50), *bad])
    result = validate(settings, DAY1)
    assert result.passed  # a few failing rows are allowed, and shown
    page = (lake.root / result.data_docs_path).read_text()
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "all 25 rules passed" in text
    assert "unsafe_product_id 52 2 3.8% 10% allowed" in text
    assert {"../0", "../1"} <= set(text.split())
    for rule in (*load_rules("default").row_rules, *load_rules("default").batch_rules):
        assert f" {rule.name} " in text


def test_great_expectations_sees_counts_alone(lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from great_expectations import ValidationDefinition

    results = []
    run = ValidationDefinition.run

    def kept(self: Any, **options: Any) -> Any:
        results.append(run(self, **options))
        return results[-1]

    monkeypatch.setattr(ValidationDefinition, "run", kept)
    write_raw(lake, DAY1, [*good(50), {"product_id": "../secret", "title": "t"}])
    validate(settings, DAY1)
    assert len(results) == 1
    assert "secret" not in str(results[0].to_json_dict())


def test_doubled_ids_are_seen_in_rejected_records_too(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for at, ids in enumerate((["a", None], ["b", None])):
        pq.write_table(pa.table({"product_id": pa.array(ids, pa.string())}), tmp_path / f"part-{at}.parquet")
    assert not duplicate_ids.has_duplicate_ids(tmp_path, tmp_path)
    pq.write_table(pa.table({"product_id": ["c", "a"]}), tmp_path / "part-2.parquet")
    assert duplicate_ids.has_duplicate_ids(tmp_path, tmp_path)
