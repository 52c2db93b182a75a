"""What is printed while a reply comes in, piece by piece."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kyon_pl.chat.role_play import HALF, Pieces, harmless
from kyon_pl.chatglm2 import ChatGLMTokenizer
from kyon_pl.demo import BASE

TOKENIZER = ChatGLMTokenizer.from_pretrained(BASE)


@given(st.text(max_size=40))
def test_pieces_are_whole_characters_and_make_the_reply(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    told: list[str] = []
    pieces = Pieces(TOKENIZER, told.append)
    for token in ids:
        pieces.put(token)
    pieces.end()
    assert "".join(told) == pieces.text == TOKENIZER.decode(ids, skip_special_tokens=True)
    assert HALF in text or not any(HALF in piece for piece in told)


def test_a_character_of_several_tokens_waits_for_its_last() -> None:
    ids = TOKENIZER.encode("a🦊b", add_special_tokens=False)
    assert len(ids) > 5, "the fox has to be in bytes, or this shows nothing"
    told: list[str] = []
    pieces = Pieces(TOKENIZER, told.append)
    for token in ids:
        pieces.put(token)
    assert "🦊" in [piece.strip() for piece in told]
    cut = Pieces(TOKENIZER, told.append)
    for token in ids[:-3]:
        cut.put(token)
    assert HALF not in cut.text
    cut.end()
    assert HALF in cut.text


@pytest.mark.parametrize("text", ["\x1b[2J", "\x07", "\x9b31m", "a\rb", "\u202eabc", "\x00", "\ud800"])
def test_what_disturbs_a_terminal_is_not_printed(text: str) -> None:
    assert HALF in harmless(text)
    assert not set(harmless(text)) & {"\x1b", "\x07", "\x9b", "\r", "\u202e", "\x00", "\ud800"}


def test_text_stays_text() -> None:
    text = "「你好」，👨‍👩‍👧 [gMASK]sop </s>\n\t\u3000é"
    assert harmless(text) == text
