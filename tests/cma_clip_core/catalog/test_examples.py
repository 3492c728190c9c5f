"""Tests of example files, tokens and batches: `pytest tests/cma_clip_core/catalog/test_examples.py`."""

from __future__ import annotations

import io
import itertools
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from PIL import Image

from cma_clip_core.catalog.examples import (
    MODEL_COLUMNS,
    example_files,
    read_examples,
    read_rows,
    stream_shuffled,
    stream_side,
)
from cma_clip_core.catalog.label_mentions import SpokenFinder
from cma_clip_core.catalog.labels import LabelReader
from cma_clip_core.catalog.splits import SIDES
from cma_clip_core.config import PictureConfig, TextConfig
from cma_clip_core.content.pictures import PictureSpec, decode
from cma_clip_core.content.product_text import clean
from cma_clip_core.engine import Engine, Timings
from cma_clip_core.errors import DataError
from cma_clip_core.inputs.batches import LabelEncoder, _move, augment, prepare
from cma_clip_core.inputs.devices import resolve_device
from cma_clip_core.inputs.prefetch import in_process, prefetch
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.cma_clip import CmaClip
from cma_clip_core.model.tokenizer import Tokenizer, compose
from cma_clip_core.tagger import Tagger
from cma_clip_core.training.objectives import TrainingBatches
from schemas.tables import EXAMPLES
from tests.cma_clip_core import drawn

CONFIG = drawn.config()


@pytest.mark.parametrize(
    "text",
    [
        "Turtle Check Men Navy Blue Shirt",
        "it's 100% cotton, size 42/44; machine-wash -- don't bleach!",
        "Café Crème déjà vu",
        "black &amp; white, 5 &lt; 6",
        "schÃ¶n",
        "人のシャツ",
        "<start_of_text> odd <end_of_text>",
        "x" * 500 + " " + "a1b2c3 " * 100,
        "",
        "   ",
    ],
)
def test_tokens_are_open_clips(text: str) -> None:
    """The word cache and the early stop give exactly the ids of open_clip's own tokenizer."""
    tokenizer = Tokenizer(CONFIG)
    expected = open_clip.SimpleTokenizer(context_length=16)([text])[0]
    ids, lengths = tokenizer.pad([tokenizer.encode(text), tokenizer.encode(text)])
    assert ids[1].tolist() == expected[: lengths[1]].tolist()
    assert not expected[lengths[1] :].any()


def test_composed_text() -> None:
    assert compose("Turtle Shirt", "Roadster", "Of cotton", TextConfig()) == "Turtle Shirt. Roadster. Of cotton"
    assert compose("Turtle Shirt", "turtle", "", TextConfig()) == "Turtle Shirt"
    assert compose("Shirt", "Turtle", "Of cotton", TextConfig(fields=("description",))) == "Of cotton"
    assert compose("", "", "", TextConfig()) == ""


def test_training_and_tagging_see_the_same(tmp_path: Path) -> None:
    """Golden test: pipeline and library prepare a product in the same way for training and tagging."""
    drawing = Image.new("RGB", (50, 90), (200, 30, 30))
    drawing.paste((10, 20, 240), (10, 10, 30, 60))
    file = io.BytesIO()
    drawing.save(file, format="JPEG")
    record = {"title": " Turtle &amp; Co  Red <b>Shirt</b>", "brand": "NA", "description": "Cotton\u200b and wool"}
    example = drawn.example(0, np.random.default_rng(0)) | {
        **{name: clean(text) for name, text in record.items()},
        "image": decode(file.getvalue(), PictureSpec(32, 24)).tobytes(),
    }
    table = pa.Table.from_pylist([example], schema=drawn.examples(1).schema)
    folder = drawn.write(tmp_path, table)
    plain = drawn.config(text_dropout=0.0, image_dropout=0.0)
    index = drawn.index(folder)
    index.side[:] = SIDES.index("train")
    (batch,) = TrainingBatches(drawn.problem(plain, index))(1)
    trained = batch.inputs

    seen = []

    class Spy(CmaClip):
        def forward(self, *inputs: torch.Tensor) -> object:  # type: ignore[override]
            seen.append(inputs)
            return super().forward(*inputs)

    engine = Engine(Spy(plain, drawn.taxonomy()), plain, drawn.taxonomy(), {}, torch.device("cpu"))
    list(engine.predict(read_examples([folder / "part-0.parquet"]), drawn.NOW))
    Tagger(engine).tag([{**record, "image": file.getvalue()}])
    assert len(seen) == 2
    for inputs in seen:
        for found, expected in zip(inputs, trained, strict=True):
            assert torch.equal(found, expected)
    assert bool(trained.text_present[0])
    assert bool(trained.image_present[0])


