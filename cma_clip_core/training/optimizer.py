"""Parameter groups of the optimizer, and the learning rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from cma_clip_core.config import TrainingConfig

EMBEDDINGS = ("token_embedding", "positional_embedding", "class_embedding")  # parameters of the towers
VECTORS = ("kind", "modality_attention.weight")  # parameters of CMA-CLIP


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW over `parameter_groups`, with the betas that CLIP was trained with (Radford et al. 2021, table 18)."""
    return torch.optim.AdamW(parameter_groups(model, config), betas=(0.9, 0.98), eps=1e-6, fused=True)


def parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """Return the optimizer's groups: token embeddings, towers and new layers, each with and without weight decay.

    Matrices decay. Biases, norms, embeddings, MA's vectors and CLIP's temperature do not. No group has frozen parameters.
    """
    tower = config.backbone_learning_rate
    chosen: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_tower = name.startswith("backbone.")
        # Compare whole parts of the name: a head is named after its attribute, which may be `kind` or `token_embedding`.
        embeds = name in VECTORS or (is_tower and not set(EMBEDDINGS).isdisjoint(name.split(".")))
        decays = parameter.ndim >= 2 and not embeds
        if is_tower and name.endswith("token_embedding.weight"):
            peak = config.embedding_learning_rate or tower
        else:
            peak = tower if is_tower else config.learning_rate
        chosen.setdefault((peak, decays), []).append(parameter)
    return [
        {"params": parameters, "peak": peak, "lr": 0.0, "weight_decay": config.weight_decay if decays else 0.0}
        for (peak, decays), parameters in chosen.items()
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, done: float, warmup: float) -> None:
    """Set the learning rate of every group when the share `done` of the training is complete."""
    scale = learning_rate_scale(done, warmup)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * scale


def learning_rate_scale(done: float, warmup: float) -> float:
    """Return the factor on the peak learning rate at the share `done` of the training: linear warm-up, then a cosine."""
    if done < warmup:
        # Never zero, so that the first step has an effect.
        return max(done / warmup, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
