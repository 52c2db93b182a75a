"""Ids as text: nothing that is there stays unseen, and nothing in a text passes for something else."""

from __future__ import annotations

import numpy as np
import pytest

from kyon_pl.chatglm2 import ChatGLMTokenizer
from kyon_pl.data.shown_rows import Paint, name_tokens, spans
from kyon_pl.demo import ASSETS
from kyon_pl.preview.histogram import bar_lines, bar_width

EOS = 2


@pytest.fixture(scope="module")
def tokenizer() -> ChatGLMTokenizer:
    tokenizer: ChatGLMTokenizer = ChatGLMTokenizer.from_pretrained(ASSETS / "base")
    return tokenizer


def shown(tokenizer: ChatGLMTokenizer | None, masked: list[int], trained: list[int], colour: bool = False) -> str:
    tokens = name_tokens(masked + trained, tokenizer)
    return Paint(colour).text(list(spans(tokens, [False] * len(masked) + [True] * len(trained))))


def byte_ids(text: str) -> list[int]:
    """Byte tokens follow `<unk> <s> </s>`."""
    return [EOS + 1 + byte for byte in text.encode()]


def test_both_segments_begin_with_the_dummy_prefix(tokenizer: ChatGLMTokenizer) -> None:
    masked = tokenizer.encode("Pell  is proud\n###「")
    trained = [*tokenizer.encode("Pell:「 a」", add_special_tokens=False), EOS]
    assert shown(tokenizer, masked, trained) == "‹[gMASK]›‹sop›▁Pell  is proud‹↵›\n###「⟦▁Pell:「 a」‹</s>›⟧"


def test_text_that_spells_a_special_token_is_not_one(tokenizer: ChatGLMTokenizer) -> None:
    masked = tokenizer.encode("[gMASK]sop</s>")
    assert shown(tokenizer, masked, [EOS]) == "‹[gMASK]›‹sop›▁[gMASK]sop</s>⟦‹</s>›⟧"


def test_bytes_are_shown_as_characters_only_if_they_are_whole(tokenizer: ChatGLMTokenizer) -> None:
    ids = byte_ids("龘𠮷")
    assert shown(tokenizer, ids, []) == "龘𠮷"
    assert shown(tokenizer, ids[:4], ids[4:]) == "龘‹0xF0›⟦‹0xA0›‹0xAE›‹0xB7›⟧"
    assert shown(tokenizer, ids[1:], []) == "‹0xBE›‹0x98›𠮷"


def test_what_steers_a_terminal_does_not_reach_it(tokenizer: ChatGLMTokenizer) -> None:
    ids = byte_ids("a\x1b[31m\t\r\u202e\u200b\u3000b")
    assert shown(tokenizer, ids, []) == "a‹U+001B›[31m‹⇥›‹U+000D›‹U+202E›‹U+200B›\u3000b"


def test_ids_without_a_piece_and_without_a_tokenizer(tokenizer: ChatGLMTokenizer) -> None:
    assert shown(tokenizer, [1, 0, 1805], [2047]) == "‹<s>›‹<unk>›‹id 1805›⟦‹id 2047›⟧"
    assert shown(None, [64790, 64792, 13], [31211, EOS]) == "▁64790 64792 13⟦▁31211 2⟧"


def test_colours_end_with_each_line(tokenizer: ChatGLMTokenizer) -> None:
    text = shown(tokenizer, byte_ids("a\nb"), [*byte_ids("c"), EOS], colour=True)
    grey, grey_reversed, green, green_reversed = (f"\x1b[{c}m" for c in ("38;5;245", "38;5;245;7", "1;32", "1;32;7"))
    end = "\x1b[0m"
    assert text == (f"{grey}a{end}{grey_reversed}↵{end}\n{grey}b{end}{green}c{end}{green_reversed}</s>{end}")


@pytest.mark.parametrize(("longest", "width"), [(1, 1), (11, 1), (12, 2), (59, 5), (60, 10), (217, 20), (4237, 500)])
def test_bars_are_round_and_a_dozen_at_most(longest: int, width: int) -> None:
    assert bar_width(longest) == width
    assert longest // width < 12


def test_each_row_is_in_a_bar_and_a_single_one_can_be_seen() -> None:
    lines = list(bar_lines(np.array([25] * 1000 + [47, 49])))
    assert [line.split() for line in lines] == [["25–29", "█" * 40, "1,000"]] + [
        [f"{low}–{low + 4}", "0"] for low in (30, 35, 40)
    ] + [["45–49", "▏", "2"]]
