"""The order of the memories in a context: by likeness to the question, or by how many rows of the role use them.

Rows whose contexts begin with the same memories are cheaper to train with `data.batching: shared`.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from kyon_pl.errors import DataError
from kyon_pl.logs import from_here
from kyon_pl.outputs import Output, check_replaceable, output_file, text_that_starts, writing

log = logging.getLogger("kyon_pl.data")

_KEY, _START = "memories_by_frequency", '{"memories_by_frequency"'


def ranks_by_use(memories: tuple[str, ...], uses: Counter[str]) -> dict[str, int]:
    """The place of each used memory, the one that most rows use first; of equally used ones the earlier one.

    Args:
        memories: of the role.
        uses: number of rows by memory.
    """
    used = [memory for memory in dict.fromkeys(memories) if uses[memory]]
    return {memory: rank for rank, memory in enumerate(sorted(used, key=lambda memory: -uses[memory]))}


def order_file(role: Path) -> Path:
    """The file that keeps the order of a role, in its folder or beside its file; it need not exist."""
    return role.with_suffix(".memory_order.json") if role.is_file() else role / "memory_order.json"


def read_order(file: Path) -> dict[str, int] | None:
    """The place of each memory that `write_order` kept; None if there is no such file.

    Raises:
        DataError: the file is not from `write_order`, or damaged.
    """
    if not file.is_file():
        return None
    try:
        kept = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        kept = None
    memories = kept.get(_KEY) if isinstance(kept, dict) else None
    if not isinstance(memories, list) or not all(isinstance(memory, str) for memory in memories):
        fix = "Remove it; build-data with memory_order frequency writes it again."
        raise DataError(str(file), f"it cannot be read, or has no list {_KEY!r} in JSON", fix)
    return {memory: rank for rank, memory in enumerate(memories)}


def order_output(file: Path) -> Output:
    """The file of `order_file` as an output.

    Raises:
        SettingError: the path cannot be used, or a file that is not ours is there.
    """
    output = output_file("memory_order", file, text_that_starts(_START))
    check_replaceable(output)
    return output


def write_order(ranks: Mapping[str, int], output: Output) -> None:
    """Keep the order of a role's memories, so that its chat has the order of its rows.

    Args:
        ranks: from `ranks_by_use`.
        output: from `order_output`.

    Raises:
        SettingError: a file that is not ours is there.
        MachineError: it cannot be written.
    """
    with writing(output) as written:
        memories = sorted(ranks, key=lambda memory: ranks[memory])
        written.write_text(f"{json.dumps({_KEY: memories}, ensure_ascii=False)}\n", encoding="utf-8")


def remove_orders(outputs: Sequence[Output]) -> None:
    """Remove the orders that an earlier build has kept, because the rows are now ordered by likeness.

    Raises:
        MachineError: one cannot be removed.
    """
    for output in outputs:
        if output.path.exists():
            try:
                output.path.unlink()
            except OSError as error:
                raise output.cannot_be_written(error) from error
            log.info("removed %s, the order of memories of an earlier build", from_here(output.path))
