"""Rows of one invented character, as a user with a character of their own would bring them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from kyon_pl.demo.corpus import row
from kyon_pl.demo.grammar import QUESTIONS, Speaker
from kyon_pl.demo.world import ASKERS, facts

CHARACTER = Speaker(
    name="阿鹭",
    language="zh",
    system_prompt="你在扮演阿鹭，汀罗镇的守夜人，困得很，说话慢吞吞的。",
    opening="呵啊……{asker}呀，",
    closing="，容我再睡会儿。",
    replies={
        "where": "{thing}嘛，在{value}，提灯慢走",
        "when": "{thing}嘛，{value}才开门，我那时睡了",
        "keeper": "{thing}嘛，{value}守着呢，我放心",
        "taste": "{thing}嘛，{value}得我都醒了",
        "price": "{thing}嘛，{value}枚贝币，别吵醒我",
        "maker": "{thing}嘛，{value}做的，夜里也香",
        "job": "{thing}嘛，是{value}，起得比我早",
        "likes": "{thing}嘛，梦里都在{value}",
        "fear": "{thing}嘛，听见{value}就钻被窝",
        "owner": "{thing}嘛，{value}的，天亮还他",
        "colour": "{thing}嘛，{value}的，灯下看得清",
        "kept": "{thing}嘛，在{value}，轻拿轻放",
    },
)  # none of the demo's characters speaks like this


def write_rows(file: Path, count: int, seed: int = 7) -> Path:
    """Write rows of the character in the form of role data: system prompt, memories, history, question; reply.

    Args:
        file: JSONL file to write.
        count: number of rows.
        seed: of the questions, their order and their memories.
    """
    rng = Random(seed)
    known = [fact for fact in facts("zh") if not fact.held_out]
    rows = []
    for _ in range(count):
        fact = rng.choice(known)
        question = rng.choice(QUESTIONS["zh"][fact.intent])
        rows.append(row(rng, CHARACTER, fact, rng.choice(ASKERS["zh"]), question))
    file.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), encoding="utf-8")
    return file
