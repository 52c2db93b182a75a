"""Floating-point operations of training, and the rate at which a device performs them."""

from __future__ import annotations

import time

import torch

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.lora import Checkpointing, checkpointed_layers

# share of the measured matrix-product rate that a LoRA step reaches; measured values are between 0.3 and 0.65
USUAL_SHARE = 0.4


def flop_per_token(config: ChatGLM2Config, row_tokens: float, *, recomputed: float) -> float:
    """Floating-point operations of LoRA training, per token.

    The forward pass and the gradients of the inputs take 2 operations per weight each: 4 * N. Frozen weights need no
    gradients. Attention takes 2 * Q * T per layer forward (two products over half of the pairs), and 3 times that with
    its backward pass. A checkpointed layer computes its forward pass twice.

    Args:
        config: configuration of the base. N excludes the embedding, which is not multiplied.
        row_tokens: T, number of tokens that attend to each other.
        recomputed: share of the layers that are checkpointed, 0 to 1.
    """
    weights = config.parameter_count - config.padded_vocab_size * config.hidden_size
    attention = 2 * config.num_layers * config.num_attention_heads * config.kv_channels * row_tokens
    return (4 + 2 * recomputed) * weights + (3 + recomputed) * attention


def executed_flop(config: ChatGLM2Config, *, tokens: float, labels: float, row_tokens: float) -> float:
    """Floating-point operations of a training step as this model makes it, without checkpointing.

    Unlike `flop_per_token`, which counts what the rows would take one by one, it counts the head, and what follows the
    attention in the last layer, at labels only, and shared beginnings once.

    Args:
        config: configuration of the base.
        tokens: computed tokens of the step.
        labels: trained tokens of the step.
        row_tokens: number of tokens that attend to each other.
    """
    head = config.padded_vocab_size * config.hidden_size
    queries = config.num_attention_heads * config.kv_channels
    after_attention = config.hidden_size * (queries + 3 * config.ffn_hidden_size)
    everywhere = config.parameter_count - 2 * head - after_attention
    attention = 2 * config.num_layers * queries * row_tokens
    return tokens * (4 * everywhere + 3 * attention) + labels * 4 * (head + after_attention)


def recomputed_share(checkpointing: Checkpointing, config: ChatGLM2Config) -> float:
    """The share of a base's layers that are checkpointed, 0 to 1.

    Raises:
        SettingError: the number of layers is negative or exceeds that of the base.
    """
    return checkpointed_layers(checkpointing, config.num_layers) / config.num_layers


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of a square matrix product on this device; takes a fraction of a second."""
    size = 4096 if device.type == "cuda" else 512
    generator = torch.Generator(device).manual_seed(0)  # keeps the run's random state unchanged
    a = torch.randn(size, size, device=device, dtype=dtype, generator=generator)
    for _ in range(2):
        a @ a
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started_s = time.perf_counter()
    repeats = 10
    for _ in range(repeats):
        a @ a
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return repeats * 2 * size**3 / (time.perf_counter() - started_s)


def rate_in_words(flop_per_s: float) -> str:
    """Format a rate: `512 TFLOP/s` or `80 GFLOP/s`."""
    return f"{flop_per_s / 1e12:,.0f} TFLOP/s" if flop_per_s > 1e13 else f"{flop_per_s / 1e9:,.0f} GFLOP/s"


def duration(seconds: float) -> str:
    """Format seconds: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
