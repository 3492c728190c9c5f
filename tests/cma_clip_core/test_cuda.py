"""Tests on a GPU, skipped if there is none.

`pytest --noconftest tests/cma_clip_core/test_cuda.py` needs neither Spark nor Java.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cma_clip_core.evaluation.evaluate import evaluate
from cma_clip_core.inputs.compute import Compute
from cma_clip_core.inputs.devices import precision, resolve_device
from cma_clip_core.training.fit import fit
from tests.cma_clip_core import drawn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_auto_is_the_gpu_in_mixed_precision() -> None:
    device = resolve_device("auto")
    assert device.type == "cuda"
    with precision(device):
        product = torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)
    assert product.dtype == torch.bfloat16


def test_a_training_on_the_gpu_learns_goes_on_and_says_on_the_cpu_what_it_says_there(tmp_path: Path) -> None:
    device = torch.device("cuda")
    compute = Compute(device, progress=False)
    problem = drawn.problem(
        drawn.config(epochs=4), drawn.index(drawn.write(tmp_path / "examples", drawn.examples(400)))
    )
    model, fitted = fit(problem, compute, folder=tmp_path / "work")
    assert fitted.epochs[-1].loss < fitted.epochs[0].loss
    again, _ = fit(problem, compute, folder=tmp_path / "work")  # from its checkpoint
    for one, other in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    found = [evaluate(model.to(where), problem, "test", where) for where in (device, torch.device("cpu"))]
    for name, there in found[0].items():
        # bfloat16 has eight bits of precision.
        np.testing.assert_allclose(there.logits, found[1][name].logits, rtol=0.05, atol=0.1)
