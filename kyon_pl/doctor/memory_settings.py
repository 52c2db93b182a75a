"""What the peak of a run's memory depends on."""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig

from kyon_pl.lora import Checkpointing, Quantization, frozen_dtype


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The size of a micro-batch on one device.

    Attributes:
        rows: R, 1 if packed.
        slots: T, tokens of the longest row, or of the pack.
        trained_tokens: N of the whole micro-batch.
    """

    rows: int
    slots: int
    trained_tokens: int

    @property
    def total(self) -> int:
        """R * T."""
        return self.rows * self.slots


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """What the peak depends on, beside the shape of the model.

    Attributes:
        precision: `trainer.precision`.
        lora: PEFT's settings; variants of LoRA that compute more (DoRA, ...) are not counted.
        checkpointing: `model.checkpointing`.
        attention: `varlen`, `sdpa` or `eager`, as it will run.
        packed: whether several rows share a row of the batch.
        training: the training batch that needs the most.
        validation: the largest validation batch, padded; None: no validation.
        device_type: `cuda` or `cpu`.
        sharded_over: ranks that share out the base (`model.shard_base`); 1: each has all of it.
        quantization: `model.quantization`.
        compiled: `model.compile`.
    """

    precision: str
    lora: LoraConfig
    checkpointing: Checkpointing
    attention: str
    packed: bool
    training: Slots
    validation: Slots | None
    device_type: str = "cuda"
    sharded_over: int = 1
    quantization: Quantization | None = None
    compiled: bool = False

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number in the compute precision, h."""
        return frozen_dtype(self.precision).itemsize
