"""The shipped mappings on small files in the layout of each system. `make test TESTS=tests/jobs/importing/test_mapping_shipped.py`."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.errors import JobError
from jobs.importing.import_catalog import import_catalog
from schemas.documents import RawManifest
from schemas.mapping import load_mapping, shipped_mappings
from tests.jobs.importing.test_import_catalog import DS, Shop

JPEG = b"\xff\xd8 not really"


class Export(Shop):
    """An export that is imported with a shipped mapping."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder)
        (self.export / "pics").rmdir()
        self.name = name

    def run(self) -> RawManifest:
        return import_catalog(self.settings, self.export, DS, self.name)

    def put_rows(self, name: str, *rows: dict[str, Any], delimiter: str = ",") -> None:
        """Write rows as CSV; a row may leave columns out."""
        file = io.StringIO()
        writer = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        path = self.export / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.getvalue())

    def products(self) -> dict[str, dict[str, Any]]:
        self.manifest = self.run()
        return {record["product_id"]: record for record in map(json.loads, self.lines())}


@pytest.mark.parametrize("name", shipped_mappings())
def test_a_shipped_mapping_is_valid(name: str) -> None:
    assert load_mapping(name).columns


def test_the_help_of_the_import_names_the_shipped_mappings() -> None:
    shown = CliRunner().invoke(app, ["import-catalog", "--help"], terminal_width=300).output
    assert all(name in shown for name in shipped_mappings())


@pytest.mark.parametrize("new", [False, True])
def test_shopify_rows_of_a_handle_are_one_product(tmp_path: Path, new: bool) -> None:
    shop = Export(tmp_path, "shopify")
    fit = "Passform (product.metafields.shopify.fit)"
    related = "Related (product.metafields.shopify--discovery--product_recommendation.related_products)"
    names = {
        "Handle": "URL handle", "Body (HTML)": "Description", "Option1 Name": "Option1 name", "Option1 Value": "Option1 value",
        "Variant Price": "Price", "Image Src": "Product image URL", "Product Category": "Product category",
    }  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"Handle": "wok", "Title": "Wok", "Body (HTML)": "<p>Iron</p>", "Vendor": "Ko", "Product Category": "Home > Pans > Woks",
         "Type": "Pan", "Tags": "iron, round", "Option1 Name": "Width", "Option1 Value": "28 cm", "Variant Price": "30.00",
         "Image Src": "https://cdn.example/a.jpg", fit: "gas; wood", related: "lid"},
        {"Handle": "wok", "Option1 Value": "32 cm", "Variant Price": "35.00", "Image Src": "https://cdn.example/b.jpg"},
        {"Handle": "lid", "Title": "Lid", "Option1 Name": "Title", "Option1 Value": "Default Title", "Type": "Lid"},
        {"Handle": "wok", "Image Src": "https://cdn.example/c.jpg"},
    ]  # fmt: skip
    shop.put_rows("products.csv", *({names.get(k, k) if new else k: v for k, v in row.items()} for row in rows))
    products = shop.products()
    wok = products["wok"]
    assert (wok["title"], wok["brand"], wok["description"], wok["price"]) == ("Wok", "Ko", "<p>Iron</p>", 30)
    assert wok["attributes"] == {
        "type": "Pan", "category": "Woks", "tags": ["iron", "round"], "Width": ["28 cm", "32 cm"], fit: ["gas", "wood"],
    }  # fmt: skip
    assert products["lid"]["attributes"] == {"type": "Lid"}
    assert len(wok["image_uris"]) == 3


def test_woocommerce_variations_join_their_parents(tmp_path: Path) -> None:
    shop = Export(tmp_path, "woocommerce")
    shop.put_rows(
        "export.csv",
        {"ID": 1, "Type": "variation", "SKU": "w-28", "Name": "Wok - 28", "Published": 1, "Parent": "w", "Regular price": "30",
         "Attribute 1 name": "Width", "Attribute 1 value(s)": "28 cm", "Images": "https://x.example/28.jpg"},
        {"ID": 2, "Type": "variable", "SKU": "w", "Name": "Wok", "Published": 1, "Categories": "Pans > Woks, Gifts",
         "Tags": "iron, round", "Description": "Heavy", "Attribute 1 name": "Metal", "Attribute 1 value(s)": r"Iron\, cast, Steel",
         "Attribute 2 name": "Width", "Attribute 2 value(s)": "28 cm, 32 cm",
         "Images": "https://x.example/a.jpg, https://x.example/b,1.jpg"},
        {"ID": 3, "Type": "simple", "Name": "Lid", "Published": 1, "Categories": "Lids"},
        {"ID": 4, "Type": "variation", "Name": "Lid - small", "Published": 1, "Parent": "id:3"},
        {"ID": 5, "Type": "simple", "SKU": "d", "Name": "Draft", "Published": -1},
    )  # fmt: skip
    products = shop.products()
    assert {key: record["title"] for key, record in products.items()} == {"w": "Wok", "id:3": "Lid"}
    assert products["w"]["price"] == 30
    assert products["w"]["image_uri"].endswith("a.jpg")
    assert products["w"]["attributes"] == {
        "categories": ["Woks", "Gifts"], "tags": ["iron", "round"], "Metal": ["Iron, cast", "Steel"], "Width": ["28 cm", "32 cm"],
    }  # fmt: skip
    assert shop.manifest.notes["rows left out by `where_not` on column 'Published'"] == 1


