"""What an exported folder is made of: `kyon_pl.json`, with a checksum of every file beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from kyon_pl.marker import size_and_sha256

RECORD = "kyon_pl.json"


def write_record(folder: Path, facts: Mapping[str, str]) -> None:
    """Write the facts, and the SHA-256 of every file of the folder by its name.

    Args:
        folder: complete but for the record.
        facts: such as the base and the adapter.
    """
    files = {path.name: size_and_sha256(path)["sha256"] for path in sorted(folder.iterdir())}
    text = json.dumps({**facts, "files": files}, indent=2, ensure_ascii=False) + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8")
