"""The model card of an adapter without a run, and of a run with many validations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from kyon_pl.publish.model_card import CURVE_ROWS, _curve, hub_id, model_card
from kyon_pl.runs.facts import RunFacts


def test_card_without_a_run(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    card = ModelCard(str(model_card(tmp_path, "me/mine", str(tmp_path / "base"))))
    assert card.text.count("Not recorded.") == 2
    assert (card.data.base_model, card.data.license, card.data.eval_results) == (None, None, None)
    assert str(tmp_path) not in card.content
    assert 'from_pretrained("BASE"' in card.text


def test_long_curve_keeps_first_and_last_step() -> None:
    points = [(step, 5.0 - step / 1000) for step in range(0, 1000, 10)]
    steps = [
        line.split(" | ")[0].lstrip("| ") for line in _curve(RunFacts(curves={"val/loss": points})).splitlines()[2:]
    ]
    assert len(steps) == CURVE_ROWS
    assert (steps[0], steps[-1]) == ("0", "990")
    assert RunFacts(step=500, curves={"val/loss": points}).at_step() == {"val/loss": 4.5}


@pytest.mark.parametrize(
    ("name", "found"), [("THUDM/chatglm2-6b", True), ("/models/base", False), ("demo", False), (None, False)]
)
def test_hub_id(name: str | None, found: bool) -> None:
    assert (hub_id(name) == name and name is not None) is found
