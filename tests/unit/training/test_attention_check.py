"""flash-attn-4 is compared with torch's flash attention before a run relies on it; here both are stand-ins on a CPU."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from flash_on_cpu import Flash4, install_flash4, row_by_row
from rigged import SHAPE

from kyon_pl.batch import Batch
from kyon_pl.chatglm2 import ChatGLM2Config, attention
from kyon_pl.data import DialogueCollator
from kyon_pl.data.batches.collate import PlannedCollator
from kyon_pl.data.batches.sampler import MicroBatch
from kyon_pl.errors import SettingError
from kyon_pl.training import base
from kyon_pl.training.attention_check import find_difference

CPU = torch.device("cpu")
ROWS = [{"input_ids": [3, 4, 5, *[6] * number, 2], "seq_len": 3, "masked": []} for number in (1, 4, 6)]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Flash4:
    monkeypatch.setattr(attention, "varlen_attn", row_by_row)
    return install_flash4(monkeypatch)


def batch(tokens: int | None = 32, shared: tuple[int, ...] = (0, 3, 2)) -> Batch:
    collate = PlannedCollator(DialogueCollator(), tokens, 16, shares=tokens is not None)
    return collate((MicroBatch((0, 1, 2), 0, shared), ROWS))


def difference(found: Batch) -> str | None:
    return find_difference(ChatGLM2Config(**SHAPE), found, torch.float32, CPU)


def test_kernels_that_agree(module: Flash4) -> None:
    state = torch.random.get_rng_state()
    assert difference(batch()) is None
    assert module.calls == ["forward", "backward"]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert difference(batch(None)) is None  # padded: nothing to compare
    assert len(module.calls) == 2


def fail(*arguments: object, **options: object) -> None:
    raise RuntimeError("no such tile\nof this GPU")


def test_kernels_that_differ_or_fail(module: Flash4, monkeypatch: pytest.MonkeyPatch) -> None:
    module.error = 0.1
    assert "differ by" in str(difference(batch()))
    module.error = float("nan")
    assert "differ by nan" in str(difference(batch()))
    monkeypatch.setattr(module, "flash_attn_varlen_func", fail)
    assert difference(batch()) == "RuntimeError: no such tile"


@pytest.mark.parametrize(("error", "used"), [(0.0, "fa4"), (0.1, "varlen")])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_run_falls_back_aloud(
    module: Flash4,
    error: float,
    used: str,
    compiled: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    problem = "compared with torch's flash attention, outputs or gradients differ by"

    def choose(asked: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
        return ("fa4" if asked == "auto" else asked), "as this test says"

    monkeypatch.setattr(base, "choose_attention", choose)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chatglm", **SHAPE}))
    module.error = error
    settings = "random", None, str(tmp_path), False, None, "none", compiled
    with caplog.at_level(logging.INFO):
        model = base.FrozenBase(*settings, "auto").load(torch.float32, CPU, ranks=1, batches=lambda: [batch()])
    assert model.config._attn_implementation == used
    assert f"attention: {used} (as this test says)" in caplog.text
    assert (f"flash-attn-4 is not used: {problem}" in caplog.text) == (used == "varlen")
    if used == "varlen":
        with pytest.raises(SettingError, match=f"attention: fa4: {problem}"):
            base.FrozenBase(*settings, "fa4").load(torch.float32, CPU, ranks=1, batches=lambda: [batch()])
