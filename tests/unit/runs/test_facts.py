"""What is said of a run: which values belong to an adapter."""

from __future__ import annotations

import pytest

from kyon_pl.runs.facts import RunFacts

CURVES = {"val/loss": [(0, 4.0), (10, 2.0), (20, 1.0), (30, 0.5)], "train/loss": [(20, 9.0)], "val/late": [(30, 7.0)]}


@pytest.mark.parametrize(("step", "loss"), [(0, 4.0), (20, 1.0), (29, 1.0), (30, 0.5)])
def test_the_values_are_those_of_the_adapters_step_or_of_the_validation_before(step: int, loss: float) -> None:
    late = {"val/late": 7.0} if step >= 30 else {}
    assert RunFacts(step, curves=CURVES).at_step() == {"val/loss": loss} | late


def test_without_a_step_they_are_the_last() -> None:
    assert RunFacts(curves=CURVES).at_step() == {"val/loss": 0.5, "val/late": 7.0}
