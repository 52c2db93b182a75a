"""Writing an imported role folder: never over a file that was not imported, or was changed since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kyon_pl.errors import SettingError
from kyon_pl.files import read_json_object
from kyon_pl.outputs import Output, Test, check_outputs, output_file, resolve, writing

RECORD = "import_role.json"
"""In the folder: the SHA-256 of each file as it was written."""


def outputs_of(folder: str, files: Mapping[str, str], inputs: Mapping[str, str | None]) -> list[Output]:
    """The files to write, after a check that nothing would be lost.

    Args:
        folder: the role folder, which `--output` names.
        files: the texts by path in the folder.
        inputs: what is read, by option.

    Raises:
        SettingError: the folder is no folder; or a file there is an input, from elsewhere, or was changed since.
    """
    path = resolve("output", folder)
    if path.exists() and not path.is_dir():
        raise SettingError("output", f"{path} is no folder", "Name a folder to write the role to")
    recorded = _recorded(path)
    outputs = [output_file("output", path / name, _is_unchanged(recorded.get(name))) for name in [*files, RECORD]]
    if left := sorted(name for name in _role_files(path) if name not in files and name not in recorded):
        found = f"{path / left[0]} is from elsewhere, and would be part of the role"
        raise SettingError("output", found, "Name another folder, or remove it")
    check_outputs(outputs, inputs)
    return outputs


def write_role(outputs: Sequence[Output], files: Mapping[str, str], folder: str) -> None:
    """Write the files, and remove those of an earlier import that are not among them.

    Args:
        outputs: from `outputs_of`.
        files: the texts by path in the folder.
        folder: the role folder.

    Raises:
        SettingError: a file that is not ours has come into the place of one.
        MachineError: a file cannot be written, or another process writes it.
    """
    path = resolve("output", folder)
    stale = {name: digest for name, digest in _recorded(path).items() if name not in files}
    record = json.dumps({name: _digest(text.encode()) for name, text in files.items()}, indent=1, ensure_ascii=False)
    for output, text in zip(outputs, [*files.values(), record], strict=True):
        with writing(output) as written:
            written.write_text(text, encoding="utf-8", newline="")
    for name, digest in stale.items():
        if (file := path / name).is_file() and file.resolve().is_relative_to(path) and _is_unchanged(digest)(file):
            file.unlink()


def _recorded(folder: Path) -> dict[str, str]:
    if not (folder / RECORD).is_file():
        return {}
    content = read_json_object(folder / RECORD, "Remove the folder, or name another one.")
    return {name: digest for name, digest in content.items() if isinstance(digest, str)}


def _role_files(folder: Path) -> list[str]:
    """What `build-data` would read in the folder."""
    found = [*folder.glob("texts/*.txt"), *folder.glob("dialogues/*"), *folder.glob("jsonl/*")]
    return [file.relative_to(folder).as_posix() for file in found if not file.name.startswith(".")]


def _is_unchanged(digest: str | None) -> Test:
    def test(file: Path) -> bool:
        return file.name == RECORD or (digest is not None and _digest(file.read_bytes()) == digest)

    return test


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
