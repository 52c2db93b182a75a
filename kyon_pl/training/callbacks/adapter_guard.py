"""A callback that stops a run whose adapter does not learn."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kyon_pl.errors import TrainingError

# optimizer steps after which every lora_B must have changed; 16-mixed may have skipped most of them
STEPS_TO_MOVE = 20


class AdapterGuard(Callback):
    """Checks that the first gradient reaches every `lora_B`, and after some steps that every `lora_B` has changed.

    At the first step every `lora_B` is zero, so the gradient of every `lora_A` is zero. The gradient of a `lora_B` is
    zero only if its layer is cut off from the loss, which raises no error. The two checks synchronize with the device
    once each.
    """

    def __init__(self) -> None:
        self.checked_gradients = self.checked_weights = False

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check the gradients at the first step, and the weights after `STEPS_TO_MOVE` steps.

        Raises:
            TrainingError: a `lora_B` has no gradient, or is still zero.
        """
        if not self.checked_gradients:
            self.checked_gradients = True
            check_gradients(pl_module)
        elif trainer.global_step >= STEPS_TO_MOVE and not self.checked_weights:
            self._check_weights(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the weights of a shorter run, unless a gradient scaler may have skipped all of its steps.

        Raises:
            TrainingError: a `lora_B` is still zero.
        """
        if trainer.global_step and not self.checked_weights and trainer.scaler is None:
            self._check_weights(trainer, pl_module)

    def _check_weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.checked_weights = True
        check_weights(pl_module, trainer.global_step)


def check_gradients(module: torch.nn.Module) -> None:
    """Check that every `lora_B` has a gradient that is not zero.

    Raises:
        TrainingError: one has not.
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
    """Check that every `lora_B` has changed from zero.

    Args:
        module: module with the adapter.
        steps: number of optimizer steps so far.

    Raises:
        TrainingError: one has not.
    """
    weights = lora_b(module)
    names = all_zero({name: weight.detach() for name, weight in weights.items()})
    if names:
        raise TrainingError(
            where=names[0],
            found=f"still zero after {steps} optimizer steps ({len(names)} of {len(weights)} adapted layers): this "
            "adapter changes nothing",
            fix="Set model.optimizer.init_args.lr above 0, and a model.schedule that does not start with many steps "
            "of rate 0",
        )


def lora_b(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The trained parameters that are zero in a new adapter, by name."""
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and (".lora_B." in name or ".lora_embedding_B." in name)
    }


def all_zero(tensors: dict[str, torch.Tensor | None]) -> list[str]:
    """The names of tensors that are None or all zero; synchronizes with the device once."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    counts = torch.stack([tensor.count_nonzero() for tensor in present.values()]).tolist() if present else []
    nonzero = {name for name, count in zip(present, counts, strict=True) if count}
    return [name for name in tensors if name not in nonzero]
