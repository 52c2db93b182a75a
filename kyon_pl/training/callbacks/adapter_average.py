"""A callback that averages the adapter over the optimizer steps (EMA)."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from kyon_pl.errors import SettingError
from kyon_pl.lora import trained_parameters


class AdapterAverage(Callback):
    """Keeps an exponential moving average of the trained weights, which is what is validated and saved.

    The average is in the `state_dict` of checkpoints, and so in the adapters beside them. The weights that the
    optimizer trains are in the state of this callback, so that a resumed run gives the same bytes. At the end of fit
    the module has the average.

    Args:
        decay: share of the average that an optimizer step keeps, 0 or more and below 1. Step s keeps at most
            (1 + s) / (10 + s), so that the start does not dominate a short run.

    Raises:
        SettingError: `decay` is out of range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise SettingError("AdapterAverage.decay", f"{decay} is no share", "Set 0 or more and below 1, as 0.999.")
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}
        self.last_step = 0
        self.exchanged = False  # the module has the average, and `average` the trained weights

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start without an average.

        Raises:
            SettingError: a ModelCheckpoint saves weights only, and would save other weights than these.
        """
        self.average, self.last_step, self.exchanged = {}, 0, False
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_weights_only:
                found = "it leaves out callbacks, and so would save weights that are not averaged"
                raise SettingError("ModelCheckpoint.save_weights_only", found, "Set it to false")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the average with the weights, unless a checkpoint had one."""
        if not self.average:
            self.average = {name: weight.detach().clone() for name, weight in trained_parameters(pl_module).items()}
            self.last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the weights to the average after each optimizer step."""
        self._update(trainer.global_step, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module."""
        self._exchange(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the trained weights back; checkpoints are saved after this."""
        self._exchange(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the weights, and the trained weights as this callback's state."""
        if not self.average:
            return
        self._update(trainer.global_step, pl_module)  # a callback before this one may save at the end of a step
        weights = {name: weight.detach() for name, weight in trained_parameters(pl_module).items()}
        average, trained = (weights, self.average) if self.exchanged else (self.average, weights)
        checkpoint["state_dict"] = checkpoint["state_dict"] | average
        checkpoint["callbacks"][self.state_key] = {"trained": trained, "last_step": self.last_step}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """In fit, restore the average and the trained weights; other stages keep the average."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if trainer.state.fn != "fit" or state is None:
            return
        self.last_step = state["last_step"]
        weights = trained_parameters(pl_module)
        self.average = {name: checkpoint["state_dict"][name].to(weight, copy=True) for name, weight in weights.items()}
        pl_module.load_state_dict(state["trained"], strict=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the average in the module."""
        if stage == "fit":
            self._exchange(pl_module)
            self.average = {}

    def _update(self, step: int, module: LightningModule) -> None:
        if step == self.last_step:
            return
        self.last_step = step
        kept = min(self.decay, (1 + step) / (10 + step))
        for name, weight in trained_parameters(module).items():
            self.average[name].lerp_(weight.detach(), 1 - kept)

    @torch.no_grad()
    def _exchange(self, module: LightningModule) -> None:
        for name, weight in trained_parameters(module).items() if self.average else []:
            other = self.average[name].clone()
            self.average[name].copy_(weight)
            weight.copy_(other)
        self.exchanged = bool(self.average) and not self.exchanged
