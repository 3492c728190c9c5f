"""The rule table: each data-quality rule said once.

`field_rules`, `row_rules` and `batch_rules` of `jobs.validation` build from it what parses, splits and gates a day's
records.

A row rule is about the lines that are records; only the one on `line_error` is about all lines, so that a line that is
no record is counted by that rule alone. What a row that breaks a rule loses, `on_fail` says: the field, with a note on
the row, or its place among the valid records. If more than `max_failed_share` of the rows a rule is about break it, the
batch itself is not to be trusted and the night stops.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from schemas.loading import Strict, load_shipped
from schemas.taxonomy import Name, Text

BUILT_IN = Path(__file__).parent / "rules"

# Columns of a parsed line, besides those of the record (schemas/tables.py: RECORD).
LINE_ERROR: Final = "line_error"
CONTENT: Final = "content"
SEVERAL_ROWS: Final = "several_rows"
# What a record may lose and still be a product.
CLEARED: Final = (
    "title",
    "brand",
    "description",
    "price",
    "image_uri",
    "image_version",
    "updated_at",
    "attributes",
)
COLUMNS: Final = (LINE_ERROR, CONTENT, SEVERAL_ROWS, "product_id", *CLEARED)

Share = Annotated[float, Field(ge=0, le=1)]
Column = Annotated[Name, Field(description=f"one of {', '.join(COLUMNS)}")]
OnFail = Annotated[
    Literal["quarantine", "clear"],
    Field(description="clear: the record loses this field alone, and a note on its row says why"),
]


class _RowRule(Strict):
    name: Name = Field(description="the reason written beside a quarantined record, or in the note on a cleared field")
    column: Column
    why: Text = Field(description="for people: what is wrong with such a record, and what to do")
    max_failed_share: Share = Field(
        description="a larger share of failing rows stops the night: of all records where the rule may clear the field or asks "
        "whether it is given or readable, and else of those that have a value"
    )


class IsNull(_RowRule):
    """The column must be null."""

    check: Literal["is_null"]


class NotNull(_RowRule):
    """The record must give the column. A value that was given and then cleared counts: its own rule counts it."""

    check: Literal["not_null"]


class Matches(_RowRule):
    r"""The column, where not null, must match the regular expression (Java's syntax, found anywhere unless anchored;
    ``\z`` is the end, while ``$`` lets a line end follow)."""

    check: Literal["matches"]
    pattern: Text


class Readable(_RowRule):
    """The column, where given, must be of the record's type, or of one that is read as it without a doubt."""

    check: Literal["readable"]
    on_fail: OnFail = "quarantine"


class WithinRoots(_RowRule):
    """The column, where not null, must be a path or URI that cannot leave the picture roots."""

    check: Literal["within_roots"]
    on_fail: OnFail = "quarantine"


class MaxLength(_RowRule):
    """The column, where not null, must have at most `characters` characters."""

    check: Literal["max_length"]
    characters: int = Field(ge=1)
    on_fail: OnFail = "quarantine"


class Between(_RowRule):
    """The column, where not null, must be from `minimum` to `maximum`, both allowed."""

    check: Literal["between"]
    minimum: float
    maximum: float
    on_fail: OnFail = "quarantine"


RowRule = Annotated[
    IsNull | NotNull | Matches | Readable | WithinRoots | MaxLength | Between, Field(discriminator="check")
]


class RowCount(Strict):
    """The batch must have a plausible number of rows: at least `minimum`, and near the mean of the last days."""

    check: Literal["row_count"]
    name: Name
    why: Text
    minimum: int = Field(ge=1)
    last_days: int = Field(default=7, ge=1, description="validated days before this one that the mean is taken over")
    minimum_ratio: float = Field(default=0.5, gt=0, le=1, description="of the last days' mean")
    maximum_ratio: float = Field(default=2.0, ge=1, description="of the last days' mean")


class NullShare(Strict):
    """At most `maximum` of the records may lack the column. A value that was cleared counts as given."""

    check: Literal["null_share"]
    name: Name
    why: Text
    column: Column
    maximum: Share


class Unique(Strict):
    """At most `max_failed_share` of the records may share their value of the column with another one.

    Rows that `several_rows` is about are left out: another rule counts them.
    """

    check: Literal["unique"]
    name: Name
    why: Text
    column: Column
    max_failed_share: Share


class PicturesNamed(Strict):
    """Records must name pictures as often as on the last days. A catalog that never named any passes."""

    check: Literal["pictures_named"]
    name: Name
    why: Text
    last_days: int = Field(default=7, ge=1, description="validated days before this one that the mean is taken over")
    minimum_ratio: float = Field(
        default=0.5, gt=0, le=1, description="of the mean share of records that named a picture"
    )


class PicturesFound(Strict):
    """Import must have found the pictures that records name."""

    check: Literal["pictures_found"]
    name: Name
    why: Text
    maximum_missing: Share = Field(description="of the records that name a picture, on any day")
    last_days: int = Field(default=7, ge=1, description="validated days before this one that the mean is taken over")
    maximum_rise: Share = Field(default=0.1, description="above the mean missing share of the last days, where known")


BatchRule = Annotated[RowCount | NullShare | Unique | PicturesNamed | PicturesFound, Field(discriminator="check")]


def clears(rule: RowRule | BatchRule) -> bool:
    """Whether a record that breaks `rule` loses the field alone."""
    return isinstance(rule, Readable | WithinRoots | MaxLength | Between) and rule.on_fail == "clear"


class RuleTable(Strict):
    """All rules of a catalog."""

    row_rules: tuple[RowRule, ...] = Field(min_length=1)
    batch_rules: tuple[BatchRule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> RuleTable:
        names = [r.name for r in (*self.row_rules, *self.batch_rules)]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"rule names must differ; there are several {twice}")
        return self

    @model_validator(mode="after")
    def _columns_are_known(self) -> RuleTable:
        for rule in (*self.row_rules, *self.batch_rules):
            column = None if isinstance(rule, RowCount | PicturesNamed | PicturesFound) else rule.column
            if column == "wrong_types":
                raise ValueError(
                    f"rule {rule.name!r}: the column wrong_types is gone; write a rule of the check `readable` for each "
                    "field, as the shipped table does (schemas/rules/default.yaml)"
                )
            if column == "attributes" and not isinstance(rule, Readable):
                raise ValueError(f"rule {rule.name!r}: attributes can only be checked to be `readable`")
            if column is not None and column not in COLUMNS:
                raise ValueError(f"rule {rule.name!r}: no column {column!r}; the columns are {', '.join(COLUMNS)}")
        for row_rule in self.row_rules:
            if clears(row_rule) and row_rule.column not in CLEARED:
                raise ValueError(
                    f"rule {row_rule.name!r}: a record without {row_rule.column} is no product, so it cannot be cleared; "
                    f"what can be: {', '.join(CLEARED)}"
                )
        return self


def load_rules(path: str | Path) -> RuleTable:
    """Return the rule table at `path`, or the shipped one of that name (``default``). Raises ContractError."""
    return load_shipped(path, RuleTable, BUILT_IN, "rules file")