def test_a_title_can_be_the_only_text_that_is_read() -> None:
    config = drawn.config()
    tokenizer = Tokenizer(config)
    rows = drawn.examples(4).to_pylist()
    for row, title in zip(rows, ("red shirt", "red shirt", "", "red shirt"), strict=True):
        row |= {"title": title, "brand": "Acme", "description": "of cotton"}
    examples = pa.RecordBatch.from_pylist(rows, schema=drawn.examples(1).schema)
    title_only = np.array([True, False, True, True])
    whole = tokenizer.encode("red shirt. Acme. of cotton")
    found = prepare(examples, config, tokenizer, title_only).texts
    assert found == [tokenizer.encode("red shirt"), whole, tokenizer.encode("Acme. of cotton"), found[0]]
    untitled = config.model_copy(update={"text": TextConfig(fields=("description",), context_length=32)})
    assert prepare(examples, untitled, tokenizer, title_only).texts == [tokenizer.encode("of cotton")] * 4


def test_a_share_of_the_products_is_trained_on_titles_alone(tmp_path: Path) -> None:
    index = drawn.index(drawn.write(tmp_path, drawn.examples(300)))

    def lengths(share: float) -> list[int]:
        config = drawn.config(title_only=share)
        batches = TrainingBatches(drawn.problem(config, index))(1)
        return [int(n) for batch in batches for n in batch.inputs.lengths]

    none, half, every = (sum(lengths(share)) for share in (0.0, 0.5, 1.0))
    assert every < half < none
    assert lengths(0.5) == lengths(0.5)


def test_a_share_of_the_labels_is_not_named(tmp_path: Path) -> None:
    """Names are dropped only for products with a picture, since nothing else could answer for the others."""
    index = drawn.index(drawn.write(tmp_path, drawn.examples(300)))
    spoken = SpokenFinder(drawn.taxonomy())

    def named(share: float) -> tuple[float, float]:
        """Return the share of labels that texts name, for products with a picture and without."""
        config = drawn.config(name_dropout=share, text_dropout=0.0, image_dropout=0.0)
        count = np.zeros((2, 2))
        for batch in TrainingBatches(drawn.problem(config, index))(1):
            targets = batch.labels.targets.numpy() > 0
            found = spoken.find([(open_clip.decode(ids), "", "") for ids in batch.inputs.ids], targets) > 0
            for side, rows in enumerate((batch.inputs.image_present.numpy(), ~batch.inputs.image_present.numpy())):
                count[side] += found[rows].sum(), targets[rows].sum()
        with_picture, without = count[:, 0] / count[:, 1]
        return float(with_picture), float(without)

    (every, rest), half, none = (named(share) for share in (0.0, 0.5, 1.0))
    assert none[0] == 0
    assert every > 0.5
    assert 0.4 * every < half[0] < 0.6 * every
    assert half[1] == none[1] == rest > 0.5
    assert named(0.5) == half


