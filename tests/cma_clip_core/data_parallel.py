"""What `torchrun` starts in test_loop.py: trains on the examples in one folder, writes the weights into another."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from cma_clip_core import distributed
from cma_clip_core.config import ModelConfig
from cma_clip_core.training import fit
from tests.cma_clip_core import drawn


def config() -> ModelConfig:
    """Nothing drawn by torch: its numbers depend on how the rows are dealt out."""
    document = drawn.config(epochs=2, batch_size=32, word_dropout=0.2, text_dropout=0.2).model_dump()
    document["fusion"]["dropout"] = 0.0
    return ModelConfig.model_validate(document)


def main(examples: Path, out: Path) -> None:
    """Train, and write `out`/<rank>.safetensors and the epochs' losses."""
    torch.set_num_threads(1)
    world = distributed.join(torch.device("cpu"))
    index = drawn.index(examples, selection=config().selection)
    model, fitted = fit(config(), drawn.taxonomy(), index, torch.device("cpu"), world=world, progress=False)
    save_file(dict(model.state_dict()), out / f"{world.rank}.safetensors")
    (out / f"{world.rank}.txt").write_text("\n".join(repr(epoch.loss) for epoch in fitted.epochs))
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
