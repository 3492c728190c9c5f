"""The results of an experiment as a Markdown page."""

from __future__ import annotations

from cma_clip_core.model.methods import LABELS
from cma_clip_core.model_card.markdown_tables import comparison, markdown, over_seeds
from cma_clip_core.model_documents import Difference
from jobs.training.experiment.results import NOISES, SHARES, Judged, Results


def results_page(results: Results) -> str:
    """Return the page: recalls with intervals, differences, promises, perturbed inputs, cost."""

    def points(d: Difference | None) -> str:
        if d is None:
            return "-"
        return f"{100 * d.mean:+.1f} ({100 * d.interval.low:+.1f} to {100 * d.interval.high:+.1f})"

    sides = ", ".join(f"{n:,} {side}" for side, n in results.products.items())
    noise = markdown(
        ["changed", "method", *(f"{100 * share:.0f} %" for share in SHARES)],
        [
            [words, method, *(f"{100 * value:.1f}" for value in series)]
            for perturbation, words in NOISES.items()
            for method, series in results.noise[perturbation].items()
        ],
    )
    by_attribute = markdown(
        ["changed", "attribute, CMA-CLIP", *(f"{100 * share:.0f} %" for share in SHARES)],
        [
            [words, attribute, *(f"{100 * value:.1f}" for value in series)]
            for perturbation, words in NOISES.items()
            for attribute, series in results.noise_by_attribute[perturbation].items()
        ],
    )
    noise_margins = markdown(
        ["changed", "CMA-CLIP minus, points of mean recall", *(f"{100 * share:.0f} %" for share in SHARES if share)],
        [
            [words, LABELS[method], *map(points, differences)]
            for perturbation, words in NOISES.items()
            for method, differences in results.against_whole_noise[perturbation].items()
        ],
    )
    method_of_label = {label: method for method, label in LABELS.items()}
    # Names by label, one per seed in the order of `Judged.seeds`.
    named: dict[str, list[str]] = {label: [] for label in method_of_label}
    for r in results.runs:
        with_seed = r.seed is not None and results.seeds > 1
        named[LABELS[r.method]].append(f"{LABELS[r.method]}, seed {r.seed}" if with_seed else LABELS[r.method])
    cost = markdown(
        ["method", "training, s", "examples/s", "epoch kept"],
        [
            [name, f"{r.seconds:.0f}", f"{r.examples_per_second:.0f}", f"{r.best_epoch}"]
            for name, r in zip((name for names in named.values() for name in names), results.runs, strict=True)
        ],
    )

    def on(judged: Judged) -> list[str]:
        margins = [
            [LABELS[m], points(d), points(judged.against_whole_silent.get(m))] for m, d in judged.against_whole.items()
        ]
        with_seeds = [judged.seeds.get(method_of_label[m.method], (m,)) for m in judged.methods]
        promises = [
            [name, m.promise.words()]
            for trials in with_seeds
            for name, m in zip(named[trials[0].method], trials, strict=True)
            if m.promise is not None
        ]
        return [
            f"## Text: {', '.join(judged.text_fields)}",
            over_seeds(with_seeds) if judged.seeds else comparison(judged.methods),
            markdown(["CMA-CLIP minus", "points of mean recall", "on silent labels"], margins),
            markdown(["method", "precision promised by its thresholds, on test"], promises),
        ]

    notes = [f"{name} is not learnt, and not in any mean: {why}" for name, why in results.not_learnt.items()]
    notes += [f"{name}: {why}" for name, why in results.left_out.items()]
    notes += [f"{LABELS[method]} is kept as model version {version}" for method, version in results.versions.items()]
    if any(judged.seeds for judged in results.texts):
        notes.append(
            "For methods that were trained with several seeds, recalls are means over the seeds, with the lowest and the highest "
            "in brackets. A difference is the mean over the seeds; its interval holds 95 % of the bootstrap draws of all seeds "
            "together. Plots, thresholds and kept models are those of the first seed"
        )
    else:
        notes.append(
            "Each method was trained once. An interval covers the chance of the test products, not that of a training: another "
            "seed may change a result as much. `--seeds 3` covers both"
        )
    left_out = "".join(f"\n{note}.\n" for note in notes)
    head = (
        f"Recall at 90 % precision, in %, on the test side; products: {sides}; labelled set {results.labelled_set}; "
        f"{results.device}{f'; towers {results.towers}' if results.towers else ''}.\n{left_out}"
    )
    changed = (
        "## Texts or pictures swapped with another product's, names of labels left out of the texts; "
        f"text: {', '.join(results.texts[0].text_fields)}"
    )
    parts = [head, *(part for judged in results.texts for part in on(judged))]
    if any(results.noise.values()):
        parts += [changed, noise, *([noise_margins] if any(results.against_whole_noise.values()) else []), by_attribute]
    return "\n\n".join([*parts, "## Training", cost]) + "\n"
