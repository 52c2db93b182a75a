"""Data sets in the cache of `datasets`: built once, read with checksums, and built again if their files are damaged."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets.config
from datasets import Dataset, concatenate_datasets
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from kyon_pl.errors import KyonError, MachineError, SettingError

log = logging.getLogger("kyon_pl.data")

_CHUNK_BYTES = 1 << 20
_INFO = "dataset_info.json"  # beside the Arrow files of a data set
_LOCK, _RECORD = ".lock", ".json"


def cache_root(cache_dir: str | None) -> Path:
    """The cache folder: `cache_dir`, or by default that of `datasets` (HF_DATASETS_CACHE).

    Raises:
        SettingError: it starts with `~` and a user that does not exist.
    """
    folder = str(cache_dir or datasets.config.HF_DATASETS_CACHE)
    try:
        return Path(folder).expanduser()
    except RuntimeError:
        raise SettingError("data.cache_dir", f"{folder}: there is no such user", "Name another folder") from None


def cache_error(folder: Path, error: OSError) -> MachineError:
    """The error of a cache folder that cannot be read or written."""
    fix = "Free space and check the rights there, or set data.cache_dir (or HF_DATASETS_CACHE) to another folder."
    return MachineError(str(folder), f"the cache of rows cannot be used ({error.strerror or error})", fix)


def why_not_writable(folder: Path) -> OSError | None:
    """Try to write into a folder, or into the nearest parent that exists; return the error, or None."""
    place = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
    try:
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return error


def cached(folder: Path, fingerprint: str, build: Callable[[], Dataset]) -> Dataset:
    """Read a data set from the cache, or build it, if its files are not there or differ from their checksums.

    The checksums are written after the files, into `fingerprint`.json. One process builds; others wait for it. So the
    ranks of a machine read what rank zero has built in `prepare_data`.

    Args:
        folder: all its entries with `fingerprint` in their names belong to the data set, and are removed if one is
            damaged, or if there are no checksums.
        fingerprint: the cache key.
        build: writes the files of the data set there, and returns it.

    Raises:
        MachineError: the folder cannot be read or written.
        KyonError: from `build`.
    """
    record = folder / f"{fingerprint}{_RECORD}"
    try:
        files, fault = _check(record)
        if fault:
            folder.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(record.with_suffix(_LOCK)):
                files, fault = _check(record)
                if fault:  # no other process has built it meanwhile
                    if _remove(folder, fingerprint):
                        _say_damaged(fault)
                    files = _files(_built_or_removed(folder, fingerprint, build))
                    _write_record(record, files)
        return concatenate_datasets([Dataset.from_file(str(file)) for file in files if file.suffix == ".arrow"])
    except KyonError:
        raise
    except OSError as error:
        raise cache_error(folder, error) from None


def downloaded(root: Path, fingerprint: str, load: Callable[[], Dataset]) -> Dataset:
    """Load a data set of the Hub, after removing its files from the cache if they differ from their checksums.

    `datasets` and other programs write these files, too: files without checksums are accepted, and get theirs.

    Args:
        root: the cache folder.
        fingerprint: of the data set's name, revision and split.
        load: prepares the data set under `root`, or finds it there, and returns it.

    Raises:
        MachineError: the folder cannot be read or written.
        KyonError: from `load`.
    """
    record = root / f"{fingerprint}{_RECORD}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(record.with_suffix(_LOCK)):
            if record.is_file() and (checked := _check(record))[1]:
                for file in checked[0]:
                    if (folder := file.resolve().parent).is_dir() and root.resolve() in folder.parents:
                        _say_damaged(str(checked[1]))
                        shutil.rmtree(folder)
                record.unlink()
            dataset = load()
            files = _files(dataset)
            if not record.is_file() or list(_recorded(record)) != [str(file) for file in files]:
                _write_record(record, files)
        return dataset
    except KyonError:
        raise
    except OSError as error:
        raise cache_error(root, error) from None


def _files(dataset: Dataset) -> list[Path]:
    """The files of a data set, sorted: shards are numbered in their names. Those of `map` have no information."""
    arrow = sorted({Path(file["filename"]) for file in dataset.cache_files})
    folders = sorted({file.parent for file in arrow if not file.name.startswith("cache-")})
    return [*arrow, *(info for folder in folders if (info := folder / _INFO).is_file())]


def _write_record(record: Path, files: Iterable[Path]) -> None:
    checksums = {os.path.relpath(file, record.parent): [file.stat().st_size, _crc32(file)] for file in files}
    temporary = record.with_suffix(f"{_RECORD}.{os.getpid()}")
    temporary.write_text(json.dumps(checksums, indent=1), encoding="utf-8")
    temporary.replace(record)


def _recorded(record: Path) -> dict[str, list[int]]:
    """Size in bytes and CRC-32 of each recorded file."""
    checksums = json.loads(record.read_bytes())
    return {str(record.parent / name): [int(size), int(crc)] for name, (size, crc) in checksums.items()}


def _check(record: Path) -> tuple[list[Path], str | None]:
    """The files of a record, and what is wrong with it or with one of them; None: nothing.

    Whoever reads the files takes these names: another process may remove the record and write the same files again.
    """
    try:
        recorded = _recorded(record)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return [], f"{record}, written last, is missing"
    except (ValueError, TypeError, AttributeError):  # no JSON, or another
        return [], f"{record} cannot be read"
    faults = (_fault(Path(name), size, crc) for name, (size, crc) in recorded.items())
    fault = next((fault for fault in faults if fault), None)
    return [*map(Path, recorded)], fault if recorded else f"{record} is empty"


def _fault(file: Path, size: int, crc: int) -> str | None:
    """What is wrong with a recorded file; None: nothing."""
    if file.is_dir():
        return f"{file} is a folder"
    try:
        if (found := file.stat().st_size) != size:
            return f"{file} has {found:,} bytes instead of {size:,}"
        return None if _crc32(file) == crc else f"{file} differs from its checksum"
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return f"{file} is missing"


def _crc32(file: Path) -> int:
    crc = 0
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def _built_or_removed(folder: Path, fingerprint: str, build: Callable[[], Dataset]) -> Dataset:
    try:
        return build()
    except KyonError:  # of the source; what was read of it is no damaged cache
        _remove(folder, fingerprint)
        raise


def _remove(folder: Path, fingerprint: str) -> bool:
    """Remove the entries of a data set; return whether there were any."""
    entries = [entry for entry in folder.glob(f"*{fingerprint}*") if entry.suffix != _LOCK]
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return bool(entries)


def _say_damaged(fault: str) -> None:
    log.warning("data: the cache is damaged and built again: %s", fault)
