"""An output folder that is written beside its final place and renamed, and the record of its files."""

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


log = logging.getLogger(__name__)


def refuse_existing(output: Path) -> None:
    """Refuse to overwrite: best called first, before anything is downloaded.

    Raises:
        SettingError: the output is a file, or a folder with something in it.
    """
    output = output.expanduser()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise SettingError(str(output), "it exists, and nothing is overwritten", "Give another --output, or remove it")


@contextmanager
def side_folder(output: Path) -> Iterator[Path]:
    """A folder `.NAME.writing` beside the output; it takes the output's name when the block ends, if that ends well.

    If the block fails, nothing is left. If the process is killed, the side folder is, and the next one removes it.

    Args:
        output: what is to be written; it may exist if it is an empty folder.

    Raises:
        SettingError: the output exists.
        MachineError: the disk is full, or cannot be written.
    """
    refuse_existing(output)
    output = output.expanduser().absolute()
    side = output.with_name(f".{output.name}.writing")
    try:
        if side.exists():
            log.warning("%s is removed: a command that was killed left it", from_here(side))
            shutil.rmtree(side)
        side.mkdir(parents=True)
        yield side
        for path in (*side.iterdir(), side):
            sync(path)
        side.rename(output)
        sync(output.parent)
    except KyonError:  # one of them is an OSError
        raise
    except (OSError, SafetensorError) as error:  # which of them depends on who was writing
        fix = "Make room and check the rights there, or give another --output"
        raise MachineError(str(output), f"it could not be finished ({error})", fix) from error
    finally:
        if side.exists():
            shutil.rmtree(side)
