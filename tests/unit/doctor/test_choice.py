"""What is chosen for settings that are `auto`, on GPUs that are not here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.cli.tools import doctor_settings
from kyon_pl.doctor.choice import Choice, choose, planned_tokens
from kyon_pl.doctor.cuts import step_cuts
from kyon_pl.doctor.device import USABLE_SHARE, Target
from kyon_pl.doctor.memory import memory_estimate, needed_bytes
from kyon_pl.doctor.run_settings import memory_settings
from kyon_pl.doctor.speed import CARDS, GIB, SpeedSettings, tokens_per_s
from kyon_pl.doctor.work import assumed_shape
from kyon_pl.errors import SettingError

ROOT = Path(__file__).parents[3]
CONFIG = ChatGLM2Config()
H100 = Target("cuda", False, 1, CARDS["h100"].memory_bytes, CARDS["h100"], (9, 0))
# tokens/s on an H100: benchmarks/results/2026-11-24-nvidia-h100-80gb-speed.md and 2026-11-25-nvidia-h100-80gb-speed.md
MEASURED = {
    ("bf16-mixed", 8192, 18, True, None): 16_843,
    ("bf16-mixed", 8192, 14, True, None): 17_748,
    ("16-mixed", 8192, 0, True, None): 21_006,
    ("bf16-mixed", 2048, 28, False, None): 7_492,
    ("bf16-mixed", 8192, 28, True, "nf4"): 14_376,
}


def reference(config: str = "lora", **changed: Any) -> Namespace:
    words = ["doctor", "--config", str(ROOT / f"configs/{config}.yaml"), "--model.base", "random"]
    settings = doctor_settings(words)
    for name, value in changed.items():
        settings[name.replace("__", ".")] = value
    return settings


def chosen(target: Target, config: str = "lora", **changed: Any) -> tuple[dict[str, Any], Choice, Namespace]:
    settings = reference(config, **changed)
    choice = choose(settings, CONFIG, target, None)
    for name, value in choice.values.items():
        settings[name] = value
    return dict(choice.values), choice, settings


def needed(settings: Namespace, target: Target) -> int:
    shape = assumed_shape(1, settings.data.tokens_per_batch)
    found = memory_settings(settings, target, shape, assumed_shape(settings.data.validation_rows_per_batch, 2048))
    return needed_bytes(memory_estimate(CONFIG, found).peak, "cuda")


@pytest.mark.parametrize("case", MEASURED)
def test_speeds_are_those_that_were_measured(case: tuple[Any, ...]) -> None:
    precision, tokens, layers, compiled, quantization = case
    settings = SpeedSettings(
        precision=precision,
        tokens=tokens,
        checkpointed_share=layers / 28,
        compiled=compiled,
        quantization=quantization,
    )
    assert tokens_per_s(settings, CARDS["h100"]) == pytest.approx(MEASURED[case], rel=0.02)


@pytest.mark.parametrize("memory_gib", [14, 16, 22, 24, 40, 46, 79, 139])
def test_what_is_chosen_fits_and_one_layer_less_would_not(memory_gib: int) -> None:
    target = replace(H100, available_bytes=memory_gib * GIB)
    values, _, settings = chosen(target)
    batch, accumulated = values["data.tokens_per_batch"], values["trainer.accumulate_grad_batches"]
    assert batch * accumulated == 32_768
    assert needed(settings, target) <= memory_gib * GIB * USABLE_SHARE
    layers = {"none": 0, "full": 28}.get(values["model.checkpointing"], values["model.checkpointing"])
    if layers:
        settings.model.checkpointing = layers - 1
        assert needed(settings, target) > memory_gib * GIB * USABLE_SHARE
    else:
        assert memory_gib >= 22
    assert (batch == 8192) == (memory_gib >= 40)


def test_what_is_set_by_hand_is_kept() -> None:
    by_hand = {"model__compile": False, "model__checkpointing": 3, "data__tokens_per_batch": 4096}
    values, choice, _ = chosen(H100, **by_hand)
    assert values == {"trainer.accumulate_grad_batches": 8}
    assert sum("(auto)" in line for line in choice.lines) == 1
    assert chosen(H100, trainer__accumulate_grad_batches=8)[0]["data.tokens_per_batch"] == 4096


def test_layers_are_compiled_where_that_pays() -> None:
    assert chosen(H100)[0]["model.compile"]
    values, choice, _ = chosen(H100, trainer__max_steps=20)
    assert not values["model.compile"]
    assert any("would save about" in line for line in choice.lines)
    old = choose(reference(), CONFIG, H100, "not tried on GPUs before Ampere")
    assert not old.values["model.compile"]
    assert not chosen(H100, "character")[0]["model.compile"]  # padded batches


def test_one_line_says_what_bfloat16_would_give() -> None:
    def about_precision(target: Target, **changed: Any) -> int:
        return sum("bf16-mixed would be" in line for line in chosen(target, **changed)[1].lines)

    assert about_precision(H100) == 1
    assert about_precision(H100, trainer__precision="bf16-mixed") == 0
    assert about_precision(replace(H100, capability=(7, 5))) == 0


def test_devices_share_the_step() -> None:
    for devices in (1, 2, 4, 8, 16):
        values, *_ = chosen(replace(H100, devices=devices))
        made = values["data.tokens_per_batch"] * values["trainer.accumulate_grad_batches"] * devices
        assert made == 32_768
    assert [cut.accumulate for cut in step_cuts(reference("character"), 2)] == [2]


@pytest.mark.parametrize(
    ("devices", "changed", "message"),
    [
        (3, {}, r"trainer.devices: 3 devices cannot share .* 1, 2, 4, 8, 16; or set data.tokens_per_step .* of 6144"),
        (1, {"data__tokens_per_batch": 3000}, r"tokens_per_batch: 3000 does not divide .* 2048, 4096, 8192"),
        (1, {"trainer__accumulate_grad_batches": 3}, r"accumulate_grad_batches: 3 does not divide .* 16, 8, 4, 2, 1"),
        (1, {"data__tokens_per_step": None}, "accumulate_grad_batches: auto, and data.tokens_per_step"),
        (1, {"data__tokens_per_step": 1024}, "data.max_tokens: 2,048, but an optimizer step has 1,024"),
    ],
)
def test_steps_that_cannot_be_cut_are_refused(devices: int, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        chosen(replace(H100, devices=devices), **changed)


def test_tokens_of_a_run_without_reading_rows(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("x" * 4000)
    assert planned_tokens(reference(data__source=str(rows))) == 2 * 1000
    assert planned_tokens(reference(trainer__max_steps=3)) == 3 * 32_768
    assert planned_tokens(reference(data__source="someone/rows")) == float("inf")
    assert planned_tokens(reference(data__source=str(tmp_path / "none.jsonl"))) == float("inf")
