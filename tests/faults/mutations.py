"""What may happen to a checkpoint between two runs, kind by kind, and the name that a checker must give it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

Checkpoint = dict[str, Any]


class Mutation(NamedTuple):
    """Changes a checkpoint in place.

    Attributes:
        named: a part of the dotted name of what has changed.
    """

    change: Callable[[Checkpoint], None]
    named: str


def lora_b(checkpoint: Checkpoint) -> str:
    """The name of one."""
    return next(name for name in checkpoint["state_dict"] if "layers.1." in name and "lora_B" in name)


def position(checkpoint: Checkpoint) -> dict[str, Any]:
    """In the data."""
    position: dict[str, Any] = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
    return position


def move_one_weight(checkpoint: Checkpoint) -> None:
    """By about as little as float32 can tell."""
    weight = checkpoint["state_dict"][lora_b(checkpoint)]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))


ALTERED = {
    "scheduler": Mutation(lambda c: c["lr_schedulers"][0].update(last_epoch=3), "lr_schedulers.0.last_epoch"),
    "rate": Mutation(lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr=1e-9), "param_groups.0.lr"),
    "moment": Mutation(lambda c: c["optimizer_states"][0]["state"][1]["exp_avg_sq"].mul_(1.001), "1.exp_avg_sq"),
    "scaler": Mutation(lambda c: c["MixedPrecision"].update(_growth_tracker=8), "MixedPrecision._growth_tracker"),
    "data position": Mutation(lambda c: position(c).update(optimizer_step=1), "combined_loader.0.optimizer_step"),
    "loops": Mutation(lambda c: c["loops"]["fit_loop"]["epoch_progress"]["total"].update(ready=9), "epoch_progress"),
    "lora_B": Mutation(move_one_weight, "layers.1.self_attention.query_key_value.lora_B"),
    "step": Mutation(lambda c: c.update(global_step=1), "global_step"),
    "config": Mutation(lambda c: c.update(config=c["config"] + "\n"), "config"),
    "randomness": Mutation(lambda c: c["fingerprint"].update(seed_everything="6"), "fingerprint.seed_everything"),
    "fingerprint": Mutation(lambda c: c["fingerprint"].update({"model.lora.r": "5"}), "fingerprint.model.lora.r"),
}
REMOVED = {
    "scheduler": Mutation(lambda c: c.pop("lr_schedulers"), "lr_schedulers"),
    "optimizer": Mutation(lambda c: c.pop("optimizer_states"), "optimizer_states"),
    "scaler": Mutation(lambda c: c.pop("MixedPrecision"), "MixedPrecision"),
    "data position": Mutation(lambda c: position(c).pop("optimizer_step"), "combined_loader.0.optimizer_step"),
    "randomness": Mutation(lambda c: c["fingerprint"].pop("seed_everything"), "fingerprint.seed_everything"),
    "lora_B": Mutation(lambda c: c["state_dict"].pop(lora_b(c)), "lora_B"),
    "fingerprint": Mutation(lambda c: c.pop("fingerprint"), "fingerprint"),
}
MUTATIONS = {f"{name} altered": case for name, case in ALTERED.items()}
MUTATIONS |= {f"{name} removed": case for name, case in REMOVED.items()}
