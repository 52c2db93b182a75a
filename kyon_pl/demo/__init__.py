"""The embedded demo: a little invented world, characters with a manner, a tiny tokenizer and base, and what makes them.

`python -m kyon_pl.demo.corpus`, then `.make_tokenizer`, then `.make_base` write `assets/` again, byte for byte.
"""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
"""`train.jsonl`, `validation.jsonl`, `bad_rows.jsonl` and `base/`."""

BASE = ASSETS / "base"
"""The demo's ChatGLM2 and its tokenizer, in the published layout."""
