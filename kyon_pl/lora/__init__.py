"""LoRA around a frozen base: what is trained, in which precision, and how it is written and read."""

from kyon_pl.lora.adapter import attach_lora, load_adapter, reference_lora, trainable_names, write_adapter
from kyon_pl.lora.frozen import frozen_dtype

__all__ = ["attach_lora", "frozen_dtype", "load_adapter", "reference_lora", "trainable_names", "write_adapter"]
