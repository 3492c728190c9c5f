"""Cached outputs of frozen towers: computed once, kept in a file beside the checkpoint, and read in every epoch.

A tower that is not trained gives the same sequence for the same text or picture each time. The file is mapped into
memory, so the system holds as much of it as it has room for. It stores float32, as the towers give it, so the losses
equal those of a training without the cache.

Letters of shapes: B batch, N tokens or patches, D width of a tower.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cma_clip_core.catalog.examples import ExampleIndex, Rows, stream_side
from cma_clip_core.catalog.splits import SIDES, Side
from cma_clip_core.config import ModelConfig
from cma_clip_core.inputs.batches import Inputs, prepare
from cma_clip_core.inputs.checkpoints import fingerprint
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.devices import precision
from cma_clip_core.inputs.learning_problem import LearningProblem
from cma_clip_core.inputs.oom_halving import Halving
from cma_clip_core.inputs.prefetch import prefetch
from cma_clip_core.model.backbone import Backbone, Sequence

log = logging.getLogger(__name__)

Tower = Literal["text", "image"]
BATCH = 256
_SIDES: tuple[Side, ...] = ("train", "validation")  # read in every epoch


def frozen_towers(config: ModelConfig) -> tuple[Tower, ...]:
    """Return the towers that training runs but does not train."""
    return tuple(name for name in config.training.freeze if config.method == "clip" or name in config.fusion.modalities)


def idle_settings(config: ModelConfig, tower: Tower) -> list[str]:
    """Return the training settings that have no effect on a frozen tower, because it gets no augmentation."""
    training = config.training
    settings: dict[str, object] = {
        "word_dropout": training.word_dropout,
        "name_dropout": training.name_dropout,
        "title_only": training.title_only,
    }
    if tower == "image":
        patches = config.backbone.patch_dropout
        settings = {"flip": training.flip, "shift": training.shift, "patch_dropout": patches}
    return [name for name, value in settings.items() if value]


@dataclass(slots=True)
class FrozenTowers:
    """The sequences of the products on the training and validation sides, by tower."""

    slots: Rows  # position in the index to row in the files
    files: dict[Tower, npt.NDArray[Any]]  # rows of `_row_type`, mapped into memory

    def __getstate__(self) -> tuple[Rows, dict[Tower, Path]]:
        return self.slots, {name: Path(file.filename) for name, file in self.files.items()}  # type: ignore[attr-defined]

    def __setstate__(self, state: tuple[Rows, dict[Tower, Path]]) -> None:
        """Map the files again: pickling sends their names to another process, not their content."""
        self.slots, paths = state
        self.files = {name: np.load(path, mmap_mode="r") for name, path in paths.items()}

    def add_to(self, inputs: Inputs, positions: Rows) -> Inputs:
        """Return inputs with the stored sequences of the products at `positions` of the index."""
        sequences: dict[Tower, Sequence] = {}
        rows = self.slots[positions]
        for name, file in self.files.items():
            # Skip the padding beyond the longest text of the batch. Pictures all have the same size.
            tokens = int(inputs.lengths.max()) if name == "text" else file.dtype["tokens"].shape[0]
            cls, body = (torch.from_numpy(part) for part in (file["cls"][rows], file["tokens"][rows, :tokens]))
            mask = torch.from_numpy(file["mask"][rows, :tokens]) if name == "text" else None
            if name == "image":  # the model gives zeros for hidden pictures
                hidden = ~inputs.image_present
                cls[hidden], body[hidden] = 0.0, 0.0
            sequences[name] = Sequence(cls, body, mask)
        return replace(inputs, text=sequences.get("text"), image=sequences.get("image"))


def run_frozen(model: nn.Module, problem: LearningProblem, compute: Compute, folder: Path) -> FrozenTowers | None:
    """Return the outputs of CMA-CLIP's frozen towers for all products, cached if possible; None if none is frozen.

    The first process runs the towers while the others wait. All processes that see its folder read the same file. On a
    machine that does not see the folder, the first local process writes its own file.

    If a disk has no room for the file, a warning is logged and None is returned: the towers then run in every epoch. If
    that is the disk of the first process, this holds for all processes.

    Raises:
        DeviceError: not even one product fits into the device's memory.
        DataError: an example file cannot be read.
    """
    config, index, world = problem.config, problem.index, compute.world
    towers = frozen_towers(config)
    if not towers or config.method != "cma_clip":
        return None
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    slots = np.cumsum(index.side != SIDES.index("test")) - 1
    paths = {name: folder / f"frozen-{name}-{_key(backbone, name, index, config)}.npy" for name in towers}

    def are_cached() -> bool:
        return all(path.exists() for path in paths.values())

    def make() -> None:
        model.eval()
        for path in folder.glob("*frozen-*"):  # files of other weights, or truncated ones
            path.unlink()
        try:
            _run(backbone, paths, slots, problem, compute)
        except OSError as error:
            for path in folder.glob("*frozen-*"):
                path.unlink()
            log.warning("frozen towers are run in every epoch: their outputs cannot be stored: %s", error)

    if world.is_first and not are_cached():
        make()
    if not world.broadcast(float(world.is_first and are_cached())):
        return None
    if world.is_first_here and not are_cached():  # this machine does not see the first process's disk
        make()
    world.wait()
    if not are_cached():
        return None
    return FrozenTowers(slots, {name: np.load(path, mmap_mode="r") for name, path in paths.items()})


def _key(backbone: Backbone, name: Tower, index: ExampleIndex, config: ModelConfig) -> str:
    """Return a digest of everything that determines a tower's sequences."""
    digest = hashlib.sha256()
    for key, value in backbone.state_dict().items():
        if key.startswith(f"{name}.") or key in ("mean", "std"):
            digest.update(key.encode() + value.detach().cpu().numpy().tobytes())
    seen = config.text.model_dump() if name == "text" else config.picture.model_dump()
    return fingerprint(digest.hexdigest(), index.fingerprint, seen)


