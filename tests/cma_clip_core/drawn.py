"""Small examples for tests: the colour is in the picture alone, the pattern in the text alone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cma_clip_core.catalog.examples import ExampleIndex
from cma_clip_core.catalog.labelled_set import scan_examples
from cma_clip_core.config import ModelConfig, SelectionConfig, load_config
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.learning_problem import LearningProblem
from schemas.tables import EXAMPLES
from schemas.taxonomy import Taxonomy

COLOURS = {"Red": (200, 30, 30), "Green": (30, 180, 60), "Blue": (40, 60, 200)}
PATTERNS = ("Solid", "Striped", "Checked")
MATERIALS = ("Cotton", "Linen", "Wool")
TYPES = ("Shirt", "Watch")
QUIET = Compute(torch.device("cpu"), progress=False)
NOW = datetime(2026, 11, 20, 3, tzinfo=UTC)
WORDS = ("classic", "light", "modern", "everyday", "soft", "new", "fine", "warm", "smart", "pure")


def taxonomy() -> Taxonomy:
    """Return four attributes: two for all products, and two for shirts only, one of them multi-valued."""
    return Taxonomy.model_validate(
        {
            "name": "drawn",
            "article_type": "article_type",
            "attributes": [
                {"name": "article_type", "label": "Type", "field": "type", "values": list(TYPES)},
                {"name": "colour", "label": "Colour", "field": "colour", "values": list(COLOURS)},
                {
                    "name": "pattern", "label": "Pattern", "field": "pattern", "values": list(PATTERNS),
                    "applies_to": ["Shirt"],
                },
                {
                    "name": "material", "label": "Material", "field": "material", "values": list(MATERIALS),
                    "multi_valued": True, "applies_to": ["Shirt"],
                },
            ],
        }
    )  # fmt: skip


def config(**training: Any) -> ModelConfig:
    """Return the shipped configuration for tests, with some training settings changed."""
    document = load_config("tiny").model_dump()
    document["training"] |= training
    return ModelConfig.model_validate(document)


def example(number: int, rng: np.random.Generator, height: int = 32, width: int = 24) -> dict[str, Any]:
    """Return an example (schema EXAMPLES); every tenth has no picture, and every eleventh no text."""
    kind = TYPES[int(rng.integers(2))]
    colour = list(COLOURS)[int(rng.integers(3))]
    pattern = PATTERNS[int(rng.integers(3))]
    materials = sorted({MATERIALS[int(i)] for i in rng.integers(3, size=2)}, key=MATERIALS.index)
    pixels = np.full((height, width, 3), 255, dtype=np.int16)
    pixels[4:-4, 4:-4] = COLOURS[colour]
    pixels = np.clip(pixels + rng.integers(-20, 20, size=pixels.shape), 0, 255).astype(np.uint8)
    words = [WORDS[int(i)] for i in rng.integers(len(WORDS), size=2)]
    title = f"{words[0]} {kind} {number}" if kind == "Watch" else f"{words[0]} {pattern} {kind} {number}"
    description = f"{words[1]} {' and '.join(materials)}" if kind == "Shirt" else words[1]
    no_picture, no_text = number % 10 == 9, number % 11 == 10
    labels: list[tuple[str, list[str]]] = [("article_type", [kind]), ("colour", [colour])]
    if kind == "Shirt":
        labels += [("pattern", [pattern]), ("material", materials)]
    return {
        "product_id": f"p{number:05d}",
        "source_hash": f"h{number}",
        "title": "" if no_text else title,
        "brand": "",
        "description": "" if no_text else description,
        "image": None if no_picture else pixels.tobytes(),
        "image_status": "absent" if no_picture else "ok",
        "image_detail": None,
        "labels": labels,
        "unknown_labels": [],
    }


def examples(count: int, seed: int = 0) -> pa.Table:
    """Return examples (schema EXAMPLES)."""
    rng = np.random.default_rng(seed)
    return pa.Table.from_pylist([example(i, rng) for i in range(count)], schema=EXAMPLES)


def batch(count: int, seed: int = 0) -> pa.RecordBatch:
    """Return the same examples as one batch."""
    return examples(count, seed).combine_chunks().to_batches()[0]


def write(folder: Path, table: pa.Table, name: str = "part-0.parquet", row_group_size: int = 100) -> Path:
    """Write an example file and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name, row_group_size=row_group_size)
    return folder


def index(*folders: Path, selection: SelectionConfig | None = None) -> ExampleIndex:
    """Return the labelled examples of folders, which are given newest first."""
    return scan_examples(folders, taxonomy(), config().picture, selection or SelectionConfig()).index


def problem(config: ModelConfig, index: ExampleIndex) -> LearningProblem:
    """Return the problem of predicting `taxonomy()` from the examples of `index`."""
    return LearningProblem.build(config, taxonomy(), index)
