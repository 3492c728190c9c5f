"""The column mapping, which turns a shop's own export into our records. Another shop changes this YAML, never code."""

from __future__ import annotations

import codecs
import functools
import io
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.column_paths import selects
from schemas.derivations import (
    BRACES,
    WILDCARD,
    Derivation,
    check_acyclic,
    column_text,
    template_columns,
)
from schemas.loading import Strict, load_shipped

BUILT_IN = Path(__file__).parent / "mappings"


class IndexOfPictures(Strict):
    """A table in the export that gives the path of each picture by its id."""

    file: tuple[str, ...] = Field(description="file names or globs, tried in order; the first one that exists is read")
    id: str = Field(description="column with the ids that the records give")
    path: str = Field(description="column with the paths in the folders or zips of `pictures`")

    @field_validator("file", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class Mapping(Strict):
    """Mapping of each field of a record to the shop's own column names.

    A column may be one of the files, a path into nested records (``media.front.url``, ``name[language_tag=en].value``), or
    one that `derive` makes.
    """

    records: tuple[str, ...] = Field(
        description="file names or globs, tried in order; the first one that exists is read"
    )
    format: Literal["auto", "jsonl", "json", "csv", "parquet", "xlsx", "xml", "hdf5"] = Field(
        default="auto", description="auto: by each file's content"
    )
    header: tuple[str, ...] = Field(default=(), description="column names of a CSV or XLSX without a header line")
    sheet: str = Field(default="", description="sheet of an XLSX; empty: the first that has the mapping's columns")
    records_at: str = Field(
        default="",
        description="path of the array of records in a JSON document, or name of the XML element of a record; empty: by content",
    )
    encoding: str = Field(
        default="",
        description="encoding of the records, such as cp1252; empty: UTF-8, or UTF-16 if the content shows it",
    )
    delimiter: str = Field(
        default="", description="delimiter of CSV; empty: the one that splits the header into the mapping's columns"
    )
    quote: str = Field(
        default="",
        description='quote of CSV; none: quotes are ordinary characters; empty: ", or none if the content shows it',
    )
    escape: str = Field(
        default="", description="character before a quote within a CSV cell; empty: the quote is doubled"
    )
    decimal: Literal["", ".", ","] = Field(
        default="", description="decimal separator of prices; empty: the one that a file's prices show"
    )
    multiline: Literal["check", "allow"] = Field(
        default="check", description="check: a CSV cell of several lines that look like records is an error"
    )
    group_by: str = Field(
        default="", description="column that the rows of one product share; empty: a row is a product"
    )
    group_first: dict[str, tuple[str, ...]] = Field(
        default={}, description="rows of a product that match come first, so that their values win"
    )
    where: dict[str, tuple[str, ...]] = Field(
        default={}, description='a row is read only if each column has one of its values; "" means not given'
    )
    where_not: dict[str, tuple[str, ...]] = Field(
        default={}, description='a row is left out if a column has one of its values; "" means not given'
    )
    derive: dict[str, Derivation] = Field(default={}, description="new columns, made of others")
    pictures: tuple[str, ...] = Field(
        default=(), description="zips or folders of pictures, or patterns of their names, tried in order"
    )
    picture_name: str = Field(
        default="", description="path in the zip or folder, or web address, e.g. images/{id}.jpg; columns in braces"
    )
    picture_index: IndexOfPictures | None = Field(
        default=None, description="table of the pictures' paths; a picture that it lacks has the path of `picture_name`"
    )
    product_id: str
    title: tuple[str, ...] = Field(default=(), description="columns; the first one that a record gives is used")
    brand: str = ""
    description: tuple[str, ...] = Field(default=(), description="columns joined by a blank line")
    price: str = ""
    image_uri: str = Field(default="", description="column with the picture's URI, where pictures are not imported")
    image_version: str = ""
    updated_at: str = Field(default="", description="ISO 8601, RFC 2822, or seconds or milliseconds since 1970")
    updated_at_format: str = Field(default="", description='format of strptime, such as "%d/%m/%Y %H:%M"')
    labels: tuple[str, ...] = Field(default=(), description="columns that hold labels, or globs of them")
    label_objects: tuple[str, ...] = Field(default=(), description="columns that hold objects of labels")
    list_separator: str = Field(default="", description="splits a label into several values; empty: never")
    optional: tuple[str, ...] = Field(
        default=(),
        description="columns that an export may lack, or globs of them; any other missing column is an error",
    )
    null_values: tuple[str, ...] = Field(default=("",), description='texts that mean "nothing given"')

    @field_validator("title", "description", "records", "pictures", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("where", "where_not", "group_first", mode="before")
    @classmethod
    def _values_of_columns(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        several = {column: each if isinstance(each, list) else [each] for column, each in value.items()}
        return {
            column: ["" if each is None else column_text(each) for each in values] for column, values in several.items()
        }

    @field_validator("derive")
    @classmethod
    def _acyclic(cls, value: dict[str, Derivation]) -> dict[str, Derivation]:
        return {name: value[name] for name in check_acyclic(value)}

    @field_validator("delimiter", "quote", "escape")
    @classmethod
    def _one_character(cls, value: str) -> str:
        value = {"tab": "\t", "none": "none", "backslash": "\\"}.get(value.lower(), value)
        if value and value != "none" and (len(value) != 1 or value in "\r\n"):
            raise ValueError(f"{value!r}: give one character, or tab, backslash, none (for quote)")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        if not value:
            return value
        try:
            text = io.BytesIO("text".encode(value))
            with io.TextIOWrapper(text, encoding=value, errors="surrogateescape") as file:
                file.read()
        except (LookupError, UnicodeError) as error:
            raise ValueError(f"{value!r} is not an encoding; examples are utf-8, cp1252 and utf-16") from error
        return codecs.lookup(value).name

    @field_validator("updated_at_format")
    @classmethod
    def _known_time_format(cls, value: str) -> str:
        time = datetime(2026, 11, 20, 13, 14, 15, tzinfo=UTC)
        try:
            read = datetime.strptime(time.strftime(value), value)
        except ValueError as error:
            raise ValueError(f"{value!r} is not a time format: {error}") from error
        if value and read.date() != time.date():
            raise ValueError(f"{value!r} lacks the day or the year, so records could not be ordered by it")
        return value

    @model_validator(mode="after")
    def _marks_differ(self) -> Mapping:
        marks = [mark for mark in (self.delimiter, self.quote_character, self.escape) if mark]
        if len(set(marks)) < len(marks):
            raise ValueError(
                "`delimiter`, `quote` and `escape` must differ; leave `escape` out where quotes are doubled"
            )
        return self

    @model_validator(mode="after")
    def _pictures_are_consistent(self) -> Mapping:
        if self.pictures and self.image_uri:
            raise ValueError(
                "`pictures` names pictures to import, `image_uri` names pictures to leave where they are: give one of the two"
            )
        if self.pictures and not self.picture_name:
            raise ValueError(
                "`pictures` and `picture_name` belong together: `picture_name` says which one a record has"
            )
        web = re.fullmatch(r"\{[^{}]+\}|https?://.*", self.picture_name, re.IGNORECASE | re.DOTALL)
        if self.picture_name and not self.pictures and not web:
            raise ValueError(
                "`pictures` and `picture_name` belong together; only web addresses need no `pictures`: "
                f"picture_name: {self.picture_name!r} is not a column in braces, and does not begin with https://"
            )
        if self.picture_name and self.image_uri:
            raise ValueError(
                "`picture_name` names pictures to import, `image_uri` pictures to leave: give one of the two"
            )
        if self.picture_index and (not self.pictures or len(self.picture_columns) != 1):
            raise ValueError("`picture_index` needs `pictures`, and one column in the braces of `picture_name`")
        outside = BRACES.sub("", self.picture_name)
        if self.picture_name and (not self.picture_columns or "{" in outside or "}" in outside):
            raise ValueError(
                f"picture_name: {self.picture_name!r} must name a column in braces, such as {{{self.product_id}}}.jpg"
            )
        return self

    @model_validator(mode="after")
    def _groups_are_consistent(self) -> Mapping:
        if self.group_first and not self.group_by:
            raise ValueError("`group_first` orders the rows of one product, which `group_by` must name")
        return self

    @property
    def quote_character(self) -> str | None:
        """The character that encloses a CSV cell; None if there is none."""
        return None if self.quote == "none" else self.quote or '"'

    @functools.cached_property
    def picture_columns(self) -> tuple[str, ...]:
        """The columns in the braces of `picture_name`."""
        return template_columns(self.picture_name)

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """All columns of the files that the mapping names or derives from, in order and without repetition."""
        single = (
            self.product_id,
            self.group_by,
            self.brand,
            self.price,
            self.image_uri,
            self.image_version,
            self.updated_at,
        )
        several = (*self.title, *self.description, *self.several_values)
        rows = (*self.where, *self.where_not, *self.group_first, *self.derive)
        return self.source_columns(*single, *several, *rows)

    @functools.cached_property
    def several_values(self) -> tuple[str, ...]:
        """The columns or globs that may have several values: those of labels and pictures."""
        return (*self.labels, *self.label_objects, *self.picture_columns)

    @functools.cached_property
    def id_columns(self) -> tuple[str, ...]:
        """The columns of the files that hold the id of a product."""
        return self.source_columns(self.product_id)

    @functools.cached_property
    def price_columns(self) -> tuple[str, ...]:
        """The columns of the files that hold the price."""
        return self.source_columns(self.price)

    def source_columns(self, *columns: str) -> tuple[str, ...]:
        """Return the columns of the files that `columns` are, or are derived from, in order and without repetition."""
        sources: dict[str, None] = {}
        for column in columns:
            if column in self.derive:
                sources.update(dict.fromkeys(self.source_columns(*self.derive[column].sources)))
            elif column:
                sources[column] = None
        return tuple(sources)

    def may_hold_list(self, column: str) -> bool:
        """Return whether a single value is the first of a list: of a derived column, a selecting path, or merged rows."""
        if column in self.derive or selects(column) or column in self._merged_columns:
            return True
        return any(WILDCARD in glob and glob_pattern(glob).fullmatch(column) for glob in self._merged_columns)

    @functools.cached_property
    def _merged_columns(self) -> frozenset[str]:
        return frozenset(self.source_columns(*self.several_values) if self.group_by else ())

    def is_optional(self, column: str) -> bool:
        """Return whether the files may lack `column`: `optional` names it, a glob of it, or a column derived from it."""
        return column in self._optional or any(pattern.fullmatch(column) for pattern in self._optional_globs)

    @functools.cached_property
    def _optional(self) -> frozenset[str]:
        return frozenset((*self.optional, *self.source_columns(*self.optional)))

    @functools.cached_property
    def _optional_globs(self) -> tuple[re.Pattern[str], ...]:
        return tuple(glob_pattern(column) for column in self.optional if WILDCARD in column)


def glob_pattern(glob: str) -> re.Pattern[str]:
    """Return the pattern of the columns that `glob` matches, with a group for each ``*``."""
    return re.compile("(.*)".join(map(re.escape, glob.split(WILDCARD))), re.DOTALL)


def shipped_mappings() -> tuple[str, ...]:
    """Return the names of the shipped mappings."""
    return tuple(sorted(path.stem for path in BUILT_IN.glob("*.yaml")))


def load_mapping(path: str | Path) -> Mapping:
    """Return the mapping at `path`, or the shipped one of that name (``fashion-products``). Raises ContractError."""
    return load_shipped(path, Mapping, BUILT_IN, "mapping file")
