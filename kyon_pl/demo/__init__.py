"""The embedded demo: a small invented world, characters with a manner, a tiny tokenizer and base, and what makes them.

`python -m kyon_pl.demo.corpus`, then `.make_tokenizer`, then `.make_base` write `assets/` again, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kyon_pl.hub.download import fetch_model

ASSETS = Path(__file__).parent / "assets"
"""`train.jsonl`, `validation.jsonl`, `bad_rows.jsonl` and `base/`."""

BASE = ASSETS / "base"
"""The demo's ChatGLM2 and its tokenizer, in the published layout."""


def fetch_base(name: str, revision: str | None, *, patterns: Sequence[str]) -> Path:
    """The folder of a base model: the embedded one for the name `demo`, else as `kyon_pl.hub.download.fetch_model`.

    Args:
        name: `demo`, a folder, or a Hub id such as `THUDM/chatglm2-6b`.
        revision: branch, tag or commit on the Hub; None: the newest.
        patterns: names of the wanted files, such as `*.safetensors`; no others are downloaded.

    Raises:
        KyonError: as `fetch_model` raises it.
    """
    return BASE if name == "demo" else fetch_model(name, revision, patterns=patterns)


def fetch_base_config(name: str, revision: str | None) -> Path:
    """The base's `config.json` alone, one kilobyte. Raises as `fetch_base` does."""
    return fetch_base(name, revision, patterns=["config.json"]) / "config.json"
