"""The model card: a model's architecture, training data, quality, thresholds and limits, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import yaml

from cma_clip_core.catalog.splits import SIDES
from cma_clip_core.config import ModelConfig
from cma_clip_core.evaluation.bootstrap import DRAWS
from cma_clip_core.evaluation.choose_thresholds import fewest_right
from cma_clip_core.evaluation.metrics import learnt, mean_of
from cma_clip_core.model_card.markdown_tables import markdown, number, one_model, own_thresholds, shipped
from cma_clip_core.model_documents import Methods, Metrics, Threshold
from schemas.taxonomy import Taxonomy


def model_card(
    config: ModelConfig,
    taxonomy: Taxonomy,
    thresholds: Mapping[str, Threshold],
    metrics: Metrics,
    made_at: datetime,
    plots: Sequence[str] = (),
    methods: Methods | None = None,
) -> str:
    """Return the model card as Markdown; `plots` are the names of files beside it, `methods` those of an ensemble.

    The card gives the day but not the time, so that the same model saved twice on a day is the same version.
    """
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    counted = learnt(metrics)
    return f"""# Model card

{_members(config, methods)} for the taxonomy `{taxonomy.name}` ({taxonomy.fingerprint}): {len(taxonomy.attributes)}
attributes from a product's {_inputs(config)}. {_backbone(config, methods)}
Made on {made_at:%Y-%m-%d} (UTC) with the configuration `{config.name}`. Its version is the name of its folder: the day, and a
hash over all files of the folder.

## Data

{_source(metrics)}The labels are the catalog's own; a missing label is not trained on. The split is by product family, so that one
product in several colours is on one side: {metrics.train_examples:,} products to train on, {metrics.validation_examples:,} to
validate, {metrics.test_examples:,} to test, from {metrics.families:,} families. {_course(metrics)}
{_labels(taxonomy, metrics)}{_methods(methods)}
## Test

{one_model(metrics.test)}

Mean recall at 90 % precision: {mean_of(counted, "recall_at_90"):.3f}, on the silent labels alone
{mean_of(counted, "silent_recall_at_90"):.3f}; mean recall at the target precision:
{mean_of(counted, "recall_at_target"):.3f}; mean accuracy: {mean_of(counted, "accuracy"):.3f}.

- *Recall at 90 %* (in %) and *recall at target* are the paper's metric. The threshold is the lowest one on the test products
  themselves whose precision reaches 90 % or the target. The brackets hold 95 % of {DRAWS:,} bootstrap draws of product families.
- *Silent* labels are labels that none of the model's text fields names.
- *Average precision* is the area under the precision-recall curve of the best value's confidence.
- *Calibration error* is the mean gap between that confidence and the share that is right.
- *Text* and *image* are the mean weights of the two: the modality-wise attention of CMA-CLIP, 1 and 0 for a bag of words, 0 and 1 for
  picture features. For several members they are averaged by the members' weights.
- For a multi-valued attribute, pairs of a product and a value are counted, except for accuracy and calibration error.
{_picture_evidence(metrics)}{_values(metrics)}{_pictures(plots)}
## Thresholds

{_kept(metrics)}

{shipped(metrics.test, thresholds)}

*Threshold* applies to all values without their own threshold. A value predicted for {config.selection.value_predictions} or more
validation products has its own. Thresholds were chosen on validation so that the precision on new products reaches the target
with {100 * config.selection.promise_confidence:.0f} % confidence (`cma_clip_core/evaluation/choose_thresholds.py`). The one-sided
Clopper-Pearson lower bound of the precision must reach it, with a correction for products of one family. Thresholds were tested
in a sequence that the confidences alone fix (fixed-sequence testing), so that none passes as the luckiest of many. *Precision*,
*recall* and *coverage* are measured on test. Confidences are calibrated: logits are divided by the *temperature*.{_unlisted(metrics)}

{own_thresholds(thresholds) or "No value has its own threshold."}

{_never(config, taxonomy, thresholds, metrics)}

## Validation

{one_model(metrics.validation)}

{shipped(metrics.validation, thresholds)}

## Limits

- The promised precision holds for products like those that the thresholds were chosen on. A new season, brand or photographer
  may break it.
- Confidences are calibrated attribute by attribute, not for each value, brand or kind of product.
- The labels are the catalog's. The model learns its mistakes, and all numbers above count them as right answers.
- The model knows only the values of its taxonomy, and products like those of its catalog.

## Not to be used

- Where a wrong value does harm: safety, allergens, age limits, legal or customs declarations of material or origin.
- To overwrite a catalog's own values without review: a conflict is a suspicion, which a person should check.
- For other catalogs, languages or taxonomies without new training, or for pictures that do not show a product.
- To describe people in the pictures, or to sort, rank or target them.
- With confidences taken as certainty, or with values below their threshold taken as accepted.

## Configuration