def test_pictures_of_another_size_are_refused() -> None:
    other = PictureConfig(height=32, width=32)
    config = CONFIG.model_copy(update={"picture": other})
    with pytest.raises(DataError, match=r"p00000.*2304 bytes.*32 x 32 x 3 = 3072"):
        prepare(drawn.batch(3), config, Tokenizer(CONFIG))


def test_pixels_of_a_slice_are_its_own() -> None:
    batch, tokenizer = drawn.batch(30), Tokenizer(CONFIG)
    whole, part = prepare(batch, CONFIG, tokenizer), prepare(batch.slice(7, 6), CONFIG, tokenizer)
    assert np.array_equal(whole.pixels[7:13], part.pixels)
    assert part.image_present.tolist() == [True, True, False, True, True, True]
    assert not part.pixels[2].any()
    assert part.pixels[0].tobytes() == batch.column("image")[7].as_py()


def test_a_label_of_an_attribute_that_does_not_apply_is_no_label() -> None:
    """Patterns apply to shirts, and not to products without a type, in training and evaluation."""
    labels = [
        [("article_type", ["Shirt"]), ("pattern", ["Striped"])],
        [("article_type", ["Watch"]), ("pattern", ["Striped"]), ("colour", ["Red"])],
        [("pattern", ["Striped"]), ("colour", ["Red"])],
        [("pattern", ["Striped"]), ("article_type", ["Shirt"])],
    ]
    layout = ClassLayout(drawn.taxonomy())
    encoded = LabelEncoder(layout).encode(labels)
    assert encoded.labelled.tolist() == [
        [True, False, True, False],
        [True, True, False, False],
        [False, True, False, False],
        [True, False, True, False],
    ]
    patterns = encoded.targets[:, layout.slices[2]].sum(dim=1)
    assert patterns.tolist() == [1, 0, 0, 1]
    assert LabelReader(drawn.taxonomy()).read(labels).left_out.tolist() == [
        [False] * 4,
        [False, False, True, False],
        [False, False, True, False],
        [False] * 4,
    ]


def test_labels_outside_the_taxonomy_are_refused() -> None:
    encoder = LabelEncoder(ClassLayout(drawn.taxonomy()))
    with pytest.raises(DataError, match="colour = 'Mauve'"):
        encoder.encode([[("colour", ["Mauve"])]])
    with pytest.raises(DataError, match="not an attribute"):
        encoder.encode([[("shade", ["Red"])]])


def test_only_wanted_products_in_the_wanted_state(tmp_path: Path) -> None:
    files = example_files([drawn.write(tmp_path, drawn.examples(50))])
    wanted = {"p00003": "h3", "p00040": "h40", "p00007": "another state", "p99999": "h99999"}
    found = [row for batch in read_examples(files, wanted, rows=10) for row in batch.column("product_id").to_pylist()]
    assert found == ["p00003", "p00040"]


def test_files_of_versions_that_did_not_record_the_picture_used_are_read_with_those_that_do(tmp_path: Path) -> None:
    new = drawn.examples(6)
    drawn.write(tmp_path, new.slice(0, 3).drop_columns(["image_used"]), "a.parquet")
    drawn.write(tmp_path, new.slice(3), "b.parquet")
    read = list(read_examples(example_files([tmp_path])))
    assert all(batch.schema.names == EXAMPLES.names for batch in read)
    assert pa.Table.from_batches(read).drop_columns(["image_used"]).equals(new.drop_columns(["image_used"]))
    (row,) = next(read_rows(tmp_path / "a.parquet", np.array([2]), ["product_id"])).to_pylist()
    assert row == {"product_id": "p00002"}


def test_a_broken_file_and_a_file_of_another_table_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"a\.parquet.*not a readable Parquet file"):
        list(read_examples([tmp_path / "a.parquet"]))
    drawn.write(tmp_path, drawn.examples(3).drop_columns(["labels"]), "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet.*'labels' is missing"):
        list(read_examples([tmp_path / "b.parquet"]))
    with pytest.raises(DataError, match="no such folder"):
        example_files([tmp_path / "none"])