def test_magento_reads_the_visible_products_of_the_default_store_view(tmp_path: Path) -> None:
    shop = Export(tmp_path, "magento")
    row = {
        "store_view_code": "",
        "product_online": 1,
        "visibility": "Not Visible Individually",
        "attribute_set_code": "Pan",
    }
    shop.put_rows(
        "catalog.csv",
        row | {"sku": "w-28", "name": "Wok 28", "additional_attributes": "width=28 cm"},
        row | {
            "sku": "w", "name": "Wok", "visibility": "Catalog, Search", "categories": "Default/Home/Pans,Default/Gifts",
            "additional_attributes": 'manufacturer=Ko,metal=Iron|Steel &reg;,care=dry, then oil,note="a=1, b",sale=No',
            "configurable_variations": "sku=w-28,width=28 cm|sku=w-32,width=32 cm", "base_image": "/w/o/wok.jpg",
            "additional_images": "/w/o/wok.jpg,/w/o/back.jpg", "price": "30",
        },
        row | {"sku": "w", "store_view_code": "de", "name": "Wok (DE)", "visibility": "Catalog"},
        row | {"sku": "off", "name": "Off", "visibility": "Search", "product_online": 2},
    )  # fmt: skip
    with zipfile.ZipFile(shop.export / "media.zip", "w") as media:
        for name in ("wok", "back"):
            media.writestr(f"catalog/product/w/o/{name}.jpg", JPEG + name.encode())
    products = shop.products()
    assert list(products) == ["w"]
    assert (products["w"]["title"], products["w"]["brand"]) == ("Wok", "Ko")
    assert products["w"]["image_version"] is not None
    assert products["w"]["attributes"] == {
        "attribute_set_code": "Pan", "category": ["Pans", "Gifts"], "manufacturer": "Ko", "metal": ["Iron", "Steel ®"],
        "care": "dry, then oil", "note": "a=1, b", "sale": "No", "width": ["28 cm", "32 cm"],
    }  # fmt: skip
    assert len(products["w"]["image_uris"]) == 2
    assert shop.manifest.notes["rows left out by `where` on column 'store_view_code'"] == 1


FEED = {
    "id": "w-28", "title": "Wok", "description": "Iron", "price": "30.00 EUR", "brand": "Ko", "color": "Black/Rust", "size": "28 cm",
    "image_link": "https://x.example/a.jpg", "google_product_category": "Home > Pans", "item_group_id": "w",
}  # fmt: skip


def test_merchant_feeds_as_tsv_and_xml_give_the_same_records(tmp_path: Path) -> None:
    tsv, xml = Export(tmp_path / "tsv", "google-merchant"), Export(tmp_path / "xml", "google-merchant")
    tsv.put_rows("feed.tsv", FEED, FEED | {"id": "w-32", "size": "32 cm"}, delimiter="\t")
    items = "".join(
        "<item>" + "".join(f"<g:{k}>{v.replace('>', '&gt;')}</g:{k}>" for k, v in (FEED | more).items()) + "</item>"
        for more in ({}, {"id": "w-32", "size": "32 cm"})
    )
    head = '<?xml version="1.0"?><rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel><title>Ko</title>'
    xml.put("feed.xml", f"{head}{items}</channel></rss>")
    products = tsv.products()
    assert products == xml.products()
    assert list(products) == ["w-28", "w-32"]
    assert products["w-32"]["price"] == 30
    assert products["w-32"]["attributes"] == {"category": "Pans", "colors": ["Black", "Rust"], "size": "32 cm"}


def test_amazon_berkeley_objects_are_read_in_english(tmp_path: Path) -> None:
    shop = Export(tmp_path, "amazon-berkeley-objects")

    def texts(**values: str) -> list[dict[str, str]]:
        return [{"language_tag": tag, "value": value} for tag, value in values.items()]

    shop.write(
        {"item_id": "B1", "domain_name": "amazon.de", "item_name": texts(de_DE="Hocker"), "product_type": [{"value": "STOOL"}],
         "main_image_id": "71a"},
        {"item_id": "B1", "domain_name": "amazon.co.uk", "item_name": texts(en_GB="Stool"), "brand": texts(en_GB="Ko"),
         "bullet_point": [*texts(en_GB="Solid"), *texts(en_GB="Oak"), *texts(de_DE="Massiv")],
         "color": [{"language_tag": "en_GB", "value": "Oak brown", "standardized_values": ["Brown"]}],
         "node": [{"node_id": 1, "node_name": "/Home/Stools"}], "product_type": [{"value": "STOOL"}]},
        name="listings_0.json.gz",
    )  # fmt: skip
    with zipfile.ZipFile(shop.export / "images.zip", "w") as pictures:
        pictures.writestr("stools/71a.jpg", JPEG)
    (record,) = shop.products().values()
    assert (record["title"], record["brand"], record["description"]) == ("Stool", "Ko", "Solid\n\nOak")
    assert record["image_version"] is not None
    assert record["attributes"] == {"type": "STOOL", "category": "Stools", "colors": "Brown"}