```yaml
{settings}```
"""


def _members(config: ModelConfig, methods: Methods | None) -> str:
    """Return the name of the method, or of the members of an ensemble."""
    used = {name for method in methods.attributes.values() for name in method.weights} if methods else {"cma-clip"}
    names = [
        name
        for member, name in (
            ("bag-of-words", "a bag of words (TF-IDF and logistic regression)"),
            ("picture-features", "picture features (EfficientNet-Lite0, trained on ImageNet, and logistic regression)"),
            ("cma-clip", _method(config)),
        )
        if member in used
    ]
    words = " and ".join(names)
    return words[:1].upper() + words[1:]


def _backbone(config: ModelConfig, methods: Methods | None) -> str:
    if methods and not any("cma-clip" in method.weights for method in methods.attributes.values()):
        return "CMA-CLIP is not a part of this version."
    return f"Backbone: {_towers(config)}."


def _course(metrics: Metrics) -> str:
    """Return sentences on the course of the training."""
    if not metrics.epochs:
        return f"Training and evaluation took\n{metrics.seconds:,.0f} s on {metrics.device}."
    return (
        f"The model was trained for {len(metrics.epochs)} epochs in\n{metrics.seconds:,.0f} s on {metrics.device}. The weights are "
        f"those of epoch {metrics.best_epoch}. The last epoch is kept unless\nan earlier one was better on validation by more than a "
        "standard error, or training stopped early."
    )


def _methods(methods: Methods | None) -> str:
    """Return the section on the method of each attribute; empty if one method answers all."""
    if methods is None:
        return ""
    rows = []
    for name, method in methods.attributes.items():
        weights = ", ".join(f"{member} {weight:.3g}" for member, weight in method.weights.items()) or "none"
        chosen_on = "cross-fitting" if method.cross_validated else "the validation side"
        compared = "; ".join(
            f"{each}: {score.log_loss:.3f}, {number(score.recall)}" for each, score in method.candidates.items()
        )
        rows.append([name, weights, f"{method.products:,} by {chosen_on}" if method.products else "", compared])
    left_out = "".join(f"- {name} is left out: {why}.\n" for name, why in methods.left_out.items())
    header = [
        "attribute",
        "answered by (weight)",
        "thresholds chosen on",
        "candidates: log loss, recall at the promise",
    ]
    return f"""
## Methods

{markdown(header, rows)}

