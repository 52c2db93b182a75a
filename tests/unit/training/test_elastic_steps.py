"""Whose optimizer steps a run on another number of devices has, and how its devices share them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from lightning.pytorch import Trainer

from kyon_pl.errors import SettingError
from kyon_pl.runs.fingerprint import ACCUMULATE, MICRO_BATCHES, differences, keep_accumulation
from kyon_pl.training.elastic import keep_optimizer_steps


def fingerprint(devices: int, accumulate: int) -> dict[str, str]:
    return {ACCUMULATE: str(accumulate), MICRO_BATCHES: str(devices * accumulate), "seed_everything": "1"}


@pytest.mark.parametrize(
    ("now", "adapt", "different"),
    [
        ((4, 4), True, []),
        ((1, 16), False, []),  # the same steps in other words
        ((2, 4), True, []),  # other devices
        ((2, 4), False, [MICRO_BATCHES]),
        ((4, 8), True, [MICRO_BATCHES, ACCUMULATE]),  # other steps
    ],
)
def test_same_steps_or_only_other_devices(now: tuple[int, int], adapt: bool, different: list[str]) -> None:
    saved = fingerprint(4, 4)
    lines = differences(saved, keep_accumulation(saved, fingerprint(*now), adapt))
    assert [line.split(": ")[0] for line in lines] == different


def trainer(**settings: Any) -> Trainer:
    return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, **settings)


def test_what_is_counted_in_micro_batches_of_a_device_is_counted_anew() -> None:
    one = trainer(accumulate_grad_batches=2, val_check_interval=6, limit_train_batches=10, limit_val_batches=0.5)
    keep_optimizer_steps(one, fingerprint(4, 2))
    found = one.accumulate_grad_batches, one.val_check_interval, one.limit_train_batches, one.limit_val_batches
    assert found == (8, 24, 40, 0.5)


def test_what_cannot_be_shared_evenly_is_refused() -> None:
    one = trainer(accumulate_grad_batches=4, limit_train_batches=3)
    with pytest.raises(SettingError, match="limit_train_batches: 3 micro-batches"):
        keep_optimizer_steps(one, {ACCUMULATE: "2", MICRO_BATCHES: "1"})


def test_devices_that_cannot_share_a_step_are_refused_with_those_that_can() -> None:
    with pytest.raises(SettingError, match=r"9 micro-batches.*2 devices.*numbers of devices: 1, 3, 9;"):
        keep_optimizer_steps(cast(Any, SimpleNamespace(world_size=2, accumulate_grad_batches=1)), fingerprint(9, 1))
