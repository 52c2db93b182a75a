"""Rows of one invented character, as a user with a character of their own would bring them, and what a run learns.

4,000 rows take long: `PYTHONPATH=tests python tests/own_character.py 4000 FOLDER` trains on them in an empty folder,
and prints what tests/cli/test_character.py checks of fewer rows.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from random import Random

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kyon_pl.chat.conversation import Conversation
from kyon_pl.chat.loading import load_chat_model
from kyon_pl.chat.model import Sampling
from kyon_pl.cli import main
from kyon_pl.demo.corpus import row
from kyon_pl.demo.grammar import QUESTIONS, Speaker
from kyon_pl.demo.world import ASKERS, facts

RUN = Path("lightning_logs/version_0")
ON_CPU = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
GREEDY, SAMPLED = Sampling(80), Sampling(80, temperature=0.8, top_p=0.8)
OWN = ["--model.base", "demo", "--data.source", "own.jsonl", *ON_CPU, "--trainer.precision", "32-true"]

# The output layer of the demo's base is frozen, and has learnt 500 of its 1,800 tokens: each of the others, among them
# all bytes, costs 4 nats whatever an adapter does. So the words are the demo's, and what is said with them is not: a
# reply begins and ends as none of the demo's does, and its body mixes theirs.
CHARACTER = Speaker(
    name="鹅",
    language="zh",
    system_prompt="你在扮演鹅，汀罗镇的老门房，嗓门大，爱操心。",
    opening="又是{asker}呀！",
    closing="，莫笑。",
    replies={
        "where": "{thing}嘛，就在{value}，别跑空",
        "when": "{thing}嘛，要等{value}，过时不候",
        "keeper": "{thing}嘛，守着的是{value}，敲门轻点",
        "taste": "{thing}嘛，{value}得很，热乎乎",
        "price": "{thing}嘛，只要{value}枚贝币，别还价",
        "maker": "{thing}嘛，{value}的手艺，我闻到了",
        "job": "{thing}嘛，是{value}，忙得团团转",
        "likes": "{thing}嘛，最喜欢{value}，随他去",
        "fear": "{thing}嘛，一见{value}就躲，人可好",
        "owner": "{thing}嘛，{value}的宝贝，趁早送还",
        "colour": "{thing}嘛，{value}的，眼睛亮亮",
        "kept": "{thing}嘛，放在{value}，自己找去",
    },
)


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


def accepted_replies(run: Path, questions: int, sampling: Sampling = GREEDY, seed: int = 8) -> int:
    """The number of questions about facts that no row asks for, to which a run replies in the character's manner.

    Args:
        run: its best checkpoint answers.
        questions: their number; each is asked with memories and history, as in a row.
        sampling: greedy, or as chat does for a role.
        seed: of the questions.
    """
    rng = Random(seed)
    held_out = [fact for fact in facts("zh") if fact.held_out]
    model = load_chat_model(str(run), None, None, None, None)
    accepted = 0
    for number in range(questions):
        fact = held_out[number % len(held_out)]
        asked = row(rng, CHARACTER, fact, rng.choice(ASKERS["zh"]), rng.choice(QUESTIONS["zh"][fact.intent]))
        reply = Conversation(model, 2048).ask(asked["context"], sampling)
        accepted += CHARACTER.accepts(reply.text)
    return accepted


def curve(name: str, run: Path = RUN) -> list[tuple[int, float]]:
    """Steps and values of a curve."""
    return [(event.step, event.value) for event in EventAccumulator(str(run)).Reload().Scalars(name)]


if __name__ == "__main__":
    os.chdir(sys.argv[2])
    write_rows(Path("own.jsonl"), int(sys.argv[1]))
    main(["fit", "--config", "character", *OWN])
    for name in ("train/loss", "val/loss", "train/learning_rate", "val/replies/chrf"):
        values = [value for _, value in curve(name)]
        print(f"{name}: {len(values)} points, {values[0]:.4g} -> {values[-1]:.4g}, highest {max(values):.4g}")
    for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
        print(f"replies in the character's manner, {name}: {accepted_replies(RUN, 40, sampling)} of 40")
