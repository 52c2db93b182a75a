"""`kyon-pl push`: an adapter, or a merged model, to the Hub, with a card, as one commit."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

from kyon_pl.errors import SettingError
from kyon_pl.hub.download import limited_waits
from kyon_pl.logs import from_here
from kyon_pl.publish.export_checks import RECORD, check_export
from kyon_pl.publish.model_card import hub_id, model_card
from kyon_pl.publish.repository import page, prepare_repository, told
from kyon_pl.runs.adapters import SETTINGS, find_adapter
from kyon_pl.runs.integrity import MARKER

log = logging.getLogger(__name__)

CARD = "README.md"
# of this machine: the marker of a whole checkpoint, and what holds paths
LEFT_OUT = (MARKER, "config.yaml", RECORD)


def push(
    repo_id: str,
    adapter: str | None = None,
    which: Literal["best", "last"] = "best",
    base: str | None = None,
    private: bool = True,
    revision: str | None = None,
    commit_message: str | None = None,
    allow_patterns: list[str] | None = None,
    ignore_patterns: list[str] | None = None,
    delete_patterns: list[str] | None = None,
    dry_run: bool = False,
) -> None:
    """Send an adapter, or a merged model, to the Hub with a model card.

    What is sent is read again first. All of it arrives as one commit, or nothing does. The token comes from HF_TOKEN or
    from `hf auth login`.

    Args:
        repo_id: USER/NAME; a NAME alone goes to the account of the token. The repository is made if need be.
        adapter: a PEFT folder, a run folder, a folder of runs, a checkpoint, or the folder of a merged model; unset,
            the newest run here.
        which: of a run, the best checkpoint by validation loss, or the last.
        base: the Hub id to name as the base, where the adapter names a folder of this machine.
        private: whether a repository that is made now is private; one that exists stays as it is.
        revision: the branch; unset, main.
        commit_message: unset, it names the adapter and its step.
        allow_patterns: send only these files, such as `*.safetensors`.
        ignore_patterns: do not send these; unset, COMPLETE, config.yaml and kyon_pl.json, which speak of this machine.
        delete_patterns: remove these files of the repository in the same commit.
        dry_run: show the files and the card, and send nothing.

    Raises:
        MissingFileError: no such adapter, or no way to the Hub.
        CheckpointError: what would be sent is not whole, or not what was saved.
        SettingError: no token, no right to write there, a conflict, or nothing to send.
    """
    folder = find_export(adapter, which)
    check_export(folder)
    base = base or base_of(folder)
    ignored = LEFT_OUT if ignore_patterns is None else ignore_patterns
    files = files_to_send(folder, allow_patterns, ignored)
    if dry_run:
        show(folder, files, str(model_card(folder, repo_id if "/" in repo_id else f"USER/{repo_id}", base)))
        return
    warn_of_local_base(base)
    api = HfApi()
    with told(repo_id), limited_waits():
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        parent = prepare_repository(api, repo_id, "model", private, revision)
    card = str(model_card(folder, repo_id, base))
    operations = [*additions(folder, files, card, base)]
    message = commit_message or f"{folder.name}, with kyon-pl push"
    with told(repo_id):
        deleted = deletions(api, repo_id, revision, delete_patterns, keep=[*files, CARD])
        commit = api.create_commit(
            repo_id, [*deleted, *operations], commit_message=message, revision=revision, parent_commit=parent
        )
    if commit.oid == parent:
        log.info("nothing new: %s has all of %s", page(repo_id, "model"), from_here(folder))
        return
    megabytes = sum((folder / file).stat().st_size for file in files) / 1e6
    told_where = from_here(folder), page(repo_id, "model")
    log.info("pushed %d files (%.1f MB) of %s: %s", len(operations), megabytes, *told_where)


def find_export(word: str | None, which: Literal["best", "last"]) -> Path:
    """The folder to send: that of a merged model as it is, else what `find_adapter` finds."""
    folder = Path(word) if word else None
    if folder and (folder / "config.json").is_file() and not (folder / SETTINGS).is_file():
        return folder
    return find_adapter(word, which)


def base_of(folder: Path) -> str | None:
    """What an adapter, or the record of a merged model, names as its base."""
    for name, key in ((SETTINGS, "base_model_name_or_path"), (RECORD, "base")):
        if (folder / name).is_file():
            named = json.loads((folder / name).read_text(encoding="utf-8")).get(key)
            return named if isinstance(named, str) else None
    return None


def files_to_send(folder: Path, allow: Sequence[str] | None, ignore: Sequence[str]) -> list[str]:
    """Names of the folder's files that pass the patterns; the card takes the place of any README.md.

    Raises:
        SettingError: none does.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    allowed = None if allow is None else list(allow)
    kept = [str(name) for name in filter_repo_objects(names, allow_patterns=allowed, ignore_patterns=list(ignore))]
    kept = [name for name in kept if name != CARD]
    if not kept:
        raise SettingError("--allow_patterns", f"no file of {folder} is left to send", "Leave the patterns out")
    return kept


def show(folder: Path, files: Sequence[str], card: str) -> None:
    """Print what would be sent."""
    for name in files:
        print(f"{(folder / name).stat().st_size:>15,}  {name}")
    print(f"{len(card.encode()):>15,}  {CARD}\n\n{card}")
    log.info("dry run: nothing was sent of %s", from_here(folder))


def warn_of_local_base(base: str | None) -> None:
    """Say that nobody else will find a base that is a folder here."""
    if not hub_id(base):
        log.warning("the base %s is no id on the Hub: name it with --base, or others cannot find it", base)


def additions(folder: Path, files: Sequence[str], card: str, base: str | None) -> list[CommitOperationAdd]:
    """The files, with the card, and with the base's public name in the adapter's settings."""
    contents: dict[str, Any] = {name: folder / name for name in files}
    contents[CARD] = card.encode()
    if SETTINGS in contents and base != base_of(folder):
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
        contents[SETTINGS] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    return [CommitOperationAdd(name, content) for name, content in contents.items()]


def deletions(
    api: HfApi, repo_id: str, revision: str | None, patterns: Sequence[str] | None, keep: Sequence[str]
) -> list[CommitOperationDelete]:
    """The repository's files to remove: those that match, unless they are sent anew."""
    if not patterns:
        return []
    there = [name for name in api.list_repo_files(repo_id, revision=revision) if name not in {*keep, ".gitattributes"}]
    return [CommitOperationDelete(name) for name in filter_repo_objects(there, allow_patterns=list(patterns))]
