# mypy: allow-untyped-calls
"""How the decoder layers of a base run in training: which of them compute twice, and whether they are compiled."""

from __future__ import annotations

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM


def checkpoint_layers(base: ChatGLM2ForCausalLM, checkpointed: int) -> None:
    """Have the first layers keep only their input for the backward pass; in training mode they do.

    Args:
        base: with LoRA attached: PEFT would otherwise make the embedding's output ask for a gradient, which only the
            reentrant kind needs.
        checkpointed: how many.
    """
    if checkpointed:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in base.transformer.encoder.layers[checkpointed:]:
        layer.gradient_checkpointing = False  # type: ignore[assignment]


def compile_layers(base: ChatGLM2ForCausalLM) -> None:
    """Compile each layer, all of them as one graph: the input of the first would be frozen otherwise, and another."""
    base.enable_input_require_grads()
    for layer in base.transformer.encoder.layers:
        layer.compile()
