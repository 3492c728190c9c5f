"""Formats of an export: each is found by its content, packed or not, and gives the same records; its faults are named."""

from __future__ import annotations

import bz2
import contextlib
import datetime
import decimal
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from PIL import Image

from jobs.errors import JobError
from jobs.importing.files.record_files import find_records
from jobs.importing.files.s3_exports import local_export
from jobs.importing.files.unpacking import Bounds
from jobs.importing.formats import json_documents, parquet_files, workbooks, xml_feeds
from jobs.importing.formats.format_registry import find_candidates, open_records, read_records, read_sample
from jobs.importing.formats.observations import Observations
from jobs.importing.pictures.picture_sources import open_sources
from jobs.records.rejected_lines import RejectedLine
from schemas.mapping import Mapping

RECORDS = [{"id": f"A{i}", "name": f"Café {i}", "kind": ["Shirt", "Skirt"][i % 2]} for i in range(40)]
MAPPING = {"records": ["items*"], "product_id": "id", "title": "name", "labels": ["kind"]}


def json_lines() -> bytes:
    return "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def parquet(rows: Any = RECORDS, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows) if isinstance(rows, list) else rows, file, **options)
    return file.getvalue()


def workbook(*rows: list[Any], **sheets: list[list[Any]]) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, lines in (sheets or {"Sheet": list(rows)}).items():
        sheet = book.create_sheet(name)
        for row in lines:
            sheet.append(row)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def table() -> list[list[Any]]:
    return [list(RECORDS[0]), *(list(record.values()) for record in RECORDS)]


def feed() -> bytes:
    items = "".join(
        f"<item><g:id>{r['id']}</g:id><name>{r['name']}</name><g:kind>{r['kind']}</g:kind></item>\n" for r in RECORDS
    )
    start = (
        '<?xml version="1.0"?><rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel><title>A shop</title>'
    )
    return f"{start}\n{items}</channel></rss>".encode()


def hdf5() -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as book:
        for name in RECORDS[0]:
            book[name] = np.array([[record[name].encode()] for record in RECORDS])
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


FORMATS = {
    "csv": "\n".join(",".join(row) for row in table()).encode(),
    "jsonl": json_lines(),
    "json": json.dumps(RECORDS).encode(),
    "json, indented, in an object": json.dumps({"n": 40, "data": {"products": RECORDS}}, indent=2).encode(),
    "json, objects over lines": "\n".join(json.dumps(record, indent=1) for record in RECORDS).encode(),
    "json in UTF-16": json.dumps(RECORDS, ensure_ascii=False).encode("utf-16"),
    "parquet": parquet(),
    "xlsx": workbook(*table()),
    "xml": feed(),
    "hdf5": hdf5(),
}
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "Zstandard": zstd.compress,
    "zip": lambda data: zipped(**{"in/items.data": data, "__MACOSX/in/._items.data": b"x"}),
}


