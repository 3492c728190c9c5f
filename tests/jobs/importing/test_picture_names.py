"""Pictures whose names are spelled differently in the records: `make test TESTS=tests/jobs/importing/test_picture_names.py`."""

from __future__ import annotations

import json
import unicodedata
import zipfile

import pytest

from jobs.errors import CriticalDataError
from jobs.importing.pictures import picture_names
from jobs.importing.pictures.picture_names import NameIndex, fold
from jobs.validation.validate import validate
from tests.conftest import settings_for
from tests.jobs.importing.test_import_catalog import JPEG, MAPPING, Shop, digest, fails, shop

__all__ = ["shop"]  # the fixture

DECOMPOSED = unicodedata.normalize("NFD", "café.jpg")


def packed(shop: Shop, *names: str, zip_name: str = "pics.zip") -> None:
    """Write a zip of different pictures: the content of each is its name."""
    with zipfile.ZipFile(shop.export / zip_name, "w") as archive:
        for name in names:
            archive.writestr(name, name)


def found(shop: Shop, *asked: str) -> list[str | None]:
    """Import records that name these pictures; return the content of each, None if it is unavailable."""
    shop.write(*({"id": str(i), "name": "x", "photo": name} for i, name in enumerate(asked)))
    manifest = shop.run()
    records = [json.loads(line) for line in shop.lines()]
    pictures = [uri for r in records for uri in r.get("image_uris", [r["image_uri"]])]
    assert sum(manifest.pictures.values()) == len(pictures)
    assert manifest.lost_pictures == sum(uri.startswith("missing/") for uri in pictures)
    return [
        (shop.lake.pictures / r["image_uri"]).read_text() if r["image_version"] else None for r in records
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("IMG_07.jpg", "img_07.JPG"),
        ("a.jpg", "a.jpeg"),
        ("a.jpg", "A.PNG"),
        ("a.jpg", "a.webp"),
        ("a", "a.jpg"),
        ("café.jpg", DECOMPOSED),
        (DECOMPOSED, "café.jpg"),
        ("STRASSE.jpg", "straße.jpg"),
        ("\uff21.jpg", "a.jpg"),
        ("sub\\a.jpg", "sub/a.jpg"),
        ("sub/a.jpg", "sub\\a.jpg"),
        ("/m/b/mb00.jpg", "m/b/mb00.jpg"),
        ("./a.jpg", "a.jpg"),
        ("a.jpg", "./a.jpg"),
        ("a.jpg", "/a.jpg"),
        ("sub//a.jpg", "sub/a.jpg"),
        ("sub/../a.jpg", "a.jpg"),
        ("images/1.jpg", "export 2026/images/1.jpg"),
        ("images/1.jpg", "Images/1.JPG"),
        ("images/1.jpg", "1.jpg"),
        ("1.jpg", "2026/11/1.jpg"),
        (" a.jpg", "a.jpg"),
        ("a.jpg\u00a0", "a.jpg"),
        ("a\u200b.jpg", "a.jpg"),
        ("a .jpg", "a.jpg"),
        ("a\n.jpg", "a.jpg"),
        ("my%20shirt.jpg", "my shirt.jpg"),
        ("my+shirt.jpg", "my shirt.jpg"),
        ("caf%C3%A9.jpg", DECOMPOSED),
        ("a.jpg?v=17", "a.jpg"),
        ("a.jpg#x", "a.jpg"),
        ("a.jpeg?width=100&height=20", "a.jpg"),
        ("A&amp;B.jpg", "A&B.jpg"),
        ("C:\\exports\\2026\\a.jpg", "2026/a.jpg"),
        ("C:\\exports\\a.jpg", "a.jpg"),
        ("\\\\server\\share\\a.jpg", "a.jpg"),
        ("a.jpg, b.jpg", "a.jpg"),
        ("a.jpg|b.jpg", "a.jpg"),
        ("a.jpg;b.jpg", "a.jpg"),
        ("a.JPG, b.jpg", "a.jpg"),
        ('["a.jpg", "b.jpg"]', "a.jpg"),
        ("['a.jpg', 'b.jpg']", "a.jpg"),
        ("50%off.jpg", "50%OFF.jpg"),
        ("s#19.jpg", "S#19.jpg"),
    ],
)
def test_a_name_is_matched_as_people_mean_it(shop: Shop, asked: str, there: str) -> None:
    packed(shop, there, "other.jpg", "b2.jpg")
    assert found(shop, asked) == [there]


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("a.jpg", ["a.png", "a.webp"]),
        ("a.jpg", ["A.jpg", "a.JPG"]),
        ("front.jpg", ["1/front.jpg", "2/front.jpg"]),
        ("x/y/1.jpg", ["1.jpg", "y/1.jpg"]),
        ("men/1.jpg", ["women/1.jpg"]),
        ("2026/11/1.jpg", ["2025/11/1.jpg"]),
        ("a.jpg", ["a.txt"]),
        ("a.jpg", ["ab.jpg"]),
        ("a, b.jpg", ["a.jpg", "b.jpg"]),
        ("1.jpg", ["__MACOSX/1.jpg"]),
        ("1.jpg", []),
        (" ?v=1", ["1.jpg"]),
    ],
)
def test_what_could_mean_another_picture_is_not_taken(shop: Shop, asked: str, there: list[str]) -> None:
    packed(shop, *there)
    assert found(shop, asked) == [None]


