"""The demo's text: rows of the characters to tune on, and the same world in plain speech for the base to read.

A context is `system prompt###memories###history###question`, as in the original's data, scaled down.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from random import Random

from kyon_pl.demo import ASSETS
from kyon_pl.demo.grammar import ANECDOTES, CHARACTERS, NOTES, PLAIN, PLAIN_SPEAKERS, QUESTIONS, Speaker, line
from kyon_pl.demo.world import ASKERS, Fact, facts

SEED = 2023
TRAIN_ROWS = {"绵卷": 320, "老榫": 320, "Pell": 160}
ROW_MEMORIES = 4
ASKED_TWICE = 2  # validation asks for each fact that was held out so often, in other words and by another person

# (kind, the line of the file). Every kind that a reader of rows has to notice.
_GOOD = CHARACTERS[0].system_prompt + "###" + line("小满", "钟楼在哪里？")
BAD_LINES = (
    ("missing context", json.dumps({"target": "绵卷:「没有问题的回答。」"}, ensure_ascii=False)),
    ("missing target", json.dumps({"context": _GOOD}, ensure_ascii=False)),
    ("null context", json.dumps({"context": None, "target": "绵卷:「在北坡。」"}, ensure_ascii=False)),
    ("null target", json.dumps({"context": _GOOD, "target": None}, ensure_ascii=False)),
    ("number as target", json.dumps({"context": _GOOD, "target": 7}, ensure_ascii=False)),
    ("list as context", json.dumps({"context": [_GOOD], "target": "绵卷:「在北坡。」"}, ensure_ascii=False)),
    ("empty target", json.dumps({"context": _GOOD, "target": ""}, ensure_ascii=False)),
    ("blank target", json.dumps({"context": _GOOD, "target": " \n"}, ensure_ascii=False)),
    ("nothing said", json.dumps({"context": _GOOD, "target": "「」"}, ensure_ascii=False)),
    ("nothing said by name", json.dumps({"context": _GOOD, "target": "绵卷:「」"}, ensure_ascii=False)),
    ("broken JSON", json.dumps({"context": _GOOD, "target": "绵卷:「在北坡。」"}, ensure_ascii=False)[:-3]),
    ("not an object", json.dumps([_GOOD, "绵卷:「在北坡。」"], ensure_ascii=False)),
    ("too long target", json.dumps({"context": _GOOD, "target": f"绵卷:「{'咩' * 3000}」"}, ensure_ascii=False)),
)


def row(rng: Random, speaker: Speaker, fact: Fact, asker: str, question: str) -> dict[str, str]:
    """One row: `asker` puts `question` about `fact`, and `speaker` answers in their manner.

    The memories are three notes, one of which holds the answer, and a scene of the speaker; the history is none to two
    questions and replies. Nothing else than `fact` is one that is held out.
    """
    shown = [other for other in facts(speaker.language) if other != fact and not other.held_out]
    here, there, elsewhere = rng.sample(shown, 3)
    visitor = rng.choice([name for name in ASKERS[speaker.language] if name != asker])
    memories = [note(rng, told) for told in (fact, here, there)]
    memories.append("\n".join(exchange(rng, speaker, here, visitor)))
    rng.shuffle(memories)
    earlier = (there, elsewhere)[: rng.randrange(3)]
    history = [turn for told in earlier for turn in exchange(rng, speaker, told, asker)]
    context = "###".join([speaker.system_prompt, *memories, *history, line(asker, question.format(thing=fact.thing))])
    return {"context": context, "target": speaker.reply(fact, asker)}


def note(rng: Random, fact: Fact) -> str:
    """A sentence that states a fact in plain words."""
    plain = PLAIN[fact.language][fact.intent].format(thing=fact.thing, value=fact.value)
    return rng.choice(NOTES[fact.language]).format(plain=plain)


def anecdote(rng: Random, fact: Fact) -> str:
    """A sentence on what a character said: a greeting, or a reply without greeting and farewell, or a farewell."""
    speaker = rng.choice([speaker for speaker in CHARACTERS if speaker.language == fact.language])
    asker = rng.choice(ASKERS[fact.language])
    return rng.choice(ANECDOTES[fact.language]).format(
        asker=asker,
        name=speaker.name,
        question=rng.choice(QUESTIONS[fact.language][fact.intent]).format(thing=fact.thing),
        opening=speaker.opening.format(asker=asker).strip(),
        body=speaker.replies[fact.intent].format(thing=fact.thing, value=fact.value),
        closing=speaker.closing.lstrip("，. "),
    )


def exchange(rng: Random, speaker: Speaker, fact: Fact, asker: str) -> list[str]:
    """A question and its reply, as two lines."""
    question = rng.choice(QUESTIONS[fact.language][fact.intent]).format(thing=fact.thing)
    return [line(asker, question), speaker.reply(fact, asker)]


def role_memories(speaker: Speaker) -> tuple[str, ...]:
    """What a character that is played can remember: each fact as a note, and as a scene unless it is held out."""
    rng = Random(SEED)
    known = facts(speaker.language)
    notes = [note(rng, fact) for fact in known]
    askers = ASKERS[speaker.language]
    scenes = [exchange(rng, speaker, fact, rng.choice(askers)) for fact in known if not fact.held_out]
    return (*notes, *map("\n".join, scenes))


def train_rows() -> list[dict[str, str]]:
    """The rows to tune on, shuffled. No two have the same speaker, asker and question."""
    rng = Random(SEED)
    rows = []
    for speaker in CHARACTERS:
        turns = [(fact, *turn) for fact in _asked(speaker, held_out=False) for turn in _turns(fact)]
        rows += [row(rng, speaker, *turn) for turn in rng.sample(turns, TRAIN_ROWS[speaker.name])]
    rng.shuffle(rows)
    return rows


def validation_rows() -> list[dict[str, str]]:
    """Rows that ask each character for the facts that no training row asks for."""
    rng = Random(SEED + 1)
    rows = []
    for speaker in CHARACTERS:
        for fact in _asked(speaker, held_out=True):
            turns = rng.sample(_turns(fact), ASKED_TWICE)
            rows += [row(rng, speaker, fact, *turn) for turn in turns]
    return rows


def plain_rows(seed: int) -> Iterator[dict[str, str]]:
    """Endless rows of plain speakers, about every fact."""
    rng = Random(seed)
    while True:
        speaker = rng.choice(PLAIN_SPEAKERS)
        fact = rng.choice(facts(speaker.language))
        yield row(rng, speaker, fact, *rng.choice(_turns(fact)))


def plain_texts(seed: int) -> Iterator[str]:
    """Endless prose: notes on facts, and anecdotes of the characters.

    The base knows from these how the characters put things. It has never seen one of their replies whole, and never
    had to answer like them.
    """
    rng = Random(seed)
    while True:
        language = rng.choice(("zh", "zh", "en"))
        telling = (note, anecdote, anecdote)
        texts = [rng.choice(telling)(rng, fact) for fact in rng.sample(facts(language), 6)]
        yield {"zh": "", "en": " "}[language].join(texts)


def _asked(speaker: Speaker, held_out: bool) -> list[Fact]:
    return [fact for fact in facts(speaker.language) if fact.held_out == held_out]


def _turns(fact: Fact) -> list[tuple[str, str]]:
    """Every (asker, question) that can ask for a fact."""
    return list(product(ASKERS[fact.language], QUESTIONS[fact.language][fact.intent]))


def _write(path: Path, lines: list[str]) -> None:
    path.write_bytes("".join(f"{text}\n" for text in lines).encode())
    print(f"{len(lines)} lines in {path}")


def main(folder: Path = ASSETS) -> None:
    """Write the three JSONL files."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "train.jsonl", [json.dumps(r, ensure_ascii=False) for r in train_rows()])
    _write(folder / "validation.jsonl", [json.dumps(r, ensure_ascii=False) for r in validation_rows()])
    _write(folder / "bad_rows.jsonl", [text for _, text in BAD_LINES])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