@torch.inference_mode()
def _run(backbone: Backbone, paths: dict[Tower, Path], slots: Rows, problem: LearningProblem, compute: Compute) -> None:
    """Write the files; each one appears complete or not at all. Raises OSError if they cannot be written."""
    config, index, tokenizer = problem.config, problem.index, problem.tokenizer
    files: dict[Tower, npt.NDArray[Any]] = {}
    halving = Halving(compute.device, BATCH)

    def forward(inputs: Inputs) -> tuple[Tensor, ...]:
        with precision(compute.device):
            sequence = (
                backbone.encode_text(inputs.ids, inputs.lengths)
                if name == "text"
                else backbone.encode_image(inputs.pixels)
            )
        return (
            (sequence.cls, sequence.tokens) if sequence.mask is None else (sequence.cls, sequence.tokens, sequence.mask)
        )

    def parts() -> Any:
        for side in _SIDES:
            at, positions = 0, index.positions(side)
            for examples, _ in stream_side(index, side):
                prepared = prepare(examples, config, tokenizer)
                file_rows = slots[positions[at : at + len(prepared)]]
                at += len(prepared)
                for rows in prepared.by_length(BATCH):
                    yield file_rows[rows], prepared.inputs(rows, tokenizer)

    new = {name: path.with_name(f".{path.name}.new") for name, path in paths.items()}
    total = sum(index.count(side) for side in _SIDES)
    with tqdm(total=total, desc="frozen towers", unit="ex", disable=not compute.progress) as bar:
        for rows, inputs in prefetch(parts()):
            for name in paths:
                present = torch.ones_like(inputs.text_present) if name == "text" else inputs.image_present
                if not bool(present.any()):
                    continue
                cls, tokens, *mask = (part.numpy() for part in halving.run(forward, inputs.rows(present)))
                if name not in files:
                    longest = config.text.context_length if name == "text" else tokens.shape[1]
                    files[name] = _create(new[name], total, cls.shape[1], longest, tokens.shape[2])
                file, at = files[name], rows[present.numpy()]
                file["cls"][at] = cls
                file["tokens"][at, : tokens.shape[1]] = tokens
                if mask:
                    file["mask"][at, : tokens.shape[1]] = mask[0] > 0
            bar.update(len(rows))
    for name, path in paths.items():
        if name not in files:  # no product has a picture
            files[name] = _create(new[name], total, 1, 1, 1)
        files[name].flush()  # type: ignore[attr-defined]
        new[name].replace(path)


def _create(path: Path, rows: int, cls_width: int, tokens: int, width: int) -> npt.NDArray[Any]:
    """Return a new memory-mapped file of `rows` rows of zeros. Raises OSError if the disk has no room for it."""
    fields = [("cls", "f4", (cls_width,)), ("tokens", "f4", (tokens, width)), ("mask", "?", (tokens,))]
    row = np.dtype(fields, align=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = rows * row.itemsize
    log.info("frozen towers: %s takes %.1f GB", path.parent, size / 1e9)
    file = np.lib.format.open_memmap(path, mode="w+", dtype=row, shape=(rows,))
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as reserved:
            # Writing to a mapped page without disk space would kill the process.
            os.posix_fallocate(reserved.fileno(), 0, path.stat().st_size)
    return file
