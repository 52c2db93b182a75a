# mypy: allow-untyped-calls
"""ChatGLM2 without remote code. Importing this package registers it with transformers' Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from kyon_pl.chatglm2.attention import register_attention
from kyon_pl.chatglm2.configuration import ChatGLM2Config
from kyon_pl.chatglm2.modeling import ChatGLM2ForCausalLM
from kyon_pl.chatglm2.tokenization import ChatGLMTokenizer

__all__ = ["ChatGLM2Config", "ChatGLM2ForCausalLM", "ChatGLMTokenizer"]


class _TokenizerKey(PreTrainedConfig):
    """Replaces ChatGLM2Config in AutoTokenizer's table.

    A tokenizer registered under ChatGLM2Config counts as one of transformers' own, and `trust_remote_code=True` would
    then run the Hub's file. Under any other key, AutoTokenizer finds the class by its name, which
    `ChatGLM2Config.tokenizer_class` and the published `tokenizer_config.json` both give.
    """


def _register() -> None:
    AutoConfig.register(ChatGLM2Config.model_type, ChatGLM2Config, exist_ok=True)
    AutoModelForCausalLM.register(ChatGLM2Config, ChatGLM2ForCausalLM, exist_ok=True)
    AutoModel.register(ChatGLM2Config, ChatGLM2ForCausalLM, exist_ok=True)  # with its head, as published
    AutoTokenizer.register(_TokenizerKey, ChatGLMTokenizer, exist_ok=True)
    register_attention()


_register()
