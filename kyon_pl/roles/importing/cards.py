"""Importing a Tavern character card: V1, V2 (`chara_card_v2`) and V3 (`chara_card_v3`), as JSON or in a PNG.

Source: https://github.com/malfoyslastname/character-card-spec-v2 and
https://github.com/kwaroran/character-card-spec-v3.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kyon_pl.data.reading.texts import excerpt
from kyon_pl.errors import DataError
from kyon_pl.files import fault_of_values
from kyon_pl.roles.dialogues import Turn
from kyon_pl.roles.importing.found import (
    Dialogue,
    Found,
    check_size,
    counted,
    joined,
    read_text,
    tidy,
    tidy_name,
    words_of,
)
from kyon_pl.roles.importing.png import PNG_HEAD, png_texts

CARD_KEYS = frozenset({"first_mes", "mes_example", "personality", "scenario"})
"""Keys of V1, which has no `spec`; a card has at least two of them."""

_PROMPT_KEYS = ("system_prompt", "description", "personality", "scenario", "post_history_instructions")
_TEXT_KEYS = (*_PROMPT_KEYS, "name", "nickname", "first_mes", "mes_example")
_READ = {*_TEXT_KEYS, "alternate_greetings", "group_only_greetings", "character_book"}
_V1_COPIES = {"spec", "spec_version", "data"}
_BLOCK = re.compile(r"<START>", re.IGNORECASE)
_COMMENT = re.compile(r"\{\{//.*?\}\}", re.DOTALL)
_MACRO = re.compile(r"\{\{[^{}\n]{1,80}\}\}")
_DECORATOR = re.compile(r"\A(?:@@.*\n?)+")
_FIX = "Export the card again, as JSON or PNG."


def is_card(value: object) -> bool:
    """Whether a JSON value is a character card."""
    if not isinstance(value, dict):
        return False
    return str(value.get("spec", "")).startswith("chara_card") or ("name" in value and len(CARD_KEYS & {*value}) >= 2)


def json_value(where: Path, text: str) -> Any:
    """The value of a JSON text.

    Raises:
        DataError: it is broken or nested too deeply.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        found = f"broken JSON: {error.msg} at line {error.lineno}, character {error.colno}"
        raise DataError(str(where), found, "Export it again.") from None
    except (RecursionError, ValueError) as error:  # too deep; a number of 5,000 digits
        found = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(str(where), f"JSON that cannot be read: {found}", "Export it again.") from None
    return value


def read_card(path: Path, user: str, name: str = "") -> Found:
    """Read a card.

    `{{char}}` becomes the character's name (of V3, its nickname), and `{{user}}` becomes `user`. Greetings and the
    entries of the character book become memories; example messages become dialogues.

    Args:
        path: JSON or PNG.
        user: name of whom the character talks to.
        name: of the character, in place of the one on the card.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is no card, or damaged, or nobody has named the character.
    """
    check_size(path)
    with path.open("rb") as file:
        head = file.read(len(PNG_HEAD))
    value = json_value(path, _card_in_png(path) if head == PNG_HEAD else read_text(path))
    if fault := fault_of_values(value):
        raise DataError(str(path), f"JSON that cannot be read: {fault}", _FIX)
    if not is_card(value):
        keys = ", ".join(map(str, list(value)[:8])) if isinstance(value, dict) else excerpt(value)
        raise DataError(str(path), f"no character card; it holds {keys}", "Name another file, or give its --kind.")
    card = value.get("data", value) if "spec" in value else value
    if not isinstance(card, dict):
        raise DataError(f"{path}: data", f"{excerpt(card)} is no object", _FIX)
    return _read(
        path, card, (name, user), [key for key in value if card is not value and key not in {*card} | _V1_COPIES]
    )


def _card_in_png(path: Path) -> str:
    texts = png_texts(path)
    keyword = next((name for name in ("ccv3", "chara") if name in texts), None)
    if keyword is None:
        names = ", ".join(sorted(texts)) or "no texts at all"
        raise DataError(str(path), f"a PNG without a card (no 'chara' or 'ccv3'; it has {names})", _FIX)
    try:
        return base64.b64decode(texts[keyword], validate=True).decode("utf-8-sig")
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path}: {keyword}", f"no JSON in base64: {error}", _FIX) from None


