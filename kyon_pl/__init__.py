"""Fine-tune ChatGLM2-6B into a character.

The public names are imported on first use, so that `import kyon_pl` costs nothing; touching one also registers
ChatGLM2 with transformers' Auto classes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kyon_pl.imports import public_name

if TYPE_CHECKING:
    from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM, ChatGLMTokenizer
    from kyon_pl.data import DialogueDataModule
    from kyon_pl.training import ChatGLM2LoRA

__version__ = "0.2.0.dev0"
__all__ = [
    "ChatGLM2Config",
    "ChatGLM2ForCausalLM",
    "ChatGLM2LoRA",
    "ChatGLMTokenizer",
    "DialogueDataModule",
    "__version__",
]

_HOME = {
    "ChatGLM2Config": "kyon_pl.chatglm2",
    "ChatGLM2ForCausalLM": "kyon_pl.chatglm2",
    "ChatGLMTokenizer": "kyon_pl.chatglm2",
    "DialogueDataModule": "kyon_pl.data",
    "ChatGLM2LoRA": "kyon_pl.training",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        import_module("kyon_pl.chatglm2")
    return public_name(__name__, _HOME, name)


def __dir__() -> list[str]:
    return __all__
