"""A tokenizer with one id a character, so that expected rows can be read in a test."""

from __future__ import annotations

from collections.abc import Iterable

FIRST_CHARACTER = 10
SIGNS = {0: "_", 2: "$", 4: "<", 5: ">"}


class CharacterTokenizer:
    """Prefix `<>`, end of sequence `$`, padding `_`; nothing in a text gives these ids."""

    pad_token_id = 0
    eos_token_id = 2
    fingerprint = "characters"

    def __init__(self) -> None:
        self.texts_encoded = 0

    def __call__(
        self, text: list[str], *, add_special_tokens: bool, return_attention_mask: bool
    ) -> dict[str, list[list[int]]]:
        assert not return_attention_mask
        self.texts_encoded += len(text)
        prefix = [4, 5] if add_special_tokens else []
        return {"input_ids": [prefix + [ord(character) + FIRST_CHARACTER for character in one] for one in text]}


def read(ids: Iterable[int]) -> str:
    """The ids as text, special ones as signs."""
    return "".join(SIGNS[i] if i < FIRST_CHARACTER else chr(i - FIRST_CHARACTER) for i in map(int, ids))
