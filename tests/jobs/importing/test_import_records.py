"""`make test TESTS=tests/jobs/importing/test_import_records.py`."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import json
import logging
import lzma
import os
import resource
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.importing import file_checks, grouping, mapper
from jobs.importing.files import unpacking
from jobs.importing.formats import json_lines, sources
from jobs.importing.formats.observations import Observations
from jobs.records.rejected_lines import read_rejected
from schemas.loading import ContractError
from tests.jobs.importing.test_import_catalog import DS, JPEG, Shop, digest, fails

MAPPING = "{records: 'items*', product_id: id, title: name, description: text, price: price, labels: [kind]}"
RECORDS = [{"id": f"A{i}", "name": f"Shirt {i}", "text": "Soft", "price": 1.5, "kind": "Shirt"} for i in range(20)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path, MAPPING)


def write(shop: Shop, data: bytes | str, name: str = "items.jsonl") -> None:
    for old in shop.export.glob("items*"):
        old.unlink()
    shop.put(name, data)


def records(shop: Shop) -> list[Any]:
    shop.run()
    return [json.loads(line) for line in shop.lines()]


def ids(shop: Shop) -> list[str]:
    return [record["product_id"] for record in records(shop)]


# --- bytes that are no records


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), file)
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


NO_RECORDS = {
    "no workbook": zipped(**{"[Content_Types].xml": b"<Types/>", "xl/workbook.xml": b"<workbook/>"}),
    "a gzip file within a gzip file": gzip.compress(gzip.compress(LINES, mtime=0), mtime=0),
    "a bzip2 file within a zip file": zipped(**{"items.csv": bz2.compress(LINES)}),
    "an xz file within a gzip file": gzip.compress(lzma.compress(LINES)),
    "truncated or damaged Parquet": parquet()[:900],
    "an HTML page": b"<!DOCTYPE html>\n<html><body>Log in, then export again</body></html>\n",
    "a PDF": b"%PDF-1.7\n" + bytes(range(256)) * 9,
    "a picture": b"\xff\xd8\xff\xe0" + bytes(600),
    "binary data instead of text": bytes(range(1, 9)) * 600,
}


@pytest.mark.parametrize("name", ["items.jsonl", "items.csv", "items.txt", "items.json"])
@pytest.mark.parametrize("kind", NO_RECORDS)
def test_bytes_that_are_no_records_are_refused_by_what_they_are(shop: Shop, kind: str, name: str) -> None:
    write(shop, LINES)
    before = shop.run()
    write(shop, NO_RECORDS[kind], name)
    fails(shop, rf"{name}[^:]*: {kind}[,; (].*nothing was imported")
    assert shop.lake.read_raw_manifest(DS) == before
    assert ids(shop_with(shop, LINES)) == [record["id"] for record in RECORDS]


def shop_with(shop: Shop, data: bytes) -> Shop:
    write(shop, data)
    return shop


def test_a_format_that_is_set_reads_no_other_s_bytes(shop: Shop) -> None:
    for form in ("jsonl", "csv"):
        shop.set_mapping(format=form)
        write(shop, json.dumps(RECORDS).encode())
        fails(shop, "a JSON array")
        write(shop, parquet())
        fails(shop, f"a Parquet file, but the mapping's `format` is {form}")


def test_an_export_of_which_most_lines_cannot_be_read_is_refused(shop: Shop) -> None:
    write(shop, LINES + b'{"id": "9", "name": \n' * 19)
    assert shop.run().unreadable == {"not JSON": 19}
    write(shop, LINES + b'{"id": "9", "name": \n' * 21)
    fails(shop, r"21 of 41 rows are not records; 21 of them: not JSON \(items\.jsonl, line 21: ")


def test_lines_that_cannot_be_read_are_told_at_once(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    write(shop, LINES + b'[1]\n{"id": 1, "id": 2}\n{"id": "\xff"}\n')
    with caplog.at_level(logging.WARNING):
        assert shop.run().unreadable == {
            "JSON, but not an object": 1, "a name occurs twice": 1, "not UTF-8; cp1252 would read it": 1,
        }  # fmt: skip
    assert "a name occurs twice (items.jsonl, line 22" in caplog.text


# --- JSON lines that another reading would lose


@pytest.mark.parametrize(
    "data",
    [
        LINES.replace(b"\n", b",\n"),
        LINES.replace(b"\n", b""),
        LINES.replace(b"\n", b"\r"),
        b"\x1e" + LINES.replace(b"\n", b"\n\x1e")[:-1],
        LINES.replace(b"}\n", b"}\n\xef\xbb\xbf", 5),
        b"\xef\xbb\xbf\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n"),
        LINES.decode().encode("utf-16"),
        LINES.decode().encode("utf-16-be"),
        gzip.compress(LINES[:200], mtime=0) + gzip.compress(LINES[200:], mtime=0),
    ],
    ids=["commas", "in one line", "CR", "record separators", "marks", "CRLF", "UTF-16", "without mark", "two gzips"],
)
def test_every_record_is_read_however_records_are_parted(shop: Shop, data: bytes) -> None:
    write(shop, data)
    assert ids(shop) == [record["id"] for record in RECORDS]


def test_json_lines_in_an_encoding_that_the_bytes_do_not_show(shop: Shop) -> None:
    lines = LINES + "".join(f'{{"id": "B{i}", "name": "Größe"}}\n' for i in range(3)).encode("cp1252")
    write(shop, lines)
    fails(shop, r"3 lines are not UTF-8; cp1252 would read it \(line 21.*set `encoding`")
    shop.set_mapping(encoding="cp1252")
    assert records(shop)[-1]["title"] == "Größe"


def test_a_byte_that_the_set_encoding_does_not_have_costs_its_line(shop: Shop) -> None:
    shop.set_mapping(encoding="cp1252")
    write(shop, LINES + b'{"id": "1", "name": "\x81"}\n{"id": "2", "name": "\xe9"}\n')
    assert shop.run().unreadable == {"not CP1252": 1}
    assert json.loads(shop.lines()[-1])["title"] == "é"


def test_nan_means_that_nothing_is_given(shop: Shop) -> None:
    shop.set_mapping(label_objects=["facts"])
    write(shop, LINES + b'{"id": "1", "name": "x", "price": NaN, "kind": NaN, "facts": {"Neck": NaN}}\n'
          b'{"id": "2", "name": "x", "price": -Infinity, "text": Infinity}\n')  # fmt: skip
    first, second = records(shop)[-2:]
    assert (first["price"], first["attributes"], second["price"], second["description"]) == (None, {}, None, None)
    assert shop.run().notes["NaN or Infinity, read as not given"] == 5


# --- lengths


def test_a_line_that_is_too_long_for_spark_keeps_its_start_and_its_place(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE", 5000)
    write(shop, LINES + b'{"id": "long", "text": "' + b"x" * 20_000 + b'"}\n' + b'{"id": "last", "name": "x"}\n')
    assert [record.get("product_id") for record in records(shop)][-2:] == [None, "last"]
    found = read_rejected(shop.lines()[-2])
    assert found is not None
    assert (found.reason, found.line, len(found.raw)) == ("line_too_long", 21, sources.LINE_START)
    assert found.raw.startswith(b'{"id": "long"')


def test_a_record_that_becomes_too_long_in_ascii_is_too_long(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapper, "MAX_LINE", 5000)
    write(shop, LINES + json.dumps({"id": "1", "name": "щ" * 2000}, ensure_ascii=False).encode())
    shop.run()
    found = read_rejected(shop.lines()[-1])
    assert found is not None
    assert (found.reason, len(found.raw)) == ("line_too_long", sources.LINE_START)


def test_long_lines_take_no_memory(shop: Shop) -> None:
    long = b'{"id": "long", "text": "' + b"x" * 62_000_000 + b'"}\n'
    write(shop, gzip.compress(LINES + long * 3 + LINES.replace(b"A", b"B"), 1), "items.jsonl.gz")
    tracemalloc.start()
    try:
        assert shop.run().rows == 43
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("limits", [{"max_unpacked_gb": 0.001}, {"max_unpacked_ratio": 1}])
def test_a_packed_file_that_unpacks_to_too_much_is_refused(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any]
) -> None:
    monkeypatch.setattr(unpacking, "_FREE", 1_000_000)
    write(shop, gzip.compress(LINES + os.urandom(2_000_000).hex().encode() + b"\n" + LINES), "items.jsonl.gz")
    assert shop.run().rows == 41
    shop.settings = shop.settings.model_copy(update=limits)
    fails(
        shop,
        r"items\.jsonl\.gz: [\d,]+ packed bytes unpack to more than [\d,]+; nothing was imported.*TAGGING_MAX_UNPACKED",
    )


# --- the files of an export


def test_a_file_that_lacks_columns_of_the_mapping_is_named(shop: Shop) -> None:
    write(shop, LINES, "items1.jsonl")
    shop.put("items2.jsonl", LINES.replace(b'"kind"', b'"sort"'))
    fails(shop, r"items2\.jsonl: no record has the columns \['kind'\].*the columns are \[.*'sort'.*`optional`")
    shop.set_mapping(optional=["kind"])
    assert shop.run().rows == 40


def test_an_optional_column_that_one_file_lacks_is_told(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.set_mapping(optional=["kind", "text"])
    write(shop, LINES.replace(b'"text"', b'"none"'), "items1.jsonl")
    shop.put("items2.jsonl", LINES.replace(b'"kind"', b'"sort"').replace(b'"text"', b'"none"'))
    with caplog.at_level(logging.WARNING):
        assert shop.run().notes == {"files without optional columns that other files have": 1}
    assert "items2.jsonl lacks the columns ['kind'], which other files have" in caplog.text


def test_files_of_several_formats_are_each_read_by_its_own(shop: Shop) -> None:
    write(shop, LINES, "items1")
    shop.put("items2", "id;name;text;price;kind\nB1;Bag;Soft;19,99;Bag\n")
    shop.put("items3", b"")
    assert ids(shop)[-1] == "B1"
    assert records(shop)[-1]["price"] == 19.99


def test_files_of_a_later_pattern_are_named(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.mapping.write_text(MAPPING.replace("'items*'", "['items.jsonl', '*.csv']"))
    write(shop, LINES)
    shop.put("more.csv", "id\n1\n")
    with caplog.at_level(logging.WARNING):
        assert shop.run().notes == {"files of later patterns, not read": 1}
    assert "not read, because an earlier pattern of `records` matched: more.csv" in caplog.text


def test_hidden_files_are_no_part_of_an_export(shop: Shop) -> None:
    shop.mapping.write_text(MAPPING.replace("'items*'", "'*.jsonl'"))
    write(shop, LINES)
    shop.put("._items.jsonl", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    assert shop.run().rows == 20


@pytest.mark.parametrize("linked", ["a file", "a folder"])
def test_a_link_that_leads_out_of_the_export_is_refused(shop: Shop, linked: str) -> None:
    outside = shop.export.parent / "outside"
    outside.mkdir()
    (outside / "items.jsonl").write_bytes(LINES)
    if linked == "a file":
        (shop.export / "items.jsonl").symlink_to(outside / "items.jsonl")
    else:
        (shop.export / "sub").symlink_to(outside)
        shop.mapping.write_text(MAPPING.replace("'items*'", "sub/items.jsonl"))
    fails(shop, r"items\.jsonl leads out of the export, to .*outside.*copy the file into the export")


def test_a_file_without_records_beside_others_is_named(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    write(shop, LINES)
    shop.put("items2.jsonl", "")
    shop.put("items3.csv", "id,name,text,price,kind\n")
    shop.put("~$items.csv", "\x05user\x00")
    shop.mapping.write_text(shop.mapping.read_text().replace("records: [", "records: ['*items*', ", 1))
    assert shop.run().notes == {"files without records": 2}
    assert "no records in items2.jsonl, items3.csv" in caplog.text


def test_a_header_or_a_total_is_no_product_in_json_either(shop: Shop) -> None:
    header = {name: name for name in RECORDS[0]}
    total = {"id": "Total", "name": "20 products", "text": None, "price": 30, "kind": ""}
    write(shop, json.dumps(header).encode() + b"\n" + LINES + json.dumps(total).encode() + b"\n")
    assert shop.run().unreadable == {"a header among the records": 1, "a row of totals, not a product": 1}


@pytest.mark.parametrize("optional", [[], ["kind"]])
def test_a_column_in_other_capitals_is_not_passed_over(
    shop: Shop, optional: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    shop.set_mapping(optional=optional)
    other = LINES.replace(b'"kind"', b'"Kind"')
    write(shop, other)
    fails(shop, r"no record has the columns \['kind'\].*differ only in case")
    write(shop, LINES + other)
    assert shop.run().notes == {"records with a column that differs from the mapping's only in case, not read": 20}
    assert "some records have 'Kind' instead of 'kind'" in caplog.text


def test_texts_that_are_all_optional_are_not_all_absent(shop: Shop) -> None:
    shop.set_mapping(optional=["name", "text"])
    write(shop, '{"id": "1", "price": 1, "kind": "Shirt"}\n')
    fails(shop, r"no record has any of the text columns \['name', 'text'\], although they are optional")


def test_a_link_within_the_export_is_followed(shop: Shop) -> None:
    shop.put("whole.jsonl", LINES)
    (shop.export / "items.jsonl").symlink_to("whole.jsonl")
    assert shop.run().rows == 20


@pytest.mark.parametrize("pattern", ["/etc/passwd", "../*", "''"])
def test_a_pattern_that_is_none_within_the_export_is_refused(shop: Shop, pattern: str) -> None:
    (shop.export.parent / "secret.jsonl").write_bytes(LINES)
    shop.mapping.write_text(MAPPING.replace("'items*'", pattern))
    fails(shop, "not a pattern within the export|leads out of the export")


@pytest.mark.parametrize("after", [0, 2_500_000])
def test_a_fault_of_the_disk_under_the_records_is_named(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    write(shop, LINES * 2000)
    read = unpacking._Unpacked.readinto

    def fail(file: Any, buffer: memoryview) -> int:
        if file._bytes >= after:
            raise OSError(errno.EIO, "Input/output error")
        return read(file, buffer)

    monkeypatch.setattr(unpacking._Unpacked, "readinto", fail)
    fails(shop, r"items\.jsonl could not be read \(Input/output error\); nothing was imported")


def test_no_room_for_the_rows_of_products_is_named(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.set_mapping(group_by="id")
    write(shop, LINES * 1000)
    monkeypatch.setattr(grouping, "_CACHE", 100)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))  # as of a disk that is full
    try:
        fails(shop, r"rows could not be stored there until all are read \(.*TMPDIR")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- several rows of one product


def test_the_rows_of_a_product_are_put_together_wherever_they_are(shop: Shop) -> None:
    (shop.export / "pics" / "1.jpg").write_bytes(JPEG)
    shop.set_mapping(group_by="id", pictures="pics", picture_name="{photo}")
    write(
        shop,
        "id,name,text,price,kind,photo\nshirt,Shirt,Soft,9.5,S,1.jpg\nbag,Bag,Big,,One,\nshirt,,,,M,2.jpg\n"
        "hat,Hat,Warm,1,,\nbag,Other,,5,One,\nshirt,,Hard,8,,3.jpg\n",
        "items.csv",
    )
    shirt, bag, hat = records(shop)
    assert (shirt["product_id"], shirt["title"], shirt["description"], shirt["price"]) == (
        "shirt",
        "Shirt",
        "Soft",
        9.5,
    )
    assert (shirt["attributes"], shirt["image_version"]) == ({"kind": ["S", "M"]}, digest(JPEG))
    assert (bag["title"], bag["price"], bag["attributes"]) == ("Bag", 5, {"kind": "One"})
    assert (hat["product_id"], hat["attributes"]) == ("hat", {})
    manifest = shop.run()
    assert manifest.rows == 3
    assert manifest.notes == {"rows merged with another row of their product": 3}
    assert shirt["image_uris"] == [shirt["image_uri"], "missing/2.jpg", "missing/3.jpg"]


def test_a_row_of_no_group_stays_one_and_lines_that_are_no_records_too(shop: Shop) -> None:
    shop.set_mapping(group_by="group")
    rows = [record | {"group": "g" if i < 5 else None} for i, record in enumerate(RECORDS)]
    write(shop, "".join(json.dumps(row) + "\n" for row in rows) + '{"id": \n')
    assert shop.run().rows == 17
    assert b'{"id": ' in shop.lines()


@pytest.mark.parametrize("word", ["nan", "NULL", "None", "N/A", "-", " ", "\u200b"])
def test_rows_that_name_no_product_are_not_one(shop: Shop, word: str) -> None:
    shop.set_mapping(group_by="group")
    write(shop, "".join(json.dumps(record | {"group": word}) + "\n" for record in RECORDS))
    assert ids(shop) == [record["id"] for record in RECORDS]


@pytest.mark.timeout(60)  # a quadratic step takes minutes
def test_rows_of_many_products_are_put_together_in_the_order_of_each_one_s_first(tmp_path: Path) -> None:
    rows = [{"id": str(i % 20_000), "row": i} for i in range(60_000)]
    found = grouping.grouped(rows, lambda row: str(row["id"]), lambda rows: {"rows": rows}, tmp_path, Observations())
    assert [[row["row"] for row in each["rows"]] for each in found if isinstance(each, dict)] == [
        [i, i + 20_000, i + 40_000] for i in range(20_000)
    ]


@pytest.mark.timeout(60)  # a quadratic step takes minutes
def test_a_group_of_far_too_many_rows_is_no_product(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.set_mapping(group_by="group")
    rows = [record | {"group": "g", "kind": [f"{i}-{j}" for j in range(1000)]} for i, record in enumerate(RECORDS * 5)]
    write(shop, "".join(json.dumps(row) + "\n" for row in rows))
    (record,) = records(shop)
    assert len(record["attributes"]["kind"]) == 100_000
    for bound, value in (("_MOST", 99), ("_LARGEST", 10_000)):
        with monkeypatch.context() as patch:
            patch.setattr(grouping, bound, value)
            fails(shop, r"or more rows have the same value in the column that `group_by` names, such as .*A\d")


def test_rows_of_one_product_that_the_mapping_does_not_group_stay_rows(shop: Shop) -> None:
    write(shop, LINES * 2)
    assert shop.run().rows == 40


# --- times


def with_times(shop: Shop, *times: Any, **settings: Any) -> None:
    shop.set_mapping(updated_at="changed", **settings)
    write(shop, "".join(json.dumps(RECORDS[0] | {"changed": time}) + "\n" for time in times))


def test_times_become_iso_8601_in_utc(shop: Shop) -> None:
    with_times(shop, "2026-11-20T10:00:00+02:00", 1795000000, None, "Fri, 20 Nov 2026 10:00:00 GMT")
    assert [record["updated_at"] for record in records(shop)] == [
        "2026-11-20T08:00:00Z", "2026-11-18T11:06:40Z", None, "2026-11-20T10:00:00Z",
    ]  # fmt: skip


def test_a_blank_is_nothing_given_whatever_the_mapping_s_words_for_nothing_are(shop: Shop) -> None:
    with_times(shop, "2026-11-20", *["", " "] * 5, null_values=["NA"])
    assert [record["updated_at"] for record in records(shop)] == ["2026-11-20T00:00:00Z", *[None] * 10]


def test_times_that_take_a_guess_are_an_error_of_the_mapping(shop: Shop) -> None:
    with_times(shop, *["2026-11-20"] * 200, "20/11/2026", "01/02/2026", "11/20/2026", "x" * 10_000)
    fails(
        shop,
        r"4 of 204 values \(2\.0 %\) of 'changed' are not unambiguous times.*such as '20/11/2026', '01/02/2026'.*"
        "`updated_at_format`.*`null_values`",
    )
    with_times(shop, *["20/11/2026"] * 9, updated_at_format="%d/%m/%Y")
    assert {record["updated_at"] for record in records(shop)} == {"2026-11-20T00:00:00Z"}
    with_times(shop, "20/11/2026")
    fails(shop, "1 of 1 values")


def test_a_few_times_that_cannot_be_read_stay_as_they_are(shop: Shop) -> None:
    with_times(shop, *["2026-11-20"] * 200, "soon", "20.11.2026")
    assert [record["updated_at"] for record in records(shop)[-2:]] == ["soon", "20.11.2026"]


# --- ids and prices


def test_an_id_is_one_in_csv_and_json_with_its_picture(shop: Shop) -> None:
    (shop.export / "pics" / "1163.jpg").write_bytes(JPEG)
    shop.set_mapping(pictures="pics", picture_name="{id}.jpg")
    write(
        shop,
        b'{"id": 1163.0, "name": "x", "text": "", "price": 1, "kind": "a"}\n{"id": "1163.0 ", "name": "x"}\n',
        "items1",
    )
    shop.put("items2", "id,name,text,price,kind\n1163.0,x,,,\n\u00a01163\t,x,,,\nv1.0,x,,,\n")
    assert ids(shop) == ["1163"] * 4 + ["v1.0"]
    assert [record["image_version"] for record in records(shop)][:4] == [digest(JPEG)] * 4


def test_an_id_whose_digits_a_spreadsheet_lost_is_no_id(shop: Shop) -> None:
    write(shop, LINES + b'{"id": 123456789012345680000.0, "name": "x"}\n{"id": "1.23E+12", "name": "x"}\n')
    found = [read_rejected(line) for line in (shop.run(), shop.lines())[1]]
    assert [line.reason for line in found if line] == ["rounded_id", "rounded_id"]
    write(shop, "id,name,text,price,kind\n" + "8.90012E+12,x,,,\n" * 3, "items.csv")
    fails(shop, r"3 of 3 rows are not records; 3 of them: the id is a number in scientific notation.*line 2")


def test_the_decimal_mark_of_prices_is_that_of_their_file_or_the_mapping_s(shop: Shop) -> None:
    header = "id;name;text;price;kind\n"
    write(shop, header + "1;a;;1.299;\n2;a;;19,99 €;\n3;a;;on request;\n", "items1.csv")
    shop.put("items2.csv", header + "4;a;;1.299;\n5;a;;1,299;\n6;a;;$1,299.00;\n")
    assert [record["price"] for record in records(shop)] == [1299, 19.99, "on request", 1.299, 1299, 1299]
    shop.set_mapping(decimal=",")
    assert [record["price"] for record in records(shop)] == [1299, 19.99, "on request", 1299, 1.299, 1299]


def test_prices_are_looked_at_in_bounded_memory(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_checks, "_HELD", 300)
    write(
        shop,
        "".join(json.dumps(r | {"price": "1,299"}) + "\n" for r in RECORDS)
        + '{"id": "z", "name": "x", "price": "1,99"}\n',
    )
    assert [record["price"] for record in records(shop)] == ["1,299"] * 20 + [1.99]


# --- columns


def test_a_number_reaches_into_a_list(shop: Shop) -> None:
    shop.mapping.write_text(MAPPING.replace("title: name", "title: names.1.text"))
    write(shop, LINES + b'{"id": "1", "names": [{"text": "a"}, {"text": "b"}], "text": "t", "price": 1, "kind": "k"}\n')
    assert records(shop)[-1]["title"] == "b"


@pytest.mark.parametrize(
    ("name", "value"),
    [("delimiter", "ab"), ("quote", "''"), ("encoding", "nonsense"), ("updated_at_format", "%d/%Q"), ("decimal", ";"),
     ("multiline", "maybe"), ("escape", "\n"), ("encoding", "hex"), ("encoding", "rot13"), ("encoding", "punycode"),
     ("encoding", "undefined"), ("updated_at_format", "%d/%m"), ("updated_at_format", "today"), ("escape", '"'),
     ("picture_name", "{id}.jpg")],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_refused(shop: Shop, name: str, value: str) -> None:
    shop.set_mapping(**{name: value})
    write(shop, LINES)
    with pytest.raises(ContractError, match=name):
        shop.run()
