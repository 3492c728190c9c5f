"""`pytest tests/cma_clip_core/model/test_attention.py`"""

from __future__ import annotations

import math

import pytest
import torch

from cma_clip_core.model.attention import ModalityAttention, ModalityConcatenation, SequenceAttention, masked_softmax


def test_keyless_attention_is_the_papers() -> None:
    """Two attributes, worked out by hand: e = w . h, softmax over the modalities, then the weighted sum."""
    attention = ModalityAttention(attributes=2, width=2)
    with torch.no_grad():
        attention.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    text, image = [math.log(3.0), 5.0], [0.0, 5.0]
    mixtures, lambdas = attention(torch.tensor([[text, image]]), torch.tensor([[True, True]]))
    # Attribute 0: e = (log 3, 0), so 3/4 and 1/4. Attribute 1: e = (10, 10), so a half each.
    torch.testing.assert_close(lambdas, torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]))
    torch.testing.assert_close(mixtures, torch.tensor([[[0.75 * math.log(3.0), 5.0], [0.5 * math.log(3.0), 5.0]]]))


@pytest.mark.parametrize("attention", [ModalityAttention(3, 4), ModalityConcatenation(3, 4)])
def test_absent_modality_weighs_exactly_nothing(attention: torch.nn.Module) -> None:
    present = torch.tensor([[True, False], [False, True], [False, False]])
    h = torch.randn(3, 2, 4) * 100
    mixtures, lambdas = attention(h, present)
    assert lambdas[0].tolist() == [[1.0, 0.0]] * 3
    assert lambdas[1].tolist() == [[0.0, 1.0]] * 3
    assert lambdas[2].tolist() == [[0.0, 0.0]] * 3
    torch.testing.assert_close(mixtures[0, :, :4], h[0, 0].expand(3, 4))  # of the concatenation its first half
    assert not mixtures[0, :, 4:].any()
    assert not mixtures[2].any()


def test_masked_softmax_has_finite_gradients_where_nothing_is_there() -> None:
    energies = torch.randn(2, 2, requires_grad=True)
    masked_softmax(energies, torch.tensor([[False, False], [True, False]])).square().sum().backward()
    assert energies.grad is not None
    assert energies.grad.isfinite().all()


def test_masked_tokens_change_nothing() -> None:
    torch.manual_seed(0)
    attention = SequenceAttention(width=8, layers=2, heads=2, mlp_ratio=2.0, dropout=0.0).eval()
    x, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    other = x.clone()
    other[0, 3:] = 99.0
    torch.testing.assert_close(attention(x, mask)[0, :3], attention(other, mask)[0, :3])
    torch.testing.assert_close(attention(x, mask)[0, :3], attention(x[:1, :3], None)[0])


def test_the_last_block_gives_the_same_at_the_tokens_asked_for() -> None:
    torch.manual_seed(0)
    attention = SequenceAttention(width=8, layers=2, heads=2, mlp_ratio=2.0, dropout=0.0).eval()
    x, at = torch.randn(2, 5, 8), torch.tensor([0, 3])
    torch.testing.assert_close(attention(x, None, at), attention(x, None)[:, at])
