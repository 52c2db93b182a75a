"""The tokenizer that rows of text are encoded with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kyon_pl.hub import TOKENIZER_FILES, fetch_model

if TYPE_CHECKING:
    from kyon_pl.chatglm2 import ChatGLMTokenizer

PAD_TOKEN_ID = 0


def load_tokenizer(repo_or_folder: str | None, revision: str | None) -> ChatGLMTokenizer | None:
    """ChatGLM2's tokenizer, of which nothing but its files is downloaded; None for None and for the base `random`.

    Args:
        repo_or_folder: Hub id or folder.
        revision: on the Hub.

    Raises:
        MissingFileError: there is none.
        CheckpointError: it cannot be read.
    """
    if repo_or_folder in (None, "random"):
        return None
    from kyon_pl.chatglm2.tokenization import read_tokenizer

    folder = fetch_model(str(repo_or_folder), revision, patterns=[*TOKENIZER_FILES])
    tokenizer = read_tokenizer(folder)
    assert tokenizer.pad_token_id == PAD_TOKEN_ID != tokenizer.eos_token_id
    return tokenizer
