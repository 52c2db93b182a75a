"""Writing an output folder atomically, with a record of its files."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from kyon_pl.disk import sync
from kyon_pl.errors import KyonError, MachineError, SettingError
from kyon_pl.logs import from_here
from kyon_pl.runs.integrity import size_and_sha256

log = logging.getLogger(__name__)

RECORD = "kyon_pl.json"


def refuse_existing(output: Path) -> None:
    """Check that nothing would be overwritten. Call this before downloads.

    Raises:
        SettingError: the output is a file, or a folder that is not empty.
    """
    output = output.expanduser()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise SettingError(str(output), "it exists, and nothing is overwritten", "Give another --output, or remove it")


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """Yield a new folder `.NAME.writing` beside the output, which is renamed to the output if the block succeeds.

    If the block fails, the folder is removed. If the process is killed, the next call removes it.

    Args:
        output: the final folder; it may exist if it is empty.

    Raises:
        SettingError: the output exists.
        MachineError: the disk is full or not writable.
    """
    refuse_existing(output)
    output = output.expanduser().absolute()
    folder = output.with_name(f".{output.name}.writing")
    try:
        if folder.exists():
            log.warning("removing %s, which a killed command left", from_here(folder))
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        yield folder
        for path in (*folder.iterdir(), folder):
            sync(path)
        folder.rename(output)
        sync(output.parent)
    except KyonError:  # some are OSErrors
        raise
    except (OSError, SafetensorError) as error:  # safetensors raises its own error for a full disk
        fix = "Free space and check the permissions there, or give another --output"
        raise MachineError(str(output), f"it could not be written ({error})", fix) from error
    finally:
        if folder.exists():
            shutil.rmtree(folder)


def write_record(folder: Path, facts: Mapping[str, str]) -> None:
    """Write `kyon_pl.json`: the given facts, and the SHA-256 of each file in the folder.

    Args:
        folder: complete except for the record.
        facts: such as the base and the adapter.
    """
    files = {path.name: size_and_sha256(path)["sha256"] for path in sorted(folder.iterdir())}
    text = json.dumps({**facts, "files": files}, indent=2, ensure_ascii=False) + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8")
