"""Predictions to rows of the attribute table and of the products' state, in Spark."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs import parquet
from jobs.lake import Lake
from schemas import tables
from schemas.documents import Plan
from schemas.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def read_plan(session: SparkSession, lake: Lake, plan: Plan) -> DataFrame:
    """Return product_id, example_path and reason of the products a run tags."""
    from pyspark.sql import functions as F

    planned = parquet.read(session, [lake.plan_file(plan.run_id, shard.id) for shard in plan.shards], tables.PLAN)
    made = F.concat(F.lit(f"{lake.relative(lake.examples(plan.run_id))}/shard="), F.col("shard"))
    return planned.select("product_id", F.coalesce("example_path", made).alias("example_path"), "reason")


def products(predictions: DataFrame, planned: DataFrame, plan: Plan) -> DataFrame:
    """Return the rows of PRODUCTS for the products a run tagged."""
    from pyspark.sql import functions as F

    return predictions.join(planned, "product_id").select(
        "product_id",
        "source_hash",
        F.lit(plan.model_version).alias("model_version"),
        "modality",
        "image_status",
        "example_path",
        F.lit(plan.example_spec).alias("example_spec"),
        F.lit(plan.ds).alias("ds"),
        F.lit(plan.run_id).alias("run_id"),
        "tagged_at",
    )


def most(taxonomy: Taxonomy) -> int:
    """Return how many rows of ATTRIBUTES a product can have."""
    return sum(len(a.values) if a.multi_valued else 1 for a in taxonomy.attributes)


def attributes(predictions: DataFrame, plan: Plan, taxonomy: Taxonomy) -> DataFrame:
    """Return the rows of ATTRIBUTES for the products a run tagged.

    A single-valued attribute gives one row: the catalog's value beside the model's. A multi-valued one gives a row for
    each value that either names, and one empty row where neither names any.
    """
    from pyspark.sql import functions as F

    multi = F.array(*[F.lit(a.name) for a in taxonomy.attributes if a.multi_valued]).cast("array<string>")
    by_attribute = predictions.select(
        "product_id",
        "source_hash",
        "tagged_at",
        F.explode("applicable").alias("attribute"),
        "labels",
        "predictions",
    ).select(
        "product_id",
        "source_hash",
        "tagged_at",
        "attribute",
        F.coalesce(F.col("labels")[F.col("attribute")], F.array().cast("array<string>")).alias("given"),
        F.filter("predictions", lambda p: p["attribute"] == F.col("attribute")).alias("predicted"),
        F.array_contains(multi, F.col("attribute")).alias("multi"),
    )
    single = "array(named_struct('catalog_value', get(given, 0), 'prediction', get(predicted, 0)))"
    several = """transform(array_union(given, transform(predicted, p -> p.value)), v -> named_struct(
        'catalog_value', if(array_contains(given, v), v, null), 'prediction', get(filter(predicted, p -> p.value = v), 0)))"""
    pairs = F.expr(f"explode(if(multi and size(given) + size(predicted) > 0, {several}, {single}))")
    rows = by_attribute.withColumn("pair", pairs).select(
        "*", F.col("pair.catalog_value").alias("catalog_value"), F.col("pair.prediction").alias("p")
    )
    accepted = F.coalesce(F.col("p.accepted"), F.lit(False))
    is_given = F.size("given") > 0
    source = F.when(F.col("catalog_value").isNotNull(), "catalog").when(accepted & ~is_given, "model")
    value = F.when(source == "catalog", F.col("catalog_value")).when(source == "model", F.col("p.value"))
    return rows.select(
        "product_id",
        "attribute",
        value.alias("value"),
        source.alias("source"),
        "catalog_value",
        F.col("p.value").alias("model_value"),
        F.col("p.confidence").alias("confidence"),
        accepted.alias("accepted"),
        (accepted & is_given & ~F.array_contains("given", F.col("p.value"))).alias("conflict"),
        F.col("p.text_weight").alias("text_weight"),
        F.col("p.image_weight").alias("image_weight"),
        F.lit(plan.model_version).alias("model_version"),
        "source_hash",
        F.lit(plan.ds).alias("ds"),
        F.lit(plan.run_id).alias("run_id"),
        "tagged_at",
    )
