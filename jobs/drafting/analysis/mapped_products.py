"""Products of a sample, read by a mapping exactly as an import would read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from jobs.drafting.analysis.column_profiles import Json, Row
from jobs.importing.formats.observations import Observations
from jobs.importing.mapper import Mapper
from jobs.importing.pictures.picture_store import RequestedPicture
from jobs.records.label_forms import UnreadableError, read_value
from schemas.characters import fold
from schemas.mapping import Mapping

_WORD: Final = 200  # characters of a label


@dataclass(frozen=True, slots=True)
class Product:
    """A product of the sample, with its labels by the shop's names."""

    product_id: str
    title: str
    picture: str  # name or address of its picture; empty if it has none
    labels: dict[str, list[str]]


def map_products(rows: Iterable[Row], mapping: Mapping) -> list[Product]:
    """Return the products of `rows`. Raises ContractError or JobError if the mapping does not fit them."""
    mapper = Mapper(mapping, _PictureNames() if mapping.picture_name else None, Observations())
    products = []
    for row in _one_per_product(filter(mapper.keeps, rows), mapper, mapping):
        record = mapper.record(row)
        picture = _text(record["image_uri"])
        products.append(
            Product(_text(record["product_id"]), _text(record["title"]), picture, _labels(record["attributes"]))
        )
    return products


class _PictureNames:
    """Stand-in for the store of pictures that keeps the names and reads no picture."""

    def request(self, names: Sequence[str]) -> list[RequestedPicture]:
        """Return the names of pictures in place of their URIs in the lake."""
        return [(name, None) for name in names]

    def resolve(self, requested: Sequence[RequestedPicture]) -> list[tuple[str, str | None]]:
        """Return the names of requested pictures, without hashes."""
        return [each for each in requested if isinstance(each, tuple)]


def _one_per_product(rows: Iterable[Row], mapper: Mapper, mapping: Mapping) -> Iterator[Row]:
    if not mapping.group_by:
        yield from rows
        return
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = mapper.key(row)
        if key is None:
            yield row
        else:
            groups.setdefault(key, []).append(row)
    for group in groups.values():
        yield mapper.merge(group)


def _text(value: Json) -> str:
    if isinstance(value, list):
        value = next((item for item in value if isinstance(item, str) and item), "")
    return "" if value is None else str(value)[:_WORD]


def _labels(given: dict[str, Json]) -> dict[str, list[str]]:
    """Return the words of each label, each spelling once a product."""
    labels: dict[str, list[str]] = {}
    for name, value in given.items():
        try:
            words = read_value(value, name)
        except UnreadableError:
            continue
        distinct: dict[str, str] = {}
        for word in words:
            if folded := fold(word[:_WORD]):
                distinct.setdefault(folded, word[:_WORD].strip())
        if distinct:
            labels[name] = list(distinct.values())
    return labels
