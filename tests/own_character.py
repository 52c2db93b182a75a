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
OWN = ["--model.base", "demo", "--data.source", "own.jsonl", *ON_CPU, "--trainer.precision", "32-true"]

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


def accepted_replies(run: Path, questions: int, seed: int = 8) -> int:
    """The number of questions about facts that no row asks for, to which a run replies in the character's manner.

    Args:
        run: its best checkpoint answers, by greedy decoding: the demo's frozen output layer gives no token that its
            base has not learnt a probability above a few percent, so that samples are noise.
        questions: their number; each is asked with memories and history, as in a row.
        seed: of the questions.
    """
    rng = Random(seed)
    held_out = [fact for fact in facts("zh") if fact.held_out]
    model = load_chat_model(str(run), None, None, None, None)
    accepted = 0
    for number in range(questions):
        fact = held_out[number % len(held_out)]
        asked = row(rng, CHARACTER, fact, rng.choice(ASKERS["zh"]), rng.choice(QUESTIONS["zh"][fact.intent]))
        reply = Conversation(model, 2048).ask(asked["context"], Sampling(80), lambda text: None)
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
    print(f"replies in the character's manner: {accepted_replies(RUN, 40)} of 40")
