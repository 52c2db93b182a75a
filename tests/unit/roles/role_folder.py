"""An invented role on disk, for tests."""

from __future__ import annotations

import json
from pathlib import Path

PROMPT = "你是小棹，汀罗镇的摆渡人。\n"


def write_role(
    folder: Path, memories: dict[str, list[float]] | None = None, texts: dict[str, str] | None = None
) -> Path:
    """A role folder with memories by title and text, with their vectors, or as plain texts."""
    folder.mkdir(parents=True)
    (folder / "system_prompt.txt").write_text(PROMPT, encoding="utf-8")
    if memories is not None:
        (folder / "jsonl").mkdir()
        write_lines(folder / "jsonl/title_text_embed.jsonl", [{key: vector} for key, vector in memories.items()])
    for name, text in (texts or {}).items():
        (folder / "texts").mkdir(exist_ok=True)
        (folder / "texts" / name).write_text(text, encoding="utf-8")
    return folder


def write_lines(path: Path, objects: list[object], end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(o, ensure_ascii=False) + end for o in objects), encoding="utf-8")
    return path


def dialogue(*turns: str, source: str = "invented") -> dict[str, object]:
    """A dialogue from lines of `name:text`."""
    parts = [turn.partition(":") for turn in turns]
    return {"dialogue": [{"role": role, "text": text} for role, _, text in parts], "source": source}