def test_index_takes_the_newest_example_that_teaches_something(tmp_path: Path) -> None:
    table = drawn.examples(300)
    new, old = drawn.write(tmp_path / "new", table.slice(0, 100)), drawn.write(tmp_path / "old", table)
    index = drawn.index(new, old)
    assert len(index.row) == len(set(zip(index.file.tolist(), index.row.tolist(), strict=True)))
    rows = [(side, row) for side in SIDES for batch, _ in stream_side(index, side) for row in batch.to_pylist()]
    taught = table.filter(pc.or_(pc.not_equal(table["title"], ""), pc.equal(table["image_status"], "ok")))
    assert sorted(row["product_id"] for _, row in rows) == sorted(taught["product_id"].to_pylist())
    in_new = set(table["product_id"].slice(0, 100).to_pylist())
    assert int((index.file == 0).sum()) == len(in_new & set(taught["product_id"].to_pylist()))
    assert {side for side, _ in rows} == set(SIDES)


def test_shuffled_stream_gives_every_example_once_in_an_order_of_its_seed(tmp_path: Path) -> None:
    table = drawn.examples(500)
    drawn.write(tmp_path, table.slice(0, 250), "a.parquet", row_group_size=60)
    drawn.write(tmp_path, table.slice(250), "b.parquet", row_group_size=60)
    index = drawn.index(tmp_path)

    def ids(seed: int) -> list[str]:
        stream = stream_shuffled(index, "train", 64, np.random.default_rng(seed))
        return [product for batch in stream for product in batch.column("product_id").to_pylist()]

    ordered = [p for batch, _ in stream_side(index, "train") for p in batch.column("product_id").to_pylist()]
    assert ids(1) == ids(1) != ids(2)
    assert sorted(ids(1)) == sorted(ordered) != ids(1)
    assert len(ordered) == index.count("train")
    sizes = [b.num_rows for b in stream_shuffled(index, "train", 64, np.random.default_rng(0))]
    assert max(sizes) < 64 + 60
    assert set(next(stream_side(index, "train"))[0].schema.names) == set(MODEL_COLUMNS)


def test_augmentation_never_takes_the_only_modality_and_follows_its_seed() -> None:
    tokenizer, config = Tokenizer(CONFIG), drawn.config(
        text_dropout=0.5, image_dropout=0.5, word_dropout=0.5, flip=True, shift=3
    ).training  # fmt: skip
    plain = prepare(drawn.batch(200), CONFIG, tokenizer)
    first, second = (prepare(drawn.batch(200), CONFIG, tokenizer) for _ in range(2))
    augment(first, config, np.random.default_rng(3))
    augment(second, config, np.random.default_rng(3))
    assert first.texts == second.texts
    assert np.array_equal(first.pixels, second.pixels)
    assert ((first.text_present | first.image_present) == (plain.text_present | plain.image_present)).all()
    both = plain.text_present & plain.image_present
    assert 0.3 < (both & ~first.text_present).sum() / both.sum() < 0.7
    assert all(new[0] == old[0] and new[-1] == old[-1] for new, old in zip(first.texts, plain.texts, strict=True))
    assert sum(map(len, first.texts)) < sum(map(len, plain.texts))
    assert not np.array_equal(first.pixels, plain.pixels)


def test_whatever_the_shares_no_product_loses_both_modalities() -> None:
    config = drawn.config(text_dropout=0.7, image_dropout=0.8, word_dropout=0.0, flip=False, shift=0).training
    plain, lost = (prepare(drawn.batch(200), CONFIG, Tokenizer(CONFIG)) for _ in range(2))
    augment(lost, config, np.random.default_rng(3))
    assert ((lost.text_present | lost.image_present) == (plain.text_present | plain.image_present)).all()
    both = plain.text_present & plain.image_present
    assert (lost.text_present ^ lost.image_present)[both].all()  # 0.7, and the rest of 0.8


