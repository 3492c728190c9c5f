"""Selection of the table rows that a run replaces: all rows of a product, or only those of the chosen attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import duckdb

from cma_clip_core.content.paths import parquet_files
from jobs.lake import duckdb_sql
from jobs.lake.layout import PRODUCTS, Lake
from schemas import tables
from schemas.documents import Plan, PublishedFile

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass(frozen=True, slots=True)
class ReplacedProducts:
    """The products that a run tags or removes, whose rows in the tables it therefore replaces."""

    products: DataFrame  # product_id, and partly: True if only the rows of `attributes` are replaced
    attributes: tuple[str, ...]  # empty if all rows of every product are replaced

    @classmethod
    def from_plan(cls, plan: Plan, planned: DataFrame, removed: DataFrame) -> ReplacedProducts:
        """Return the products that a run tags or removes.

        Args:
            plan: the plan of the run.
            planned: product_id and reason of the products that it tags.
            removed: product_id of the products that it removes.
        """
        from pyspark.sql import functions as F

        partly = F.col("reason") == "model_changed" if plan.attributes else F.lit(False)
        tagged = planned.select("product_id", partly.alias("partly"))
        products = tagged.unionByName(removed.select("product_id", F.lit(False).alias("partly")))
        return cls(products, plan.attributes)

    def fully_replaced(self) -> ReplacedProducts:
        """Return only the products whose rows are all replaced."""
        return replace(self, products=self.products.where("not partly"), attributes=()) if self.attributes else self

    def select_replaced(self, rows: DataFrame) -> DataFrame:
        """Return those of the table's `rows` that the run replaces."""
        return self._join(rows, "left_semi")

    def select_kept(self, rows: DataFrame) -> DataFrame:
        """Return those of the table's `rows` that the run keeps."""
        return self._join(rows, "left_anti")

    def _join(self, rows: DataFrame, join_type: str) -> DataFrame:
        from pyspark.sql import functions as F

        if not self.attributes:
            return rows.join(self.products, "product_id", join_type)
        same = F.col("rows.product_id") == F.col("replaced.product_id")
        is_replaced = ~F.col("replaced.partly") | F.col("rows.attribute").isin(*self.attributes)
        return rows.alias("rows").join(self.products.alias("replaced"), same & is_replaced, join_type)


def count_replaced(lake: Lake, plan: Plan, base: Sequence[PublishedFile]) -> dict[tuple[str, bool], int]:
    """Return the number of rows that a run removes from the attribute tables, for the ledger.

    DuckDB counts them independently of Spark, which writes the tables. If either loses a row, the ledger does not add
    up.

    Args:
        lake: the lake of the run.
        plan: the plan of the run.
        base: the files of the tables that the run is based on.

    Returns:
        The counts by attribute and by whether the product was removed.
    """
    lake.work.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(config={"memory_limit": "512MB", "temp_directory": str(lake.work / "scratch")}) as db:
        duckdb_sql.register_storage(db, lake.root)
        partly = "reason = 'model_changed'" if plan.attributes else "false"
        planned = duckdb_sql.scan(db, [lake.plan_file(plan.run_id, shard.id) for shard in plan.shards], tables.PLAN)
        removed = duckdb_sql.scan(db, parquet_files(lake.removed(plan.run_id)), tables.REMOVED)
        files = [lake.root / file.path for file in base if file.table != PRODUCTS]
        rows = db.execute(
            f"""with replaced as (
                    select product_id, {partly} as partly, false as removed from {planned}
                    union all select product_id, false, true from {removed})
                select attribute, removed, count(*)
                from {duckdb_sql.scan(db, files, tables.ATTRIBUTES)} join replaced using (product_id)
                where not partly or list_contains($1, attribute)
                group by all""",
            [list(plan.attributes)],
        ).fetchall()
    return {(attribute, is_removed): number for attribute, is_removed, number in rows}
