"""The rule table, the only definition of each data-quality rule.

`field_rules`, `row_rules` and `batch_rules` of `jobs.validation` turn it into the parser, the split and the checks of a
day's records.

* A row rule applies to the lines that are records. Only the rule on `line_error` applies to all lines, so that it alone
  counts the lines that are not records.
* `on_fail` says what happens to a row that breaks a rule. Either the field is cleared, with a note on the row, or the
  whole row is quarantined.
* If more than `max_failed_share` of a rule's rows break it, the batch cannot be trusted and the night stops.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from schemas.loading import Strict, load_shipped
from schemas.taxonomy import Name, Text

BUILT_IN = Path(__file__).parent / "rules"

# Columns of a parsed line, in addition to those of the record (schemas/tables.py: RECORD).
LINE_ERROR: Final = "line_error"
CONTENT: Final = "content"
SEVERAL_ROWS: Final = "several_rows"
# Fields that a record may lose and still be a product.
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
    Field(description="clear: the record loses only this field, and a note on its row says why"),
]


class _RowRule(Strict):
    name: Name = Field(description="the reason recorded with a quarantined record, or in the note on a cleared field")
    column: Column
    why: Text = Field(description="for people: what is wrong with such a record, and what to do")
    max_failed_share: Share = Field(
        description="a larger share of failing rows stops the night; it is a share of all records for the checks is_null, "
        "not_null and readable and for rules that clear, otherwise of the records with a value"
    )


class IsNull(_RowRule):
    """Rule that the column must be null."""

    check: Literal["is_null"]


class NotNull(_RowRule):
    """Rule that the record must give the column. A value that another rule cleared counts as given."""

    check: Literal["not_null"]


class Matches(_RowRule):
    r"""Rule that the column, if not null, must match a regular expression.

    The syntax is Java's. Unless anchored, the expression may match anywhere. ``\z`` is the end, while ``$`` also
    matches before a final line end.
    """

    check: Literal["matches"]
    pattern: Text


class Readable(_RowRule):
    """Rule that the column, if given, must have the record's type, or one that converts to it unambiguously."""

    check: Literal["readable"]
    on_fail: OnFail = "quarantine"


class WithinRoots(_RowRule):
    """Rule that the column, if not null, must be a path or URI that cannot leave the picture roots."""

    check: Literal["within_roots"]
    on_fail: OnFail = "quarantine"


class MaxLength(_RowRule):
    """Rule that the column, if not null, must have at most `characters` characters."""

    check: Literal["max_length"]
    characters: int = Field(ge=1)
    on_fail: OnFail = "quarantine"


class Between(_RowRule):
    """Rule that the column, if not null, must be from `minimum` to `maximum`, inclusive."""

    check: Literal["between"]
    minimum: float
    maximum: float
    on_fail: OnFail = "quarantine"


RowRule = Annotated[
    IsNull | NotNull | Matches | Readable | WithinRoots | MaxLength | Between, Field(discriminator="check")
]


class RowCount(Strict):
    """Rule that the batch must have at least `minimum` rows, and a number near the mean of the last days."""

    check: Literal["row_count"]
    name: Name
    why: Text
    minimum: int = Field(ge=1)
    last_days: int = Field(default=7, ge=1, description="validated days before this one that form the mean")
    minimum_ratio: float = Field(default=0.5, gt=0, le=1, description="relative to the mean of the last days")
    maximum_ratio: float = Field(default=2.0, ge=1, description="relative to the mean of the last days")


class NullShare(Strict):
    """Rule that at most the share `maximum` of the records may lack the column. A cleared value counts as given."""

    check: Literal["null_share"]
    name: Name
    why: Text
    column: Column
    maximum: Share


class Unique(Strict):
    """Rule that at most `max_failed_share` of the records may share their value of the column with another record.

    Rows whose `several_rows` is not null are left out, because another rule counts them.
    """

    check: Literal["unique"]
    name: Name
    why: Text
    column: Column
    max_failed_share: Share


class PicturesNamed(Strict):
    """Rule that records must name pictures as often as on the last days. A catalog that never named any passes."""

    check: Literal["pictures_named"]
    name: Name
    why: Text
    last_days: int = Field(default=7, ge=1, description="validated days before this one that form the mean")
    minimum_ratio: float = Field(
        default=0.5, gt=0, le=1, description="relative to the mean share of records that named a picture"
    )


class PicturesFound(Strict):
    """Rule that import must have found the pictures that records name."""

    check: Literal["pictures_found"]
    name: Name
    why: Text
    maximum_missing: Share = Field(description="share of the records that name a picture, on any day")
    last_days: int = Field(default=7, ge=1, description="validated days before this one that form the mean")
    maximum_rise: Share = Field(
        default=0.1, description="increase over the mean missing share of the last days, if known"
    )


BatchRule = Annotated[RowCount | NullShare | Unique | PicturesNamed | PicturesFound, Field(discriminator="check")]


def clears(rule: RowRule | BatchRule) -> bool:
    """Return whether a record that breaks `rule` loses only the field."""
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
            raise ValueError(f"rule names must differ; these occur more than once: {twice}")
        return self

    @model_validator(mode="after")
    def _columns_are_known(self) -> RuleTable:
        for rule in (*self.row_rules, *self.batch_rules):
            column = None if isinstance(rule, RowCount | PicturesNamed | PicturesFound) else rule.column
            if column == "wrong_types":
                raise ValueError(
                    f"rule {rule.name!r}: the column wrong_types no longer exists; write a rule with the check `readable` "
                    "for each field, as the shipped table does (schemas/rules/default.yaml)"
                )
            if column == "attributes" and not isinstance(rule, Readable):
                raise ValueError(f"rule {rule.name!r}: attributes allow only the check `readable`")
            if column is not None and column not in COLUMNS:
                raise ValueError(f"rule {rule.name!r}: no column {column!r}; the columns are {', '.join(COLUMNS)}")
        for row_rule in self.row_rules:
            if clears(row_rule) and row_rule.column not in CLEARED:
                raise ValueError(
                    f"rule {row_rule.name!r}: a record without {row_rule.column} is not a product, so the rule cannot clear it; "
                    f"fields that can be cleared: {', '.join(CLEARED)}"
                )
        return self


def load_rules(path: str | Path) -> RuleTable:
    """Return the rule table at `path`, or the shipped one of that name (``default``). Raises ContractError."""
    return load_shipped(path, RuleTable, BUILT_IN, "rules file")
