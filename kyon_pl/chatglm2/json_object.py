"""The small JSON files beside a model's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kyon_pl.errors import CheckpointError


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is no JSON in UTF-8, or holds something else than one object.
    """
    fix = "Download this file again, or correct it."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError(str(path), f"not UTF-8: {error.reason} at byte {error.start + 1}", fix) from None
    except json.JSONDecodeError as error:
        found = f"broken JSON: {error.msg} at character {error.colno}"
        raise CheckpointError(f"{path}, line {error.lineno}", found, fix) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(str(path), f"it cannot be read ({error})", fix) from None
    if not isinstance(content, dict):
        raise CheckpointError(str(path), f"it holds a {type(content).__name__} in place of an object", fix)
    return content
