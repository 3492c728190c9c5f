"""The rule table: each data-quality rule said once.

`jobs.expectations` builds the Great Expectations suite from it, `jobs.row_filter` the Spark columns that split a day's
records into valid and quarantined ones. A row rule quarantines; if more than `max_failed_share` of the rows break it,
the batch itself is not to be trusted and the night stops.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.loading import Strict, load_shipped
from schemas.taxonomy import Name, Text

BUILT_IN = Path(__file__).parent / "rules"

Share = Annotated[float, Field(ge=0, le=1)]


class _RowRule(Strict):
    name: Name = Field(description="the reason written beside a quarantined record")
    column: Name
    why: Text = Field(description="for people: what is wrong with such a record, and what to do")
    max_failed_share: Share = Field(
        description="a larger share of failing rows, of those that have a value where the rule is about values, stops the night"
    )


class IsNull(_RowRule):
    """The column must be null."""

    check: Literal["is_null"]


class NotNull(_RowRule):
    """The column must not be null."""

    check: Literal["not_null"]


class Matches(_RowRule):
    r"""The column, where not null, must match the regular expression (Java's syntax, found anywhere unless anchored;
    ``\z`` is the end, while ``$`` lets a line end follow)."""

    check: Literal["matches"]
    pattern: Text


class WithinRoots(_RowRule):
    """The column, where not null, must be a path or URI that cannot leave the picture roots."""

    check: Literal["within_roots"]


class MaxLength(_RowRule):
    """The column, where not null, must have at most `characters` characters."""

    check: Literal["max_length"]
    characters: int = Field(ge=1)


class Between(_RowRule):
    """The column, where not null, must be from `minimum` to `maximum`, both allowed."""

    check: Literal["between"]
    minimum: float
    maximum: float


RowRule = Annotated[IsNull | NotNull | Matches | WithinRoots | MaxLength | Between, Field(discriminator="check")]


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
    """At most `maximum` of the rows may have no value in the column."""

    check: Literal["null_share"]
    name: Name
    why: Text
    column: Name
    maximum: Share


class Unique(Strict):
    """At most `max_failed_share` of the rows may share their value of the column with another row."""

    check: Literal["unique"]
    name: Name
    why: Text
    column: Name
    max_failed_share: Share


BatchRule = Annotated[RowCount | NullShare | Unique, Field(discriminator="check")]


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


def load_rules(path: str | Path) -> RuleTable:
    """Return the rule table at `path`, or the shipped one of that name (``default``). Raises ContractError."""
    return load_shipped(path, RuleTable, BUILT_IN, "rules file")