def _read(path: Path, card: Mapping[str, Any], names: tuple[str, str], outside: list[str]) -> Found:
    fields: dict[str, str] = {}
    for key in _TEXT_KEYS:
        if not isinstance(text := card.get(key) or "", str):
            raise DataError(f"{path}: {key}", f"{excerpt(text)} is no text", _FIX)
        fields[key] = text
    name, user = tidy_name(fields["name"]), names[1]
    nickname = names[0] or tidy_name(fields["nickname"]) or name
    if not nickname:
        raise DataError(f"{path}: name", "the card has no name", "Give --name")
    macros: Counter[str] = Counter()

    def filled(text: str) -> str:
        text = re.sub(r"\{\{char\}\}|<BOT>", lambda _: nickname, text, flags=re.IGNORECASE)
        text = re.sub(r"\{\{user\}\}|<USER>", lambda _: user, text, flags=re.IGNORECASE)
        text = _COMMENT.sub("", re.sub(r"\{\{original\}\}", "", text, flags=re.IGNORECASE))
        macros.update(_MACRO.findall(text))
        return tidy(text)

    speakers = [speaker for speaker in (nickname, name, user) if speaker]
    dialogues, unspoken = _examples(filled(fields["mes_example"]), speakers)
    greetings = [words_of(filled(text)) for text in [fields["first_mes"], *_texts(path, card, "alternate_greetings")]]
    greetings += [words_of(filled(text)) for text in _texts(path, card, "group_only_greetings")]
    entries, skipped = _book(path, card.get("character_book"))
    memories = [filled(entry) for entry in entries]
    prompt = "\n".join(text for key in _PROMPT_KEYS if (text := filled(fields[key])))
    said = [f"{nickname}:{text}" for text in greetings if text]
    unread = [key for key, value in card.items() if key not in _READ and value not in (None, "", [], {})]
    described = ", ".join(key for key in _PROMPT_KEYS if fields[key].strip()) or "nothing"
    notes = [f"card of {nickname}; system prompt from: {described}"]
    notes.append(f"{counted(len(dialogues), 'example dialogue')}; entries of the character book: {len(memories):,}")
    if said:
        notes.append(
            f"{counted(len(said), 'greeting')} read as memories: a greeting answers nothing, so it makes no row"
        )
    notes += [f"entries of the character book not read, switched off or empty: {skipped:,}"] if skipped else []
    notes += [f"lines of mes_example not read, before a speaker's name: {unspoken:,}"] if unspoken else []
    notes += [f"fields not read: {', '.join(map(str, [*unread, *outside]))}"] if unread or outside else []
    notes += [f"macros left as they are: {', '.join(sorted(macros))}"] if macros else []
    own = tuple(dict.fromkeys(each for each in (nickname, name) if each))
    return Found(dialogues, notes, own, prompt, [*filter(None, memories), *said], filled(fields["first_mes"]))


def _texts(path: Path, card: Mapping[str, Any], key: str) -> list[str]:
    texts = card.get(key) or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{path}: {key}", f"{excerpt(texts)} is no list of texts", _FIX)
    return texts


def _examples(text: str, speakers: list[str]) -> tuple[list[Dialogue], int]:
    """The dialogues of `mes_example`, and the number of lines before a name."""
    turn = re.compile(rf"({'|'.join(map(re.escape, speakers))})\s*[:：](.*)")
    dialogues, unspoken = [], 0
    for block in _BLOCK.split(text):
        turns: list[tuple[str, list[str]]] = []
        for line in block.splitlines():
            if match := turn.match(line.strip()):
                turns.append((match[1], [match[2]]))
            elif turns:
                turns[-1][1].append(line.rstrip())
            else:
                unspoken += bool(line.strip())
        dialogues.append(joined(Turn(name, words_of("\n".join(lines))) for name, lines in turns))
    return [dialogue for dialogue in dialogues if dialogue], unspoken


def _book(path: Path, book: Any) -> tuple[list[str], int]:
    """The texts of a character book, and the number of entries without one or switched off."""
    if book is None:
        return [], 0
    entries = book.get("entries", []) if isinstance(book, dict) else book
    if isinstance(entries, dict):  # a lorebook of SillyTavern, by number
        entries = list(entries.values())
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path}: character_book", f"{excerpt(entries)} is no list of entries", _FIX)
    used = [entry for entry in entries if entry.get("enabled", True) and not entry.get("disable")]
    texts = [_DECORATOR.sub("", text) for entry in used if isinstance(text := entry.get("content"), str)]
    texts = [text for text in texts if text.strip()]
    return texts, len(entries) - len(texts)
