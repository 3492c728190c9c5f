"""The model card: what a model is, what it was trained on, how good it is, and where not to trust it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import yaml

from cma_clip_core.config import ModelConfig
from cma_clip_core.metrics import AttributeMetrics, Threshold, mean_of
from cma_clip_core.training import Metrics
from schemas.taxonomy import Taxonomy


def model_card(
    version: str,
    config: ModelConfig,
    taxonomy: Taxonomy,
    thresholds: Mapping[str, Threshold],
    metrics: Metrics,
    made_at: datetime,
) -> str:
    """Return the model card as Markdown."""
    backbone = config.backbone
    towers = (
        "towers of our own size, trained from scratch"
        if backbone.architecture is None
        else f"open_clip {backbone.architecture}, started from {backbone.pretrained or 'random weights'}"
    )
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return f"""# Model {version}

CMA-CLIP (arXiv 2112.03562) for the taxonomy `{taxonomy.name}` ({taxonomy.fingerprint}): {len(taxonomy.attributes)}
attributes from a product's picture ({config.picture.height} x {config.picture.width} pixels) and its
{", ".join(config.text.fields)} (at most {config.text.context_length} tokens). Backbone: {towers}.
Made {made_at:%Y-%m-%d %H:%M} UTC with the configuration `{config.name}`.

## Data

The catalog's own labels; a missing label teaches nothing. Split by product family, so that one product in several
colours is on one side: {metrics.train_examples:,} products to train on, {metrics.validation_examples:,} to validate,
{metrics.test_examples:,} to test, of {metrics.families:,} families. Trained {len(metrics.epochs)} epochs in
{metrics.seconds:,.0f} s on {metrics.device}; epoch {metrics.best_epoch} was best on validation and is the one kept.

## Test

{_table(metrics.test, thresholds)}

Mean recall at the target precision: {mean_of(metrics.test, "recall_at_target"):.3f}; mean accuracy:
{mean_of(metrics.test, "accuracy"):.3f}.

*Recall at target*: the paper's number, at the lowest threshold on the test products themselves whose precision reaches
the target. *Threshold* is the one that ships, chosen the same way on validation with at least
{config.selection.min_accepted} accepted; *precision* and *coverage* are what it does on test. *Text* and *image* are
the mean modality-wise attention. Of an attribute with several values, all but accuracy count (product, value) pairs.

## Validation

{_table(metrics.validation, thresholds)}

## Limits

- Confidences are not calibrated; a threshold's precision on new data differs from the target by chance and by drift.
- {_promise([a.name for a in taxonomy.attributes if thresholds[a.name].threshold is None])}
- The labels are the catalog's, so its mistakes are learnt and are counted as right.
- It knows the values of its taxonomy alone, and products like those of its catalog.

## Configuration

```yaml
{settings}```
"""


def _promise(silent: list[str]) -> str:
    if not silent:
        return "Every attribute has a threshold that kept its promise on validation."
    return f"Nothing is ever accepted for {', '.join(silent)}: no threshold kept the promise on validation."


def _table(metrics: Mapping[str, AttributeMetrics], thresholds: Mapping[str, Threshold]) -> str:
    lines = [
        "| attribute | n | accuracy | target | recall at target | threshold | precision | coverage | text | image |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, m in metrics.items():
        cells = [
            name, f"{m.n:,}", _number(m.accuracy), f"{m.target_precision:.2f}", _number(m.recall_at_target),
            _number(thresholds[name].threshold), _number(m.precision), _number(m.coverage), f"{m.text_weight:.2f}",
            f"{m.image_weight:.2f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
