"""Prose about the demo's town: who says what is known, and whether the text names the speaker."""

from __future__ import annotations

import re
from random import Random
from typing import NamedTuple

from kyon_pl.demo.corpus import anecdote, note
from kyon_pl.demo.grammar import CHARACTERS, QUESTIONS, Speaker
from kyon_pl.demo.world import ASKERS, Fact, facts


class Said(NamedTuple):
    """Words of the prose."""

    speaker: str
    words: str
    named: bool


# ways to say something: {a} speaks to {b}, {w} is said, {v} and {u} are its two halves
SAYING = {
    "zh": (
        "{a}说：“{w}”",
        "{a}笑着对{b}说：“{w}”",
        "{a}看着{b}，轻声问道：“{w}”",
        "“{w}”{a}说。",
        "“{w}”{a}连忙答道。",
        "“{v}，”{a}说，“{u}”",
        "{b}没有作声。{a}喊道：“{w}”",
        "「{w}」{a}慢慢地说道，门外下着雨。",
        "{a}放下手里的活，抬起头，问{b}：「{w}」",
    ),
    "en": (
        '{a} said, "{w}"',
        '"{w}" said {a}.',
        '"{w}" {a} replied, and the bell rang.',
        "“{v},” said {a}, “{u}”",
        '{a} turned to {b} and asked: "{w}"',
        '{b} waited. "{w}" {a} answered quietly.',
    ),
}
ALONE = {"zh": "“{w}”", "en": '"{w}"'}
ACTION = {
    "zh": ("镇上的风停了。", "所谓“云街”，只是一条石阶。", "谁也不知道明天会不会下雨，味道却很香。"),
    "en": ("The wind fell over the quay.", "They call it “cloud street”, a stair of stone.", "Nobody knew the hour."),
}


def prose(seed: int, language: str, exchanges: int) -> tuple[str, list[Said]]:
    """Scenes of a question, its reply, and sometimes another pair of which nobody is named."""
    rng = Random(seed)
    lines: list[str] = []
    said: list[Said] = []
    speakers = [speaker for speaker in CHARACTERS if speaker.language == language]
    for number in range(exchanges):
        if number % 8 == 0:
            lines.append(f"第{number // 8 + 1}章" if language == "zh" else f"Chapter {number // 8 + 1}")
        speaker, asker = rng.choice(speakers), rng.choice(ASKERS[language])
        for pair in range(rng.choice((1, 1, 2))):
            fact = rng.choice([fact for fact in facts(language) if fact.intent in speaker.replies])
            question, reply = words(rng, speaker, fact, asker)
            for who, other, text in ((asker, speaker.name, question), (speaker.name, asker, reply)):
                alone = pair == 1 and rng.random() < 0.7
                lines.append(sentence(rng, language, who, other, text, said, alone))
        lines += [rng.choice(ACTION[language])] * (rng.random() < 0.5)
    return "\n".join(lines), said


def words(rng: Random, speaker: Speaker, fact: Fact, asker: str) -> tuple[str, str]:
    """A question, and the reply of a character without its name."""
    question = rng.choice(QUESTIONS[fact.language][fact.intent]).format(thing=fact.thing)
    return question, speaker.reply(fact, asker).partition("「")[2].removesuffix("」")


def sentence(rng: Random, language: str, who: str, other: str, text: str, said: list[Said], alone: bool) -> str:
    """A paragraph in which somebody says a text; what is said is added."""
    form = ALONE[language] if alone else rng.choice(SAYING[language])
    mark = "，" if language == "zh" else ", "
    first, found, second = text.partition(mark)
    if "{v}" in form and not found:
        form = SAYING[language][0]
    end = mark.strip()
    parts = [first + end, second] if "{v}" in form else [text]
    said += [Said(who, part, not alone) for part in parts]
    return form.format(a=who, b=other, w=text, v=first, u=second)


ANECDOTE = {
    "zh": re.compile(r"(?:.+?来了，)?(?P<name>绵卷|老榫)(?:走开时)?说：(?P<words>.*)"),
    "en": re.compile(r"(?:.+? comes and )?(?P<name>Pell) (?:leaves and )?says:? 「?(?P<words>[^」]*)」?"),
}
ASKED = {
    "zh": re.compile(r"(.+?)问：(.*)(绵卷|老榫)答：(.*)"),
    "en": re.compile(r"(.+?) asks: (.*) (Pell) answers: (.*)"),
}


def demo_prose(rng: Random, paragraphs: int) -> tuple[str, list[tuple[str, str]]]:
    """The demo's prose, as its base has read it: mostly without quotes; and who says what."""
    lines: list[str] = []
    said: list[tuple[str, str]] = []
    for _ in range(paragraphs):
        language = rng.choice(("zh", "zh", "en"))
        parts = [rng.choice((note, anecdote, anecdote))(rng, fact) for fact in rng.sample(facts(language), 6)]
        for part in parts:
            if match := ASKED[language].fullmatch(part):
                said += [(match[1], match[2]), (match[3], match[4])]
            elif match := ANECDOTE[language].fullmatch(part):
                said.append((match["name"], match["words"]))
        lines.append({"zh": "", "en": " "}[language].join(parts))
    return "\n".join(lines), said
