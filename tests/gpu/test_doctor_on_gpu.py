"""The doctor on a real GPU: its estimate against the measured peak of a step, and what it says of the machine."""

from __future__ import annotations

import gc
import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from kyon_pl.batch import Batch
from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.chatglm2.checkpoint import random_base
from kyon_pl.cli import main
from kyon_pl.data.batches.collate import DialogueCollator, PlannedCollator
from kyon_pl.data.batches.sampler import MicroBatch
from kyon_pl.doctor.memory import BatchShape, MemorySettings, memory_estimate
from kyon_pl.lora import attach_lora, reference_lora

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ROOT = Path(__file__).parents[2]
# ChatGLM2-6B's own width, and fewer layers, so that smaller GPUs can run this
LAYERS, ROW_TOKENS, TRAINED = 6, 1024, 40

# name -> gradient checkpointing, attention, packed, rows of 1,024 tokens
SETTINGS = {
    "checkpointed": ("full", "varlen", True, 4),
    "all activations kept": ("none", "varlen", True, 4),
    "a mask": ("full", "sdpa", True, 4),
    "padded": ("full", "sdpa", False, 4),
}


def make_batch(rows: int, packed: bool) -> Batch:
    ids = torch.arange(300, 300 + ROW_TOKENS).tolist()
    whole = [{"input_ids": ids, "seq_len": ROW_TOKENS - TRAINED} for _ in range(rows)]
    sizes = (rows * ROW_TOKENS, ROW_TOKENS) if packed else (None, None)
    return PlannedCollator(DialogueCollator(), *sizes)((MicroBatch(tuple(range(rows)), rows * TRAINED), whole))


def measured_peak_bytes(checkpointing: str, attention: str, batch: Batch) -> int:
    """Of two whole steps, so that Adam's state is there."""
    device = torch.device("cuda")
    base = random_base(
        ChatGLM2Config(num_layers=LAYERS), dtype=torch.bfloat16, device=device, attn_implementation=attention
    )
    model = attach_lora(base, reference_lora(), "random").train()
    if checkpointing == "full":
        base.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    inputs = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in batch.model_inputs().items()}
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            model(**inputs, use_cache=False, skip_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("name", SETTINGS)
def test_estimate_is_within_ten_percent_of_the_measured_peak(name: str) -> None:
    checkpointing, attention, packed, rows = SETTINGS[name]
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("bfloat16 and flash attention need sm_80")
    gc.collect()
    torch.cuda.empty_cache()
    slots = rows * ROW_TOKENS
    settings = MemorySettings(
        precision="bf16-mixed",
        lora=reference_lora(),
        checkpointing=checkpointing,
        attention=attention,
        packed=packed,
        training=BatchShape(rows=1, slots=slots, trained_tokens=rows * TRAINED)
        if packed
        else BatchShape(rows=rows, slots=ROW_TOKENS, trained_tokens=rows * TRAINED),
        validation=None,
    )
    estimate = memory_estimate(ChatGLM2Config(num_layers=LAYERS), settings).peak
    measured = measured_peak_bytes(checkpointing, attention, make_batch(rows, packed))
    print(f"\n{name}: estimated {estimate / 2**30:.2f} GiB, measured {measured / 2**30:.2f} GiB")
    assert estimate == pytest.approx(measured, rel=0.1)


def test_doctor_sees_the_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", "--config", str(ROOT / "configs/lora.yaml"), "--model.base", "random", "--json"]
    with suppress(SystemExit):  # a small GPU is told to be too small
        main(words)
    told = json.loads(capsys.readouterr().out)
    assert told["machine"]["cuda_available"]
    assert told["machine"]["gpus"][0]["name"] == torch.cuda.get_device_name()
    assert told["config"]["device"] == "cuda"
    assert told["config"]["device_is_here"]
    memory_bytes = torch.cuda.get_device_properties(0).total_memory
    assert told["config"]["available_bytes"] == pytest.approx(memory_bytes, rel=0.02)
    assert told["works"] == (told["config"]["needed_bytes"] <= told["config"]["available_bytes"])
