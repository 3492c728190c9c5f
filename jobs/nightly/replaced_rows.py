"""Which rows of the tables a run replaces: all of a product's, or those of the chosen attributes alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from schemas.documents import Plan

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass(frozen=True, slots=True)
class Touched:
    """The products that a run tags or removes."""

    products: DataFrame  # product_id, partly: only the rows of `attributes` are replaced
    attributes: tuple[str, ...]  # none: no product is touched partly
    removed: DataFrame  # product_id: of these, those that the run removes

    @classmethod
    def by(cls, plan: Plan, planned: DataFrame, removed: DataFrame) -> Touched:
        """Return what a run touches, from the product_id and reason of what it tags and the product_id of what it removes."""
        from pyspark.sql import functions as F

        partly = F.col("reason") == "model_changed" if plan.attributes else F.lit(False)
        tagged = planned.select("product_id", partly.alias("partly"))
        both = tagged.unionByName(removed.select("product_id", F.lit(False).alias("partly")))
        return cls(both, plan.attributes, removed.select("product_id"))

    def whole(self) -> Touched:
        """Return those of which all rows are replaced."""
        return replace(self, products=self.products.where("not partly"), attributes=()) if self.attributes else self

    def replaced(self, rows: DataFrame) -> DataFrame:
        """Return those of the `rows` of a table that the run replaces."""
        return self._joined(rows, "left_semi")

    def kept(self, rows: DataFrame) -> DataFrame:
        """Return those of the `rows` of a table that the run leaves as they are."""
        return self._joined(rows, "left_anti")

    def _joined(self, rows: DataFrame, how: str) -> DataFrame:
        from pyspark.sql import functions as F

        if not self.attributes:
            return rows.join(self.products, "product_id", how)
        same = F.col("rows.product_id") == F.col("touched.product_id")
        its = ~F.col("touched.partly") | F.col("rows.attribute").isin(*self.attributes)
        return rows.alias("rows").join(self.products.alias("touched"), same & its, how)
