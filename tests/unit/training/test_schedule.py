from __future__ import annotations

import pytest
import torch

from kyon_pl.errors import SettingError
from kyon_pl.training import LinearDecay
from kyon_pl.training.optimizer import learning_rates, scale_rates


def rates(total_steps: int, warmup_steps: int | None = None, warmup_share: float = 0.03) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = LinearDecay(optimizer, total_steps, warmup_steps=warmup_steps, warmup_share=warmup_share)
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


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(SettingError, match="warmup_share"):
        rates(3, warmup_share=share)


def test_steps_win_over_the_share() -> None:
    assert rates(6, 2, warmup_share=0.9) == rates(6, 2)
    assert rates(100, warmup_share=0.07) == rates(100, 7)


@pytest.mark.parametrize("total_steps", [1, 2, 3, 18, 100, 2000])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.9995])
def test_a_warmup_share_leaves_a_step_at_the_full_rate(total_steps: int, share: float) -> None:
    assert max(rates(total_steps, warmup_share=share)) == 1.0


@pytest.mark.parametrize(("steps", "warmup_steps", "highest"), [(18, 100, 18 / 101), (18, None, 1.0), (120, 100, 1.0)])
def test_the_highest_rate_of_a_run_is_known_before(steps: int, warmup_steps: int | None, highest: float) -> None:
    found = learning_rates(
        lambda parameters: torch.optim.AdamW(parameters, lr=0.2),
        lambda optimizer, total_steps: LinearDecay(optimizer, total_steps, warmup_steps),
        steps,
    )
    assert (found.chosen, found.highest) == pytest.approx((0.2, 0.2 * highest))


@pytest.mark.parametrize(
    ("hidden_size", "chosen_for", "factor"), [(4096, 4096, 1), (160, 4096, 12.5), (8192, 4096, 0.58), (160, None, 1)]
)
def test_rates_are_scaled_to_the_width_of_the_base(hidden_size: int, chosen_for: int | None, factor: float) -> None:
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.01)
    scaled = scale_rates(optimizer, hidden_size, chosen_for)
    assert scaled.param_groups[0]["lr"] == pytest.approx(0.01 * factor, rel=0.01)
    LinearDecay(scaled, 10, warmup_steps=0)
    assert scaled.param_groups[0]["lr"] == pytest.approx(0.01 * factor, rel=0.01)
