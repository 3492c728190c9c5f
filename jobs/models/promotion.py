"""Promotion of a new model, which is judged against the champion on the same test products and bootstrap draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cma_clip_core import registry
from cma_clip_core.content.paths import AnyPath, open_parquet
from cma_clip_core.errors import CoreError
from cma_clip_core.model_documents import Difference, Metrics, Threshold
from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.layout import LABELLED_TABLE, Lake
from jobs.models import champion_pointer
from jobs.models.verdict import MEAN, Verdict
from jobs.settings import Settings
from schemas.loading import ContractError

if TYPE_CHECKING:
    from cma_clip_core.evaluation.predictions import Predictions


NOISE = 0.05  # chance to refuse a model that is no worse, over all comparisons together (Bonferroni)
# An attribute is compared only if at least this many test families have a label for it. Fewer cannot show a precision of 90 %,
# even if all are right (cma_clip_core.evaluation.choose_thresholds.fewest_right), so their recall at this precision is luck. With
# 29 families a loss of 17 points is distinguishable from noise, with 10 families only one of 40.
LEAST_FAMILIES: Final = 29


def judge(settings: Settings, version: str) -> Verdict | None:
    """Judge a model version against the champion and store the verdict; return None if no other champion exists.

    Raises:
        JobError: the version does not exist or is broken, or the two cannot be compared; the message gives the reason.
    """
    lake, champion = Lake(settings.root), champion_pointer.champion(settings)
    champion_pointer.check_files(lake, version)
    return None if champion is None or champion == version else _judge(settings, lake, version, champion)


def _judge(settings: Settings, lake: Lake, version: str, champion: str) -> Verdict:
    try:
        verdict = compare(settings, version, champion)
    except (CoreError, ContractError, pa.ArrowException, OSError) as error:
        raise JobError(
            f"{version} cannot be compared with the champion {champion}: {error}; `models promote {version} --force` "
            "promotes it without a comparison"
        ) from error
    storage.write_document(lake.models_reports / f"{version}-against-{champion}.json", verdict)
    return verdict


def promote(settings: Settings, version: str, *, force: bool = False) -> Verdict | None:
    """Make a model version the champion if it is no worse than the current one; return the verdict, or None.

    Args:
        settings: names the lake and the device.
        version: the challenger.
        force: promote it without a comparison.

    Raises:
        JobError: the version does not exist, is broken or is worse, or the two cannot be compared; the message gives the reason.
        SwapLostError: another process changed the champion during the comparison.
    """
    lake, seen = Lake(settings.root), champion_pointer.champions(settings)
    champion = seen.live
    champion_pointer.check_files(lake, version)
    if force or champion is None or champion == version:
        champion_pointer.promote(settings, version, seen)
        return None
    verdict = _judge(settings, lake, version, champion)
    if not verdict.accepted:
        raise JobError(
            "\n".join(
                [
                    *verdict.lines(),
                    f"it stays a challenger; `models promote {version} --force` promotes it anyway",
                ]
            )
        )
    champion_pointer.promote(settings, version, seen)
    return verdict


def compare(settings: Settings, challenger: str, champion: str) -> Verdict:
    """Judge two model versions on the challenger's test products, without families that the champion learnt from.

    - An attribute that either model has not learnt is neither compared nor part of the mean, because its answers are random.
    - The challenger is worse at an attribute that the champion tags, if it has not learnt it or accepts none of its values.
      Promoting it would end these tags, even if it ranks well.
    - An attribute with fewer than `LEAST_FAMILIES` test families is not compared by recall.

    Raises:
        JobError: their taxonomies, picture sizes or labelled sets rule out a comparison.
        CoreError: a version is broken.
    """
    from cma_clip_core.evaluation.bootstrap import difference, draw_recalls
    from cma_clip_core.evaluation.metrics import coverage

    lake = Lake(settings.root)
    folders = {name: lake.models / name for name in (challenger, champion)}
    taxonomies = {name: registry.read_taxonomy(folder) for name, folder in folders.items()}
    if changes := taxonomies[champion].incomparable(taxonomies[challenger]):
        raise JobError(
            f"{challenger} has another taxonomy than the champion {champion}: {'; '.join(changes)}; the two cannot be "
            f"compared: `models promote {challenger} --force` promotes it without a comparison"
        )
    configs = {name: registry.read_config(folder) for name, folder in folders.items()}
    if configs[challenger].picture != configs[champion].picture:
        raise JobError(
            f"{challenger} sees pictures of another size than the champion {champion}: no examples fit both; "
            f"`models promote {challenger} --force` promotes it without a comparison"
        )
    metrics = {name: registry.read_json(folder / registry.METRICS, Metrics) for name, folder in folders.items()}
    sets = {name: known.labelled_set for name, known in metrics.items()}
    table = lake.root / (sets[challenger] or "-") / LABELLED_TABLE
    if not storage.exists(table):
        raise JobError(
            f"{table}: the labelled set that {challenger} was trained on is gone; train it again, or use --force"
        )
    seen = _families_learnt_from(table, lake.root / (sets[champion] or "-") / LABELLED_TABLE)
    doubts = [
        f"{name}: {known.towers.words()}"
        for name, known in metrics.items()
        if known.towers is not None and not known.towers.same_set
    ]
    if seen is None:
        doubts.append(f"the labelled set of {champion} is gone: it may have learnt from the products it is judged on")
    predictions, thresholds = {}, {}
    for name, folder in folders.items():
        on_test = _predict(settings, lake.local_model(name), table, lake.root)
        predictions[name] = {a: p if seen is None else p.take(~np.isin(p.families, seen)) for a, p in on_test.items()}
        thresholds[name] = registry.read_thresholds(folder)
    not_compared, lost = _not_learnt(metrics[challenger], metrics[champion], thresholds[champion])
    too_few = []
    for name, p in predictions[challenger].items():
        if name not in not_compared and (families := len(np.unique(p.families[p.has_target]))) < LEAST_FAMILIES:
            too_few.append(name)
            not_compared[name] = f"{families} test families with a label, {LEAST_FAMILIES} are the least"
    compared = [name for name in predictions[challenger] if name not in not_compared]
    differences: dict[str, Difference | None] = dict.fromkeys((MEAN, *predictions[challenger]))
    if compared:
        methods = {model: {name: p[name] for name in compared} for model, p in predictions.items()}
        draws = draw_recalls(methods, thresholds, configs[challenger].text.fields, silent=False)
        new, old = draws[challenger], draws[champion]
        differences[MEAN] = difference(new.mean_all(), old.mean_all())
        for name in new.attributes:
            differences[name] = difference(new.of(name), old.of(name))
    measured = {name: d for name, d in differences.items() if d is not None}
    limit = 1 - NOISE / max(len(measured), 1)
    return Verdict(
        challenger=challenger,
        champion=champion,
        products=len({q for p in predictions[challenger].values() for q in p.products}),
        differences=differences,
        not_compared=not_compared,
        too_few=tuple(too_few),
        worse=(*(name for name, d in measured.items() if d.below_zero > limit), *lost),
        doubts=tuple(doubts),
        coverage={
            name: (
                coverage(predictions[champion][name], thresholds[champion][name]),
                coverage(predictions[challenger][name], thresholds[challenger][name]),
            )
            for name in compared
        },
        silenced=tuple(
            name
            for name in predictions[challenger]
            if name not in metrics[challenger].not_learnt | metrics[champion].not_learnt
            and thresholds[challenger][name].lowest() is None
            and thresholds[champion][name].lowest() is not None
        ),
    )


def _not_learnt(
    challenger: Metrics, champion: Metrics, thresholds: Mapping[str, Threshold]
) -> tuple[dict[str, str], list[str]]:
    """Return the attributes that either model has not learnt, with the reasons, and those whose tags would be lost.

    Args:
        challenger: the metrics of the challenger.
        champion: the metrics of the champion.
        thresholds: the champion's thresholds by attribute. An attribute for which it accepts no value has no tags to lose.
    """
    reasons, lost = {}, []
    for name in champion.not_learnt | challenger.not_learnt:
        why = challenger.not_learnt.get(name)
        if why is None:
            reasons[name] = "the champion has not learnt it"
        elif name in champion.not_learnt:
            reasons[name] = "neither has learnt it"
        elif thresholds[name].lowest() is None:
            reasons[name] = f"the challenger has not learnt it, as {why}; the champion has, but accepts no value of it"
        else:
            reasons[name] = f"the challenger has not learnt it, as {why}; the champion has, and tags it"
            lost.append(name)
    return reasons, lost


def _predict(settings: Settings, folder: Path, table: AnyPath, root: AnyPath) -> dict[str, Predictions]:
    from cma_clip_core.catalog.examples import read_index
    from cma_clip_core.evaluation.evaluate import evaluate
    from cma_clip_core.inputs.devices import move_to, resolve_device
    from cma_clip_core.inputs.learning_problem import LearningProblem

    config, device = registry.read_config(folder), resolve_device(settings.device)
    model = move_to(registry.load_model(folder), device)
    problem = LearningProblem.build(config, registry.read_taxonomy(folder), read_index(table, root))
    return evaluate(model, problem, "test", device)


def _families_learnt_from(table: AnyPath, learnt: AnyPath) -> npt.NDArray[np.int64] | None:
    """Return the families of a labelled set that a model learnt from, or None if they are unknown.

    Sides change from day to day. A product on today's test side may have a sibling that an older model was trained on, or that
    chose its thresholds.

    Args:
        table: the table of the labelled set.
        learnt: the table of the labelled set that the model was trained on.
    """
    if not storage.exists(learnt):
        return None
    with open_parquet(learnt) as file:
        rows = file.read(columns=["product_id", "side"])
    seen = rows.filter(pc.not_equal(rows["side"], "test"))["product_id"]
    with open_parquet(table) as file:
        products = file.read(columns=["product_id", "family"])
    known = pc.is_in(products["product_id"], value_set=seen.combine_chunks())
    families: npt.NDArray[np.int64] = pc.unique(products["family"].filter(known)).to_numpy()
    return families
