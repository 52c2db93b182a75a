"""`kyon-pl import-role`: make a role folder from a card, a chat log, a table or a novel."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kyon_pl.data.reading.files import must_exist
from kyon_pl.disk import expand_home
from kyon_pl.errors import DataError, SettingError
from kyon_pl.logs import from_here
from kyon_pl.roles.importing.cards import json_value, read_card
from kyon_pl.roles.importing.chat_logs import is_discord_export, read_chat_log, read_discord_export
from kyon_pl.roles.importing.found import Found, Kind, Language, language_of, read_text, tidy_name
from kyon_pl.roles.importing.novels import Speech, novel_found, passages, read_speeches
from kyon_pl.roles.importing.recognize import recognized
from kyon_pl.roles.importing.selection import dialogues_of_role, json_line, names_of_role, scenes_of, summary
from kyon_pl.roles.importing.speaker_list import SPEAKER_LIST, corrected, speaker_list
from kyon_pl.roles.importing.speaker_tables import read_speaker_table
from kyon_pl.roles.importing.write import changed_by_hand, check_folder, outputs_of, write_role
from kyon_pl.roles.role import GREETING, SYSTEM_PROMPT

log = logging.getLogger("kyon_pl.data")

_USER = {"zh": "用户", "en": "User"}
_PROMPT = {"zh": "你在扮演{name}。\n", "en": "You play {name}.\n"}
_QUOTED_TURN = re.compile(r"^([^\s:：]{1,20}[:：])\s*「([^「」]*)」$", re.MULTILINE)


def import_role(
    file: str,
    output: str,
    name: str | None = None,
    kind: Literal["auto", "card", "chat_log", "table", "novel"] = "auto",
    language: Literal["auto", "zh", "en"] = "auto",
    aliases: Sequence[str] = (),
    user: str | None = None,
    speakers: str | None = None,
) -> None:
    """Make a role folder from a character card, a chat log, a table of speakers, or a novel.

    The folder has what build-data, chat and web read: system_prompt.txt, texts/*.txt, dialogues/*.jsonl, aliases.txt
    and a card's greeting.txt; and report.txt, which says what was found and what was not read.

    Args:
        file: a Tavern card (JSON or PNG); a chat log with lines like `Name: words`, or with names and times; a CSV or
            Excel table of speakers and words; or the text of a novel.
        output: the role folder to write. Files of an earlier import are replaced, unless they were changed by hand.
        name: who is the character; by default the name on the card, or the name of the folder if it is a speaker's.
        kind: what the file is; auto recognizes it.
        language: of the text, for the system prompt and the search for speech; auto recognizes it.
        aliases: other names of the character in the file.
        user: the name that replaces {{user}} of a card; by default User, or 用户.
        speakers: the speakers.csv of an earlier import of this novel, corrected by hand. Words whose line is removed,
            or has no speaker, are left out.

    Raises:
        MissingFileError: a file does not exist.
        DataError: a file is damaged or of another kind, or nothing is said in it.
        SettingError: no speaker has this name, or it has to be named; the output has files from elsewhere.
    """
    check_folder(output)
    path = expand_home(file)
    known = [each for each in map(tidy_name, [name or "", *aliases]) if each]
    found, kind, speeches, language, text = _read(path, kind, language, known, user, speakers)
    who = names_of_role(found, known, output)
    own, others = dialogues_of_role(found, who)
    if kind == "novel":
        found.memories += passages(text, speeches, who, language)
    prompt = f"{found.system_prompt}\n" if found.system_prompt else _PROMPT[language].format(name=who[0])
    memories = [*found.memories, *(scenes_of(own) if kind != "novel" else [])]
    memories = list(dict.fromkeys(_QUOTED_TURN.sub(r"\1\2", memory) for memory in memories))
    report = [f"{path.name}: {line}" if not number else line for number, line in enumerate(found.notes)]
    report += summary(found, who, own, others, memories)
    if not found.system_prompt:
        report.append(f"no description of {who[0]} is in the file: write who this is into {SYSTEM_PROMPT}")
    files = {SYSTEM_PROMPT: prompt, "aliases.txt": "".join(f"{each}\n" for each in who)}
    if found.greeting:
        files[GREETING] = f"{found.greeting}\n"
    files |= {f"texts/{number:04}.txt": f"{memory}\n" for number, memory in enumerate(memories, start=1)}
    if own:
        files["dialogues/imported.jsonl"] = "".join(map(json_line, own))
    if speeches:
        files[SPEAKER_LIST] = speaker_list(speeches)
    kept = [SYSTEM_PROMPT] if changed_by_hand(output, SYSTEM_PROMPT) else []
    report += [f"{SYSTEM_PROMPT} stays as it is: it was changed by hand"] if kept else []
    kept += [SPEAKER_LIST] if speakers and _same(speakers, Path(output) / SPEAKER_LIST) else []
    files = {name: text for name, text in files.items() if name not in kept}
    files["report.txt"] = "".join(f"{line}\n" for line in report)
    outputs = outputs_of(output, files, kept, {"file": str(path), "speakers": speakers})
    write_role(outputs, files, kept, output)
    for line in report:
        log.info("%s", line)
    folder = from_here(expand_home(output))
    log.info("import-role: %s in %s", who[0], folder)
    if any(turn.role in who for dialogue in own for turn in dialogue[1:]):  # an answer, so a row
        words = ["kyon-pl", "build-data", "--characters", str(folder), "--output", f"{folder.name}.jsonl"]
        log.info("next: %s", shlex.join(words))
    else:
        dialogues = folder / "dialogues"
        log.info("next: write dialogues in which %s answers as JSONL into %s; they become rows", who[0], dialogues)


def _read(
    path: Path, kind: str, language: str, known: Sequence[str], user: str | None, speakers: str | None
) -> tuple[Found, Kind, list[Speech], Language, str]:
    chosen: Kind = recognized(path) if kind == "auto" else kind  # type: ignore[assignment]
    if speakers is not None and chosen != "novel":
        raise SettingError("speakers", f"{path} is read as {chosen}", "Leave it out: it is for novels")
    named, speeches = next(iter(known), ""), list[Speech]()
    must_exist(path)
    if chosen == "card":
        found = read_card(path, tidy_name(user or "") or "{{user}}", named)
        text = "\n".join([found.system_prompt, *found.memories, *(t.text for d in found.dialogues for t in d)])
    elif chosen == "table":
        found = read_speaker_table(path)
        text = "\n".join(turn.text for dialogue in found.dialogues[:200] for turn in dialogue)
    else:
        text = read_text(path)
    spoken: Language = language_of(text) if language == "auto" else language  # type: ignore[assignment]
    if chosen == "card" and not user:
        found = read_card(path, _USER[spoken], named)
    elif chosen == "chat_log":
        export = json_value(path, text) if text.lstrip()[0] == "{" else None
        found = read_discord_export(path, export) if is_discord_export(export) else read_chat_log(path, text)
    elif chosen == "novel":
        speeches, skipped = read_speeches(text, spoken, known)
        note = []
        if speakers is not None:
            speeches, changed = corrected(expand_home(speakers), speeches)
            note = [f"speakers corrected in {speakers}: {changed:,}"]
        found = novel_found(path, text, speeches, skipped, spoken)
        found.notes += note
    if not found.dialogues and chosen != "card":
        raise DataError(str(path), "nobody says anything in it", "Choose another --kind, or correct the file.")
    return found, chosen, speeches, spoken, text


def _same(path: str, other: Path) -> bool:
    return expand_home(path).resolve() == expand_home(other).resolve()