def test_food101_is_read_without_a_header(tmp_path: Path) -> None:
    shop = Export(tmp_path, "food101")
    (shop.export / "texts").mkdir()
    shop.put("texts/train_titles.csv", 'ramen_0.jpg,"Ramen, quick",ramen\nramen_1.jpg,Noodles at home,ramen\n')
    shop.put("texts/test_titles.csv", "sushi_0.jpg,Sushi,sushi\n")
    for name in ("train/ramen/ramen_0.jpg", "train/ramen/ramen_1.jpg", "test/sushi/sushi_0.jpg"):
        path = shop.export / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG + name.encode())
    products = shop.products()
    assert {key: (record["title"], record["attributes"]["class"]) for key, record in products.items()} == {
        "ramen_0.jpg": ("Ramen, quick", "ramen"), "ramen_1.jpg": ("Noodles at home", "ramen"), "sushi_0.jpg": ("Sushi", "sushi"),
    }  # fmt: skip
    assert shop.manifest.pictures == {"added": 3}


def test_fashion_gen_rows_of_a_product_are_one_record(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    shop = Export(tmp_path, "fashion-gen")
    columns = {
        "input_productID": [7, 7, 8], "input_name": [b"Coat", b"Coat", b"Boots"], "input_description": [b"Wool", b"Wool", b"Calf"],
        "input_category": [b"COATS", b"COATS", b"SHOES"], "input_subcategory": [b"PARKAS", b"PARKAS", b"BOOTS"],
        "input_gender": [b"Men", b"Men", b"Women"], "input_pose": [b"id_gridfs_1", b"id_gridfs_2", b"id_gridfs_1"],
    }  # fmt: skip
    with h5py.File(shop.export / "fashiongen_256_256_train.h5", "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=[[value] for value in values])
    products = shop.products()
    assert {key: record["title"] for key, record in products.items()} == {"7": "Coat", "8": "Boots"}
    assert products["7"]["attributes"] == {
        "input_category": "COATS",
        "input_subcategory": "PARKAS",
        "input_gender": "Men",
    }


def test_pictures_of_amazon_berkeley_objects_are_found_by_their_index(tmp_path: Path) -> None:
    shop = Export(tmp_path, "amazon-berkeley-objects")
    names = {"A1": "81aB+", "A2": "71cD-", "A3": "not-in-the-index"}
    listings = [
        {"item_id": item, "item_name": [{"language_tag": "en_US", "value": item}], "main_image_id": image}
        for item, image in names.items()
    ]
    folder = shop.export / "listings" / "metadata"
    folder.mkdir(parents=True)
    (folder / "listings_0.json").write_text("".join(json.dumps(listing) + "\n" for listing in listings))
    shop.put_rows(
        "images/metadata/images.csv",
        {"image_id": "81aB+", "height": 10, "width": 10, "path": "7a/7a1b.jpg"},
        {"image_id": "71cD-", "height": 10, "width": 10, "path": "7b/7b2c.png"},
    )
    for path in ("7a/7a1b.jpg", "7b/7b2c.png"):
        file = shop.export / "images" / "small" / path
        file.parent.mkdir(parents=True)
        file.write_bytes(JPEG + path.encode())
    products = shop.products()
    pictures = {item: Path(products[item]["image_uri"]).suffix for item in names}
    assert pictures == {"A1": ".jpg", "A2": ".png", "A3": ".jpg"}
    assert products["A3"]["image_uri"] == "missing/not-in-the-index.jpg"
    assert shop.manifest.pictures == {"added": 2, "missing": 1}


def test_an_index_of_pictures_without_its_columns_stops_the_import(tmp_path: Path) -> None:
    shop = Export(tmp_path, "amazon-berkeley-objects")
    listing = {"item_id": "A1", "item_name": [{"language_tag": "en_US", "value": "Lamp"}], "main_image_id": "81aB"}
    (shop.export / "listings_0.json").write_text(json.dumps(listing) + "\n")
    shop.put_rows("images.csv", {"image": "81aB", "path": "7a/7a1b.jpg"})
    (shop.export / "images").mkdir()
    with pytest.raises(JobError, match=r"images.csv.*image_id"):
        shop.run()
