"""CMA-CLIP: the model, its training, its registry and the tagging engine.

Importing this package loads no torch, so that Spark workers can use its `content` modules. The library's entry point is
`load`: ``cma_clip_core.load("models/20261120-1f3a09bc").tag([{"title": "Blue shirt", "image": "shirt.jpg"}])``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Torch reads these once, when it is loaded. Its threads wait for each other after each of a model's many small steps.
# By default they spin for long: 5 to 8 times slower on a machine whose cores have other work too (a scheduler, Spark).
# If they sleep at once, a small model trains half as fast. So they spin a fraction of a millisecond, then sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

if TYPE_CHECKING:
    from cma_clip_core.tagger import Tagger, load

__all__ = ["Tagger", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from cma_clip_core import tagger

        return getattr(tagger, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
