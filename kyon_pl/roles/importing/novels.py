"""Importing the text of a novel: who says what, found by quotes, speech verbs and the order of speakers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from kyon_pl.errors import DataError
from kyon_pl.roles.dialogues import Turn
from kyon_pl.roles.importing.found import Dialogue, Found, Language, counted, joined
from kyon_pl.roles.importing.quotes import Paragraph, paragraphs_of
from kyon_pl.roles.importing.speech_cues import (
    Certainty,
    Names,
    first_sentence,
    last_sentence,
    sentences,
)

NOBODY = {"zh": "某人", "en": "Someone"}
"""The speaker of words that nobody is found for, so that the turns around them are not joined."""

SCENE_CHARACTERS = 300
_NEAR = 8  # speeches among which the two who speak in turn are searched
_SILENT_PARAGRAPHS = 4  # of narration, which end a dialogue
_COMPLETE = re.compile(r".*[。！？!?….,，~～—-]$", re.DOTALL)
_UNQUOTED = re.compile(  # one sentence, or up to the clause that ends in the next colon
    r"(?P<cue>[^。！？!?；;\n：:]{0,200})[：:]\s*"
    r"(?P<words>[^。！？.!?\n：:]+?(?:[。！？.!?]+|$|(?=[，,][^，,。！？.!?：:\n]{1,20}[：:])))"
)


@dataclass(frozen=True)
class Speech:
    """Words that somebody says.

    Attributes:
        line: the first line of the paragraph, from 1.
        speaker: who says it; empty if nobody is found.
        certainty: `named` if a speech verb names the speaker beside the words; else `guessed` or `unknown`; `corrected`
            if it was changed by hand.
        words: as in the text, without quotation marks.
        scene: number of the scene, from 0.
        paragraph: number of the paragraph, from 0.
    """

    line: int
    speaker: str
    certainty: Certainty
    words: str
    scene: int
    paragraph: int


def read_speeches(text: str, language: Language, known: Sequence[str] = ()) -> tuple[list[Speech], int]:
    """All speeches of a text in order, and the number of quotes that are none, such as titles.

    Args:
        text: of the novel.
        language: of the text; Chinese text may contain English names, and the reverse.
        known: names of speakers, besides those that are found.
    """
    paragraphs = paragraphs_of(text, language)
    names = Names(known, text)
    for paragraph in paragraphs:
        parts = paragraph.narration()
        for sentence in {*map(first_sentence, parts[1:]), *map(last_sentence, parts[:-1])}:
            names.look_beside(sentence)
        for part in parts:
            for sentence in sentences(part):
                names.look_at(sentence.partition("：")[0].partition(":")[0])
    names.close()
    found: list[Speech] = []
    skipped = scene = silent = 0
    for number, paragraph in enumerate(paragraphs):
        scene += paragraph.opens_scene or silent == _SILENT_PARAGRAPHS
        found_here = list(_speeches_in(paragraph, names))
        skipped += sum(speech is None for speech in found_here)
        speeches = [replace(speech, scene=scene, paragraph=number) for speech in found_here if speech]
        silent = 0 if speeches else silent + 1
        found += speeches
    return _alternating(found), skipped


def novel_found(path: Path, text: str, speeches: Sequence[Speech], skipped: int, language: Language) -> Found:
    """The dialogues of a novel.

    Args:
        path: for messages.
        text: of the novel.
        speeches: in order, corrected or not.
        skipped: number of quotes that are no speech.
        language: for the name of an unknown speaker.

    Raises:
        DataError: nobody says anything.
    """
    if not speeches:
        fix = 'Speech is found by quotes (“” 「」 "") and by verbs such as `said` and 说; choose another --kind.'
        raise DataError(str(path), "no speech is found in this text", fix)
    kinds = Counter(speech.certainty for speech in speeches)
    notes = [f"a novel, {counted(len(speeches), 'speech')}: {_kinds(kinds)}"]
    notes += [f"quotes that are no speech: {skipped:,}"] if skipped else []
    notes.append("check who speaks in speakers.csv, and read it again with --speakers")
    return Found(_dialogues(speeches, language), notes)


def passages(text: str, speeches: Sequence[Speech], speakers: Sequence[str], language: Language) -> list[str]:
    """The passages around the speeches of a character, of up to about `SCENE_CHARACTERS` each, as memories.

    Quotation marks 「」 become “”, since chat would take them for the quotes of a role whose turns are all in 「」.
    """
    paragraphs = paragraphs_of(text, language)
    shown = {
        near for s in speeches if s.speaker in speakers for near in (s.paragraph - 1, s.paragraph, s.paragraph + 1)
    }
    marks = str.maketrans("「」", "“”")
    found: list[str] = []
    last = -2
    for number in sorted(shown & {*range(len(paragraphs))}):
        part = paragraphs[number].text.translate(marks)
        if number == last + 1 and len(found[-1]) + len(part) <= SCENE_CHARACTERS:
            found[-1] += f"\n{part}"
        else:
            found.append(part[: 2 * SCENE_CHARACTERS])
        last = number
    return found


def _kinds(kinds: Counter[Certainty]) -> str:
    words = {
        "named": "with a named speaker",
        "guessed": "guessed",
        "unknown": "by nobody that is known",
        "corrected": "corrected",
    }
    return ", ".join(f"{kinds[kind]:,} {text}" for kind, text in words.items() if kinds[kind])  # type: ignore[index]


def _speeches_in(paragraph: Paragraph, names: Names) -> Iterator[Speech | None]:
    """The speeches of a paragraph, without scene and number; None for each quote that is no speech."""
    narration = paragraph.narration()
    named: str | None = None
    for index, quote in enumerate(paragraph.quotes):
        before, after = narration[index], narration[index + 1]
        yield from _unquoted(paragraph.line, before, names)
        cue, following = names.before(before), names.after(after)
        certainty: Certainty = "named"
        if cue is None and following is not None:
            cue = following
            ends = quote.words.endswith((",", "，", "—", "…", "-"))
            certainty = "guessed" if following.has_colon and not ends else "named"
        speaker = cue.name if cue else None
        if cue is None and not _stands_alone(before, quote.words, index):
            yield None
            continue
        if speaker is None:
            earlier = (names.subject(sentence) for sentence in reversed(sentences(before)))
            beat = next((name for name in earlier if name), None)
            beat = beat or (None if cue else names.subject(first_sentence(after)))
            speaker, certainty = (named or beat) if cue else (beat or named), "guessed"
        named = speaker or named
        yield Speech(paragraph.line, speaker or "", certainty if speaker else "unknown", quote.words, 0, 0)
    yield from _unquoted(paragraph.line, narration[-1], names)


def _stands_alone(before: str, words: str, index: int) -> bool:
    starts = index == 0 and not before.strip()
    return bool(words) and (starts or before.rstrip().endswith((":", "：")) or (_COMPLETE.match(words) is not None))


def _unquoted(line: int, narration: str, names: Names) -> Iterator[Speech]:
    """Speech without quotes: a name, a speech verb, a colon, and one sentence."""
    for match in _UNQUOTED.finditer(narration) if ":" in narration or "：" in narration else ():
        cue, words = names.before(f"{match['cue'].lstrip('，, ')}:"), match["words"].strip()
        if words and cue and cue.name:
            yield Speech(line, cue.name, "guessed", words, 0, 0)


def _alternating(speeches: list[Speech]) -> list[Speech]:
    """Speeches with those of nobody given to the other one of the two who speak in turn."""
    found = list(speeches)
    for index, speech in enumerate(found):
        if not speech.speaker:
            found[index] = _guessed(speech, found[max(index - _NEAR, 0) : index][::-1])
    for index in reversed(range(len(found))):
        if not found[index].speaker:
            found[index] = _guessed(found[index], found[index + 1 : index + 1 + _NEAR])
    return found


def _guessed(speech: Speech, near: Sequence[Speech]) -> Speech:
    """A speech by the other one of the two who speak near it, or by who speaks in the same paragraph.

    Args:
        speech: of nobody.
        near: the speeches before it, or after it, the nearest one first.
    """
    in_scene = list(takewhile(lambda other: other.speaker and other.scene == speech.scene, near))
    if not in_scene:
        return speech
    nearest = in_scene[0]
    others = [other.speaker for other in in_scene if other.speaker != nearest.speaker]
    if speech.paragraph != nearest.paragraph and not others:
        return speech
    speaker = nearest.speaker if speech.paragraph == nearest.paragraph else others[0]
    return replace(speech, speaker=speaker, certainty="guessed")


def _dialogues(speeches: Sequence[Speech], language: Language) -> list[Dialogue]:
    scenes: dict[int, list[Turn]] = {}
    space, last = {"zh": "", "en": " "}[language], None
    for speech in speeches:
        turns = scenes.setdefault(speech.scene, [])
        name = speech.speaker or NOBODY[language]
        if last and turns and turns[-1].role == name and last.paragraph == speech.paragraph:
            turns[-1] = Turn(name, f"{turns[-1].text}{space}{speech.words}")
        else:
            turns.append(Turn(name, speech.words))
        last = speech
    return [dialogue for turns in scenes.values() if (dialogue := joined(turns))]
