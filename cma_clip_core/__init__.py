"""CMA-CLIP: the model, its training, its registry and the engine that tags by it.

Importing this package loads no torch, so that Spark workers can use `pictures` and `text`. The library's entry is
`load`: ``cma_clip_core.load("models/20261120-1f3a09bc").tag([{"title": "Blue shirt", "image": "shirt.jpg"}])``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Before torch is loaded, which reads it once: its threads then sleep where they wait for each other. By default they
# spin, and on a machine that has other work for its cores too (a scheduler, Spark) that is 5 to 8 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from cma_clip_core.tagger import Tagger, load

__all__ = ["Tagger", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from cma_clip_core import tagger

        return getattr(tagger, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
