"""The training loop where it is cut off, short of memory, fed with nonsense, or run by several processes.

`pytest tests/cma_clip_core/training/test_loop.py`
"""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import random
import re
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cma_clip_core.catalog.examples import ExampleIndex
from cma_clip_core.catalog.labelled_set import scan_examples
from cma_clip_core.config import ModelConfig
from cma_clip_core.errors import CheckpointError, DeviceError, DivergedError
from cma_clip_core.inputs.batches import Batch
from cma_clip_core.inputs.checkpoints import CHECKPOINT, load_checkpoint, save_checkpoint
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.distributed import World
from cma_clip_core.model.backbone import Backbone, Sequence
from cma_clip_core.model.class_layout import ClassLayout
from cma_clip_core.model.methods import build_model
from cma_clip_core.training import loop, objectives
from cma_clip_core.training.fit import fit, train
from cma_clip_core.training.loop import Fitted, Loop, Score
from cma_clip_core.training.objectives import Contrastive, MultiTask, class_weights
from cma_clip_core.training.optimizer import set_learning_rate
from schemas.tables import EXAMPLES
from tests import small_disk
from tests.cma_clip_core import data_parallel, drawn
from tests.cma_clip_core.drawn import QUIET

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn.write(tmp_path_factory.mktemp("examples"), drawn.examples(400))


@pytest.fixture(scope="module")
def index(folder: Path) -> ExampleIndex:
    return drawn.index(folder, selection=drawn.config().selection)


def busy(**training: Any) -> ModelConfig:
    """Return a configuration that uses all randomness: dropouts, augmentation, patch dropout, several buffers."""
    settings = {"epochs": 3, "word_dropout": 0.2, "shift": 2, "flip": True, "shuffle_buffer": 64} | training
    document = drawn.config(**settings).model_dump()
    document["fusion"]["dropout"] = 0.1
    document["backbone"]["patch_dropout"] = 0.25
    return ModelConfig.model_validate(document)


def objective(config: ModelConfig, index: ExampleIndex) -> MultiTask:
    torch.manual_seed(0)
    return MultiTask(build_model(config, drawn.taxonomy()), drawn.problem(config, index), CPU)


@pytest.mark.long
@pytest.mark.parametrize("step", [0, 5])
def test_batches_made_by_a_process_of_its_own_train_the_same(index: ExampleIndex, step: int) -> None:
    found = []
    for apart in (False, True):
        loop = Loop(objective(busy(), index), busy().training, QUIET, separate_process=apart)
        loop.progress.step = step
        fitted = loop.run()
        found.append((fitted.weights, [(epoch.loss, epoch.validation) for epoch in fitted.epochs]))
    assert found[0][1] == found[1][1]
    for name, value in found[0][0].items():
        assert torch.equal(value, found[1][0][name]), name


class Killed(BaseException):
    """A stand-in for SIGKILL that nothing catches."""


