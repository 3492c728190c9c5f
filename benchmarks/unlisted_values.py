"""Effect of values outside the taxonomy on the promised precision, measured with TF-IDF on a labelled set.

    python -m benchmarks.unlisted_values LAKE labelled/ds=D/set=S [--taxonomy fashion] [--products 10000]

Thresholds are chosen on validation twice: *before*, only on products with a listed value; *after*, with every answer for an
unlisted value counted as wrong. Both are judged on the test side, which includes unlisted values. This is done for the catalog
as it is. It is done again with every tenth value of each attribute (by frequency) removed from the taxonomy, so that its labels
are unlisted. Only examples without pictures are written, to a temporary folder.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cma_clip_core.catalog.examples import ExampleIndex, read_index
from cma_clip_core.config import SelectionConfig, load_config
from cma_clip_core.evaluation.calibration import fit_temperature
from cma_clip_core.evaluation.choose_thresholds import choose_threshold
from cma_clip_core.evaluation.learnable import find_unlearnable
from cma_clip_core.evaluation.metrics import judge_all, mean_of, promise_kept
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.evaluation.tfidf_baseline import fit_text_baseline
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model_documents import AttributeMetrics, Promise, Threshold
from schemas.tables import EXAMPLES
from schemas.taxonomy import Taxonomy, load_taxonomy

EVERY = 10
C = (10.0,)  # inverse regularisation: the one that the baseline chooses for most attributes


def held_out(taxonomy: Taxonomy, index: ExampleIndex) -> dict[str, set[str]]:
    """Return every tenth value of each attribute, by frequency."""
    counts: Counter[tuple[str, str]] = Counter()
    for path in index.files:
        for labels in pq.read_table(path, columns=["labels"], partitioning=None)["labels"].to_pylist():
            counts.update((name, value) for name, values in labels for value in values)
    values = {}
    for attribute in taxonomy.attributes:
        ranked = sorted(attribute.value_names, key=lambda value: -counts[attribute.name, value])
        values[attribute.name] = set(ranked[EVERY // 2 - 1 :: EVERY]) if len(ranked) > EVERY // 2 else set()
    return values


def without(taxonomy: Taxonomy, values: Mapping[str, set[str]]) -> Taxonomy:
    """Return the taxonomy without some values."""
    document: dict[str, Any] = taxonomy.model_dump(mode="json")
    types = values[taxonomy.article_type]
    document["groups"] = {name: [m for m in members if m not in types] for name, members in document["groups"].items()}
    for attribute in document["attributes"]:
        attribute["values"] = [v for v in attribute["values"] if v["name"] not in values[attribute["name"]]]
        if attribute["applies_to"] != "all":
            attribute["applies_to"] = [m for m in attribute["applies_to"] if m not in types]
    return Taxonomy.model_validate(document)


def copied(index: ExampleIndex, values: Mapping[str, set[str]], folder: Path) -> ExampleIndex:
    """Copy the examples of `index` to `folder` in order, without pictures, and with labels of `values` as unlisted ones."""
    files = []
    for number, path in enumerate(index.files):
        table = pq.read_table(path, columns=[n for n in EXAMPLES.names if n != "image"], partitioning=None)
        labels, unlisted = [], []
        for known, outside in zip(table["labels"].to_pylist(), table["unknown_labels"].to_pylist(), strict=True):
            kept = {name: [v for v in given if v not in values[name]] for name, given in known}
            out = {name: [v for v in given if v in values[name]] for name, given in known}
            labels.append([(name, given) for name, given in kept.items() if given])
            unlisted.append([*outside, *((name, given) for name, given in out.items() if given)])
        columns = {name: table[name] for name in table.schema.names}
        columns |= {"labels": pa.array(labels, EXAMPLES.field("labels").type)}
        columns |= {"unknown_labels": pa.array(unlisted, EXAMPLES.field("unknown_labels").type)}
        columns["image"] = pa.nulls(table.num_rows, pa.binary())
        target = folder / f"part-{number:05d}.parquet"
        pq.write_table(pa.table({name: columns[name] for name in EXAMPLES.names}, schema=EXAMPLES), target)
        files.append(target)
    return replace(index, files=files)


def choose_all(
    predictions: Mapping[str, Predictions], selection: SelectionConfig, *, listed: bool
) -> dict[str, Threshold]:
    """Return the thresholds from predictions on validation; with `listed`, only from products with a listed value."""
    seen = {name: p.with_target() if listed else p for name, p in predictions.items()}
    return {name: choose_threshold(p, fit_temperature(p), selection) for name, p in seen.items()}


def words(name: str, metrics: Mapping[str, AttributeMetrics]) -> str:
    """Return a line with the coverage, the recall and the kept promises."""
    kept: Promise = promise_kept(metrics)
    return (
        f"{name:8} coverage {mean_of(metrics, 'coverage'):.3f}, recall {mean_of(metrics, 'recall'):.3f}; {kept.words()}"
    )


def run(title: str, index: ExampleIndex, taxonomy: Taxonomy, config_name: str) -> None:
    """Fit the baseline, choose thresholds, judge them, and print the metrics."""
    config, layout = load_config(config_name), ClassLayout(taxonomy)
    not_learnt = find_unlearnable(index, layout, config.selection.least_labels)
    fitted = fit_text_baseline(
        index, layout, config.text, not_learnt=not_learnt, inverse_regularisations=C, progress=False
    )
    validation, test = ({n: p for n, p in fitted.predict(index, side).items() if n not in not_learnt} for side in ("validation", "test"))  # type: ignore[arg-type]  # fmt: skip
    metrics = {}
    for name, listed in (("before", True), ("after", False)):
        thresholds = choose_all(validation, config.selection, listed=listed)
        metrics[name] = judge_all(test, thresholds, config.text.fields)
    print(f"\n{title}\n  " + "\n  ".join(words(name, judged) for name, judged in metrics.items()))
    print("  attribute         unlisted of test   precision before -> after    coverage before -> after", flush=True)
    for name, one in metrics["before"].items():
        other = metrics["after"][name]
        share = one.n_unlisted / max(one.n + one.n_unlisted, 1)
        cells = [
            f"{x:.3f}" if x is not None else "    -"
            for x in (one.precision, other.precision, one.coverage, other.coverage)
        ]
        print(
            f"  {name:16} {one.n_unlisted:6} {share:7.1%}       {cells[0]} -> {cells[1]}            {cells[2]} -> {cells[3]}"
        )


def main() -> None:
    """Measure both taxonomies, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("lake", type=Path)
    parser.add_argument("labelled", help="the labelled set, relative to the lake")
    parser.add_argument("--taxonomy", default="fashion")
    parser.add_argument("--config", default="fashion")
    parser.add_argument("--products", type=int, help="use whole families with about this many products; default: all")
    options = parser.parse_args()
    taxonomy = load_taxonomy(options.taxonomy)
    index = read_index(options.lake / options.labelled / "products.parquet", options.lake)
    index = index if options.products is None else index.sample(options.products)
    none: dict[str, set[str]] = {name: set() for name in taxonomy.names}
    tenth = held_out(taxonomy, index)
    for title, values in (("the catalog as it is", none), ("every tenth value removed from the taxonomy", tenth)):
        with tempfile.TemporaryDirectory() as folder:
            run(title, copied(index, values, Path(folder)), without(taxonomy, values), options.config)
    print("\nremoved: " + "; ".join(f"{name}: {', '.join(sorted(values))}" for name, values in tenth.items() if values))


if __name__ == "__main__":
    main()