def test_the_exact_name_always_comes_first(shop: Shop) -> None:
    names = [
        "a.jpg",
        "A.jpg",
        "a.jpeg",
        "x/a.jpg",
        "my%20a.jpg",
        "my a.jpg",
        "a.jpg?v=1",
        "a.jpg, b.jpg",
        "a&amp;b.jpg",
    ]
    packed(shop, *names)
    assert found(shop, *names) == names


def test_two_names_that_would_share_a_picture_for_what_they_lose_get_none(shop: Shop) -> None:
    """The folder that `1.jpg` comes from is unknown, so neither record gets it, not even the first."""
    packed(shop, "1.jpg", "2.jpg", "3.webp", "4.jpg")
    asked = ["men/1.jpg", "men/2.jpg", "women/1.jpg", "3.jpg", "3.png", "MEN/2.JPG", "4.jpg", "4.JPG"]
    assert found(shop, *asked) == [None, "2.jpg", None, None, None, "2.jpg", "4.jpg", "4.jpg"]
    manifest = shop.lake.read_raw_manifest("2026-11-20")
    assert manifest is not None
    assert manifest.pictures["ambiguous"] == 4
    assert manifest.missing_pictures[0].name == "men/1.jpg"
    assert "to another record's picture name" in manifest.missing_pictures[0].why


def test_names_in_a_zip_that_are_not_marked_as_utf_8(shop: Shop) -> None:
    path = shop.export / "pics.zip"
    packed(shop, "café.jpg")
    data = path.read_bytes()
    assert data.count(b"\x00\x08\x00\x00") >= 2  # the mark, in both headers
    path.write_bytes(data.replace(b"\x14\x00\x00\x08", b"\x14\x00\x00\x00"))
    assert zipfile.ZipFile(path).namelist() != ["café.jpg"]
    assert found(shop, "café.jpg") == ["café.jpg"]


def test_names_on_a_disk_that_no_path_of_ours_may_have(shop: Shop) -> None:
    (shop.export / "pics" / "sub\\a.jpg").write_text("backslash")  # as a zip of Windows is unpacked elsewhere
    with (shop.export / "pics").joinpath("caf\udce9.jpg").open("w") as file:  # not in UTF-8
        file.write("latin")
    assert found(shop, "sub/a.jpg", "café.jpg") == ["backslash", "latin"]


def test_several_sources_are_tried_in_order_and_the_others_named(shop: Shop) -> None:
    (shop.export / "pics" / "a.PNG").write_text("loose")
    packed(shop, "A.jpg", "a.png", "b.jpg")
    packed(shop, "c.jpg", zip_name="pics2.zip")
    assert found(shop, "a.png", "A.png", "B.jpg", "c.jpg") == ["a.png", "loose", "b.jpg", None]


def test_places_of_pictures_are_found_by_a_pattern_and_in_another_case(shop: Shop) -> None:
    (shop.export / "pics").rmdir()
    packed(shop, "a.jpg", zip_name="Photos-1.zip")
    packed(shop, "b.jpg", zip_name="Photos-2.zip")
    (shop.export / "IMAGES").mkdir()
    (shop.export / "IMAGES" / "c.jpg").write_text("loose")
    shop.mapping.write_text(MAPPING.replace("[pics, pics.zip]", '[images, "Photos-*.zip"]'))
    assert found(shop, "a.jpg", "b.jpg", "c.jpg") == ["a.jpg", "b.jpg", "loose"]
    (shop.export / "Images").mkdir()  # which of the two is meant?
    assert found(shop, "a.jpg", "c.jpg") == ["a.jpg", None]


