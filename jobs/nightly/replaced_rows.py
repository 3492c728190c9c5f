"""Selection of the table rows that a run replaces: all rows of a product, or only those of the chosen attributes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from schemas.documents import Plan

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass(frozen=True, slots=True)
class Touched:
    """The products that a run tags or removes."""

    products: DataFrame  # product_id, and partly: True if only the rows of `attributes` are replaced
    attributes: tuple[str, ...]  # empty if all rows of every product are replaced
    removed: DataFrame  # product_id of the products that the run removes, a subset of `products`

    @classmethod
    def by(cls, plan: Plan, planned: DataFrame, removed: DataFrame) -> Touched:
        """Return the products that a run tags or removes.

        Args:
            plan: the plan of the run.
            planned: product_id and reason of the products that it tags.
            removed: product_id of the products that it removes.
        """
        from pyspark.sql import functions as F

        partly = F.col("reason") == "model_changed" if plan.attributes else F.lit(False)
        tagged = planned.select("product_id", partly.alias("partly"))
        both = tagged.unionByName(removed.select("product_id", F.lit(False).alias("partly")))
        return cls(both, plan.attributes, removed.select("product_id"))

    def whole(self) -> Touched:
        """Return only the products whose rows are all replaced."""
        return replace(self, products=self.products.where("not partly"), attributes=()) if self.attributes else self

    def replaced(self, rows: DataFrame) -> DataFrame:
        """Return the table `rows` that the run replaces."""
        return self._joined(rows, "left_semi")

    def kept(self, rows: DataFrame) -> DataFrame:
        """Return the table `rows` that the run keeps."""
        return self._joined(rows, "left_anti")

    def _joined(self, rows: DataFrame, how: str) -> DataFrame:
        from pyspark.sql import functions as F

        if not self.attributes:
            return rows.join(self.products, "product_id", how)
        same = F.col("rows.product_id") == F.col("touched.product_id")
        is_replaced = ~F.col("touched.partly") | F.col("rows.attribute").isin(*self.attributes)
        return rows.alias("rows").join(self.products.alias("touched"), same & is_replaced, how)
