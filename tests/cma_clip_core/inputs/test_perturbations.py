"""Tests of perturbed examples: `pytest tests/cma_clip_core/inputs/test_perturbations.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cma_clip_core.catalog.examples import Rows, stream_side
from cma_clip_core.evaluation.evaluate import evaluate
from cma_clip_core.evaluation.predictions import Predictions
from cma_clip_core.inputs.perturbations import Noise, Perturbation, draw_omitted_labels, swap, swap_all
from cma_clip_core.model.cma_clip import CmaClip
from tests.cma_clip_core import drawn

BATCH = drawn.batch(400)
IDS = BATCH.column("product_id").to_pylist()


def titles(batch: pa.RecordBatch) -> list[str]:
    found: list[str] = batch.column("title").to_pylist()
    return found


def own_titles(count: int) -> pa.RecordBatch:
    """Return examples whose title and description are their number."""
    batch = BATCH.slice(0, count)
    names = pa.array([str(i) for i in range(count)])
    return batch.set_column(2, batch.schema.field(2), names).set_column(4, batch.schema.field(4), names)


def test_a_share_gets_the_texts_of_others_whole() -> None:
    batch = own_titles(400)
    found = swap(batch, Noise("text", 0.2))
    swapped = np.array([int(title) != i for i, title in enumerate(titles(found))])
    assert 0.14 < swapped.mean() < 0.26
    assert found.column("description").equals(found.column("title"))
    assert len(set(titles(found))) >= 399  # each text goes to one product; one may also stay with its owner
    for name in ("product_id", "image", "labels"):
        assert found.column(name).equals(batch.column(name))


def test_all_are_swapped_and_none_keeps_its_own() -> None:
    found = titles(swap(own_titles(400), Noise("text", 1.0)))
    assert sorted(found, key=int) == [str(i) for i in range(400)]
    assert not any(int(title) == i for i, title in enumerate(found))
    assert titles(swap(own_titles(400), Noise("text", 0.0))) == titles(own_titles(400))
    assert titles(swap(own_titles(1), Noise("text", 1.0))) == ["0"]  # no product to swap with


def test_pictures_are_swapped_with_their_absence() -> None:
    found = swap(BATCH, Noise("image", 1.0))
    assert found.column("title").equals(BATCH.column("title"))
    assert found.column("image").null_count == BATCH.column("image").null_count == 40
    assert not found.column("image").equals(BATCH.column("image"))
    assert found.schema.equals(BATCH.schema)


def test_who_is_swapped_depends_on_the_seed_alone() -> None:
    batch = own_titles(400)

    def swapped(share: float, seed: int = 0, start: int = 0) -> set[int]:
        found = titles(swap(batch.slice(start), Noise("text", share, seed)))
        return {i + start for i, title in enumerate(found) if int(title) != i + start}

    assert swapped(0.2) < swapped(0.5)
    assert swapped(0.5, seed=1) != swapped(0.5)
    assert swapped(0.5, start=200) == {i for i in swapped(0.5) if i >= 200}


def test_products_alone_in_their_batch_are_swapped_too() -> None:
    """A file may have one product of a side, so batches are joined, a few at a time."""
    batch = own_titles(23)
    alive: list[int] = []
    read = 0

    def stream() -> Iterator[tuple[pa.RecordBatch, Rows]]:
        nonlocal read
        for row in range(23):
            read += 1
            yield batch.slice(row, 1), np.array([row])

    found: list[tuple[str, str]] = []
    for examples, shown, families in swap_all(stream(), Noise("text", 1.0), least=5):
        assert families.tolist() == [int(title) for title in titles(examples)]
        found += zip(titles(examples), titles(shown), strict=True)
        alive.append(read - len(found) + examples.num_rows)
    assert [own for own, _ in found] == [str(i) for i in range(23)]
    assert sorted(given for _, given in found) == sorted(own for own, _ in found)
    assert not any(own == given for own, given in found)
    assert max(alive) <= 10


def test_joined_pictures_may_be_more_than_2_gib() -> None:
    """Joined and swapped pictures have 64-bit offsets."""
    stream = ((BATCH.slice(at, 100), np.arange(at, at + 100)) for at in range(0, 400, 100))
    own, shown = zip(*((own, shown) for own, shown, _ in swap_all(stream, Noise("image", 1.0), least=200)), strict=True)
    for batches in (own, shown):
        assert {batch.schema.field("image").type for batch in batches} == {pa.large_binary()}
    pictures = [
        [picture for batch in batches for picture in batch.column("image").to_pylist()] for batches in (own, shown)
    ]
    assert pictures[0] == BATCH.column("image").to_pylist()
    assert pictures[1] != pictures[0]
    assert sorted(map(str, pictures[1])) == sorted(map(str, pictures[0]))


def test_evaluation_swaps_across_small_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config, taxonomy = drawn.config(), drawn.taxonomy()
    for number in range(12):
        drawn.write(tmp_path, drawn.examples(48).slice(4 * number, 4), f"part-{number}.parquet")
    index = drawn.index(tmp_path, selection=config.selection)
    sizes = [b.num_rows for b, _ in stream_side(index, "test")]
    assert 1 in sizes
    model = CmaClip(config, taxonomy)
    clean, noisy = (
        evaluate(model, drawn.problem(config, index), "test", torch.device("cpu"), noise=noise)["colour"]
        for noise in (None, Noise("text", 1.0))
    )
    assert sorted(clean.products) == sorted(noisy.products)
    order = {product: row for row, product in enumerate(noisy.products)}
    moved = [np.abs(clean.logits[row] - noisy.logits[order[p]]).max() for row, p in enumerate(clean.products)]
    assert min(moved) > 1e-5


def test_a_share_of_the_labels_has_its_name_left_out() -> None:
    targets = np.random.default_rng(0).random((400, 9)) < 0.3

    def chosen(share: float, seed: int = 0, start: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        return draw_omitted_labels(IDS[start:], targets[start:], Noise("names", share, seed))

    some, more = chosen(0.2), chosen(0.5)
    assert 0.15 < some.sum() / targets.sum() < 0.25
    assert 0.45 < more.sum() / targets.sum() < 0.55
    assert not (some & ~more).any()
    assert not (more & ~targets).any()
    assert not np.array_equal(more, chosen(0.5, seed=1))
    assert np.array_equal(more[200:], chosen(0.5, start=200))
    assert np.array_equal(chosen(1.0), targets)
    assert not chosen(0.0).any()


def test_evaluation_leaves_out_names_where_there_are_some(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config, taxonomy = drawn.config(), drawn.taxonomy()
    index = drawn.index(drawn.write(tmp_path, drawn.examples(200)), selection=config.selection)
    model = CmaClip(config, taxonomy)

    def types(noise: Noise | None) -> Predictions:
        found = evaluate(model, drawn.problem(config, index), "train", torch.device("cpu"), noise=noise)
        return found["article_type"].take(np.argsort(found["article_type"].products))

    clean, noisy = types(None), types(Noise("names", 1.0))
    assert np.array_equal(noisy.named, clean.named)  # `named` refers to their own text
    moved = np.abs(clean.logits - noisy.logits).max(axis=1) > 1e-5
    assert moved[clean.named.any(axis=1)].all()


def test_a_share_is_between_none_and_all() -> None:
    with pytest.raises(ValueError, match="not between 0 and 1"):
        Noise("text", 20)


def test_evaluation_shows_the_noise_to_the_model_and_not_to_the_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config, taxonomy = drawn.config(), drawn.taxonomy()
    index = drawn.index(drawn.write(tmp_path, drawn.examples(200)), selection=config.selection)
    model = CmaClip(config, taxonomy)

    def pattern(modality: Perturbation, share: float) -> Predictions:
        noise, cpu = Noise(modality, share), torch.device("cpu")
        found = evaluate(model, drawn.problem(config, index), "train", cpu, noise=noise)["pattern"]
        return found.take(np.argsort(found.products))

    clean, texts, images = pattern("text", 0.0), pattern("text", 1.0), pattern("image", 1.0)
    assert clean.named.any()
    for noisy in (texts, images):
        assert noisy.products.tolist() == clean.products.tolist()
        assert np.array_equal(noisy.named, clean.named)
        assert np.array_equal(noisy.targets, clean.targets)
        assert (np.abs(noisy.logits - clean.logits).max(axis=1) > 1e-4).mean() > 0.9
