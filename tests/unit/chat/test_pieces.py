"""The text of a reply as its tokens come in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kyon_pl.chat.model import REPLACEMENT_CHARACTER, TextStreamer
from kyon_pl.chatglm2 import ChatGLMTokenizer
from kyon_pl.demo import BASE
from kyon_pl.logs import replace_control_characters

TOKENIZER = ChatGLMTokenizer.from_pretrained(BASE)


@given(st.text(max_size=40))
def test_pieces_are_complete_characters_and_add_up_to_the_reply(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    pieces: list[str] = []
    streamer = TextStreamer(TOKENIZER, pieces.append)
    for token in ids:
        streamer.put(token)
    streamer.end()
    assert "".join(pieces) == streamer.text == TOKENIZER.decode(ids, skip_special_tokens=True)
    assert REPLACEMENT_CHARACTER in text or not any(REPLACEMENT_CHARACTER in piece for piece in pieces)


def test_a_character_of_several_tokens_is_held_back_until_complete() -> None:
    ids = TOKENIZER.encode("a🦊b", add_special_tokens=False)
    assert len(ids) > 5, "the fox must be encoded as bytes"
    pieces: list[str] = []
    streamer = TextStreamer(TOKENIZER, pieces.append)
    for token in ids:
        streamer.put(token)
    assert "🦊" in [piece.strip() for piece in pieces]
    cut = TextStreamer(TOKENIZER, pieces.append)
    for token in ids[:-3]:
        cut.put(token)
    assert REPLACEMENT_CHARACTER not in cut.text
    cut.end()
    assert REPLACEMENT_CHARACTER in cut.text


@pytest.mark.parametrize("text", ["\x1b[2J", "\x07", "\x9b31m", "a\rb", "\u202eabc", "\x00", "\ud800"])
def test_control_characters_are_replaced(text: str) -> None:
    assert REPLACEMENT_CHARACTER in replace_control_characters(text)
    assert not set(replace_control_characters(text)) & {"\x1b", "\x07", "\x9b", "\r", "\u202e", "\x00", "\ud800"}


def test_other_text_is_unchanged() -> None:
    text = "「你好」，👨‍👩‍👧 [gMASK]sop </s>\n\t\u3000é"
    assert replace_control_characters(text) == text
