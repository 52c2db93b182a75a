from __future__ import annotations

import pytest
import torch

from kyon_pl.errors import SettingError
from kyon_pl.training import LinearDecay


def rates(total_steps: int, warmup_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = LinearDecay(optimizer, total_steps, warmup_steps)
    seen = []
    for _ in range(total_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*seen, optimizer.param_groups[0]["lr"]]


def test_without_warmup_it_is_the_originals() -> None:
    assert rates(4, 0) == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


def test_warmup_wastes_no_step_and_ends_at_the_full_rate() -> None:
    assert rates(6, 2) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_negative_warmup_is_refused() -> None:
    with pytest.raises(SettingError, match="warmup_steps"):
        rates(3, -1)
