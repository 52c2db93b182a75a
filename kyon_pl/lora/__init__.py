"""LoRA on a frozen base: adapters, their files, and the dtype or quantization of the frozen weights."""

from kyon_pl.lora.adapter import (
    attach_lora,
    load_adapter,
    reference_lora,
    trainable_names,
    trained_parameters,
    write_adapter,
)
from kyon_pl.lora.frozen import (
    Checkpointing,
    Quantization,
    check_combination,
    checkpointed_layers,
    frozen_dtype,
    quantizer,
)

__all__ = [
    "Checkpointing",
    "Quantization",
    "attach_lora",
    "check_combination",
    "checkpointed_layers",
    "frozen_dtype",
    "load_adapter",
    "quantizer",
    "reference_lora",
    "trainable_names",
    "trained_parameters",
    "write_adapter",
]
