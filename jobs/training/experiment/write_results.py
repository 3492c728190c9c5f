"""Judge an experiment, and write its tables, plots and metrics."""

from __future__ import annotations

from cma_clip_core.model_card import markdown_tables, plots
from cma_clip_core.model_documents import THRESHOLDS_DOCUMENT
from jobs.lake import storage
from jobs.training.experiment.judge import judge, judge_noise
from jobs.training.experiment.results import NOISES, SHARES, WHOLE, Results
from jobs.training.experiment.results_page import results_page
from jobs.training.experiment.setting import MethodOutcome, Setting, Trial, by_method, kept_version, own_towers


def write_results(
    setting: Setting, labelled_set: str, outcomes: dict[Trial, MethodOutcome], left_out: dict[str, str]
) -> None:
    """Judge the methods, write tables, plots and metrics, and print the page of results."""
    wanted = setting.attributes
    (full, thresholds, tests), *others = (judge(setting, outcomes, suffix) for suffix in setting.readings)
    methods = by_method(outcomes)
    under_noise = judge_noise(setting, outcomes, thresholds, tests, full.text_fields)
    results = Results(
        labelled_set=labelled_set,
        products={side: setting.problem.index.count(side) for side in ("train", "validation", "test")},
        attributes=wanted,
        not_learnt=setting.not_learnt,
        left_out=left_out,
        device=str(setting.compute.device),
        seeds=setting.seeds,
        towers=None if (towers := own_towers(setting.folder / "towers")) is None else towers.name,
        texts=(full, *(judged for judged, _, _ in others)),
        runs=tuple(outcome.run for outcome in outcomes.values()),
        versions={method: version for method in methods if (version := kept_version(setting, method)) is not None},
        **under_noise._asdict(),
    )
    folder = setting.folder
    storage.write_document(folder / "results.json", results)
    text = results_page(results)
    storage.write_bytes(folder / "results.md", text.encode())
    if WHOLE in methods:
        first = methods[WHOLE][0]
        whole = full.methods[list(methods).index(WHOLE)].attributes
        plots.precision_recall(folder / "precision_recall.svg", tests[first], thresholds[first])
        plots.calibration(folder / "calibration.svg", tests[first], thresholds[first])
        plots.modality_weights(
            folder / "modality_weights.svg", whole, {a: setting.problem.taxonomy[a].label for a in wanted}
        )
        page = f"{markdown_tables.one_model(whole)}\n\n{markdown_tables.shipped(whole, thresholds[first])}\n"
        storage.write_bytes(folder / "cma_clip.md", page.encode())
        storage.write_bytes(folder / "thresholds.json", THRESHOLDS_DOCUMENT.dump_json(thresholds[first], indent=1))
    if any(results.noise.values()):
        plots.robustness(
            folder / "robustness.svg", SHARES, {words: results.noise[name] for name, words in NOISES.items()}
        )
    print(text)
