"""How long a run will take."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.doctor.memory_settings import MemorySettings
from kyon_pl.doctor.work import Work
from kyon_pl.lora import frozen_dtype
from kyon_pl.training.flop import USUAL_SHARE, flop_per_token, matrix_rate, rate_in_words, recomputed_share

# Real tokens a second on one H100 80GB, ChatGLM2-6B, packed, varlen, by
# (precision, tokens_per_batch, checkpointing, compile, quantization).
# Source: benchmarks/results/2026-11-24-nvidia-h100-80gb.md, and -speed.md for what is compiled
MEASURED_TOKENS_PER_S: dict[tuple[object, ...], int] = {
    ("16-mixed", 2048, "full", False, None): 6_699,
    ("bf16-mixed", 2048, "full", False, None): 7_492,
    ("bf16-mixed", 8192, "full", False, None): 12_074,
    ("bf16-mixed", 8192, "none", False, None): 16_365,
    ("bf16-mixed", 8192, "full", True, None): 14_965,
    ("bf16-mixed", 8192, "none", True, None): 21_920,
    ("16-mixed", 8192, "none", True, None): 21_006,
    ("bf16-mixed", 8192, "full", True, "nf4"): 14_565,
    ("bf16-mixed", 8192, "full", True, "fp8"): 22_280,
    ("bf16-mixed", 8192, "none", True, "fp8"): 31_820,
}


@dataclass(frozen=True)
class Speed:
    """A guess at the time.

    Attributes:
        seconds: of all training steps; validation comes on top.
        source: what it is based on, in words.
    """

    seconds: float
    source: str


def estimate_time(config: ChatGLM2Config, settings: MemorySettings, work: Work, device: torch.device) -> Speed | None:
    """Seconds from what was measured with these settings on this kind of GPU, else from a matrix product timed now.

    Args:
        config: the shape of the base.
        settings: the run.
        work: how much there is to do.
        device: where; each of them does its share.

    Returns:
        None if it is not known how much there is to do.
    """
    if work.slots is None:
        return None
    how = settings.checkpointing, settings.compiled, settings.quantization
    key = settings.precision, settings.training.slots, *how
    known = MEASURED_TOKENS_PER_S.get(key)
    if known and settings.attention == "varlen" and _is_measured_gpu(device) and _is_6b(config):
        return Speed(work.slots / known, f"{known:,} tokens/s were measured with these settings on such a GPU")
    row_tokens = settings.training.slots if work.row_tokens is None else work.row_tokens
    recomputed = recomputed_share(settings.checkpointing, config)
    flop = work.slots * flop_per_token(config, row_tokens, recomputed=recomputed)
    rate = matrix_rate(device, frozen_dtype(settings.precision))
    source = f"{USUAL_SHARE:.0%} of the matrix products timed here, {rate_in_words(rate)}"
    return Speed(flop / (rate * USUAL_SHARE), source)


def _is_measured_gpu(device: torch.device) -> bool:
    return device.type == "cuda" and "H100 80GB HBM3" in torch.cuda.get_device_name(device)


def _is_6b(config: ChatGLM2Config) -> bool:
    return config.parameter_count == ChatGLM2Config().parameter_count