def test_batches_are_of_like_length_and_hold_every_product_once() -> None:
    prepared = prepare(drawn.batch(200), CONFIG, Tokenizer(CONFIG))
    lengths = np.array([len(text) for text in prepared.texts])
    batches = prepared.by_length(32)
    assert sorted(np.concatenate(batches)) == list(range(200))
    assert [len(rows) for rows in batches] == [32] * 6 + [8]
    for shorter, longer in itertools.pairwise(batches):
        assert lengths[shorter].max() <= lengths[longer].min()


@pytest.mark.parametrize(("down", "right"), [(0, 2), (3, 0), (-2, 3), (2, -4), (-3, -3), (99, -99)])
def test_a_moved_picture_repeats_its_edge(down: int, right: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(8, 6, 3), dtype=np.uint8)
    rows, columns = np.clip(np.arange(8) - down, 0, 7), np.clip(np.arange(6) - right, 0, 5)
    assert np.array_equal(_move(pixels, down, right), pixels[rows[:, None], columns])


def test_prefetch_passes_on_items_errors_and_the_end() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise DataError("broken on the way")

    assert list(prefetch(range(10))) == list(range(10))
    stream = prefetch(failing())
    assert next(stream) == 1
    with pytest.raises(DataError, match="on the way"):
        next(stream)
    endless = prefetch(iter(int, 1))
    next(endless)
    endless.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


def count_then_fail(last: int) -> Iterator[torch.Tensor]:
    yield from (torch.tensor([number, os.getpid()]) for number in range(last))
    raise DataError("broken on the way")


@pytest.mark.long
def test_a_process_of_its_own_passes_on_items_errors_and_ends() -> None:
    state = torch.get_rng_state()
    stream = in_process(partial(count_then_fail, 5))
    first = next(stream)
    worker = psutil.Process(int(first[1]))
    assert worker.pid != os.getpid()
    assert [int(item[0]) for item in itertools.islice(stream, 4)] == [1, 2, 3, 4]
    with pytest.raises(DataError, match=r"^broken on the way$"):
        next(stream)
    worker.wait(timeout=20)
    assert torch.equal(torch.get_rng_state(), state)
    endless = in_process(partial(count_then_fail, 10**9))
    worker = psutil.Process(int(next(endless)[1]))
    endless.close()
    worker.wait(timeout=20)


SENT = {
    "pixels": torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)[:, 1:],  # not contiguous
    "mask": torch.tensor([True, False]),
    "half": torch.tensor([[1.5, -3.25]], dtype=torch.bfloat16),
    "none": torch.zeros(0, 5),
    "one": torch.tensor(7),
}


def sent_as_they_are() -> Iterator[dict[str, torch.Tensor]]:
    yield SENT


@pytest.mark.long
def test_a_process_of_its_own_passes_on_tensors_of_each_kind() -> None:
    (found,) = in_process(sent_as_they_are)
    assert found.keys() == SENT.keys()
    for name, tensor in found.items():
        assert tensor.dtype == SENT[name].dtype
        assert torch.equal(tensor, SENT[name])
        tensor.zero_()  # the memory is writable


@pytest.mark.long
def test_a_process_of_its_own_that_is_killed_is_told() -> None:
    stream = in_process(partial(count_then_fail, 10**9))
    worker = psutil.Process(int(next(stream)[1]))
    worker.kill()
    with pytest.raises(RuntimeError, match="worker"):
        for _ in stream:
            pass


def test_timings_account_for_the_rows() -> None:
    model = CmaClip(CONFIG, drawn.taxonomy())
    engine, timings = Engine(model, CONFIG, drawn.taxonomy(), {}, resolve_device("cpu")), Timings()
    list(engine.predict([drawn.batch(20), drawn.batch(5)], drawn.NOW, timings))
    assert timings.rows == 25
    assert min(timings.prepare, timings.forward, timings.assemble) > 0