Each attribute is answered by the candidate with the lowest log loss on products that it was not fitted to. A candidate with more
parts must be better by more than a standard error. *Cross-fitting* means that each fifth of the training and validation products
was predicted by regressions fitted to the rest. The published regressions are fitted to all of these products. The choice, its
weights and the thresholds see the same products. The test side, which none of them saw, shows whether the promise holds.
{left_out}"""


def _method(config: ModelConfig) -> str:
    """Return the name of the method; that of an ablation says what it lacks."""
    if config.method == "clip":
        return "CLIP as a classifier (the picture against a prompt for each value)"
    fusion = config.fusion
    missing = [
        name
        for name, present in (
            ("sequence-wise attention", fusion.sequence_attention),
            ("modality-wise attention", fusion.modality_mixing == "attention"),
        )
        if not present
    ]
    other = (
        "" if fusion.modality_mixing in ("attention", "concatenation") else f", with {fusion.modality_mixing} instead"
    )
    return "CMA-CLIP (arXiv 2112.03562)" + (f" without {' and '.join(missing)}" if missing else "") + other


def _inputs(config: ModelConfig) -> str:
    seen = ("image",) if config.method == "clip" else config.fusion.modalities
    picture = f"picture ({config.picture.height} x {config.picture.width} pixels)"
    text = f"{', '.join(config.text.fields)} (at most {config.text.context_length} tokens)"
    return " and its\n".join(words for name, words in (("image", picture), ("text", text)) if name in seen)


def _towers(config: ModelConfig) -> str:
    """Return the architecture of the towers, their initial weights, and whether they were trained."""
    backbone, training = config.backbone, config.training
    kind = "custom towers" if backbone.architecture is None else f"open_clip {backbone.architecture}"
    start = (
        f"started from the pretrained `{backbone.pretrained}`" if backbone.pretrained else "started from random weights"
    )
    if not training.epochs:
        return f"{kind}, {start}, not trained here"
    if training.freeze:
        return f"{kind}, {start}; frozen: {' and '.join(training.freeze)} tower"
    return f"{kind}, {start}{'' if backbone.pretrained else ' and trained from scratch'}"


def _source(metrics: Metrics) -> str:
    if not metrics.labelled_set:
        return ""
    from_set = f"The products are those of the catalog up to {metrics.catalog_day or '?'}: the labelled set `{metrics.labelled_set}`.\n"
    towers = f"{metrics.towers.words()}\n" if metrics.towers else ""
    return from_set + _experiment(metrics) + towers


def _experiment(metrics: Metrics) -> str:
    """Return a sentence on the experiment that trained the model; empty if none did."""
    origin = metrics.experiment
    if origin is None:
        return ""
    seen = metrics.train_examples + metrics.validation_examples + metrics.test_examples
    sample = (
        f", on a sample of its families: {seen:,} of its {origin.products:,} products" if seen < origin.products else ""
    )
    return (
        f"The experiment `{origin.folder}` trained the model{sample}. It compared {', '.join(origin.compared)}; the model was trained\n"
        "on all attributes, and the numbers below cover all of them.\n"
    )


def _unlisted(metrics: Metrics) -> str:
    """Return a sentence with the number of test products that have an unlisted value, by attribute."""
    unlisted = {name: m.n_unlisted for name, m in metrics.test.items() if m.n_unlisted}
    if not unlisted:
        return ""
    counts = ", ".join(f"{name} {n:,}" for name, n in unlisted.items())
    return (
        " If a product's value is not in the taxonomy, any accepted answer counts as wrong, on validation and on test; test "
        f"products of that kind: {counts}."
    )


def _labels(taxonomy: Taxonomy, metrics: Metrics) -> str:
    """Return a table with the number of labels, and of silent ones, by attribute and side."""
    if not metrics.labels:
        return ""
    header = ["attribute", *(f"{side} labels{part}" for side in SIDES for part in ("", ", silent"))]
    rows = []
    for name in taxonomy.names:
        sides = [metrics.labels.get(name, {}).get(side) for side in SIDES]
        rows.append([name, *(f"{n:,}" for c in sides for n in ((c.labels, c.silent) if c else (0, 0)))])
    return f"\n{markdown(header, rows)}\n\nA label is *silent* here if no text field of the product names it.\n"


def _picture_evidence(metrics: Metrics) -> str:
    taken = ", ".join(f"{name} {weight:.3g}" for name, weight in metrics.picture_evidence.items() if weight)
    if not taken:
        return ""
    return (
        f"\nThe image-only logits are added to the fused logits with these weights: {taken}. Each is the largest weight that costs\n"
        "no more than a quarter of a point of recall on validation, so that confidence falls where picture and text disagree\n"
        "(`cma_clip_core/evaluation/picture_evidence.py`).\n"
    )


def _values(metrics: Metrics) -> str:
    """Return a table of the values of each attribute, collapsed because there may be a hundred."""
    parts = []
    for name in learnt(metrics):
        if (by_value := metrics.test_values.get(name)) is None:
            continue
        rows = [
            [value, f"{v.support:,}", f"{v.predicted:,}", number(v.precision), number(v.recall)]
            for value, v in by_value.values.items()
            if v.support or v.predicted
        ]
        if not rows:
            continue
        confused = "; ".join(f"{c.true} -> {c.predicted} ({c.count:,})" for c in by_value.confusions) or "nothing"
        parts.append(
            f"\n<details><summary>{name}: {len(rows)} of {len(by_value.values)} values on test</summary>\n\n"
            f"{markdown(['value', 'support', 'predicted', 'precision', 'recall'], rows)}\n\n"
            f"Most often confused (true -> predicted, test products): {confused}.\n\n</details>\n"
        )
    if not parts:
        return ""
    return (
        "\nThe tables by value count all predictions, accepted or not. *Support* is the number of test products that have the "
        "value. Values with neither support nor predictions are left out.\n" + "".join(parts)
    )


def _pictures(plots: Sequence[str]) -> str:
    return "".join(f"\n![{name.rsplit('.', 1)[0].replace('_', ' ')}]({name})\n" for name in plots)


def _kept(metrics: Metrics) -> str:
    if metrics.promise is None:
        return ""
    return (
        f"The promised precision is {metrics.promise.words()} (on the test products; where few are accepted, a target may be "
        "missed or reached by chance).\n"
    )


def _never(
    config: ModelConfig, taxonomy: Taxonomy, thresholds: Mapping[str, Threshold], metrics: Metrics
) -> str:  # fmt: skip
    """Return a list of the attributes and values that are never accepted, with the reasons."""
    lines = []
    for attribute in taxonomy.attributes:
        chosen = thresholds[attribute.name]
        never = chosen.never(attribute)
        if chosen.lowest() is None:
            why = _why_nothing(metrics.not_learnt.get(attribute.name), chosen, config.selection.promise_confidence)
            lines.append(f"- {attribute.name}: nothing is ever accepted: {why}.")
        elif never:
            lines.append(
                f"- {attribute.name}: {', '.join(never)} {'is' if len(never) == 1 else 'are'} never accepted: no threshold "
                "kept the promise on validation."
            )
    return "\n".join(lines) or "Every value has a threshold that kept its promise on validation."


def _why_nothing(not_learnt: str | None, chosen: Threshold, level: float) -> str:
    if not_learnt is not None:
        return f"it was not learnt, as {not_learnt}"
    if not chosen.candidates:
        return "no validation product has a label of this attribute"
    least = fewest_right(chosen.target_precision, level)
    if chosen.candidates < least:
        return (
            f"it has {chosen.candidates} candidates on validation; at least {least}, all of them right, are needed to show "
            f"a precision of {chosen.target_precision:.2f}"
        )
    return "no threshold kept the promise on validation"
