"""Training: the LightningModule, its schedule, its checkpoints and its callbacks.

The public names are imported on first use, so that `kyon_pl.training.throughput` needs no Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kyon_pl.imports import public_name

if TYPE_CHECKING:
    from kyon_pl.training.module import ChatGLM2LoRA
    from kyon_pl.training.optimizer import LinearDecay

__all__ = ["ChatGLM2LoRA", "LinearDecay"]

_HOME = {"ChatGLM2LoRA": "kyon_pl.training.module", "LinearDecay": "kyon_pl.training.optimizer"}


def __getattr__(name: str) -> Any:
    return public_name(__name__, _HOME, name)


def __dir__() -> list[str]:
    return __all__
