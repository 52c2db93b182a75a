"""Writing an output folder atomically, with a record of its files."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from kyon_pl.disk import sync, temporary
from kyon_pl.errors import KyonError, MachineError, SettingError
from kyon_pl.logs import from_here
from kyon_pl.outputs import locked, resolve
from kyon_pl.runs.integrity import EXPORT_RECORD, FORMAT_VERSION, size_and_sha256

log = logging.getLogger(__name__)


def new_folder(name: Path) -> Path:
    """The folder that `--output` names, if nothing would be overwritten. Call this before downloads.

    Returns:
        The absolute path, without links.

    Raises:
        SettingError: it is a file or a folder that is not empty, or no path of this machine.
    """
    output = resolve("--output", name)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise SettingError(str(output), "it exists, and nothing is overwritten", "Give another --output, or remove it")
    return output


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """Yield a new folder `.NAME.writing` beside the output, which is renamed to the output if the block succeeds.

    If the block fails, the folder is removed. If the process is killed, the next call removes it. Only one process at a
    time writes an output.

    Args:
        output: the final folder; it may exist if it is empty.

    Raises:
        SettingError: the output exists.
        MachineError: the disk is full or not writable, or another process is writing the output.
    """
    output = new_folder(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with locked(output, "--output"):
            yield from _filled(new_folder(output))
    except KyonError:  # some are OSErrors
        raise
    except (OSError, SafetensorError) as error:  # safetensors raises its own error for a full disk
        fix = "Free space and check the permissions there, or give another --output"
        raise MachineError(str(output), f"it could not be written ({error})", fix) from error


def _filled(output: Path) -> Iterator[Path]:
    """Yield the folder beside the output, then rename it."""
    folder = temporary(output)
    if folder.exists():
        log.warning("removing %s, which a killed command left", from_here(folder))
        shutil.rmtree(folder)
    folder.mkdir()
    try:
        yield folder
        for path in (*folder.iterdir(), folder):
            sync(path)
        folder.rename(output)
        sync(output.parent)
    finally:
        if folder.exists():
            shutil.rmtree(folder)


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Check that a model fits on the disk.

    Raises:
        MachineError: it does not.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        found = f"{free_bytes / 1e9:.1f} GB free, and the model takes {needed_bytes / 1e9:.1f} GB"
        raise MachineError(str(folder.parent), found, "Free space, or give an --output on another disk")


def write_record(folder: Path, facts: Mapping[str, str]) -> None:
    """Write `kyon_pl.json`: the given facts, and the SHA-256 of each file in the folder.

    Args:
        folder: complete except for the record.
        facts: such as the base and the adapter.
    """
    files = {path.name: size_and_sha256(path)["sha256"] for path in sorted(folder.iterdir())}
    text = json.dumps({"format_version": FORMAT_VERSION, **facts, "files": files}, indent=2, ensure_ascii=False) + "\n"
    (folder / EXPORT_RECORD).write_text(text, encoding="utf-8")
