"""The data files of a folder and their splits, by the conventions of `datasets`."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kyon_pl.errors import DataError, MissingFileError, SettingError

_GLOB_CHARACTERS = re.compile(r"[\[\]*?:]")  # `::` chains file systems
_NO_SPLITS = {"train": ["**"]}  # the patterns of `datasets` for a folder whose file names contain no split


def folder_files(folder: Path, split: str, name: str | None, is_data: Callable[[Path], bool]) -> list[Path]:
    """Return the files of a split of a folder, in order.

    A folder that `save_to_disk` wrote has the splits that it was saved with, and a folder whose README.md names files
    for splits has these, as on the Hub. Otherwise the file names tell the splits; if they do not, all files are taken.

    Args:
        folder: the folder.
        split: the split.
        name: the configuration, if the README has several.
        is_data: whether a file is one that can hold rows.

    Raises:
        MissingFileError: there are no data files, or not those that the README names.
        DataError: the README or a saved data set is broken.
        SettingError: the folder has splits or configurations, and not this one.
    """
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return _saved_files(folder)
    if (folder / "dataset_dict.json").is_file():
        splits = {path.parent.name: path.parent for path in sorted(folder.glob("*/state.json"))}
        return _saved_files(_chosen(folder, splits, split))
    found, told = _splits_found(folder, name)
    data = {
        split: rows
        for split, files in found.items()
        if (rows := [file for file in files if is_data(file) and not _is_saved_state(file)])
    }
    if not data:
        fix = "Put files of rows there, such as .jsonl, .json, .csv, .xlsx or .parquet."
        raise MissingFileError(str(folder), "no data file in this folder", fix)
    return _chosen(folder, data, split) if told else data["train"]


def _chosen(folder: Path, splits: dict[str, Any], split: str) -> Any:
    if split not in splits:
        found = f"{folder} has files of split {', '.join(splits)}, and none of {split!r}"
        raise SettingError("data.split", found, f"Set the split, or name the files: {folder}/*.jsonl.")
    return splits[split]


def _saved_files(folder: Path) -> list[Path]:
    from datasets import Dataset

    try:
        return [
            Path(file["filename"]) for file in Dataset.load_from_disk(str(folder), keep_in_memory=False).cache_files
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"a data set of save_to_disk that cannot be loaded: {str(error).strip().partition(chr(10))[0]}"
        raise DataError(str(folder), found, "Copy or save it again.") from None


def _is_saved_state(file: Path) -> bool:
    return file.name == "state.json" and (file.parent / "dataset_info.json").is_file()


def _splits_found(folder: Path, name: str | None) -> tuple[dict[str, list[Path]], bool]:
    """Return the files of each split, and whether a README or the files' names tell them apart."""
    from datasets.data_files import EmptyDatasetError, get_data_patterns, sanitize_patterns  # 0.5 s

    config = _readme_config(folder, name)
    base = _escaped((folder / config.get("data_dir", "")).resolve())
    try:
        patterns = sanitize_patterns(config.get("data_files") or get_data_patterns(base))
    except EmptyDatasetError:
        return {}, False
    splits = {str(split): _matching(of_split, base) for split, of_split in patterns.items()}
    if "data_files" in config and not all(splits.values()):
        missing = ", ".join(split for split, files in splits.items() if not files)
        fix = "Download the missing files, or name the files as data.source."
        raise MissingFileError(str(folder / "README.md"), f"the files that it names for {missing} are not there", fix)
    return splits, "data_files" in config or patterns != _NO_SPLITS


def _matching(patterns: list[str], base: str) -> list[Path]:
    """Return the files that match a split's patterns, each once. `DataFilesDict` refuses a folder called `a::b`."""
    from datasets.data_files import resolve_pattern

    found: dict[Path, None] = {}
    for pattern in patterns:
        with suppress(FileNotFoundError):
            found |= dict.fromkeys(Path(file) for file in resolve_pattern(pattern, base))
    return [*found]


def _escaped(folder: Path) -> str:
    """Return a path in which no character is part of a pattern."""
    return _GLOB_CHARACTERS.sub(lambda found: f"[{found[0]}]", str(folder))


def _readme_config(folder: Path, name: str | None) -> dict[str, Any]:
    """Return the configuration of a README, as the Hub chooses it; empty if the README has none."""
    readme = folder / "README.md"
    if not readme.is_file() or not readme.read_bytes().startswith(b"---"):
        return {}
    import yaml
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    try:
        configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(readme, ignore_metadata_errors=False).data)
        chosen = name or configs.get_default_config_name()
    except (ValueError, TypeError, yaml.YAMLError) as error:
        found = f"its header cannot be read: {str(error).strip().partition(chr(10))[0]}"
        raise DataError(str(readme), found, "Correct or remove it, or name the files as data.source.") from None
    if not configs:
        return {}
    if chosen not in configs:
        problem = f"no {chosen!r}" if chosen else "no default"
        found = f"{folder} has the configurations {', '.join(configs)}, and {problem}"
        raise SettingError("data.name", found, "Set it to one of them.")
    return dict(configs[chosen])