class Export:
    """A folder of an export and what was read of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.observations = folder, Observations()

    def put(self, data: bytes | str, name: str = "items") -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    def rows(self, **mapping: Any) -> list[Any]:
        layout, self.observations = Mapping.model_validate(MAPPING | mapping), Observations()
        files, _ = find_records(self.folder, layout)
        sources = [source for file in files for source in open_records(file, self.folder, layout, Bounds())]
        return [row for source in sources for row in read_records(source, layout, self.observations, False)]

    def read(self, data: bytes | str, **mapping: Any) -> list[Any]:
        self.put(data)
        return self.rows(**mapping)

    def fails(self, data: bytes | str, words: str, **mapping: Any) -> None:
        with pytest.raises(JobError, match=words):
            self.read(data, **mapping)


@pytest.fixture
def export(tmp_path: Path) -> Export:
    return Export(tmp_path)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_found_by_its_content_however_it_is_packed(export: Export, name: str, packing: str) -> None:
    assert export.read(PACKINGS[packing](FORMATS[name])) == RECORDS
    assert not export.observations.unreadable


@pytest.mark.parametrize("packing", [name for name in PACKINGS if name])
def test_a_packed_file_that_is_cut_or_damaged_is_named(export: Export, packing: str) -> None:
    data = PACKINGS[packing](json_lines())
    export.fails(data[: len(data) // 2], rf"truncated or damaged {packing} .*nothing was imported: copy the file again")
    damaged = bytearray(data)
    damaged[len(data) // 2 : len(data) // 2 + 9] = bytes(9)
    export.fails(bytes(damaged), rf"truncated or damaged {packing} ")


@pytest.mark.parametrize("name", ["parquet", "xlsx", "hdf5", "json", "json, indented, in an object", "xml"])
def test_a_file_that_is_cut_stops_the_import(export: Export, name: str) -> None:
    data = FORMATS[name]
    export.fails(data[: len(data) * 6 // 10], "(truncated|damaged|ends in the middle).*nothing was imported")
    assert export.read(b"") == []


def test_a_packed_file_within_a_packed_file_is_refused(export: Export) -> None:
    export.fails(gzip.compress(bz2.compress(json_lines())), "a bzip2 file within a gzip file; .*unpack it once")
    export.fails(zipped(**{"items.csv": zipped(**{"items.csv": json_lines()})}), "a zip file within a zip file")


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz", "Zstandard", "zip"])
def test_a_small_file_may_not_unpack_without_bound(
    export: Export, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    monkeypatch.setattr("jobs.importing.files.unpacking._FREE", 2**20)
    blown = b'{"id": 1, "name": "x"}\n' + b" " * 8_000_000 + b"\n"
    export.fails(PACKINGS[packing](blown), r"packed bytes unpack to more than [\d,]+; .* raise TAGGING_MAX_UNPACKED_GB")


def test_of_a_zip_the_files_that_match_are_read(export: Export) -> None:
    half = json_lines().splitlines(keepends=True)
    members = {"items-1.json": b"".join(half[:20]), "items-2.json": b"".join(half[20:]), "log.txt": b"done"}
    export.put(zipped(**members), "items.zip")
    assert export.rows() == RECORDS
    export.put(zipped(**{"a.json": b"", "b.json": b""}), "items.zip")
    with pytest.raises(JobError, match=r"a zip of 2 files, of which none matches .*'a.json', 'b.json'"):
        export.rows()


# --- JSON


def test_the_array_of_records_is_found_or_asked_for(export: Export) -> None:
    other = [{"code": 1}, {"code": 2}]
    document = {"filters": other, "shop": {"pages": [{"products": 1}], "items": RECORDS}, "log": other}
    assert export.read(json.dumps(document)) == RECORDS
    assert export.observations.notes == {"arrays beside the records, not read: filters, pages, log": 3}
    twice = json.dumps({"old": RECORDS[:1], "new": RECORDS})
    export.fails(twice, "several arrays of objects: old, new; .*set `records_at`")
    assert export.read(twice, records_at="new") == RECORDS
    export.fails(twice, "no array at 'shop.new'", records_at="shop.new")


def test_a_second_array_of_records_behind_the_sample_stops_the_import(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_documents, "SAMPLE", 1000)
    monkeypatch.setattr(json_documents, "_CHUNK", 100)
    export.fails(json.dumps({"shop": RECORDS * 9, "outlet": RECORDS}), "several arrays of records: shop and outlet")


@pytest.mark.parametrize("indent", [None, 1])
def test_broken_records_of_an_array_are_rejected_and_take_no_other_with_them(
    export: Export, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_documents, "_CHUNK", 50)
    text = json.dumps(RECORDS, indent=indent, ensure_ascii=False)
    for i in range(5, 15):
        fault = f'"Café {i}"', f"Café {i}" if indent is None else f'"Caf"é {i}"'
        text = text.replace(*fault)
    rows = export.read(text)
    assert [row for row in rows if isinstance(row, dict)] == RECORDS[:5] + RECORDS[15:]
    rejected = [row for row in rows if isinstance(row, RejectedLine)]
    assert [row.reason for row in rejected] == ["not_json"] * 10
    assert rejected[0].line == (1 if indent is None else 27)
    assert b"A5" in rejected[0].raw
    assert b"A6" not in rejected[0].raw


def test_a_record_of_an_array_is_read_as_a_json_line_is(export: Export) -> None:
    rows = export.read(
        '[{"id": 1, "id": 2}, {"id": NaN}, 5, {"id": "\xe9"},\n {"id": 1e999}, {}, {},]'.encode("latin-1")
    )
    assert rows[1] == {"id": None}
    assert rows[4] == {"id": "1e999"}
    assert [row.detail for row in rows if isinstance(row, RejectedLine)] == [
        "a name occurs twice",
        "JSON, but not an object",
        "not UTF-8; cp1252 would read it",
    ]


def test_a_huge_record_of_an_array_is_rejected(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_documents, "MAX_LINE", 10_000)
    monkeypatch.setattr(json_documents, "_CHUNK", 1000)
    huge = {"id": "huge", "name": 'a\\"]}' * 9000}
    rows = export.read(json.dumps([*RECORDS[:3], huge, *RECORDS[3:]]))
    assert rows[:3] + rows[4:] == RECORDS
    assert rows[3].reason == "line_too_long"


# --- Parquet


def test_values_of_parquet_become_those_that_a_shop_shows(export: Export) -> None:
    values = pa.table(
        {
            "id": pa.array([1163.0, 2.5]),
            "name": pa.array(["a", None]).dictionary_encode(),
            "kind": pa.array([decimal.Decimal("1.10"), decimal.Decimal("2.00")]),
            "time": pa.array([datetime.datetime(2026, 1, 2, 3, 4), None], pa.timestamp("ns", "UTC")),
            "day": [datetime.date(2026, 1, 2), None],
            "list": [["x", None], []],
            "object": [{"a": 1.0}, None],
            "map": pa.array([[("k", "v")], None], pa.map_(pa.string(), pa.string())),
            "bytes": [b"abc", b"\xff\x00"],
            "number": [float("nan"), 1.25],
        }
    )
    first, second = export.read(parquet(values))
    assert first == {
        "id": 1163, "name": "a", "kind": 1.1, "time": "2026-01-02T03:04:00Z", "day": "2026-01-02", "list": ["x", None],
        "object": {"a": 1}, "map": {"k": "v"}, "bytes": "abc", "number": None,
    }  # fmt: skip
    assert (second["id"], second["kind"], second["bytes"]) == (2.5, 2, None)
    assert export.observations.notes == {"binary values, not read": 1, "NaN or Infinity, read as not given": 1}


def test_a_folder_of_parquet_files_is_one_table_with_its_partitions(export: Export) -> None:
    export.put(parquet(RECORDS[:10]), "items/country=D%20E/part-0.parquet")
    export.put(parquet(RECORDS[10:]), "items/country=__HIVE_DEFAULT_PARTITION__/part-0.parquet")
    export.put(b"", "items/_SUCCESS")
    assert export.rows() == [record | {"country": "D E" if i < 10 else None} for i, record in enumerate(RECORDS)]
    assert find_candidates(export.folder) == [export.folder / "items"]


def test_a_huge_value_of_parquet_is_rejected(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "MAX_LINE", 1000)
    rows = export.read(parquet([*RECORDS, {"id": "x", "name": "a" * 2000, "kind": ""}]))
    assert rows[:-1] == RECORDS
    assert (rows[-1].reason, rows[-1].line) == ("line_too_long", 41)


# --- workbooks


def test_the_sheet_and_the_header_are_found(export: Export) -> None:
    title = [[None, "All products of spring"], []]
    book = workbook(Notes=[["read me"]], Products=title + table())
    assert export.read(book) == RECORDS
    assert export.observations.notes == {
        "sheets beside 'Products', not read": 1,
        "lines before the header, skipped": len(title),
    }
    export.fails(book, "no sheet 'Old'; the sheets are 'Notes', 'Products'", sheet="Old")
    export.fails(workbook(["code", "text"], [1, 2]), "no sheet has the mapping's columns, such as 'id'; .*'code, text'")
    assert export.read(workbook(*table()[1:]), header=["id", "name", "kind"]) == RECORDS


def test_values_of_a_workbook_are_those_that_it_shows(export: Export) -> None:
    book = workbook(
        ["id", "name", "kind", "day", "name"], [1163.0, "#N/A", 1.25, datetime.datetime(2026, 1, 2), "b", "beside"],
        [None, " "], [7, True, None, datetime.datetime(2026, 1, 2, 3, 4)],
    )  # fmt: skip
    assert export.read(book) == [
        {"id": 1163, "name": None, "kind": 1.25, "day": "2026-01-02"},
        {"id": 7, "name": True, "kind": None, "day": "2026-01-02T03:04:00"},
    ]
    assert export.observations.notes["cells with an error such as #N/A, read as not given"] == 1
    assert export.observations.notes["cells beside the columns, not read"] == 2


def test_a_sheet_that_would_not_fit_into_memory_is_refused(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbooks, "_CELLS", 1000)
    book = openpyxl.Workbook()
    book.active["A1"], book.active["XFD900"] = "id", 1
    file = io.BytesIO()
    book.save(file)
    export.fails(file.getvalue(), "900 rows and 16,384 columns, more than 1,000 cells; .*CSV or Parquet")


# --- XML


def test_elements_become_columns(export: Export) -> None:
    rows = export.read(
        '<shop xmlns:g="urn:g"><offers><offer code="7"><g:id>1</g:id><name lang="en">A &amp; B</name><g:name>C</g:name>'
        '<param name="Size" unit="EU">38</param><param name="Colour">Red</param><pic href="a.jpg"/><kind><![CDATA[x<y]]></kind>'
        "<text>Soft <b>wool</b></text><size><w>3</w></size></offer><offer><g:id>2</g:id></offer></offers></shop>"
    )
    assert rows == [
        {
            "@code": "7", "id": "1", "name": "A & B", "name@lang": "en", "g:name": "C", "pic": {"@href": "a.jpg"},
            "param": [{"name": "Size", "value": "38", "@unit": "EU"}, {"name": "Colour", "value": "Red"}],
            "kind": "x<y", "text": "Soft wool", "size": {"w": "3"},
        },
        {"id": "2"},
    ]  # fmt: skip


def test_an_atom_feed_and_a_named_element_are_read(export: Export) -> None:
    atom = '<feed xmlns="http://www.w3.org/2005/Atom"><entry><id>1</id><link href="x"/></entry></feed>'
    assert export.read(atom) == [{"id": "1", "link": {"@href": "x"}}]
    two = "<a><b><id>1</id></b><c><id>2</id></c></a>"
    export.fails(two, "several elements that may be records: a/b, a/c; .*set `records_at`")
    assert export.read(two, records_at="c") == [{"id": "2"}]
    export.fails(two, "XML without an element 'd'", records_at="d")


def test_xml_defines_no_entities_and_reads_no_other_file(export: Export) -> None:
    export.fails('<!DOCTYPE a [<!ENTITY b "c">]><a><b><id>&b;</id></b></a>', "XML that defines entities")
    secret = export.folder / "secret.dtd"
    secret.write_text('<!ENTITY b "secret">')
    export.fails(f'<!DOCTYPE a SYSTEM "{secret}"><a><b><id>&b;</id></b></a>', "an entity of its own, &b;")
    html = '<!DOCTYPE a SYSTEM "x.dtd"><a><b><id>1&nbsp;2</id></b></a>'
    assert export.read(html) == [{"id": "1\xa02"}]


def test_a_huge_or_deep_element_is_rejected(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xml_feeds, "MAX_LINE", 10_000)
    text = feed().decode()
    rows = export.read(text.replace("Café 3<", f"{'a' * 20_000}<").replace("Café 5<", f"{'<a>' * 120}{'</a>' * 120}<"))
    rejected = [(row.line, row.detail) for row in rows if isinstance(row, RejectedLine)]
    assert rejected == [(5, "an element of more than 10,000 characters"), (7, "elements nested more than 100 deep")]
    assert len(rows) == len(RECORDS)


# --- HDF5


def test_a_dataset_of_pictures_is_named_and_old_texts_are_read(export: Export) -> None:
    file = io.BytesIO()
    with h5py.File(file, "w") as book:
        book["id"] = np.array([[1], [2]])
        book["name"] = np.array([b"Red", b"caf\xe9"]).reshape(2, 1)
        book["input_image"] = np.zeros((2, 64, 64, 3), np.uint8)
        book["classes"] = np.arange(5)
    assert export.read(file.getvalue()) == [
        {"id": 1, "name": "Red", "input_image": "input_image/0.png"},
        {"id": 2, "name": "café", "input_image": "input_image/1.png"},
    ]
    assert export.observations.notes == {
        "datasets of another length, not read: classes": 1,
        "texts that are not UTF-8, read as cp1252": 1,
    }


def test_pictures_in_hdf5_are_read_as_png(export: Export) -> None:
    pixels = np.random.default_rng(7).integers(0, 255, (2, 64, 64, 3), np.uint8)
    with h5py.File(export.folder / "items.h5", "w") as book:
        book["input_image"] = pixels
    layout = Mapping.model_validate(MAPPING | {"pictures": ["*.h5"], "picture_name": "{input_image}"})
    with contextlib.ExitStack() as stack:
        (source,) = open_sources(export.folder, layout, Bounds(), stack)
        assert [name for name, _ in source.names()] == ["input_image/0.png", "input_image/1.png"]
        data = source.read("input_image/1.png")
        assert data is not None
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels[1])
        assert source.read("input_image/2.png") is None


# --- an export on S3


def test_an_export_on_s3_is_copied_as_far_as_the_mapping_names_it(on_s3: Any) -> None:
    layout = Mapping.model_validate(MAPPING | {"pictures": ["pics"], "picture_name": "pics/{id}.jpg"})
    for name in ("items/a=1/p.parquet", "items.json", "pics/deep/1.jpg", "other.json"):
        (on_s3 / "export" / name).write_bytes(name.encode())
    with local_export(on_s3 / "export", layout, False) as copy:
        names = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
        assert names == {"items/a=1/p.parquet", "items.json", "pics/deep/1.jpg"}
        assert (copy / "items.json").read_bytes() == b"items.json"
    assert not copy.exists()
    with pytest.raises(JobError, match=r"no records; looked for items\*"), local_export(on_s3 / "none", layout, False):
        pass


# --- without a mapping


@pytest.mark.parametrize("name", FORMATS)
def test_a_sample_of_a_file_is_read_without_a_mapping(export: Export, name: str) -> None:
    export.put(FORMATS[name], "items.csv" if name == "csv" else "items")
    sample = read_sample(export.folder / ("items.csv" if name == "csv" else "items"), 10)
    assert sample.rows == RECORDS[:10]
    assert sample.columns == ("id", "name", "kind") if name != "hdf5" else set(sample.columns) == {"id", "name", "kind"}
    assert sample.format == name.split(",")[0].split(" ")[0]
    assert sample.records_at == {"json, indented, in an object": "data.products", "xml": "item"}.get(name, "")


def test_a_sample_says_how_the_file_is_written(export: Export) -> None:
    text = "\r\n".join(";".join(row) for row in table())
    export.put(gzip.compress(text.encode("cp1252")), "items.csv.gz")
    sample = read_sample(export.folder / "items.csv.gz", 5)
    assert (sample.format, sample.encoding, sample.delimiter, sample.packed) == ("csv", "cp1252", ";", "gzip")
    assert sample.rows == RECORDS[:5]


def test_candidates_are_files_of_records_only(export: Export) -> None:
    for name in ("a.tsv", "b.json", "deep/c.xml", "notes.md", "pics/1.jpg", ".hidden.csv"):
        export.put(
            {"a": "id\tname\n1\tx\n", "b": json.dumps(RECORDS), "deep/c": feed()}.get(name.split(".")[0], "x"), name
        )
    (export.folder / "out.csv").symlink_to("/etc/hostname")
    found = [str(path.relative_to(export.folder)) for path in find_candidates(export.folder)]
    assert found == ["a.tsv", "b.json", "deep/c.xml"]


def test_a_csv_without_a_header_takes_the_mapping_s(export: Export) -> None:
    text = "\n".join(";".join(row) for row in table()[1:])
    assert export.read(text, header=["id", "name", "kind"]) == RECORDS
    with_header = "\n".join(";".join(row) for row in table())
    rows = export.read(with_header, header=["id", "name", "kind"])
    assert [row for row in rows if isinstance(row, dict)] == RECORDS
