"""Runs that cannot learn are said before they start, with the option to add."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR

from kyon_pl.training import LinearDecay
from kyon_pl.training.callbacks.spread_validations import validation_interval
from kyon_pl.training.optimizer import Rates
from kyon_pl.training.run_length import MIN_STEPS, warn_if_too_short

OPTIMIZER = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
GOOD = Rates(1.0, 0.95, LinearDecay(OPTIMIZER, 100))
LOW = Rates(1.0, 0.18, LinearDecay(OPTIMIZER, 100))
LOW_OF_TORCH = Rates(1.0, 0.18, ConstantLR(OPTIMIZER))


@pytest.mark.parametrize(
    ("steps", "rates", "trainer", "validation_rows", "said"),
    [
        (MIN_STEPS, GOOD, {}, 8, []),
        (MIN_STEPS - 1, GOOD, {}, 8, ["only 49 optimizer steps", "--config character", "--trainer.max_epochs 25"]),
        (18, GOOD, {"max_epochs": 30, "max_steps": 18}, 8, ["only 18 optimizer steps", "--trainer.max_steps 50"]),
        (100, LOW, {}, 8, ["never rises above 0.18, 18% of 1,", "--model.schedule.warmup_steps null"]),
        (100, LOW_OF_TORCH, {}, 8, ["never rises above 0.18, 18% of 1,", "model.schedule"]),
        (100, GOOD, {}, 0, ["nothing is validated", "--data.validation_share 0.1", "--data.validation_source"]),
        (100, GOOD, {"limit_val_batches": 0}, 0, []),
    ],
)
def test_what_a_run_cannot_learn_from_is_said(
    steps: int,
    rates: Rates,
    trainer: dict[str, Any],
    validation_rows: int,
    said: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = SimpleNamespace(**{"max_epochs": 2, "max_steps": -1, "limit_val_batches": 1.0} | trainer)
    workload = SimpleNamespace(steps_per_epoch=2, validation_rows=validation_rows)
    warn_if_too_short(cast(Any, settings), cast(Any, workload), steps, rates)
    assert len(caplog.records) == bool(said)
    assert [text for text in said if text not in caplog.text] == []


@pytest.mark.parametrize("steps", [*range(1, 60), 153, 1900, 2000])
def test_validations_are_spread_over_every_run(steps: int) -> None:
    every = validation_interval(steps, 10)
    assert min(steps, 10) <= steps // every <= 20
    if steps % 10 == 0:
        assert steps % every == 0, "the last step is validated"


@pytest.mark.parametrize(("steps", "validations", "every"), [(20, 3, 5), (7, 3, 2), (2, 10, 1), (21, 2, 7)])
def test_more_validations_than_asked_are_made_where_they_divide_the_run(
    steps: int, validations: int, every: int
) -> None:
    assert validation_interval(steps, validations) == every