def test_the_import_says_which_pictures_are_missing_and_which_are_nearest(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    packed(shop, *(f"shirts/blue-shirt-{i}.jpg" for i in range(300)), "inner.zip")
    packed(shop, "x.jpg", zip_name="pics2.zip")
    with caplog.at_level("INFO"):
        assert found(shop, "blue_shirt_17.jpg", "Blue-Shirt-5.jpg", "http://cdn.example/a.jpg") == [
            None, "shirts/blue-shirt-5.jpg", None,
        ]  # fmt: skip
    manifest = shop.lake.read_raw_manifest("2026-11-20")
    assert manifest is not None
    assert manifest.pictures == {"missing": 1, "added": 1, "host_not_allowed": 1}
    first, second = manifest.missing_pictures
    assert first.name == "blue_shirt_17.jpg"
    assert len(first.nearest) == 3
    assert "shirts/blue-shirt-17.jpg" in first.nearest
    assert second.why.startswith("host_not_allowed: ")
    assert "2 of 3 pictures could not be imported (1 missing, 1 host_not_allowed)" in caplog.text
    assert "nearest: " in caplog.text
    assert "only from hosts that TAGGING_PICTURE_HOSTS names; seen: http://cdn.example (1)" in caplog.text
    assert "archives, which are not opened: 'inner.zip'" in caplog.text
    assert "also has 'pics2.zip'" in caplog.text
    assert "1 pictures were found under a different spelling of their name" in caplog.text


def test_equal_pictures_under_similar_names_are_not_ambiguous(shop: Shop) -> None:
    with zipfile.ZipFile(shop.export / "pics.zip", "w") as archive:
        for name, content in {"x/a.jpg": "same", "y/a.jpg": "same", "x/b.jpg": "one", "y/b.jpg": "other"}.items():
            archive.writestr(name, content)
    assert found(shop, "a.jpg", "b.jpg") == ["same", None]
    manifest = shop.lake.read_raw_manifest("2026-11-20")
    assert manifest is not None
    assert manifest.pictures == {"added": 1, "ambiguous": 1}


@pytest.mark.spark
@pytest.mark.usefixtures("spark_session")
def test_a_day_whose_pictures_are_missing_stops_and_shows_the_nearest_names(shop: Shop) -> None:
    packed(shop, *(f"shirts/blue-shirt-{i}.jpg" for i in range(30)))
    rows = [{"id": str(i), "name": "x", "photo": f"blue_shirt_{i}.jpg", "text": "Soft."} for i in range(30)]
    shop.write(*rows)
    shop.run()
    settings = settings_for(shop.lake.root)
    with pytest.raises(CriticalDataError) as error:
        validate(settings, "2026-11-20")
    assert "30 of 30 rows" in str(error.value)
    assert "Import could not read blue_shirt_0.jpg (missing: no picture has this name or a similar one" in str(
        error.value
    )
    assert "the export has shirts/blue-shirt-0.jpg, " in str(error.value)


def test_an_archive_that_is_no_zip_is_named(shop: Shop) -> None:
    shop.write({"id": 1, "name": "x", "photo": "a.jpg"})
    (shop.export / "pics").rmdir()
    for start, words in ((b"Rar!\x1a\x07", "a RAR archive"), (b"\x1f\x8b\x08", "a gzip or tar.gz archive")):
        (shop.export / "pics.zip").write_bytes(start + bytes(100))
        fails(shop, rf"pics\.zip: {words}; nothing was imported: .*pack the pictures as a zip")


def test_encrypted_pictures_are_told_as_such(shop: Shop) -> None:
    packed(shop, "a.jpg")
    data = bytearray((shop.export / "pics.zip").read_bytes())
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        data[data.index(mark) + (6 if mark.endswith(b"\x04") else 8)] |= 1
    (shop.export / "pics.zip").write_bytes(data)
    assert found(shop, "a.jpg") == [None]
    manifest = shop.lake.read_raw_manifest("2026-11-20")
    assert manifest is not None
    assert manifest.missing_pictures[0].why == "broken: encrypted; zip it without a password"


@pytest.mark.timeout(60)  # a quadratic step takes minutes
def test_many_names_that_share_their_last_part_take_no_longer() -> None:
    names = [f"products/{i}/front.jpg" for i in range(20_000)]
    index = NameIndex(names)
    for i in range(0, 20_000, 20):
        path = fold(f"C:\\shop\\Products\\{i}\\FRONT.jpeg")
        assert path is not None
        assert index.find_similar(path) == [i]
        other = fold("front.png")
        assert other is not None
        assert len(index.find_similar(other)) > 1


@pytest.mark.parametrize(
    "text", ["/" * 4000, "../" * 1300, "a/../" * 800, "%25" * 1300, "&amp;" * 800, "[" * 4000, ";" * 4000]
)
@pytest.mark.timeout(60)  # a quadratic step takes minutes
def test_hostile_names_take_no_time(text: str) -> None:
    picture_names.leads_out(text)
    picture_names.parts_of_list(text * 100)
    for reading in picture_names.readings(text):
        fold(reading)


def test_a_picture_is_still_stored_by_its_content(shop: Shop) -> None:
    (shop.export / "pics" / "a.JPEG").write_bytes(JPEG)
    record = shop.import_one(photo="a.png")
    assert record["image_uri"] == f"{digest(JPEG)[:2]}/{digest(JPEG)}.jpeg"
