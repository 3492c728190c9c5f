"""`make test TESTS=tests/jobs/importing/test_import_catalog.py`."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import re
import signal
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cma_clip_core.content.pictures import PictureError, fetch
from jobs.errors import JobError
from jobs.importing import day_writer
from jobs.importing.files import unpacking
from jobs.importing.import_catalog import import_catalog
from jobs.importing.pictures import picture_sources
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.settings import Settings
from jobs.validation.validate import check_raw
from schemas.documents import RawManifest
from schemas.loading import ContractError
from schemas.tables import RECORD

DS = "2026-11-20"
JPEG = b"\xff\xd8 not really"
MAPPING = """
records: [items.jsonl, items.jsonl.gz, items.csv]
pictures: [pics, pics.zip]
picture_name: "{photo}"
product_id: id
title: [name, label]
brand: maker.name
description: [text, care]
price: price
updated_at: changed
labels: [kind, season]
label_objects: [facts]
list_separator: "|"
optional: [label, maker.name, care, changed, season, facts, text, price, kind]
null_values: ["", NA]
"""


class Shop:
    """A shop's export, its mapping and the lake that it is imported into."""

    def __init__(self, folder: Path, mapping: str = MAPPING) -> None:
        self.export = folder / "export"
        (self.export / "pics").mkdir(parents=True)
        self.mapping = folder / "mapping.yaml"
        self.mapping.write_text(mapping)
        self._original_mapping = mapping
        self.settings = Settings(root=folder / "lake", progress=False)
        self.lake = Lake(self.settings.root)

    def set_mapping(self, **values: Any) -> None:
        """Write the original mapping, which must be a YAML object in braces, with `values` added."""
        added = "".join(f", {name}: {json.dumps(value)}" for name, value in values.items())
        self.mapping.write_text(f"{self._original_mapping[:-1]}{added}}}")

    def put(self, name: str, data: str | bytes) -> None:
        """Write a file of the export."""
        (self.export / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    def write(self, *rows: Any, name: str = "items.jsonl") -> None:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        data = b"\n".join(lines) + b"\n"
        self.put(name, gzip.compress(data) if name.endswith(".gz") else data)

    def run(self) -> RawManifest:
        return import_catalog(self.settings, self.export, DS, str(self.mapping))

    def lines(self) -> list[bytes]:
        manifest = self.lake.read_raw_manifest(DS)
        assert manifest is not None
        data = b"".join(gzip.decompress((self.lake.raw(DS) / file.name).read_bytes()) for file in manifest.files)
        assert data.count(b"\n") == manifest.rows
        return data.split(b"\n")[:-1]

    def import_one(self, **row: Any) -> dict[str, Any]:
        self.write({"id": "1", "name": "Shirt", "photo": None} | row)
        self.run()
        record: dict[str, Any] = json.loads(self.lines()[0])
        return record

    def pictures(self) -> list[str]:
        root = self.lake.pictures
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


# --- records


def test_equal_texts_of_two_columns_stay_two_texts(shop: Shop) -> None:
    """Dropping one would change the hash of products that have not changed, and tag them again."""
    assert shop.import_one(text="Soft.", care="Soft.")["description"] == "Soft.\n\nSoft."


def test_a_record_in_our_names(shop: Shop) -> None:
    record = shop.import_one(
        id=1163, maker={"name": "Maker"}, text="Soft.", care="Wash.", price=9.5, changed="2026-11-01", kind="Shirt",
        facts={"Colour": "Blue", "Details": "Belt|Logo", "Sizes": ["S", "NA", "M"], "Neck": "NA"},
    )  # fmt: skip
    assert record == {
        "product_id": "1163", "title": "Shirt", "brand": "Maker", "description": "Soft.\n\nWash.", "price": 9.5,
        "image_uri": None, "image_version": None, "updated_at": "2026-11-01T00:00:00Z",
        "attributes": {"kind": "Shirt", "Colour": "Blue", "Details": ["Belt", "Logo"], "Sizes": ["S", "M"]},
    }  # fmt: skip
    assert list(record) == [name for name in RECORD.names if name != "image_uris"]  # it has one picture


@pytest.mark.parametrize(
    ("column", "value", "field", "kept"),
    [
        ("name", 5, "title", 5),
        ("name", {"en": "Shirt"}, "title", {"en": "Shirt"}),
        ("name", False, "title", False),
        ("price", "on request", "price", "on request"),
        ("price", "12.5", "price", 12.5),
        ("id", None, "product_id", None),
        ("id", 7.0, "product_id", "7"),
        ("id", 2.5, "product_id", "2.5"),
        ("id", True, "product_id", True),
        ("id", ["1"], "product_id", ["1"]),
        ("id", " 1 ", "product_id", "1"),
        ("name", " NA ", "title", None),
        ("text", 7, "description", 7),
        ("photo", [{"src": "a.jpg"}], "image_uri", {"src": "a.jpg"}),
        ("kind", 3, "attributes", {"kind": "3"}),
        ("kind", {"a": 1}, "attributes", {"kind": {"a": 1}}),
        ("facts", {"Colour": [1, "Blue"]}, "attributes", {"Colour": ["1", "Blue"]}),
        ("facts", [1], "attributes", {"facts": [1]}),
        ("facts", "Blue", "attributes", {"facts": "Blue"}),
        ("facts", {"kind": "Hat"}, "attributes", {"kind": "Hat"}),
        ("name", "a\u2028b\x00\ud800\n", "title", "a\u2028b\x00\ud800\n"),
    ],
)
def test_nothing_is_judged(shop: Shop, column: str, value: Any, field: str, kept: Any) -> None:
    assert shop.import_one(**{column: value})[field] == kept


def test_the_first_title_given_is_taken_and_texts_of_wrong_types_are_kept_apart(shop: Shop) -> None:
    record = shop.import_one(name="", label="Other", text="Soft.", care=5)
    assert record["title"] == "Other"
    assert record["description"] == ["Soft.", 5]


@pytest.mark.parametrize(
    "line",
    [b'{"id": "1", "name": ', b'["a", "list"]', b'"text"', b"17", b"null", b'{"id": "1", "name": "\xff\xfe"}', b"\x00\x01",
     b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"plain words", b'{"id": "1", "name": "a", "name": "b"}',
     b'{"id": "1", "name": "a", "facts": {"Neck": "V", "Neck": "U"}}'],
)  # fmt: skip
def test_what_cannot_be_read_is_passed_on_byte_for_byte(shop: Shop, line: bytes) -> None:
    shop.write({"id": "0", "name": "Shirt", "photo": None}, line)
    assert shop.run().rows == 2
    assert shop.lines()[1] == line


def test_a_line_is_one_line_to_every_reader(shop: Shop) -> None:
    shop.write({"id": "0", "name": "a\rb\x85c\u2028d", "photo": None}, b"broken\rline")
    shop.run()
    assert [len(line.decode().splitlines()) for line in shop.lines()] == [1, 1]


def test_a_number_that_is_too_large_becomes_a_word(shop: Shop) -> None:
    shop.write(b'{"id": "1", "name": "x", "photo": null}', b'{"id": "2", "name": "x", "price": 1e999}')
    shop.run()
    assert [json.loads(line)["price"] for line in shop.lines()] == [None, "1e999"]


def test_blank_lines_mark_and_line_ends(shop: Shop) -> None:
    (shop.export / "items.jsonl").write_bytes(
        b'\xef\xbb\xbf{"id":"1","name":"a","photo":null}\r\n\r\n   \n{"id":"3","name":"b"}'
    )
    assert shop.run().rows == 2
    assert [json.loads(line)["product_id"] for line in shop.lines()] == ["1", "3"]


def test_a_line_of_eight_megabytes(shop: Shop) -> None:
    assert len(shop.import_one(text="x" * 8_000_000)["description"]) == 8_000_000


def test_many_rows_make_many_parts_always_the_same(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(day_writer, "PART_ROWS", 10)
    rows = [{"id": str(i), "name": "Shirt", "photo": None} for i in range(25)]
    shop.write(*rows, name="items.jsonl.gz")
    first = shop.run()
    assert [(f.name[:10], f.rows) for f in first.files] == [("part-00000", 10), ("part-00001", 10), ("part-00002", 5)]
    for file in first.files:
        data = (shop.lake.raw(DS) / file.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
    assert [json.loads(line)["product_id"] for line in shop.lines()] == [row["id"] for row in rows]
    time.sleep(1.1)  # gzip's own time stamp has seconds
    assert shop.run().files == first.files


# --- the shipped mapping of the public data set


def fashion(shop: Shop) -> list[dict[str, Any]]:
    """Import the export with the shipped mapping."""
    (shop.export / "images").mkdir()
    (shop.export / "images" / "15970.jpg").write_bytes(JPEG)
    import_catalog(shop.settings, shop.export, DS, "fashion-products")
    records = [json.loads(line) for line in shop.lines()]
    assert [r["product_id"] for r in records] == ["15970", "39386"]
    assert (records[0]["image_version"], records[1]["image_uri"]) == (digest(JPEG), "missing/images/39386.jpg")
    return records


def test_fashion_products_as_the_shop_exports_them(shop: Shop) -> None:
    common = {
        "gender": "Men",
        "masterCategory": "Apparel",
        "subCategory": "Topwear",
        "season": "Fall",
        "usage": "Casual",
    }
    shop.write(
        common | {
            "id": 15970, "title": "Turtle Check Men Navy Blue Shirt", "brand": "Turtle", "description": "<p>Of cotton</p>",
            "style_note": "Wear it.", "price": 895.0, "articleType": "Shirts", "baseColour": "Navy Blue",
            "attributes": {"Pattern": "Checked", "Fabric": "NA", "Fit": "Regular Fit"},
        },
        common | {"id": 39386, "title": "-", "articleType": "Jeans", "baseColour": "NA", "attributes": {}},
        name="products.jsonl.gz",
    )  # fmt: skip
    first, second = fashion(shop)
    labels = common | {"articleType": "Shirts", "baseColour": "Navy Blue", "Pattern": "Checked", "Fit": "Regular Fit"}
    assert first["title"] == "Turtle Check Men Navy Blue Shirt"
    assert first["brand"] == "Turtle"
    assert first["description"] == "<p>Of cotton</p>\n\nWear it."
    assert first["price"] == 895
    assert first["attributes"] == labels
    assert (second["title"], second["attributes"]) == (None, common | {"articleType": "Jeans"})


def test_fashion_products_as_the_public_file_has_them(shop: Shop) -> None:
    (shop.export / "styles.csv").write_text(
        "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName\n"
        "15970,Men,Apparel,Topwear,Shirts,Navy Blue,Fall,2011,Casual,Turtle Check Men Navy Blue Shirt\n"
        "39386,Men,Apparel,Bottomwear,Jeans,NA,Summer,2012,Casual,Peter England Men Party Blue Jeans\n"
    )
    first, second = fashion(shop)
    assert first["title"] == "Turtle Check Men Navy Blue Shirt"
    assert (first["brand"], first["description"], first["price"]) == (None, None, None)
    assert first["attributes"] == {
        "gender": "Men", "masterCategory": "Apparel", "subCategory": "Topwear", "articleType": "Shirts",
        "baseColour": "Navy Blue", "season": "Fall", "usage": "Casual",
    }  # fmt: skip
    assert "baseColour" not in second["attributes"]


# --- pictures


def digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def zipped(shop: Shop, **members: bytes) -> None:
    with zipfile.ZipFile(shop.export / "pics.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_pictures_lie_under_the_hash_of_their_content(shop: Shop) -> None:
    zipped(shop, **{"a.jpg": JPEG, "b.JPG": JPEG, "c": b"other"})
    shop.write(*({"id": name, "name": "x", "photo": name} for name in ("a.jpg", "b.JPG", "c")))
    shop.run()
    records = [json.loads(line) for line in shop.lines()]
    same = f"{digest(JPEG)[:2]}/{digest(JPEG)}.jpg"
    assert [r["image_uri"] for r in records] == [same, same, f"{digest(b'other')[:2]}/{digest(b'other')}.img"]
    assert [r["image_version"] for r in records] == [digest(JPEG), digest(JPEG), digest(b"other")]
    assert shop.pictures() == sorted({r["image_uri"] for r in records})
    assert fetch(same, [shop.lake.pictures]) == JPEG
    kept = (shop.lake.pictures / same).stat().st_mtime_ns
    shop.run()
    assert (shop.lake.pictures / same).stat().st_mtime_ns == kept  # not written again


@pytest.mark.parametrize("damaged", [b"", JPEG[:-1], bytes(len(JPEG)), JPEG[:-1] + b"?"])
def test_a_picture_that_was_damaged_in_the_lake_is_written_again(shop: Shop, damaged: bytes) -> None:
    zipped(shop, **{"a.jpg": JPEG})
    uri = shop.import_one(photo="a.jpg")["image_uri"]
    (shop.lake.pictures / uri).write_bytes(damaged)
    assert fetch(shop.import_one(photo="a.jpg")["image_uri"], [shop.lake.pictures]) == JPEG
    assert shop.run().pictures == {"known": 1}


def test_a_folder_of_pictures_comes_first_and_may_be_named_in_the_path(shop: Shop) -> None:
    zipped(shop, **{"a.jpg": b"zipped", "b.jpg": b"zipped b"})
    (shop.export / "pics" / "a.jpg").write_bytes(b"loose")
    assert shop.import_one(photo="a.jpg")["image_version"] == digest(b"loose")
    assert shop.import_one(photo="pics/a.jpg")["image_version"] == digest(b"loose")
    assert shop.import_one(photo="b.jpg")["image_version"] == digest(b"zipped b")


def test_a_picture_that_is_not_there_loses_nothing(shop: Shop) -> None:
    record = shop.import_one(photo="no where.jpg")
    assert (record["image_uri"], record["image_version"]) == ("missing/no_where.jpg", None)
    with pytest.raises(PictureError, match="missing"):
        fetch(record["image_uri"], [shop.lake.pictures])


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("../secret.jpg", "forbidden"), ("a/../../secret.jpg", "forbidden"), ("..\\secret.jpg", "forbidden"),
        ("%2e%2e/secret.jpg", "forbidden"), ("file:///etc/passwd", "forbidden"), ("..", "forbidden"),
        ("http://169.254.169.254/x", "host_not_allowed"), ("//cdn.example/x.jpg", "url"), ("data:image/png;base64,AAAA", "url"),
        ("/etc/passwd", "missing"), ("C:\\secret.jpg", "missing"), ("secret\x00.jpg", "missing"), ("x" * 100_000, "missing"),
    ],
)  # fmt: skip
def test_a_name_that_escapes_is_never_followed_and_costs_the_picture_alone(shop: Shop, name: str, status: str) -> None:
    (shop.export.parent / "secret.jpg").write_bytes(b"secret")
    with zipfile.ZipFile(shop.export / "pics.zip", "w") as archive:
        archive.writestr("../secret.jpg", b"secret too")
    shop.write({"id": "1", "name": "Shirt", "photo": name})
    assert shop.run().pictures == {status: 1}
    record = json.loads(shop.lines()[0])
    assert record["image_version"] is None
    assert re.fullmatch(r"missing/[A-Za-z0-9._/-]{1,200}", record["image_uri"])
    assert ".." not in record["image_uri"]
    with pytest.raises(PictureError, match="missing"):
        fetch(record["image_uri"], [shop.lake.pictures])
    assert shop.pictures() == []
    assert sorted(p.name for p in shop.export.parent.iterdir()) == ["export", "lake", "mapping.yaml", "secret.jpg"]


def test_links_out_of_the_export_are_not_followed(shop: Shop) -> None:
    (shop.export.parent / "secret.jpg").write_bytes(b"secret")
    (shop.export / "pics" / "link.jpg").symlink_to(shop.export.parent / "secret.jpg")
    (shop.export / "pics" / "up").symlink_to(shop.export.parent)
    names = ("link.jpg", "up/secret.jpg", "LINK.jpg")
    shop.write(*({"id": name, "name": "x", "photo": name} for name in names))
    fails(shop, r"3 pictures are links, such as 'link\.jpg': .*leaves the export.*Nothing was imported")
    (shop.export / "pics" / "good.jpg").write_bytes(JPEG)
    shop.write(*({"id": name, "name": "x", "photo": name} for name in (*names, "good.jpg")))
    assert shop.run().pictures == {"link": 3, "added": 1}
    assert shop.pictures() == [json.loads(shop.lines()[3])["image_uri"]]


def test_links_within_the_export_are_followed(shop: Shop) -> None:
    (shop.export / "pics").rmdir()
    (shop.export / "originals").mkdir()
    (shop.export / "originals" / "a.jpg").write_bytes(JPEG)
    (shop.export / "pics").symlink_to(shop.export / "originals")
    assert shop.import_one(photo="a.jpg")["image_version"] == digest(JPEG)
    (shop.export / "more").mkdir()
    (shop.export / "more" / "b.jpg").symlink_to("../originals/a.jpg")
    shop.mapping.write_text(MAPPING.replace("[pics, pics.zip]", "more"))
    assert shop.import_one(photo="b.jpg")["image_version"] == digest(JPEG)


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_that_are_a_link_out_of_the_export_are_refused(shop: Shop, packed: bool) -> None:
    elsewhere = shop.export.parent / "elsewhere"
    (shop.export / "pics").rename(elsewhere)
    (elsewhere / "a.jpg").write_bytes(JPEG)
    shop.write({"id": "1", "name": "x", "photo": "a.jpg"})
    if packed:
        zipped(shop, **{"a.jpg": JPEG})
        (shop.export / "pics.zip").rename(elsewhere / "pics.zip")
        (shop.export / "pics.zip").symlink_to(elsewhere / "pics.zip")
    else:
        (shop.export / "pics").symlink_to(elsewhere)
    fails(shop, r"pics(\.zip)? is a link that leaves the export, to .*elsewhere.*nothing was imported")
    shop.mapping.write_text(MAPPING.replace("[pics, pics.zip]", str(elsewhere)))  # named, it is no link that leaves
    shop.run()
    assert json.loads(shop.lines()[0])["image_version"] == digest(JPEG)


def test_a_link_in_a_zip_is_no_picture(shop: Shop) -> None:
    with zipfile.ZipFile(shop.export / "pics.zip", "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("good.jpg", JPEG)
    shop.write(*({"id": name, "name": "x", "photo": name} for name in ("link.jpg", "good.jpg")))
    assert shop.run().pictures == {"link": 1, "added": 1}


def test_a_folder_and_a_pipe_are_no_pictures(shop: Shop) -> None:
    (shop.export / "pics" / "folder.jpg").mkdir()
    os.mkfifo(shop.export / "pics" / "pipe.jpg")
    for name in ("folder.jpg", "pipe.jpg"):
        assert shop.import_one(photo=name)["image_uri"] == f"missing/{name}"


def test_an_empty_picture_is_kept_as_empty(shop: Shop) -> None:
    (shop.export / "pics" / "e.jpg").touch()
    uri = shop.import_one(photo="e.jpg")["image_uri"]
    with pytest.raises(PictureError, match="empty"):
        fetch(uri, [shop.lake.pictures])


def test_bad_members_of_a_zip_cost_only_their_picture(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(shop.export / "pics.zip", "w") as archive:
        archive.writestr("crc.jpg", b"checked content")
        archive.writestr("huge.jpg", b"0" * 5000)
        archive.writestr("good.jpg", JPEG)
    data = (shop.export / "pics.zip").read_bytes()
    (shop.export / "pics.zip").write_bytes(data.replace(b"checked content", b"chacked content"))
    monkeypatch.setattr(picture_sources, "MAX_BYTES", 4999)
    shop.write(*({"id": name, "name": "x", "photo": f"{name}.jpg"} for name in ("crc", "huge", "good")))
    assert shop.run().rows == 3
    uris = [json.loads(line)["image_uri"] for line in shop.lines()]
    assert uris[:2] == ["missing/crc.jpg", "missing/huge.jpg"]
    assert shop.pictures() == uris[2:]


def test_a_member_larger_than_it_says_takes_no_memory(shop: Shop) -> None:
    size = 300_000_000
    zipped(shop, **{"a.jpg": bytes(size)})
    data = (shop.export / "pics.zip").read_bytes()
    (shop.export / "pics.zip").write_bytes(data.replace(struct.pack("<I", size), struct.pack("<I", 1000)))
    tracemalloc.start()
    try:
        assert shop.import_one(photo="a.jpg")["image_uri"] == "missing/a.jpg"
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_a_small_zip_may_not_unpack_to_a_disk_full_of_pictures(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The members of the zip are a few bytes each, or share their bytes. A member that many records name counts once."""
    monkeypatch.setattr(unpacking, "_FREE", 2**20)
    zipped(shop, **{f"{i}.jpg": bytes(2**20) + bytes([i]) for i in range(5)})
    shop.write(*({"id": i, "name": "x", "photo": "0.jpg"} for i in range(9)))
    assert shop.run().pictures == {"added": 1, "known": 8}
    shop.write(*({"id": i, "name": "x", "photo": f"{i % 5}.jpg"} for i in range(9)))
    fails(shop, r"pics\.zip: [\d,]+ packed bytes unpack to more than [\d,]+; .* raise TAGGING_MAX_UNPACKED_GB")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 97])
def test_only_what_unpacks_in_bounds_is_unpacked(shop: Shop, method: int) -> None:
    known = method if method != 97 else zipfile.ZIP_STORED
    data = os.urandom(300_000) + b"0" * 300_000
    with zipfile.ZipFile(shop.export / "pics.zip", "w", known) as archive:
        archive.writestr("a.jpg", data)
        archive.writestr("good.jpg", JPEG, zipfile.ZIP_DEFLATED)
        archive.getinfo("a.jpg").compress_type = method
    shop.write(*({"id": name, "name": "x", "photo": f"{name}.jpg"} for name in ("a", "good")))
    shop.run()
    expected = digest(data) if method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else None
    assert [json.loads(line)["image_version"] for line in shop.lines()] == [expected, digest(JPEG)]


def test_a_damaged_member_costs_only_its_picture(shop: Shop) -> None:
    zipped(shop, **{"bad.jpg": os.urandom(5000), "good.jpg": JPEG})
    whole = (shop.export / "pics.zip").read_bytes()
    shop.write(*({"id": name, "name": "x", "photo": f"{name}.jpg"} for name in ("bad", "good")))
    for start in (0, 30, 40, 1000):  # in the local header, the name, the stream's head, its body
        (shop.export / "pics.zip").write_bytes(whole[:start] + b"\xff" * 16 + whole[start + 16 :])
        shop.run()
        assert [json.loads(line)["image_version"] for line in shop.lines()] == [None, digest(JPEG)]


@pytest.mark.parametrize("offset", [2**30, 2**63 - 1, 2**64 - 1])
def test_a_member_outside_its_zip_costs_only_its_picture(shop: Shop, offset: int) -> None:
    zipped(shop, **{"a.jpg": JPEG})
    opened = zipfile.ZipFile.__init__

    def moved(archive: zipfile.ZipFile, *arguments: Any) -> None:
        opened(archive, *arguments)
        archive.getinfo("a.jpg").header_offset = offset

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "__init__", moved)
        assert shop.import_one(photo="a.jpg")["image_uri"] == "missing/a.jpg"


@pytest.mark.parametrize("packed", [False, True])
def test_a_fault_of_the_disk_is_no_missing_picture(shop: Shop, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    if packed:
        zipped(shop, **{"a.jpg": JPEG})
        monkeypatch.setattr(zipfile.ZipExtFile, "read", fail)
    else:
        (shop.export / "pics" / "a.jpg").write_bytes(JPEG)
        monkeypatch.setattr(os, "read", fail)
    shop.write({"id": 1, "name": "x", "photo": "a.jpg"})
    fails(shop, r"picture 'a\.jpg' could not be read \(.*Input/output error: .*pics.*nothing was imported")


def test_uris_pass_through_where_pictures_are_not_imported(shop: Shop) -> None:
    shop.mapping.write_text("{records: items.jsonl, product_id: id, title: name, image_uri: url, image_version: etag}")
    shop.write({"id": 1, "name": "x", "url": "s3://b/1.jpg", "etag": "e"}, {"id": 2, "name": "x", "url": 5})
    shop.run()
    records = [json.loads(line) for line in shop.lines()]
    assert [(r["image_uri"], r["image_version"]) for r in records] == [("s3://b/1.jpg", "e"), (5, None)]
    assert not shop.lake.pictures.exists()


# --- errors


def fails(shop: Shop, words: str) -> None:
    with pytest.raises(JobError, match=words):
        shop.run()
    files = list(shop.lake.raw(DS).glob("*"))
    found = shop.lake.read_raw_manifest(DS)
    assert len(files) == (len(found.files) + 1 if found else 0), "half a day was left"


def test_errors_say_what_to_do(shop: Shop) -> None:
    fails(shop, r"no records; looked for items\.jsonl, items\.jsonl\.gz, items\.csv; the folder has \['pics'\]")
    shop.write(b"")
    fails(shop, r"items\.jsonl: no records in it")
    shop.write({"id": 1, "titel": "x"})
    fails(
        shop,
        r"no record has the columns \['care', 'label', 'name', 'photo', 'text'\].*columns are \['id', 'titel'\].*optional",
    )
    with pytest.raises(JobError, match="no such folder"):
        import_catalog(shop.settings, shop.export / "nowhere", DS, str(shop.mapping))
    with pytest.raises(JobError, match="not a day"):
        import_catalog(shop.settings, shop.export, "20.11.2026", str(shop.mapping))
    with pytest.raises(ContractError, match="no such mapping"):
        import_catalog(shop.settings, shop.export, DS, "nowhere.yaml")


@pytest.mark.parametrize("cut", [-9, 20, 200])
def test_a_truncated_gzip_is_named(shop: Shop, cut: int) -> None:
    shop.write(*({"id": i, "name": os.urandom(9).hex(), "photo": None} for i in range(500)), name="items.jsonl.gz")
    path = shop.export / "items.jsonl.gz"
    path.write_bytes(path.read_bytes()[:cut])
    fails(shop, r"items\.jsonl\.gz: truncated or damaged gzip \(.*copy the file again")
    assert shop.lake.read_raw_manifest(DS) is None


def test_a_damaged_zip_and_absent_pictures_are_named(shop: Shop) -> None:
    shop.write({"id": 1, "name": "x", "photo": "a.jpg"})
    zipped(shop, **{"a.jpg": JPEG})
    data = (shop.export / "pics.zip").read_bytes()
    (shop.export / "pics.zip").write_bytes(data[: len(data) // 2])
    fails(shop, r"pics\.zip: not a zip, or a truncated one")
    (shop.export / "pics.zip").unlink()
    (shop.export / "pics").rmdir()
    fails(shop, r"no pictures; looked for pics, pics\.zip")


@pytest.mark.parametrize("pattern", ["/data/pics*.zip", "**pics*", "[/]*"])
def test_a_pattern_of_pictures_that_is_none_within_the_export_is_refused(shop: Shop, pattern: str) -> None:
    shop.mapping.write_text(MAPPING.replace("[pics, pics.zip]", json.dumps([pattern])))
    shop.write({"id": 1, "name": "x", "photo": "a.jpg"})
    fails(shop, "not a pattern within the export|no pictures; looked for")


# --- replacing a day


def test_a_second_import_replaces_the_day(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(day_writer, "PART_ROWS", 1)
    shop.write(*({"id": i, "name": "x", "photo": None} for i in range(3)))
    shop.run()
    shop.write({"id": "new", "name": "x", "photo": None})
    shop.run()
    (file,) = shop.lake.raw(DS).glob("part-*")
    assert sorted(p.name for p in shop.lake.raw(DS).iterdir()) == ["_manifest.json", file.name]
    assert [json.loads(line)["product_id"] for line in shop.lines()] == ["new"]


def test_a_failed_import_leaves_the_day_as_it_was(shop: Shop) -> None:
    shop.write({"id": "old", "name": "x", "photo": None})
    before = shop.run()
    shop.write({"wrong": "columns"})
    fails(shop, "no record has the columns")
    assert shop.lake.read_raw_manifest(DS) == before
    assert [json.loads(line)["product_id"] for line in shop.lines()] == ["old"]


@pytest.mark.parametrize("manifest", [None, b"", b"\xff\0 garbage"])
def test_a_failed_import_keeps_the_records_of_a_day_whose_manifest_is_lost(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, manifest: bytes | None
) -> None:
    """A person can restore the manifest. The error is the one that the import failed with, not the lost manifest."""
    shop.write({"id": "old", "name": "x", "photo": None})
    shop.run()
    path = shop.lake.raw_manifest(DS)
    kept, (records,) = path.read_bytes(), shop.lake.raw(DS).glob("part-*")
    path.unlink() if manifest is None else path.write_bytes(manifest)
    monkeypatch.setattr(day_writer, "PART_ROWS", 1)
    shop.write({"id": "new", "name": "x", "photo": None})
    with (shop.export / "items.jsonl").open("ab") as file:
        file.write(b"[1]\n" * 100)
    with pytest.raises(JobError, match=r"items\.jsonl"):
        shop.run()
    assert [each.name for each in shop.lake.raw(DS).glob("part-*")] == [records.name]
    path.write_bytes(kept)
    check_raw(shop.lake, DS)
    shop.write({"id": "new", "name": "x", "photo": None})
    path.write_bytes(b"garbage")
    shop.run()
    assert [json.loads(line)["product_id"] for line in shop.lines()] == ["new"]


def test_two_imports_of_a_day_at_once(shop: Shop) -> None:
    shop.write({"id": 1, "name": "x", "photo": None})
    with storage.locked(shop.lake.raw(DS)):
        fails(shop, "another import of this day is running")
    shop.run()


def import_killed_at(step: int, shop: Shop) -> int:
    """Import in a separate process that is killed at the `step`-th change of the disk; return its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    try:
        for owner, name in (
            (Path, "rename"), (Path, "replace"), (Path, "mkdir"), (os, "fsync"), (os, "unlink"), (os, "rmdir"),
            (storage, "remove_folder"),
        ):  # fmt: skip
            setattr(owner, name, counted(getattr(owner, name)))
        shop.run()
    except BaseException:
        os._exit(1)
    os._exit(0)


def test_killed_at_any_step_the_day_is_the_old_one_or_the_new_one(shop: Shop) -> None:
    shop.write({"id": "old", "name": "x", "photo": None})
    shop.run()
    zipped(shop, **{"a.jpg": JPEG})
    shop.write({"id": "new", "name": "x", "photo": "a.jpg"})
    seen = []
    for step in range(1, 60):
        status = import_killed_at(step, shop)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        check_raw(shop.lake, DS)  # all that the manifest names is there, byte for byte
        seen.append(json.loads(shop.lines()[0])["product_id"])
        for uri in shop.pictures():
            assert uri.startswith(".") or (shop.lake.pictures / uri).read_bytes() == JPEG
        # The next import removes what this one left.
        if step % 3 == 0:
            kept = shop.export / "items.jsonl"
            new = kept.read_bytes()
            shop.write({"id": "old", "name": "x", "photo": None})
            shop.run()
            assert len(list(shop.lake.raw(DS).iterdir())) == 2
            kept.write_bytes(new)
    assert status == 0
    assert {"old", "new"} == set(seen)
    assert json.loads(shop.lines()[0])["product_id"] == "new"
    assert sorted(p.name for p in shop.lake.raw(DS).parent.iterdir()) == [f".ds={DS}.lock", f"ds={DS}"]
    assert len(list(shop.lake.raw(DS).iterdir())) == 2
    assert len(shop.pictures()) == 1


def test_a_day_that_an_earlier_version_wrote_is_replaced(shop: Shop) -> None:
    shop.write({"id": "old", "name": "x", "photo": None})
    manifest = shop.run()
    (file,) = manifest.files
    (shop.lake.raw(DS) / file.name).rename(shop.lake.raw(DS) / "part-00000.jsonl.gz")
    older = manifest.model_dump(mode="json", exclude={"pictures", "missing_pictures"})
    older["files"][0]["name"] = "part-00000.jsonl.gz"
    (shop.lake.raw(DS) / "_manifest.json").write_text(json.dumps(older))
    assert [json.loads(line)["product_id"] for line in shop.lines()] == ["old"]
    shop.write({"id": "new", "name": "x", "photo": None})
    shop.run()
    assert [json.loads(line)["product_id"] for line in shop.lines()] == ["new"]
    assert len(list(shop.lake.raw(DS).iterdir())) == 2
