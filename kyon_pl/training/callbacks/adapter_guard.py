"""Stops a run whose adapter learns nothing."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kyon_pl.errors import TrainingError

# optimizer steps after which every lora_B has moved from zero; 16-mixed may have skipped most of them
STEPS_TO_MOVE = 20


class AdapterGuard(Callback):
    """Checks that the first step's gradient reaches every `lora_B`, and some steps later that all have moved.

    At the first step every `lora_B` is zero, and so is the gradient of every `lora_A`; that of `lora_B` cannot be,
    unless the layer is cut off from the loss, which no error tells. The device is waited for once a check, that is
    twice a run.
    """

    def __init__(self) -> None:
        self.checked_gradients = self.checked_weights = False

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check what is due.

        Raises:
            TrainingError: a `lora_B` without gradient, or one that is still zero.
        """
        if not self.checked_gradients:
            self.checked_gradients = True
            check_gradients(pl_module)
        elif trainer.global_step >= STEPS_TO_MOVE and not self.checked_weights:
            self._check_weights(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the weights of a shorter run too, unless a gradient scaler may have skipped all its steps.

        Raises:
            TrainingError: a `lora_B` that is still zero.
        """
        if trainer.global_step and not self.checked_weights and trainer.scaler is None:
            self._check_weights(trainer, pl_module)

    def _check_weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.checked_weights = True
        check_weights(pl_module, trainer.global_step)


def check_gradients(module: torch.nn.Module) -> None:
    """Refuse a `lora_B` that got no gradient, or one of zeros.

    Raises:
        TrainingError: there is one.
    """
    weights = lora_b(module)
    names = all_zero({name: weight.grad for name, weight in weights.items()})
    if names:
        raise TrainingError(
            where=names[0],
            found=f"the first step gave it no gradient ({len(names)} of {len(weights)} adapted layers)",
            fix="Name in model.lora.target_modules only layers that the loss depends on. If they do, try "
            "--model.checkpointing none: another version of torch or transformers may checkpoint differently",
        )


def check_weights(module: torch.nn.Module, steps: int) -> None:
    """Refuse a `lora_B` that is as it began.

    Args:
        module: holds the adapter.
        steps: how many optimizer steps there were.

    Raises:
        TrainingError: there is one of zeros.
    """
    weights = lora_b(module)
    names = all_zero({name: weight.detach() for name, weight in weights.items()})
    if names:
        raise TrainingError(
            where=names[0],
            found=f"still zero after {steps} optimizer steps ({len(names)} of {len(weights)} adapted layers): this "
            "adapter changes nothing",
            fix="Set model.optimizer.init_args.lr above 0, and model.schedule to one that does not start with a long "
            "stretch of zero",
        )


def lora_b(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The trained parameters that are zero in a fresh adapter, by name."""
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and (".lora_B." in name or ".lora_embedding_B." in name)
    }


def all_zero(tensors: dict[str, torch.Tensor | None]) -> list[str]:
    """The names of tensors that are missing or hold nothing but zeros; it waits for the device once."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    counts = torch.stack([tensor.count_nonzero() for tensor in present.values()]).tolist() if present else []
    filled = {name for name, count in zip(present, counts, strict=True) if count}
    return [name for name in tensors if name not in filled]
