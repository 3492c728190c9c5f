"""The column mapping: how a shop's own export becomes our records. Another shop changes this YAML, never code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from schemas.loading import ContractError, Strict, load_yaml

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
    title: str = ""
    brand: str = ""
    description: tuple[str, ...] = Field(default=(), description="columns joined by a blank line")
    price: str = ""
    image_uri: str = Field(default="", description="column with the picture's URI, where pictures are not imported")
    image_version: str = ""
    updated_at: str = ""
    labels: tuple[str, ...] = Field(default=(), description="columns that hold labels")
    label_objects: tuple[str, ...] = Field(default=(), description="columns that hold objects of labels")
    list_separator: str = Field(default="", description="splits a label into several values; empty: never")
    null_values: tuple[str, ...] = Field(default=("",), description="texts that mean: nothing given")

    @field_validator("description", "records", "pictures", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


def load_mapping(path: str | Path) -> Mapping:
    """Return the mapping at `path`, or the shipped one of that name (``fashion-products``). Raises ContractError."""
    shipped = BUILT_IN / f"{path}.yaml"
    if "/" not in str(path) and shipped.exists():
        return load_yaml(shipped, Mapping)
    if not Path(path).exists():
        names = sorted(p.stem for p in BUILT_IN.glob("*.yaml"))
        raise ContractError(f"{path}: no such mapping file; the shipped ones are {names}")
    return load_yaml(path, Mapping)
