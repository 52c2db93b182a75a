"""The embedded demo: invented characters, their rows, and a tiny base with its tokenizer.

`python -m kyon_pl.demo.make_assets` writes `assets/` again, byte for byte.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kyon_pl.hub.download import fetch_model

ASSETS = Path(__file__).parent / "assets"
"""`train.jsonl`, `validation.jsonl`, `bad_rows.jsonl` and `base/`."""

BASE = ASSETS / "base"
"""The demo's ChatGLM2 and its tokenizer, in the published layout."""


EMBEDDED = ("demo", "random")
"""Names of bases that are neither folders nor on the Hub."""


def is_folder(name: str) -> bool:
    """Whether a name of a base, or of an adapter, is a folder that exists; never for `demo` and `random`."""
    return name not in EMBEDDED and os.path.isdir(os.path.expanduser(name))  # noqa: PTH111, PTH112 (false for any text)


def name_to_record(name: str) -> str:
    """The name under which a base or an adapter is recorded.

    Args:
        name: `demo`, `random`, a folder or file, or a Hub id.

    Returns:
        The absolute path of a folder or file, because later commands are run in other folders; any other name
        unchanged.
    """
    path = os.path.expanduser(name)  # noqa: PTH111 (Path's raises at `~nobody`)
    return os.path.abspath(path) if name not in EMBEDDED and os.path.exists(path) else name  # noqa: PTH100, PTH110


def fetch_base(name: str, revision: str | None, *, patterns: Sequence[str]) -> Path:
    """Return the folder of a base model: the embedded one for `demo`, else `kyon_pl.hub.download.fetch_model`.

    Args:
        name: `demo`, a folder, or an id such as `THUDM/chatglm2-6b` or `modelscope:ZhipuAI/chatglm2-6b`.
        revision: branch, tag or commit on the Hub; None for the newest.
        patterns: names of the files to download, such as `*.safetensors`.

    Raises:
        KyonError: from `fetch_model`.
    """
    return BASE if name == "demo" else fetch_model(name, revision, patterns=patterns)


def fetch_base_config(name: str, revision: str | None) -> Path:
    """Return the base's `config.json`, and download nothing else. Raises as `fetch_base` does."""
    return fetch_base(name, revision, patterns=["config.json"]) / "config.json"
