"""Training: the LightningModule, its schedule, its checkpoints and its callbacks."""

from kyon_pl.training.module import ChatGLM2LoRA
from kyon_pl.training.optimizer import LinearDecay

__all__ = ["ChatGLM2LoRA", "LinearDecay"]
