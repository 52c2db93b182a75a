"""The character among the speakers of a file: its names, its dialogues, and what is said about it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from kyon_pl.disk import expand_home
from kyon_pl.errors import SettingError
from kyon_pl.roles.dialogues import Turn
from kyon_pl.roles.importing.found import Dialogue, Found, counted
from kyon_pl.roles.importing.novels import NOBODY, SCENE_CHARACTERS

LONGEST_DIALOGUE = 40
"""Turns; rows of one dialogue stay on one side of the validation split, so that a long one leaves the other empty."""

_SHOWN_SPEAKERS = 12


def names_of_role(found: Found, known: Sequence[str], output: str) -> tuple[str, ...]:
    """The names of the character; the first is its name.

    Args:
        found: in the file.
        known: the names that are given.
        output: the role folder, which may have the name of a speaker.

    Raises:
        SettingError: nobody of that name says anything, or it is not clear who the character is.
    """
    counts = found.speakers()
    if found.names:
        return tuple(dict.fromkeys([*found.names, *known]))
    folder = expand_home(output).resolve().name
    names = [*known] or ([folder] if folder in counts else []) or ([*counts] if len(counts) == 1 else [])
    ranked = ", ".join(f"{who} ({number:,})" for who, number in counts.most_common(_SHOWN_SPEAKERS))
    if not names:
        fix = f"Give --name; turns by speaker: {ranked or 'none'}"
        raise SettingError("name", "it is not clear who the character is", fix)
    if counts and not any(who in counts for who in names):
        raise SettingError("name", f"nobody called {' or '.join(names)} says anything", f"Turns by speaker: {ranked}")
    return tuple(dict.fromkeys(names))


def dialogues_of_role(found: Found, who: Sequence[str]) -> tuple[list[Dialogue], dict[str, str]]:
    """The dialogues with a turn of the character, long ones cut; and others whose names start with its name.

    `build-data` takes a speaker whose name starts with an alias for the role, so those get other names.
    """
    others = {
        speaker: f"({speaker})" for speaker in found.speakers() if speaker not in who and speaker.startswith(tuple(who))
    }
    own = []
    for dialogue in found.dialogues:
        renamed = [Turn(others.get(turn.role, turn.role), turn.text) for turn in dialogue]
        own += [part for part in _cut(renamed, who) if any(turn.role in who for turn in part)]
    return own, others


def _cut(dialogue: Dialogue, who: Sequence[str]) -> list[Dialogue]:
    parts: list[Dialogue] = [[]]
    for turn in dialogue:
        if len(parts[-1]) >= LONGEST_DIALOGUE and turn.role not in who:
            parts.append([])
        parts[-1].append(turn)
    return parts


def scenes_of(dialogues: Sequence[Dialogue]) -> list[str]:
    """Dialogues as memories, lines of `name:words`, of up to about `SCENE_CHARACTERS`, in whole turns."""
    scenes = []
    for dialogue in dialogues:
        scenes.append("")
        for turn in dialogue:
            line = f"{turn.role}:{turn.text}"
            if scenes[-1] and len(scenes[-1]) + len(line) > SCENE_CHARACTERS:
                scenes.append("")
            scenes[-1] += f"\n{line}" if scenes[-1] else line
    return scenes


def summary(
    found: Found, who: Sequence[str], own: Sequence[Dialogue], others: dict[str, str], memories: Sequence[str]
) -> list[str]:
    """The lines of the report about the character.

    Args:
        found: in the file.
        who: names of the character.
        own: its dialogues.
        others: speakers that are written under another name.
        memories: of the character.
    """
    counts = found.speakers()
    turns = sum(turn.role in who for dialogue in own for turn in dialogue)
    answers = sum(turn.role in who for dialogue in own for turn in dialogue[1:])
    said = f"{counted(turns, 'turn')} in {counted(len(own), 'dialogue')}, {answers:,} of them answers"
    lines = [f"{who[0]}: {said}; memories: {len(memories):,}"]
    if len(who) > 1:
        lines.append(f"names of the character: {', '.join(who)}")
    if counts:
        shown = ", ".join(f"{name} {number:,}" for name, number in counts.most_common(_SHOWN_SPEAKERS))
        more = len(counts) - _SHOWN_SPEAKERS
        lines.append(f"speakers by turns: {shown}{f' and {more:,} more' if more > 0 else ''}")
    if unused := len(found.dialogues) - sum(any(turn.role in who for turn in d) for d in found.dialogues):
        lines.append(f"dialogues left out, without a turn of {who[0]}: {unused:,}")
    if nobody := sum(counts[name] for name in NOBODY.values()):
        lines.append(f"turns by nobody that is known: {nobody:,}")
    lines += [f"{name} is written as {other}: the name starts like one of {who[0]}" for name, other in others.items()]
    return lines


def json_line(dialogue: Dialogue) -> str:
    """A dialogue as a line of JSONL, as `build-data` reads it."""
    turns = [{"role": turn.role, "text": turn.text} for turn in dialogue]
    return json.dumps({"dialogue": turns, "source": "import-role"}, ensure_ascii=False) + "\n"
