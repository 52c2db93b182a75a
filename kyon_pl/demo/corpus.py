"""The demo's text: rows of characters for fine-tuning, and plain speech about the same facts for the base.

A context is `system prompt###memories###history###question`, as in the original data, but shorter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from random import Random

from kyon_pl.demo.grammar import ANECDOTES, CHARACTERS, NOTES, PLAIN, PLAIN_SPEAKERS, QUESTIONS, Speaker, line
from kyon_pl.demo.world import ASKERS, Fact, facts

SEED = 2023
TRAIN_ROWS = {"绵卷": 320, "老榫": 320, "Pell": 160}
ROW_MEMORIES = 4
VALIDATION_QUESTIONS = 2  # per held-out fact, in different words and by different askers

# (kind, line of the file): every kind of row that a reader must refuse
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
    """One row: `asker` asks `question` about `fact`, and `speaker` answers in character.

    The memories are three notes, one of them with the answer, and a scene of the speaker. The history is up to two
    questions and replies. No other fact of the row is held out.
    """
    shown = [other for other in facts(speaker.language) if other != fact and not other.held_out]
    here, there, elsewhere = rng.sample(shown, 3)
    visitor = rng.choice([name for name in ASKERS[speaker.language] if name != asker])
    memories = [note(rng, other) for other in (fact, here, there)]
    memories.append("\n".join(exchange(rng, speaker, here, visitor)))
    rng.shuffle(memories)
    earlier = (there, elsewhere)[: rng.randrange(3)]
    history = [turn for other in earlier for turn in exchange(rng, speaker, other, asker)]
    context = "###".join([speaker.system_prompt, *memories, *history, line(asker, question.format(thing=fact.thing))])
    return {"context": context, "target": speaker.reply(fact, asker)}


def note(rng: Random, fact: Fact) -> str:
    """A sentence that states a fact plainly."""
    plain = PLAIN[fact.language][fact.intent].format(thing=fact.thing, value=fact.value)
    return rng.choice(NOTES[fact.language]).format(plain=plain)


def anecdote(rng: Random, fact: Fact) -> str:
    """A sentence that quotes a character: the greeting, the body of a reply, or the farewell."""
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
    """A question and its reply, as two lines of dialogue."""
    question = rng.choice(QUESTIONS[fact.language][fact.intent]).format(thing=fact.thing)
    return [line(asker, question), speaker.reply(fact, asker)]


def role_memories(speaker: Speaker) -> tuple[str, ...]:
    """The memories of a role for chat: each fact as a note, and as a scene unless it is held out."""
    rng = Random(SEED)
    all_facts = facts(speaker.language)
    notes = [note(rng, fact) for fact in all_facts]
    askers = ASKERS[speaker.language]
    scenes = [exchange(rng, speaker, fact, rng.choice(askers)) for fact in all_facts if not fact.held_out]
    return (*notes, *map("\n".join, scenes))


def train_rows() -> list[dict[str, str]]:
    """The training rows, shuffled. No two have the same speaker, asker and question."""
    rng = Random(SEED)
    rows = []
    for speaker in CHARACTERS:
        turns = [(fact, *turn) for fact in _facts(speaker, held_out=False) for turn in _turns(fact)]
        rows += [row(rng, speaker, *turn) for turn in rng.sample(turns, TRAIN_ROWS[speaker.name])]
    rng.shuffle(rows)
    return rows


def validation_rows() -> list[dict[str, str]]:
    """The validation rows: they ask each character about the held-out facts."""
    rng = Random(SEED + 1)
    rows = []
    for speaker in CHARACTERS:
        for fact in _facts(speaker, held_out=True):
            turns = rng.sample(_turns(fact), VALIDATION_QUESTIONS)
            rows += [row(rng, speaker, fact, *turn) for turn in turns]
    return rows


def plain_rows(seed: int) -> Iterator[dict[str, str]]:
    """Yield endless rows of plain speakers, about every fact."""
    rng = Random(seed)
    while True:
        speaker = rng.choice(PLAIN_SPEAKERS)
        fact = rng.choice(facts(speaker.language))
        yield row(rng, speaker, fact, *rng.choice(_turns(fact)))


def plain_texts(seed: int) -> Iterator[str]:
    """Yield endless prose: notes on facts, and anecdotes of the characters.

    The anecdotes teach the base the characters' phrases, but it never sees a complete reply of theirs.
    """
    rng = Random(seed)
    while True:
        language = rng.choice(("zh", "zh", "en"))
        kinds = (note, anecdote, anecdote)
        texts = [rng.choice(kinds)(rng, fact) for fact in rng.sample(facts(language), 6)]
        yield {"zh": "", "en": " "}[language].join(texts)


def _facts(speaker: Speaker, held_out: bool) -> list[Fact]:
    return [fact for fact in facts(speaker.language) if fact.held_out == held_out]


def _turns(fact: Fact) -> list[tuple[str, str]]:
    """Every (asker, question) about a fact."""
    return list(product(ASKERS[fact.language], QUESTIONS[fact.language][fact.intent]))


def _write(path: Path, lines: list[str]) -> None:
    path.write_bytes("".join(f"{text}\n" for text in lines).encode())
    print(f"{len(lines)} lines in {path}")


def write_rows(folder: Path) -> None:
    """Write the three JSONL files."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "train.jsonl", [json.dumps(r, ensure_ascii=False) for r in train_rows()])
    _write(folder / "validation.jsonl", [json.dumps(r, ensure_ascii=False) for r in validation_rows()])
    _write(folder / "bad_rows.jsonl", [text for _, text in BAD_LINES])
