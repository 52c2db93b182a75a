"""Floating-point operations, against weights that are counted in a model."""

from __future__ import annotations

from rigged import SHAPE

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM
from kyon_pl.training.throughput import executed_flop

CONFIG = ChatGLM2Config(**SHAPE)


def test_what_follows_the_last_attention_is_counted_at_labels_only() -> None:
    """Without the products of attention: two operations a weight forward, and two for the gradients of inputs."""
    weights = {name: weight.numel() for name, weight in ChatGLM2ForCausalLM(CONFIG).named_parameters()}
    del weights["transformer.embedding.word_embeddings.weight"]
    behind = ("output_layer", "layers.1.self_attention.dense", "layers.1.mlp")
    at_labels = sum(size for name, size in weights.items() if any(part in name for part in behind))
    assert executed_flop(CONFIG, tokens=0, labels=1, row_tokens=7) == 4 * at_labels
    assert executed_flop(CONFIG, tokens=1, labels=0, row_tokens=0) == 4 * (sum(weights.values()) - at_labels)


def test_attention_takes_two_products_over_half_of_the_pairs_and_twice_that_backward() -> None:
    with_attention, without = (
        executed_flop(CONFIG, tokens=10, labels=0, row_tokens=row_tokens) for row_tokens in (10, 0)
    )
    forward = CONFIG.num_layers * 2 * (2 * 32 * 10 * 10 / 2)  # two products of 32 queries, half of 10 x 10 pairs
    assert with_attention - without == 3 * forward
