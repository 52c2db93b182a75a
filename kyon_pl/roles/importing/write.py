"""Writing an imported role folder: never over a file that was not imported, or was changed since."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kyon_pl.disk import temporary
from kyon_pl.errors import KyonError, SettingError
from kyon_pl.files import read_json_object
from kyon_pl.outputs import Output, Test, check_outputs, check_replaceable, locked, output_file, resolve

RECORD = "import_role.json"
"""In the folder: the SHA-256 of each file as it was written."""

_DIGEST = re.compile("[0-9a-f]{64}")


def check_folder(folder: str) -> Path:
    """The path of the role folder, after a check that it is no file.

    Raises:
        SettingError: it is one, or no path of this machine.
    """
    path = resolve("output", folder)
    if path.exists() and not path.is_dir():
        raise SettingError("output", f"{path} is no folder", "Name a folder to write the role to")
    return path


def changed_by_hand(folder: str, name: str) -> bool:
    """Whether a file of an earlier import was changed since.

    Args:
        folder: the role folder.
        name: the path of the file in it.

    Raises:
        KyonError: as `outputs_of`.
    """
    path = resolve("output", folder)
    recorded = _recorded(path)
    return name in recorded and (path / name).is_file() and not _is_unchanged(recorded[name])(path / name)


def outputs_of(
    folder: str, files: Mapping[str, str], kept: Sequence[str], inputs: Mapping[str, str | None]
) -> list[Output]:
    """The files to write, after a check that nothing would be lost.

    Args:
        folder: the role folder, which `--output` names.
        files: the texts by path in the folder.
        kept: files of an earlier import that stay as they are.
        inputs: what is read, by option.

    Raises:
        SettingError: the folder is no folder; or a file there is an input, from elsewhere, or was changed since.
        CheckpointError: the record of an earlier import is damaged.
    """
    path = check_folder(folder)
    recorded = _recorded(path)
    outputs = [output_file("output", path / name, _is_unchanged(recorded.get(name))) for name in files]
    outputs.append(output_file("output", path / RECORD, lambda file: True))  # `_recorded` has checked it
    if left := sorted(name for name in _role_files(path) if name not in {*files, *kept, *recorded}):
        found = f"{path / left[0]} is from elsewhere, and would be part of the role"
        raise SettingError("output", found, "Name another folder, or remove it")
    check_outputs(outputs, inputs)
    return outputs


def write_role(outputs: Sequence[Output], files: Mapping[str, str], kept: Sequence[str], folder: str) -> None:
    """Write the files, and remove those of an earlier import that are not among them, unless they were changed.

    Args:
        outputs: from `outputs_of`.
        files: the texts by path in the folder.
        kept: files of an earlier import that stay as they are.
        folder: the role folder.

    Raises:
        SettingError: a file that is not ours has come into the place of one.
        MachineError: a file cannot be written, or another process writes it.
    """
    path = resolve("output", folder)
    recorded = _recorded(path)
    stale = {name: digest for name, digest in recorded.items() if name not in {*files, *kept}}
    record = {name: recorded[name] for name in kept if name in recorded}
    record |= {name: _digest(text.encode()) for name, text in files.items()}
    try:
        path.mkdir(parents=True, exist_ok=True)
        with locked(path, "output"):
            for output, text in zip(outputs, [*files.values(), json.dumps(record, indent=1)], strict=True):
                _write(output, text)
            _remove(path, stale)
    except KyonError:  # some are OSErrors
        raise
    except OSError as error:
        raise outputs[-1].cannot_be_written(error) from error


def _write(output: Output, text: str) -> None:
    """Replace one file as a whole. Thousands of memories are not synced one by one; a lost one is imported again."""
    check_replaceable(output)
    output.path.parent.mkdir(parents=True, exist_ok=True)
    written = temporary(output.path)
    try:
        written.write_text(text, encoding="utf-8", newline="")
        written.replace(output.path)
    finally:
        written.unlink(missing_ok=True)


def _remove(path: Path, stale: Mapping[str, str]) -> None:
    for name, digest in stale.items():
        if (file := path / name).is_file() and file.resolve().is_relative_to(path) and _is_unchanged(digest)(file):
            file.unlink()


def _recorded(folder: Path) -> dict[str, str]:
    if not (folder / RECORD).is_file():
        return {}
    content = read_json_object(folder / RECORD, "Remove the folder, or name another one.")
    if not all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in content.values()):
        raise SettingError("output", f"{folder / RECORD} exists and is from elsewhere", "Name another folder")
    return content


def _role_files(folder: Path) -> list[str]:
    """What `build-data` would read in the folder."""
    found = [*folder.glob("texts/*.txt"), *folder.glob("dialogues/*"), *folder.glob("jsonl/*")]
    return [file.relative_to(folder).as_posix() for file in found if not file.name.startswith(".")]


def _is_unchanged(digest: str | None) -> Test:
    def test(file: Path) -> bool:
        return digest is not None and _digest(file.read_bytes()) == digest

    return test


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
