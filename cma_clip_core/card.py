"""The model card: what a model is, what it was trained on, how good it is, and where not to trust it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import yaml

from cma_clip_core.bootstrap import DRAWS
from cma_clip_core.config import ModelConfig
from cma_clip_core.documents import Threshold
from cma_clip_core.metrics import mean_of
from cma_clip_core.tables import one_model, own_thresholds, shipped
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

{one_model(metrics.test)}

Mean recall at 90 % precision: {mean_of(metrics.test, "recall_at_90"):.3f}, on the silent labels alone
{mean_of(metrics.test, "silent_recall_at_90"):.3f}; mean recall at the target precision:
{mean_of(metrics.test, "recall_at_target"):.3f}; mean accuracy: {mean_of(metrics.test, "accuracy"):.3f}.

*Recall at 90 %* (in %) and *at target* are the paper's number, at the lowest threshold on the test products themselves
whose precision reaches it; the range in brackets holds 95 % of {DRAWS:,} bootstrap draws of product families. *Silent*
labels are those that none of the texts the model reads names. *Average precision* is the area under the
precision-recall curve of the best value's confidence, *calibration error* the mean gap between that confidence and the
share that is right. *Text* and *image* are the mean modality-wise attention. Of an attribute with several values,
(product, value) pairs count, but for accuracy and calibration error.

## Thresholds

{shipped(metrics.test, thresholds)}

*Threshold* is that of all values without one of their own. Thresholds were chosen on validation so that with
{100 * config.selection.promise_confidence:.0f} % confidence the precision on new products reaches the target; a value
predicted for {config.selection.value_predictions} validation products or more has its own. *Precision*, *recall* and
*coverage* are what they do on test. Confidences are calibrated: logits are divided by the *temperature*.

{own_thresholds(thresholds) or "No value has a threshold of its own."}

{_promise(taxonomy, thresholds)}

## Validation

{one_model(metrics.validation)}

{shipped(metrics.validation, thresholds)}

## Limits

- A threshold's precision is promised for products like those it was chosen on: a new season, brand or photographer may
  break it, and the catalog's own mistakes count as right answers.
- Confidences are calibrated attribute by attribute, not for each value, brand or kind of product.
- The labels are the catalog's, so its mistakes are learnt, and taken for the truth in all numbers above.
- It knows the values of its taxonomy alone, and products like those of its catalog.

## Not to be used

- Where a wrong value does harm: safety, allergens, age limits, legal or customs declarations of material or origin.
- To overwrite a catalog's own values unseen: a conflict is a suspicion, for a person to look at.
- For other catalogs, languages or taxonomies without a new training, and for pictures that are no product pictures.
- To say anything of people in the pictures, or to sort, rank or target them.
- With confidences read as certainty, or below the thresholds as if they were above.

## Configuration

```yaml
{settings}```
"""


def _promise(taxonomy: Taxonomy, thresholds: Mapping[str, Threshold]) -> str:
    """Return which attributes and values are never accepted."""
    lines = []
    for attribute in taxonomy.attributes:
        chosen = thresholds[attribute.name]
        never = chosen.never(attribute)
        if chosen.lowest() is None:
            lines.append(f"- {attribute.name}: nothing is ever accepted; no threshold kept the promise on validation.")
        elif never:
            lines.append(f"- {attribute.name}: never accepted {'is' if len(never) == 1 else 'are'} {', '.join(never)}.")
    return "\n".join(lines) or "Every value has a threshold that kept its promise on validation."
