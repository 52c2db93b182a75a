"""The adapter that a run trains: a new one, or a saved one that is trained further."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from peft import LoraConfig, PeftModel

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM
from kyon_pl.lora import attach_lora, load_adapter
from kyon_pl.lora.saved import check_supported, read_adapter
from kyon_pl.runs.adapters import find_adapter
from kyon_pl.runs.fingerprint import fingerprint_of_adapter


@dataclass(frozen=True)
class InitialAdapter:
    """The adapter that training starts from.

    Attributes:
        lora: PEFT's settings of a new adapter.
        name: a saved adapter, as `find_adapter` takes it; None for a new one.
    """

    lora: LoraConfig
    name: str | None

    @cached_property
    def folder(self) -> Path | None:
        """The folder of the saved adapter, downloaded if necessary; None for a new one.

        Raises:
            MissingFileError: there is no such adapter.
            CheckpointError: its files are not those that were saved.
        """
        return find_adapter(self.name) if self.name else None

    @property
    def config(self) -> LoraConfig:
        """PEFT's settings: those of the saved adapter, or `lora`.

        Raises:
            CheckpointError: the saved adapter cannot be read, or is of a kind that is not supported.
        """
        return read_adapter(self.folder)[0] if self.folder else self.lora

    def check(self) -> None:
        """Check that the kind of LoRA is supported, without a model.

        Raises:
            SettingError: the settings of a new adapter are not supported (see `lora.saved`).
            CheckpointError: the saved adapter cannot be read, or is of a kind that is not supported.
        """
        if self.folder:
            read_adapter(self.folder)
        else:
            check_supported(self.lora)

    def attach(self, base: ChatGLM2ForCausalLM, base_name: str) -> PeftModel:
        """Wrap a frozen base in the adapter. Raises as `attach_lora` and `load_adapter`.

        Args:
            base: the model in the compute precision.
            base_name: Hub id or folder that is written into the adapter's settings.
        """
        return load_adapter(base, self.folder, base_name) if self.folder else attach_lora(base, self.lora, base_name)

    def fingerprint(self) -> dict[str, str]:
        """Hashes of the saved adapter's files, to compare runs by; empty for a new adapter."""
        return fingerprint_of_adapter(self.folder) if self.folder else {}
