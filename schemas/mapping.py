"""The column mapping: how a shop's own export becomes our records. Another shop changes this YAML, never code."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from schemas.loading import Strict, load_shipped

BUILT_IN = Path(__file__).parent / "mappings"


class Mapping(Strict):
    """Where each field of a record is found in the shop's export, by the shop's own column names.

    A name reaches into nested objects by dots (``media.front.url``).
    """

    records: tuple[str, ...] = Field(description="file names or globs, tried in order: the first that exists is read")
    format: Literal["auto", "jsonl", "csv"] = Field(default="auto", description="auto: by the file's ending")
    pictures: tuple[str, ...] = Field(default=(), description="zips or folders of pictures, tried in order")
    picture_name: str = Field(
        default="", description="path in the zip or folder, e.g. images/{id}.jpg; columns in braces"
    )
    product_id: str
    title: tuple[str, ...] = Field(default=(), description="columns, the first that a record gives is taken")
    brand: str = ""
    description: tuple[str, ...] = Field(default=(), description="columns joined by a blank line")
    price: str = ""
    image_uri: str = Field(default="", description="column with the picture's URI, where pictures are not imported")
    image_version: str = ""
    updated_at: str = ""
    labels: tuple[str, ...] = Field(default=(), description="columns that hold labels")
    label_objects: tuple[str, ...] = Field(default=(), description="columns that hold objects of labels")
    list_separator: str = Field(default="", description="splits a label into several values; empty: never")
    optional: tuple[str, ...] = Field(
        default=(), description="columns that an export may lack; to lack any other named here is an error"
    )
    null_values: tuple[str, ...] = Field(default=("",), description="texts that mean: nothing given")

    @field_validator("title", "description", "records", "pictures", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @functools.cached_property
    def picture_columns(self) -> tuple[str, ...]:
        """The columns in the braces of `picture_name`."""
        return tuple(re.findall(r"\{([^{}]+)\}", self.picture_name))

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """Every column that is named, in order, each once."""
        single = (self.product_id, self.brand, self.price, self.image_uri, self.image_version, self.updated_at)
        several = (*self.title, *self.description, *self.labels, *self.label_objects, *self.picture_columns)
        return tuple(dict.fromkeys(column for column in (*single, *several) if column))


def load_mapping(path: str | Path) -> Mapping:
    """Return the mapping at `path`, or the shipped one of that name (``fashion-products``). Raises ContractError."""
    return load_shipped(path, Mapping, BUILT_IN, "mapping file")
