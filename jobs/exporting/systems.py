"""Importers of shop systems: the keys, the delimiter, and the columns that must not be written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from jobs.exporting.formulas import is_formula
from schemas.mapping import glob_pattern

Row: TypeAlias = "dict[str, Any]"

TAGGED_CSV: Final = "csv"  # no shop system: a table of products and attributes


@dataclass(frozen=True, slots=True)
class System:
    """The rules by which the importer of a shop system matches rows and treats cells (sources: docs/export.md)."""

    name: str
    keys: tuple[tuple[str, ...], ...]  # columns that a row is matched by; of each group, the first that the shop has
    needs_every_key: bool  # whether each group of `keys` must have a column; otherwise one is enough
    is_product: Callable[[Row], bool]  # whether a row describes the product and not a variant, picture or translation
    protected: dict[str, str]  # globs of columns that are never written, each with the reason
    delimiter: str = ","
    fixed_delimiter: bool = True  # whether the importer accepts only `delimiter`
    every_row: bool = False  # whether each row of a product is an item of its own
    together: tuple[str, ...] = ()  # globs of columns that the importer replaces as a whole
    beside: dict[str, str] = field(
        default_factory=dict
    )  # globs of further columns of a new attribute: value if unknown
    names_beside: str = ""  # glob of the attribute names that `beside` stands beside
    merged: tuple[str, ...] = ()  # columns of pairs whose other pairs the importer keeps
    locks_pairs: Callable[[Row], bool] = lambda _: False  # whether the pairs of a product may define its variants
    unquoted: tuple[str, ...] = ()  # globs of columns whose importer removes an apostrophe before = + - @

    def reason(self, column: str) -> str:
        """Return why `column` is never written; an empty text if it may be."""
        return next((why for glob, why in self.protected.items() if glob_pattern(glob).fullmatch(column)), "")

    def is_together(self, column: str) -> bool:
        """Return whether the importer replaces `column` together with others."""
        return _matches(column, self.together)

    def unquotes(self, column: str) -> bool:
        """Return whether the importer removes an apostrophe before a formula in `column`."""
        return _matches(column, self.unquoted)

    def fault(self, column: str, text: str) -> str:
        """Return why a cell must not be written as it is; an empty text if it may be."""
        if is_formula(text):
            return f"the shop's own text in {column!r} begins like a formula"
        if not text.isprintable() and not _is_utf8(text):
            return f"the shop's own text in {column!r} has a character that UTF-8 does not have"
        if self.delimiter == "\t" and any(sign in text for sign in "\t\r\n"):
            return f"the shop's own text in {column!r} has a tab or a line end"
        return ""


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _matches(column: str, globs: tuple[str, ...]) -> bool:
    return any(glob_pattern(glob).fullmatch(column) for glob in globs)


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    return "" if value is None else str(value).strip()


_OPTIONS: Final = "it defines the variants; use a metafield (docs/export.md)"
_VARIANTS: Final = "it belongs to a variant"

SHOPIFY: Final = System(
    name="shopify",
    keys=(("Handle", "URL handle"), ("Title",)),
    needs_every_key=True,
    is_product=lambda row: bool(_text(row, "Title")),
    protected={
        "Option*": _OPTIONS,
        "Variant*": _VARIANTS,
        "Image*": "it belongs to a picture",
        "Handle": "it identifies the product",
        "URL handle": "it identifies the product",
        "Title": "it is the product's name",
    },
)

WOOCOMMERCE: Final = System(
    name="woocommerce",
    keys=(("ID",), ("SKU",)),
    needs_every_key=False,
    is_product=lambda row: "variation" not in _text(row, "Type").lower(),
    protected={
        "ID": "it identifies the product",
        "SKU": "it identifies the product",
        "Type": "it is the kind of WooCommerce product",
        "Parent": "it connects variations",
    },
    fixed_delimiter=False,
    together=("Attribute *",),
    beside={"Attribute * visible": "1", "Attribute * global": "0"},
    names_beside="Attribute * name",
    locks_pairs=lambda row: "variable" in _text(row, "Type").lower(),
    unquoted=("Attribute * value(s)", "Tags"),
)

MAGENTO: Final = System(
    name="magento",
    keys=(("sku",),),
    needs_every_key=True,
    is_product=lambda row: not _text(row, "store_view_code"),
    protected={
        "sku": "it identifies the product",
        "product_type": "it is the kind of Magento product",
        "attribute_set_code": "it decides which attributes the product can have",
        "configurable_variation*": "it defines the variants",
    },
    fixed_delimiter=False,
    merged=("additional_attributes",),
)

MERCHANT: Final = System(
    name="google-merchant",
    keys=(("id",),),
    needs_every_key=True,
    is_product=lambda _: True,
    protected={"id": "it identifies the item", "item_group_id": "it connects variants"},
    delimiter="\t",
    every_row=True,
)

SYSTEMS: Final[dict[str, System]] = {each.name: each for each in (SHOPIFY, WOOCOMMERCE, MAGENTO, MERCHANT)}