@pytest.fixture(scope="module")
def uninterrupted(
    index: ExampleIndex, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[ModelConfig], tuple[nn.Module, Fitted]]:
    """Return a training that is never killed, cached by configuration and number of threads."""

    @functools.cache
    def trained(config: str, threads: int) -> tuple[nn.Module, Fitted]:
        folder = tmp_path_factory.mktemp(f"whole-{threads}")
        document = ModelConfig.model_validate_json(config)
        return fit(drawn.problem(document, index), QUIET, folder=folder)

    return lambda config: trained(config.model_dump_json(), torch.get_num_threads())


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Set the number of threads for this test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# Two threads are slow where a core is not theirs alone, so they have one short epoch.
@pytest.mark.parametrize(
    ("kill_at", "epochs", "threads"), [(1, 3, 1), (9, 3, 1), (10, 3, 1), (25, 3, 1), (4, 1, 2)], indirect=["threads"]
)
@pytest.mark.usefixtures("threads")
def test_killed_and_resumed_is_uninterrupted_to_the_last_digit(
    index: ExampleIndex,
    uninterrupted: Callable[[ModelConfig], tuple[nn.Module, Fitted]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kill_at: int,
    epochs: int,
) -> None:
    config = busy(epochs=epochs)
    whole, course = uninterrupted(config)
    steps = itertools.count(1)
    step = Loop.step

    def mortal(self: Loop, batch: Batch) -> float:
        if next(steps) == kill_at:
            raise Killed
        return step(self, batch)

    # Checkpoints at every other step: the one that is resumed is older than the kill.
    monkeypatch.setattr(loop.Loop, "step", mortal)
    saves = itertools.count()
    save = Loop._save
    monkeypatch.setattr(loop.Loop, "_save", lambda self: save(self) if next(saves) % 2 else None)
    arguments: dict[str, Any] = {"folder": tmp_path / "cut", "checkpoint_seconds": 0.0}
    with pytest.raises(Killed):
        fit(drawn.problem(config, index), QUIET, **arguments)
    monkeypatch.undo()
    assert (tmp_path / "cut" / CHECKPOINT).exists() == (kill_at > 2)
    torch.manual_seed(99)  # whatever ran in between
    resumed, again = fit(drawn.problem(config, index), QUIET, **arguments)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert [(e.loss, e.validation, e.examples) for e in again.epochs] == [
        (e.loss, e.validation, e.examples) for e in course.epochs
    ]
    assert again.best_epoch == course.best_epoch


@pytest.mark.long
def test_killed_by_the_system_at_any_step_and_resumed_is_uninterrupted(folder: Path, tmp_path: Path) -> None:
    """SIGKILL from outside hits the process anywhere: in a step, before it, or while it writes a checkpoint."""
    seed = secrets.randbelow(2**32)
    print(f"seed {seed}")  # shown where the test fails
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for out in (whole, resumed):
        out.mkdir()

    steps, says = multiprocessing.Pipe(duplex=False)
    (process,) = data_parallel.start(1, folder, whole, "--dropout", "0.3", says_steps=says)
    process.join()
    assert process.exitcode == 0
    last = 0
    while steps.poll():
        last = steps.recv()
    kill_at = random.Random(seed).randrange(1, last - 3)  # not the last ones: it must not end before it is killed
    work = tmp_path / "work"
    (process,) = data_parallel.start(1, folder, resumed, "--dropout", "0.3", "--work", work, says_steps=says)
    while steps.poll(120) and steps.recv() != kill_at:
        assert process.is_alive()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert data_parallel.run(1, folder, resumed, "--dropout", "0.3", "--work", work) == [0]
    expected, found = (load_file(out / "0.safetensors") for out in (whole, resumed))
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
    assert (resumed / "0.txt").read_text() == (whole / "0.txt").read_text()


def test_a_checkpoint_of_another_training_is_refused(index: ExampleIndex, tmp_path: Path) -> None:
    fit(drawn.problem(busy(epochs=1), index), QUIET, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"belongs to another training .* delete it"):
        fit(drawn.problem(busy(epochs=2), index), QUIET, folder=tmp_path)


def test_a_truncated_checkpoint_says_so(index: ExampleIndex, tmp_path: Path) -> None:
    fit(drawn.problem(busy(epochs=1), index), QUIET, folder=tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"checkpoint.pt: the checkpoint is broken .* delete it to train from"):
        fit(drawn.problem(busy(epochs=1), index), QUIET, folder=tmp_path)


def test_a_checkpoint_of_an_older_program_says_so(tmp_path: Path) -> None:
    torch.save({"fits": "x", "random": torch.get_rng_state()}, tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match="written by another version of this program; delete it"):
        load_checkpoint(tmp_path / CHECKPOINT, "x")


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"fits": "x", "weights": Evil()}, tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match="broken"):
        load_checkpoint(tmp_path / CHECKPOINT, "x")
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    save_checkpoint(path, {"fits": "x", "value": torch.ones(10)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the system refuses to write more, as a full disk
    try:
        with pytest.raises(CheckpointError, match=r"cannot be written: .*the previous checkpoint is kept"):
            save_checkpoint(path, {"fits": "x", "value": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = load_checkpoint(path, "x")
    assert kept is not None
    assert kept["value"].sum() == 10
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT]


@pytest.mark.long
def test_a_training_whose_disk_is_full_goes_on_when_there_is_room(folder: Path, tmp_path: Path) -> None:
    """A disk with room for one checkpoint, and not for the next one beside it."""
    whole, out, disk = (tmp_path / name for name in ("whole", "out", "disk"))
    for each in (whole, out, disk):
        each.mkdir()
    assert data_parallel.run(1, folder, whole, "--dropout", "0.3", "--work", whole) == [0]
    size = (whole / CHECKPOINT).stat().st_size
    train = f"{sys.executable} -m {data_parallel.__name__} {folder} {out} --dropout 0.3 --work {disk}; echo $?"
    more = f"ls -A {disk}; cp {disk / CHECKPOINT} {out}; mount -o remount,size={10 * size} {disk}"
    within = small_disk.command(disk, size * 3 // 2, f"{train}; {more}; {train}")
    done = subprocess.run(within, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["2", CHECKPOINT, "tensorboard", "0"], done.stderr
    said = (out / "0.error").read_text()
    assert said.startswith(f"CheckpointWriteError: {disk / CHECKPOINT}: the checkpoint cannot be written: ")
    assert said.endswith(f"the previous checkpoint is kept: {disk / CHECKPOINT}; make room and resume")
    assert torch.load(out / CHECKPOINT)["at"][:2] == [1, 1]  # the first of all, whole
    expected, found = (load_file(each / "0.safetensors") for each in (whole, out))
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
    assert (out / "0.txt").read_text() == (whole / "0.txt").read_text()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's own thread
def test_a_full_disk_ends_tensorboards_logs_and_not_the_training(
    index: ExampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    _, fitted = fit(drawn.problem(drawn.config(epochs=2), index), QUIET, folder=tmp_path)
    assert len(fitted.epochs) == 2
    said = [r.getMessage() for r in caplog.records if "TensorBoard's logs end here" in r.getMessage()]
    assert len(said) == 1
    assert "No space left on device" in said[0]


def test_a_loss_that_is_no_number_stops_and_names_the_batch(index: ExampleIndex, tmp_path: Path) -> None:
    config = busy(learning_rate=1e30, backbone_learning_rate=1e30, warmup=0.0, batch_size=16)
    with pytest.raises(DivergedError, match=r"epoch 1, batch \d+ \(16 products: p0.*Lower the learning rates") as error:
        fit(drawn.problem(config, index), QUIET, folder=tmp_path, checkpoint_seconds=0.0)
    state = load_checkpoint(tmp_path / CHECKPOINT, torch.load(tmp_path / CHECKPOINT)["fits"])
    assert state is not None
    assert state["at"][1] == int(str(error.value).split("batch ")[1].split(" ")[0]) - 1  # it is from before the batch


def test_a_loss_that_is_no_number_before_the_first_checkpoint_names_none(index: ExampleIndex, tmp_path: Path) -> None:
    config = busy(learning_rate=1e30, backbone_learning_rate=1e30, warmup=0.0, batch_size=16)
    with pytest.raises(DivergedError, match="There is no checkpoint yet") as error:
        fit(drawn.problem(config, index), QUIET, folder=tmp_path)
    assert CHECKPOINT not in str(error.value)
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize(("alone_loss", "stem"), [(0.0, None), (0.5, 8)])
def test_micro_batches_take_the_same_step(index: ExampleIndex, alone_loss: float, stem: int | None) -> None:
    document = drawn.config(batch_size=32, alone_loss=alone_loss).model_dump()
    document["fusion"]["dropout"] = 0.0
    document["backbone"]["custom"]["vision"]["stem"] = stem
    config = ModelConfig.model_validate(document)
    gradients = []
    for micro in (None, 32, 7, 1):
        training = config.training.model_copy(update={"micro_batch": micro})
        target = objective(config, index)
        trainer = Loop(target, training, QUIET)
        batch = next(target.batches(1, 0))
        trainer.optimizer.zero_grad()
        loss = trainer._accumulate(batch, batch)
        gradients.append((loss, [p.grad.clone() for p in target.model.parameters() if p.grad is not None]))
    for loss, found in gradients[1:]:
        torch.testing.assert_close(loss, gradients[0][0])
        for one, other in zip(found, gradients[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped_to_the_norm_of_the_configuration(index: ExampleIndex) -> None:
    document = drawn.config(batch_size=32).model_dump()
    document["fusion"]["dropout"] = 0.0  # the same gradients each time

    def steps(clip_norm: float, count: int) -> tuple[nn.Module, list[list[Tensor]], list[Tensor]]:
        """Take steps; return the model, each step's gradients, and the weights before them."""
        document["training"]["clip_norm"] = clip_norm
        config = ModelConfig.model_validate(document)
        target = objective(config, index)
        trainer = Loop(target, config.training, QUIET)
        set_learning_rate(trainer.optimizer, 0.5, 0.0)
        before = [p.detach().clone() for p in target.model.parameters()]
        gradients = []
        for batch in itertools.islice(target.batches(1, 0), count):
            trainer.step(batch)
            gradients.append([p.grad.clone() for p in target.model.parameters() if p.grad is not None])
        return target.model, gradients, before

    def norm(gradients: list[Tensor]) -> float:
        return float(torch.cat([g.flatten() for g in gradients]).norm())

    _, (free, *_), _ = steps(1e9, 1)
    whole = norm(free)
    # Above the norm nothing changes; below it the direction stays.
    _, (as_it_is,), _ = steps(2 * whole, 1)
    assert all(torch.equal(one, other) for one, other in zip(as_it_is, free, strict=True))
    limit = whole / 1e6
    model, clipped, before = steps(limit, 1)
    assert norm(clipped[0]) == pytest.approx(limit, rel=1e-3)
    for one, other in zip(clipped[0], free, strict=True):
        torch.testing.assert_close(one, other / 1e6, rtol=1e-3, atol=0)
    # It is the clipped gradient that the optimizer takes: Adam's own epsilon then keeps the step small.
    with_gradient = [p for p in model.parameters() if p.grad is not None]
    starts = [b for b, p in zip(before, model.parameters(), strict=True) if p.grad is not None]
    full = steps(1e9, 1)[0]
    ends = [p for p in full.parameters() if p.grad is not None]
    moved, moved_freely = (
        torch.cat([(p.detach() - b).flatten() for p, b in zip(after, starts, strict=True)]).norm()
        for after in (with_gradient, ends)
    )
    assert 0 < moved < 0.5 * moved_freely
    _, several, _ = steps(0.1 * whole, 4)
    assert max(norm(gradients) for gradients in several) <= 0.1 * whole * (1 + 1e-4)


def test_the_progress_bar_shows_the_loss_and_the_rate(index: ExampleIndex, capsys: pytest.CaptureFixture[str]) -> None:
    _, fitted = fit(drawn.problem(drawn.config(epochs=2), index), Compute(CPU))
    shown = capsys.readouterr().err
    total = index.count("train")
    for number, epoch in enumerate(fitted.epochs, 1):
        at_end = rf"epoch {number}/2: 100%\|█+\| {total}/{total} \[[\d:]+<[\d:]+, +[\d.]+ex/s, loss=([\d.]+)\]"
        assert re.findall(at_end, shown)[-1] == f"{epoch.loss:.3f}"
    fit(drawn.problem(drawn.config(epochs=1), index), QUIET)
    assert "ex/s" not in capsys.readouterr().err


class _Small(MultiTask):
    """An objective on a device with memory for `room` examples."""

    room = 5

    def loss(self, part: Batch, whole: Batch) -> Tensor:
        if len(part) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(part, whole)


def test_too_little_memory_takes_smaller_micro_batches_and_the_same_step(index: ExampleIndex) -> None:
    config = drawn.config(batch_size=32)
    losses = []
    for kind in (MultiTask, _Small):
        torch.manual_seed(0)
        target = kind(build_model(config, drawn.taxonomy()), drawn.problem(config, index), CPU)
        trainer = Loop(target, config.training, QUIET)
        losses.append([trainer.step(batch) for batch in itertools.islice(target.batches(1, 0), 3)])
    assert trainer.micro == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    target.room = 0  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match="not even one example fits"):
        trainer.step(next(target.batches(1, 0)))


def test_too_little_memory_for_the_optimizer_says_so(index: ExampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    target = objective(busy(), index)
    trainer = Loop(target, busy().training, QUIET)

    def no_room() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.optimizer, "step", no_room)
    with pytest.raises(DeviceError, match="the optimizer's state does not fit"):
        trainer.step(next(target.batches(1, 0)))


@pytest.mark.parametrize("where", ["sum_gradients", "clip_grad_norm_"])
def test_too_little_memory_for_the_gradients_says_so(
    index: ExampleIndex, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    target = objective(busy(), index)
    trainer = Loop(target, busy().training, QUIET)
    monkeypatch.setattr(World if where == "sum_gradients" else torch.nn.utils, where, no_room)
    with pytest.raises(DeviceError, match="the gradients' sum and norm do not fit"):
        trainer.step(next(target.batches(1, 0)))


class _SmallPairs(Contrastive):
    """An objective on a device with memory for `room` pairs."""

    room = 5

    def loss(self, part: Batch, whole: Batch) -> Tensor:
        if len(part) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(part, whole)


def test_pretraining_says_that_smaller_micro_batches_are_another_training(
    index: ExampleIndex, caplog: pytest.LogCaptureFixture
) -> None:
    config = drawn.config(batch_size=32)
    backbone = Backbone(config, pretrained=False)
    target = _SmallPairs(backbone, drawn.problem(config, index), QUIET)
    trainer = Loop(target, config.training, QUIET)
    trainer.step(next(target.batches(1, 0)))
    assert 2 < trainer.micro <= 5
    assert f"{trainer.micro} examples at a time from now on; each is compared with these alone" in caplog.text
    assert "the batch stays the same" not in caplog.text
    target.room = 1  # one pair alone has nothing to be told apart from
    with pytest.raises(DeviceError, match="not even two examples fit"):
        trainer.step(next(target.batches(1, 0)))
    several = Loop(target, config.training, Compute(CPU, World(0, 2), progress=False))
    with pytest.raises(DeviceError, match="set a smaller micro_batch"):
        several.step(next(target.batches(1, 0)))


def test_validation_halves_what_does_not_fit_and_finds_the_same(
    index: ExampleIndex, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = drawn.config()
    target = objective(config, index)
    torch.manual_seed(0)
    pairs = Contrastive(Backbone(config, pretrained=False), drawn.problem(config, index), QUIET)
    expected, score = target.validate(), pairs.validate()
    room = 4
    encode = Backbone.encode_image

    def small(self: Backbone, pixels: Tensor) -> Sequence:
        if len(pixels) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(self, pixels)

    monkeypatch.setattr(Backbone, "encode_image", small)
    assert (target.validate(), pairs.validate()) == (expected, score)
    assert "examples at a time from now on; nothing else changes" in caplog.text
    room = 0
    for one in (target, pairs):
        with pytest.raises(DeviceError, match="not even one example fits"):
            one.validate()


# Without texts many a batch leaves the text tower without a gradient in one process, and in both.
@pytest.mark.long
@pytest.mark.parametrize("options", [(), ("--pretrain",), ("--text-dropout", "0.97")])
def test_two_processes_take_the_steps_of_one_with_the_double_batch(
    folder: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """In pretraining, each pair is contrasted with the pairs of both processes."""
    one, two = tmp_path / "one", tmp_path / "two"
    for out, processes in ((one, 1), (two, 2)):
        out.mkdir()
        assert data_parallel.run(processes, folder, out, *options) == [0] * processes
    assert {p.name for p in two.iterdir()} == {"0.safetensors", "0.txt", "1.safetensors", "1.txt"}
    alone, first, second = (load_file(p) for p in (one / "0.safetensors", two / "0.safetensors", two / "1.safetensors"))
    for name, weight in alone.items():
        assert torch.equal(first[name], second[name]), name
        # Adam divides by the gradient's size: where that is all rounding, so is the step.
        torch.testing.assert_close(first[name], weight, rtol=0, atol=5e-3)
    losses = [[float(line) for line in (out / "0.txt").read_text().split()] for out in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.long
def test_two_killed_processes_go_on_each_with_its_own_random_state(folder: Path, tmp_path: Path) -> None:
    whole, resumed, work = tmp_path / "whole", tmp_path / "resumed", tmp_path / "work"
    for out in (whole, resumed):
        out.mkdir()
    assert data_parallel.run(2, folder, whole, "--dropout", "0.3") == [0, 0]
    killed = data_parallel.run(2, folder, resumed, "--dropout", "0.3", "--work", work, "--kill-at", "7")
    assert killed == [-signal.SIGKILL] * 2
    assert not list(resumed.iterdir())
    states = torch.load(work / CHECKPOINT)["random"]
    assert len(states) == 2
    assert not torch.equal(states[0], states[1])
    assert data_parallel.run(2, folder, resumed, "--dropout", "0.3", "--work", work) == [0, 0]
    for rank in range(2):
        expected, found = (load_file(out / f"{rank}.safetensors") for out in (whole, resumed))
        for name, weight in expected.items():
            assert torch.equal(found[name], weight), name
        assert (resumed / f"{rank}.txt").read_text() == (whole / f"{rank}.txt").read_text()


@pytest.mark.long
@pytest.mark.parametrize("options", [(), ("--freeze", "image")])
def test_processes_of_which_each_sees_its_own_disk_alone_go_on_by_the_first_ones(
    folder: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Two machines with a lake on S3 resume from the first one's checkpoint, with the exact result of an undisturbed run."""
    whole, resumed, work = tmp_path / "whole", tmp_path / "resumed", tmp_path / "work"
    for out in (whole, resumed):
        out.mkdir()
    options = ("--dropout", "0.3", *options)
    assert data_parallel.run(2, folder, whole, *options, "--work", tmp_path / "one") == [0, 0]  # that both see
    apart = (*options, "--work", work, "--apart")
    assert data_parallel.run(2, folder, resumed, *apart, "--kill-at", "12") == [-signal.SIGKILL] * 2
    assert torch.load(work / "0" / CHECKPOINT)["at"][:2] == [2, 1]  # so many batches of the second epoch
    assert not (work / "1" / CHECKPOINT).exists()
    for rank in range(2):
        assert bool(list((work / str(rank)).glob("frozen-image-*"))) == ("--freeze" in options)
    # Whatever lies there is not looked at.
    (work / "1").mkdir(exist_ok=True)
    (work / "1" / CHECKPOINT).write_bytes(b"of another machine")
    assert data_parallel.run(2, folder, resumed, *apart) == [0, 0]
    for rank in range(2):
        expected, found = (load_file(out / f"{rank}.safetensors") for out in (whole, resumed))
        for name, weight in expected.items():
            assert torch.equal(found[name], weight), name
        assert (resumed / f"{rank}.txt").read_text() == (whole / f"{rank}.txt").read_text()


def test_a_checkpoint_that_the_first_process_cannot_read_or_write_ends_all(folder: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "0").mkdir(parents=True)
    (work / "0" / CHECKPOINT).write_bytes(b"half of one")
    assert data_parallel.run(2, folder, tmp_path, "--work", work, "--apart") == [2, 2]
    first, second = ((tmp_path / f"{rank}.error").read_text() for rank in range(2))
    assert first == second
    assert first.startswith(f"CheckpointError: {work / '0' / CHECKPOINT}: the checkpoint is broken")
    (work / "0" / CHECKPOINT).unlink()
    (work / "0" / f".{CHECKPOINT}.new").symlink_to("/dev/full")  # where the next one is written first
    assert data_parallel.run(2, folder, tmp_path, "--work", work, "--apart") == [2, 2]
    first, second = ((tmp_path / f"{rank}.error").read_text() for rank in range(2))
    assert first == second
    assert first.startswith(f"CheckpointWriteError: {work / '0' / CHECKPOINT}: the checkpoint cannot be written: ")
    assert "there is no previous one; make room and resume" in first


def test_early_stop(index: ExampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter(Score(value, 0.3) for value in [0.5, 0.7, 0.6, 0.7, 0.9, 0.9])
    monkeypatch.setattr(objectives.MultiTask, "validate", lambda _: next(scores))
    _, fitted = fit(drawn.problem(drawn.config(epochs=6, patience=2), index), QUIET)
    assert [epoch.validation for epoch in fitted.epochs] == [0.5, 0.7, 0.6, 0.7]
    assert fitted.best_epoch == 2  # the fourth is no better, and not the last of six: no learning rate has come down


@pytest.mark.parametrize(
    ("scores", "error", "kept"),
    [
        ([0.5, 0.75, 0.625], 0.124, 2),
        ([0.5, 0.75, 0.625], 0.125, 3),  # by no more than its error
        ([0.75, 0.5, 0.5], 0.3, 3),
        ([0.5, 0.75, 0.625], 0.0, 2),
        ([0.5, 0.75, 1.0], 0.0, 3),
        ([1.0, 1.0, 1.0], 0.0, 3),
        ([0.75, 0.625, 0.5], 0.126, 1),  # the second is not the last
    ],
)
def test_the_last_epoch_is_kept_unless_one_is_better_by_more_than_an_error(
    index: ExampleIndex, monkeypatch: pytest.MonkeyPatch, scores: list[float], error: float, kept: int
) -> None:
    found, weights = iter(scores), []

    def validate(objective: objectives.MultiTask) -> Score:
        weights.append({name: value.clone() for name, value in objective.model.state_dict().items()})
        return Score(next(found), error)

    monkeypatch.setattr(objectives.MultiTask, "validate", validate)
    config = drawn.config(epochs=3)
    loop = Loop(objective(config, index), config.training, QUIET)
    fitted = loop.run()
    assert (fitted.best_epoch, fitted.best_score) == (kept, scores[kept - 1])
    assert all(torch.equal(value, weights[kept - 1][name]) for name, value in fitted.weights.items())
    assert not all(torch.equal(value, weights[2][name]) for name, value in weights[1].items())


def test_frozen_towers_stay_as_they_are(index: ExampleIndex) -> None:
    config = drawn.config(epochs=1, freeze=("image",))
    torch.manual_seed(config.training.seed)
    before = build_model(config, drawn.taxonomy(), pretrained=True).state_dict()
    after = fit(drawn.problem(config, index), QUIET)[0].state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("backbone.image.")} <= same
    assert not {name for name in before if name.startswith("heads.")} & same


def test_a_frozen_tower_keeps_its_running_statistics(tmp_path: Path) -> None:
    """The batch norms of a ResNet change with every batch in training mode, even if they are frozen."""
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    (tmp_path / "frozen-resnet.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / "frozen-resnet.json")
    document = drawn.config(epochs=1, freeze=("image",)).model_dump()
    document |= {"picture": {"height": 32, "width": 32}, "backbone": {"architecture": "frozen-resnet"}}
    config = ModelConfig.model_validate(document)
    rng = np.random.default_rng(0)
    rows = [drawn.example(i, rng, 32, 32) for i in range(200)]
    folder = drawn.write(tmp_path / "examples", pa.Table.from_pylist(rows, schema=EXAMPLES))
    index = scan_examples([folder], drawn.taxonomy(), config.picture, config.selection).index
    torch.manual_seed(config.training.seed)
    before = build_model(config, drawn.taxonomy(), pretrained=True).state_dict()
    after = fit(drawn.problem(config, index), QUIET)[0].state_dict()
    statistics = [name for name in before if "running" in name or "num_batches" in name]
    assert len(statistics) > 10
    for name in statistics:
        assert torch.equal(before[name], after[name]), name


def test_tensorboard_logs_are_written(index: ExampleIndex, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, fitted = fit(drawn.problem(drawn.config(epochs=2), index), QUIET, folder=tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss", "learning_rate", "examples_per_second", "validation"} <= set(events.Tags()["scalars"])
    assert [e.value for e in events.Scalars("validation")] == pytest.approx([e.validation for e in fitted.epochs])


def test_a_resumed_training_logs_each_step_once_and_counts_all_its_seconds(
    index: ExampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = busy(epochs=3)
    steps = len(list(objective(config, index).batches(1, 0)))
    arguments: dict[str, Any] = {"folder": tmp_path}
    calls, step = itertools.count(1), Loop.step

    def mortal(self: Loop, batch: Batch) -> float:
        if next(calls) == steps + 4:  # three steps after the checkpoint of the first epoch
            raise Killed
        return step(self, batch)

    monkeypatch.setattr(Loop, "step", mortal)
    with pytest.raises(Killed):
        fit(drawn.problem(config, index), QUIET, **arguments)
    monkeypatch.undo()
    state = torch.load(tmp_path / CHECKPOINT)
    state["epochs"][0]["seconds"] += 1000.0
    save_checkpoint(tmp_path / CHECKPOINT, state)
    trained = train(drawn.problem(config, index), QUIET, **arguments)
    assert trained.metrics.seconds > 1000
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    seen = [e.step for e in events.Scalars("loss")]
    assert seen == sorted(set(seen))
    assert len(seen) == 3 * steps
    assert [e.step for e in events.Scalars("validation")] == [n * index.count("train") for n in (1, 2, 3)]


def test_the_order_is_drawn_anew_in_each_epoch_and_the_same_each_time(index: ExampleIndex) -> None:
    target = objective(busy(), index)

    def products(batches: Iterator[Batch]) -> list[str]:
        return [product for batch in batches for product in batch.products]

    first = products(target.batches(1, 0))
    assert sorted(first) == sorted(set(first))
    assert len(first) == index.count("train")
    assert products(target.batches(1, 0)) == first
    assert products(target.batches(2, 0)) != first
    assert first[-len(products(target.batches(1, 3))) :] == products(target.batches(1, 3))


def test_rare_values_weigh_more_and_an_attribute_as_before() -> None:
    layout = ClassLayout(drawn.taxonomy())
    counts = torch.zeros(layout.classes, dtype=torch.float64).numpy()
    counts[:2] = (900, 100)
    weights = class_weights(counts, layout, 0.5).numpy()
    assert weights[1] / weights[0] == pytest.approx(3)
    assert (weights[:2] * counts[:2]).sum() == pytest.approx(1000)
    assert (weights[2:] == 1).all()


def test_the_loss_weighs_rare_values_as_the_configuration_says(index: ExampleIndex) -> None:
    torch.manual_seed(0)
    model = build_model(busy(), drawn.taxonomy()).eval()
    layout = ClassLayout(drawn.taxonomy())

    def loss(class_balance: float, weights: Tensor | None = None) -> float:
        target = MultiTask(model, drawn.problem(busy(class_balance=class_balance), index), CPU)
        if weights is not None:
            target.weights = weights
        batch = next(target.batches(1, 0))
        return float(target.loss(batch, batch).detach())

    assert loss(0.5) != loss(0.0)
    assert loss(0.5, torch.ones(layout.classes)) == pytest.approx(loss(0.0))
