"""Conversion of predictions, in Spark, to rows of the attribute table and of the product table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.lake import parquet
from jobs.lake.layout import Lake
from schemas import tables
from schemas.documents import Plan
from schemas.taxonomy import SEVERAL, Taxonomy

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def read_plan(session: SparkSession, lake: Lake, plan: Plan) -> DataFrame:
    """Return product_id, example_path and reason of the products that a run tags."""
    from pyspark.sql import functions as F

    planned = parquet.read(session, [lake.plan_file(plan.run_id, shard.id) for shard in plan.shards], tables.PLAN)
    made = F.concat(F.lit(f"{lake.relative(lake.examples(plan.run_id))}/shard="), F.col("shard"))
    return planned.select("product_id", F.coalesce("example_path", made).alias("example_path"), "reason")


def products(predictions: DataFrame, planned: DataFrame, plan: Plan) -> DataFrame:
    """Return the rows of PRODUCTS for the products that a run tagged."""
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
    """Return the maximum number of ATTRIBUTES rows of a product, without unlisted values of multi-valued attributes."""
    return sum(len(a.values) if a.multi_valued else 1 for a in taxonomy.attributes)


def attributes(predictions: DataFrame, plan: Plan, taxonomy: Taxonomy) -> DataFrame:
    """Return the rows of ATTRIBUTES for the products that a run tagged.

    A single-valued attribute gives one row, with the catalog's value and the model's. A multi-valued one gives a row
    for each value that the catalog or the model names, and one empty row if neither names any. A catalog value counts
    even if the taxonomy does not list it: the product then has no gap, and no value of the model is filled in.
    """
    from pyspark.sql import functions as F

    multi = F.array(*[F.lit(a.name) for a in taxonomy.attributes if a.multi_valued]).cast("array<string>")
    empty = F.array().cast("array<string>")
    by_attribute = predictions.select(
        "product_id",
        "source_hash",
        "tagged_at",
        F.explode("applicable").alias("attribute"),
        "labels",
        "unlisted",
        "predictions",
    ).select(
        "product_id",
        "source_hash",
        "tagged_at",
        "attribute",
        *[
            F.coalesce(F.col(c)[F.col("attribute")], empty).alias(to)
            for c, to in (("labels", "listed"), ("unlisted", "others"))
        ],
        F.filter("predictions", lambda p: p["attribute"] == F.col("attribute")).alias("predicted"),
        F.array_contains(multi, F.col("attribute")).alias("multi"),
    )
    # `SEVERAL` is the separator by which `Taxonomy.normalise` joins the words of a single-valued attribute. Examples of
    # older versions have several words.
    single = f"""array(named_struct('catalog_value', coalesce(get(listed, 0), nullif(array_join(others, '{SEVERAL}'), '')),
        'prediction', get(predicted, 0)))"""
    several = """transform(array_union(array_union(listed, others), transform(predicted, p -> p.value)), v -> named_struct(
        'catalog_value', if(array_contains(listed, v) or array_contains(others, v), v, null),
        'prediction', get(filter(predicted, p -> p.value = v), 0)))"""
    pairs = F.expr(f"explode(if(multi and size(listed) + size(others) + size(predicted) > 0, {several}, {single}))")
    rows = by_attribute.withColumn("pair", pairs).select(
        "*", F.col("pair.catalog_value").alias("catalog_value"), F.col("pair.prediction").alias("p")
    )
    accepted = F.coalesce(F.col("p.accepted"), F.lit(False))
    is_listed = F.size("listed") > 0
    is_given = is_listed | (F.size("others") > 0)
    source = (
        F.when(F.array_contains("listed", F.col("catalog_value")), "catalog")
        .when(F.col("catalog_value").isNotNull(), "catalog_unlisted")
        .when(accepted & ~is_given, "model")
    )
    value = F.when(source == "model", F.col("p.value")).otherwise(F.col("catalog_value"))
    return rows.select(
        "product_id",
        "attribute",
        value.alias("value"),
        source.alias("source"),
        "catalog_value",
        F.col("p.value").alias("model_value"),
        F.col("p.confidence").alias("confidence"),
        accepted.alias("accepted"),
        (accepted & is_listed & ~F.array_contains("listed", F.col("p.value"))).alias("conflict"),
        F.col("p.text_weight").alias("text_weight"),
        F.col("p.image_weight").alias("image_weight"),
        F.col("p.method").alias("method"),
        F.lit(plan.model_version).alias("model_version"),
        "source_hash",
        F.lit(plan.ds).alias("ds"),
        F.lit(plan.run_id).alias("run_id"),
        "tagged_at",
    )
