"""Recognition of a shop system by the columns of its export."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.mapping import BUILT_IN


@dataclass(frozen=True, slots=True)
class ShopSystem:
    """A shop system, or a public data set, whose mapping ships with the project."""

    mapping: str  # name of the shipped mapping
    title: str
    required: tuple[str, ...]  # columns that its exports always have
    typical: tuple[str, ...] = ()  # columns, at least one of which they have
    not_labels: tuple[str, ...] = ()  # columns that look like labels and are none


SYSTEMS: Final = (
    ShopSystem("shopify", "Shopify", ("Handle", "Title"), ("Body (HTML)", "Option1 Name", "Variant SKU", "Variant Price", "Vendor")),
    ShopSystem("woocommerce", "WooCommerce", ("ID", "Type", "SKU", "Name"), ("Regular price", "Attribute 1 name", "Tax status")),
    ShopSystem(
        "magento", "Magento", ("sku", "name"),
        ("attribute_set_code", "store_view_code", "additional_attributes", "configurable_variations"),
        ("product_type", "product_websites", "tax_class_name"),
    ),
    ShopSystem(
        "google-merchant", "Google Merchant", ("id", "title", "link", "image_link"),
        ("availability", "google_product_category", "price", "condition"),
    ),
    ShopSystem(
        "amazon-berkeley-objects", "Amazon Berkeley Objects", ("item_id", "item_name"),
        ("main_image_id", "bullet_point", "product_type", "domain_name"),
    ),
    ShopSystem("fashion-gen", "Fashion-Gen", ("input_name", "input_category"), ("input_productID", "input_description")),
    ShopSystem("fashion-products", "Fashion Product Images", ("id", "articleType", "baseColour"), ("masterCategory", "subCategory")),
)  # fmt: skip
_FOOD101: Final = ("texts/train_titles.csv", "train_titles.csv")


def recognise(columns: Collection[str], files: Collection[str]) -> tuple[ShopSystem, str] | None:
    """Return the shop system of an export with these columns and files, and the reason; None if it is not known.

    Only systems whose mapping ships with the project are returned.
    """
    if any(file.endswith(_FOOD101) for file in files):
        return ShopSystem("food101", "UPMC Food-101", ()), "the file train_titles.csv"
    known = {column.strip().casefold(): column for column in columns}
    for system in SYSTEMS:
        typical = [known[name.casefold()] for name in system.typical if name.casefold() in known]
        if typical and all(name.casefold() in known for name in system.required) and _ships(system.mapping):
            shown = ", ".join(repr(known[name.casefold()]) for name in system.required) + f" and {typical[0]!r}"
            return system, f"the columns {shown}"
    return None


def _ships(mapping: str) -> bool:
    return (Path(BUILT_IN) / f"{mapping}.yaml").exists()
