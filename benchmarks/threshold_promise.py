"""Simulation of threshold rules, to see which of them keep the promised precision.

    PYTHONPATH=. python benchmarks/threshold_promise.py

Attributes of many kinds are drawn. A product's chance of being right is a logistic function of a normal number, with a ceiling
because some labels are wrong. A threshold is chosen on drawn validation products. It is judged by the true precision, and by
the precision on a test side of twice the size. There are five questions:

- Which rule is best?
- How do families affect it?
- How many predictions should a value have to get its own threshold?
- Does it do harm to fit a temperature on the same products?
- Does it do harm to choose the weight of the picture evidence on the same products?

It prints Markdown, and takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from cma_clip_core.arrays import Bools, Doubles, Integers
from cma_clip_core.config import SelectionConfig
from cma_clip_core.evaluation.calibration import fit_temperature
from cma_clip_core.evaluation.candidates import candidates
from cma_clip_core.evaluation.choose_thresholds import (
    choose_threshold,
    correlation_within,
    lower_bound_reaches,
    promised_threshold,
)
from cma_clip_core.evaluation.picture_evidence import LEAST_PRODUCTS, choose_weight, pool
from cma_clip_core.evaluation.predictions import Predictions
from schemas.taxonomy import Attribute

LEVEL = 0.95
SIZES = (100, 300, 1000, 3000)
POPULATION = 40_000


@dataclass(slots=True)
class Products:
    confidence: Doubles  # [n]
    right: Bools  # [n]
    family: Integers  # [n]
    value: Integers  # [n]


@dataclass(slots=True)
class Kind:
    """A kind of attribute. `lie` multiplies the logits: above 1, the model is too confident."""

    mean: float
    spread: float
    ceiling: float
    lie: float = 1.0
    in_families: float = 0.0  # spread of an effect that a family shares and confidence does not show
    family_size: float = 1.0  # mean of a geometric distribution
    values: int = 1  # of falling frequency (Zipf)
    value_spread: float = (
        0.0  # spread of an effect that a value's products share and confidence does not show; the third is bad
    )

    def draw(self, n: int, rng: np.random.Generator, offsets: Doubles | None = None) -> Products:
        sizes = rng.geometric(1 / self.family_size, n)
        family = np.repeat(np.arange(n), sizes)[:n]
        share = np.sqrt(0.5) if self.family_size > 1 else 0.0
        z = self.mean + self.spread * (share * rng.normal(size=n)[family] + np.sqrt(1 - share**2) * rng.normal(size=n))
        frequency = 1 / np.arange(1, self.values + 1)
        value = rng.choice(self.values, n, p=frequency / frequency.sum())
        hidden = self.in_families * rng.normal(size=n)[family] + (0 if offsets is None else offsets[value])
        # The mean of a logistic function over a normal number is about a flatter logistic one, so confidence is calibrated.
        flat = np.sqrt(1 + np.pi / 8 * self.in_families**2)
        confidence = self.ceiling * expit(self.lie * z / flat)
        return Products(confidence, rng.random(n) < self.ceiling * expit(z + hidden), family, value)


KINDS = {
    "strong": Kind(3.5, 1.8, 1.0),
    "middling": Kind(2.0, 2.0, 1.0),
    "weak": Kind(0.8, 1.5, 1.0),
    "strong, noisy labels": Kind(3.5, 1.8, 0.97),
    "middling, noisy labels": Kind(2.0, 2.0, 0.96),
    "middling, too sure": Kind(2.0, 2.0, 1.0, lie=1.5),
}

Rule = Callable[[Products, float], float | None]


def _ranked(products: Products) -> tuple[Doubles, Doubles, Doubles]:
    order = np.argsort(-products.confidence)
    return products.confidence[order], np.cumsum(products.right[order]) + 0.0, np.arange(1, len(order) + 1) + 0.0


def lowest_reaching(products: Products, target: float) -> float | None:
    """Return the lowest threshold that reaches the target on 20 or more validation products, without any bound."""
    confidence, right, number = _ranked(products)
    reached = np.flatnonzero((right / number >= target) & (number >= 20))
    return float(confidence[reached[-1]]) if len(reached) else None


def lowest_passing(products: Products, target: float) -> float | None:
    confidence, right, number = _ranked(products)
    passed = np.flatnonzero(lower_bound_reaches(right, number, target, LEVEL))
    return float(confidence[passed[-1]]) if len(passed) else None


def _grid(target: float, n: int, errors: int, growth: float) -> Integers:
    """Return growing numbers of accepted products, from the smallest that passes with `errors` errors."""
    counts = np.arange(1, 500) + 0.0
    passing = lower_bound_reaches(np.maximum(counts - errors, 0), counts, target, LEVEL)
    least = int(counts[np.flatnonzero(passing)[0]])
    steps = max(int(np.log(max(n / least, 1)) / np.log(growth)) + 1, 0) if n >= least else 0
    return np.unique((least * growth ** np.arange(steps)).astype(np.int64))


def bonferroni(products: Products, target: float) -> float | None:
    confidence, right, number = _ranked(products)
    tested = _grid(target, len(number), 0, 1.25) - 1
    level = 1 - (1 - LEVEL) / max(len(tested), 1)
    passed = tested[lower_bound_reaches(right[tested], number[tested], target, level)]
    return float(confidence[passed[-1]]) if len(passed) else None


def from_the_top(errors: int) -> Rule:
    def rule(products: Products, target: float) -> float | None:
        confidence, right, number = _ranked(products)
        tested = _grid(target, len(number), errors, 1.1) - 1
        if not len(tested):
            return None
        passed = lower_bound_reaches(right[tested], number[tested], target, LEVEL)
        passes = len(tested) if passed.all() else int(np.argmin(passed))
        return float(confidence[tested[passes - 1]]) if passes else None

    return rule


def ours(products: Products, target: float) -> float | None:
    correlation = correlation_within(products.right - products.confidence, products.family)
    return promised_threshold(
        products.confidence.astype(np.float32), products.right, products.family, target, LEVEL, correlation
    )  # fmt: skip


def ours_without_families(products: Products, target: float) -> float | None:
    return promised_threshold(products.confidence.astype(np.float32), products.right, products.family, target, LEVEL)


RULES: dict[str, Rule] = {
    "lowest that reaches the target": lowest_reaching,
    "lowest that passes": lowest_passing,
    "sequence from the top": from_the_top(0),
    "sequence from the top, two errors": from_the_top(2),
    "Bonferroni, counts growing by a quarter": bonferroni,
    "sequence from the likeliest pass (ours)": ours,
}


def judge(kind: Kind, n: int, target: float, rules: dict[str, Rule], repeats: int, seed: int) -> dict[str, Doubles]:
    """Return the means over repeats for each rule: promise kept in truth, kept on a test side, recall, nothing accepted."""
    rng = np.random.default_rng(seed)
    truth = kind.draw(20 * POPULATION, rng)
    confidence, right, number = _ranked(truth)
    results: dict[str, list[tuple[float, ...]]] = {name: [] for name in rules}
    for _ in range(repeats):
        validation, test = kind.draw(n, rng), kind.draw(2 * n, rng)
        for name, rule in rules.items():
            threshold = rule(validation, target)
            if threshold is None:
                results[name].append((1, 1, 0, 1))
                continue
            threshold -= 1e-6  # single precision rounds up
            last = int(np.searchsorted(-confidence, -threshold, side="right")) - 1
            accepted = test.confidence >= threshold
            kept = not accepted.any() or test.right[accepted].mean() >= target
            results[name].append((right[last] / number[last] >= target, kept, right[last] / len(number), 0))
    return {name: np.mean(rows, axis=0) for name, rows in results.items()}


def table(title: str, columns: tuple[str, ...], rows: Iterator[tuple[str, Doubles]]) -> None:
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, numbers in rows:
        print(f"| {name} | {' | '.join(f'{100 * x:.1f}' for x in numbers)} |", flush=True)


COLUMNS = ("kept, %", "kept, worst cell", "kept on test", "kept on test, worst", "recall", "nothing accepted")


def _summary(cells: list[Doubles]) -> Doubles:
    mean, least = np.mean(cells, axis=0), np.min(cells, axis=0)
    return np.array([mean[0], least[0], mean[1], least[1], mean[2], mean[3]])


def study_rules(repeats: int) -> None:
    for target in (0.9, 0.95):
        cells = [judge(k, n, target, RULES, repeats, 1) for k in KINDS.values() for n in SIZES]
        title = f"Rules at target {target}: {len(KINDS)} kinds x {len(SIZES)} sizes, {repeats} repeats each"
        table(title, COLUMNS, ((name, _summary([cell[name] for cell in cells])) for name in RULES))


def study_families(repeats: int) -> None:
    rules = {"families ignored": ours_without_families, "design effect (ours)": ours}
    kinds = [
        Kind(mean, spread, ceiling, in_families=1.5, family_size=4.0)
        for mean, spread, ceiling in ((3.5, 1.8, 1.0), (2.0, 2.0, 1.0), (2.0, 2.0, 0.96))
    ]
    cells = [judge(kind, n, 0.9, rules, repeats, 2) for kind in kinds for n in SIZES]
    title = f"Families of 4 on average, target 0.9: 3 kinds x {len(SIZES)} sizes, {repeats} repeats each"
    table(title, COLUMNS, ((name, _summary([cell[name] for cell in cells])) for name in rules))


VALUES = 12


def study_values(repeats: int) -> None:
    columns = ("kept, %", "kept on test", "recall", "nothing accepted", "accepted of values below target - 5 %")
    attribute = Attribute(name="drawn", label="Drawn", field="drawn", values=[f"v{i}" for i in range(VALUES)])
    for n in (300, 1000, 3000):

        def rows(n: int = n) -> Iterator[tuple[str, Doubles]]:
            for least in (30, 50, 100, 200, 300, 10**9):
                rng = np.random.default_rng(3)
                numbers = np.mean([_judge_values(attribute, n, least, rng) for _ in range(repeats)], axis=0)
                yield ("one threshold for all" if least == 10**9 else f"own threshold from {least}"), numbers

        table(f"{VALUES} values of which the third is bad, {n} validation products, target 0.9, {repeats} repeats",
              columns, rows())  # fmt: skip


def _judge_values(attribute: Attribute, n: int, least: int, rng: np.random.Generator) -> tuple[float, ...]:
    kind = Kind(rng.uniform(1, 4), rng.uniform(1, 2), rng.uniform(0.96, 1), values=VALUES)
    offsets = rng.normal(0, 0.4, VALUES)
    offsets[2] -= 1.5
    validation, test, truth = (kind.draw(m, rng, offsets) for m in (n, 2 * n, POPULATION))
    selection = SelectionConfig(value_predictions=least)
    limits = choose_threshold(_predictions(attribute, validation), 1.0, selection).limits(attribute)
    accepted, on_test = (p.confidence >= limits[p.value] - 1e-6 for p in (truth, test))
    if not accepted.any():
        return 1, 1, 0, 1, 0
    counts = np.bincount(truth.value[accepted], minlength=VALUES)
    right = np.bincount(truth.value[accepted], truth.right[accepted], minlength=VALUES)
    bad = counts[right < (attribute.target_precision - 0.05) * counts].sum() / counts.sum()
    return (
        right.sum() / counts.sum() >= attribute.target_precision,
        not on_test.any() or test.right[on_test].mean() >= attribute.target_precision,
        right.sum() / POPULATION, 0, bad,
    )  # fmt: skip


def study_temperature(repeats: int) -> None:
    attribute = Attribute(name="drawn", label="Drawn", field="drawn", values=[f"v{i}" for i in range(VALUES)])

    def rows() -> Iterator[tuple[str, Doubles]]:
        for n in SIZES:
            for fitted in (False, True):
                rng = np.random.default_rng(4)
                results = [_judge_temperature(attribute, n, fitted, rng) for _ in range(repeats)]
                yield f"{n} products, {'fitted' if fitted else 'none'}", np.mean(results, axis=0)

    title = f"A temperature fitted on the same products, models 0.7 to 2 times as sure as right, {repeats} repeats"
    table(title, ("kept, %", "recall", "nothing accepted"), rows())


def _judge_temperature(attribute: Attribute, n: int, fitted: bool, rng: np.random.Generator) -> tuple[float, ...]:
    kind = Kind(rng.uniform(1, 4), rng.uniform(1, 2), rng.uniform(0.96, 1), rng.uniform(0.7, 2), values=VALUES)
    validation, truth = (_predictions(attribute, kind.draw(m, rng)) for m in (n, POPULATION))
    temperature = fit_temperature(validation) if fitted else 1.0
    chosen = choose_threshold(validation, temperature, SelectionConfig())
    proposed = candidates(truth, temperature)
    accepted = proposed.accepted(chosen.limits(attribute))
    right = proposed.right[accepted].sum()
    return right >= attribute.target_precision * accepted.sum(), right / POPULATION, not accepted.any()


def study_picture(repeats: int) -> None:
    attribute = Attribute(name="drawn", label="Drawn", field="drawn", values=[f"v{i}" for i in range(VALUES)])

    def rows() -> Iterator[tuple[str, Doubles]]:
        for n in (LEAST_PRODUCTS, 1000, 3000):
            for chosen in (False, True):
                rng = np.random.default_rng(5)
                results = [_judge_picture(attribute, n, chosen, rng) for _ in range(repeats)]
                yield f"{n} products, {'chosen' if chosen else 'none'}", np.mean(results, axis=0)

    title = f"The weight of the picture evidence and a temperature, both chosen on the same products, {repeats} repeats"
    table(title, ("kept, %", "recall", "nothing accepted", "weight, %"), rows())


def _judge_picture(attribute: Attribute, n: int, chosen: bool, rng: np.random.Generator) -> tuple[float, ...]:
    """Judge two miscalibrated answers that share some of their noise; one in 20 texts is wrong."""
    # How far the right value stands out, in standard deviations.
    fused, alone = rng.uniform(2.5, 4.5), rng.uniform(1, 3)
    lies, shared = rng.uniform(0.7, 2, 2), np.sqrt(rng.uniform(0, 1))

    def draw(m: int) -> tuple[Predictions, Predictions]:
        rows, right = np.arange(m), rng.integers(0, VALUES, m)
        noise = rng.normal(size=(m, VALUES))
        own = shared * noise + np.sqrt(1 - shared**2) * rng.normal(size=(m, VALUES))
        named = np.where(rng.random(m) < 0.05, rng.integers(0, VALUES, m), right)
        noise[rows, named] += fused
        own[rows, right] += alone
        targets = np.zeros((m, VALUES), dtype=np.bool_)
        targets[rows, right] = True
        # The logits of normal classes with unit variance are the values times this distance.
        one, other = (
            Predictions(
                attribute, rows.astype(object), rows, (lie * s * x).astype(np.float32), targets,
                np.zeros((m, VALUES), np.uint8), np.full((m, 2), 0.5, np.float32),
            )
            for lie, s, x in zip(lies, (fused, alone), (noise, own), strict=True)
        )  # fmt: skip
        return one, other

    validation, truth = draw(n), draw(POPULATION // 2)
    weight = choose_weight(*validation) if chosen else 0.0
    temperature = fit_temperature(pool(*validation, weight))
    threshold = choose_threshold(pool(*validation, weight), temperature, SelectionConfig())
    proposed = candidates(pool(*truth, weight), temperature)
    accepted = proposed.accepted(threshold.limits(attribute))
    right = proposed.right[accepted].sum()
    kept = right >= attribute.target_precision * accepted.sum()
    return kept, right / len(proposed.right), not accepted.any(), weight


def _predictions(attribute: Attribute, products: Products) -> Predictions:
    """Return predictions whose best value has the drawn confidence, and is right if the drawn product is."""
    n, rows = len(products.value), np.arange(len(products.value))
    top = np.clip(products.confidence, 0.3, 1 - 1e-6)  # with less it would not be the best
    logits = np.repeat(np.log((1 - top) / (VALUES - 1))[:, None], VALUES, axis=1)
    logits[rows, products.value] = np.log(top)
    targets = np.zeros((n, VALUES), dtype=np.bool_)
    targets[rows, np.where(products.right, products.value, (products.value + 1) % VALUES)] = True
    return Predictions(
        attribute, rows.astype(object), products.family, logits.astype(np.float32), targets,
        np.zeros((n, VALUES), np.uint8), np.full((n, 2), 0.5, np.float32),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=500)
    repeats = parser.parse_args().repeats
    study_rules(repeats)
    study_families(repeats)
    study_values(repeats)
    study_temperature(repeats)
    study_picture(repeats)


if __name__ == "__main__":
    main()
