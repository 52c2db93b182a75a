"""Downloads from ModelScope by its own client: `modelscope:OWNER/NAME` as a base or a data set.

`MODELSCOPE_ENDPOINT` and `MODELSCOPE_CACHE` work as the client documents them. The token comes from
`MODELSCOPE_API_TOKEN`; the login that the client saves is a pickle and is not read. `HF_HUB_OFFLINE=1` holds here, too.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import constants

from kyon_pl.errors import SettingError
from kyon_pl.hub.errors import Kind
from kyon_pl.hub.modelscope_errors import TOKEN, explained
from kyon_pl.imports import need_package

log = logging.getLogger(__name__)

PREFIX = "modelscope:"
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HASHED_BYTES = 50_000_000  # the hash of 12 GB of weights at every start would take a minute


def is_modelscope(name: str) -> bool:
    """Whether a base or a source is one of ModelScope."""
    return name.startswith(PREFIX)


def fetch_from_modelscope(name: str, kind: Kind, revision: str | None, *, patterns: Sequence[str]) -> Path:
    """Return the folder of a repository in the client's cache, with its files that match, downloaded where necessary.

    Args:
        name: `modelscope:OWNER/NAME`.
        kind: model or dataset.
        revision: branch, tag or commit; None for `master`.
        patterns: names of the files to download, such as `*.safetensors`.

    Raises:
        MissingFileError: the repository or revision does not exist, or ModelScope is out of reach.
        SettingError: the name is no id, access is denied, or the address or the token is invalid.
        MachineError: the client is not installed, or the cache cannot be read or written.
    """
    repo, api = _repository(name), _client(name)
    revision = revision or "master"
    with explained(name, kind, revision):
        if constants.HF_HUB_OFFLINE:
            return Path(api.download_repo(repo, kind, revision=revision, local_files_only=True))
        listed = [file for file in api.list_repo_files(repo, kind, revision=revision) if not file.is_dir]
        wanted = [file for file in listed if any(fnmatch(file.path, pattern) for pattern in patterns)]
        _check_paths(name, [file.path for file in wanted])
        folder = _cached(api, repo, kind, revision)
        missing = [file for file in wanted if folder is None or not _is_complete(folder / file.path, file)]
        if folder is not None and not missing:
            return folder
        log.info("%s: downloading %d files, %.3g GB", name, len(missing), sum(file.size for file in missing) / 1e9)
        files = [{"Path": file.path, "Size": file.size, "Sha256": file.sha256} for file in missing]
        return Path(api.download_repo(repo, kind, revision=revision, file_list=files))


def cached_from_modelscope(name: str, kind: Kind, revision: str | None) -> Path | None:
    """Return the folder of a repository in the client's cache, complete or not, without a request.

    Raises:
        SettingError: the name is no id, or the token is invalid.
        MachineError: the client is not installed.
    """
    return _cached(_client(name), _repository(name), kind, revision or "master")


def modelscope_cache() -> Path:
    """The folder of the client's cache."""
    from modelscope_hub import HubConfig

    return Path(HubConfig(token="").cache_dir)


def _repository(name: str) -> str:
    repo = name.removeprefix(PREFIX)
    if not _ID.fullmatch(repo):
        raise SettingError(name, "it is no id of ModelScope", f"Write {PREFIX}OWNER/NAME.")
    return repo


def _client(name: str) -> Any:
    """The client, with the token of the environment; its warnings go where the lines of this package go."""
    need_package("modelscope_hub", "modelscope", where=name, does="downloads it")
    from modelscope_hub import HubApi, HubConfig

    token = os.environ.get(TOKEN, "")
    if not (token.isascii() and token.isprintable()):
        raise SettingError(TOKEN, "the token holds an invalid character", "Copy it again, without quotes.")
    logger = logging.getLogger("modelscope_hub")
    logger.handlers = [*logging.getLogger("kyon_pl").handlers]
    logger.setLevel(logging.WARNING)
    return HubApi(HubConfig(token=token))  # an empty token keeps it from unpickling a saved one


def _cached(api: Any, repo: str, kind: Kind, revision: str) -> Path | None:
    from modelscope_hub import CacheNotFound

    try:
        return Path(api.download_repo(repo, kind, revision=revision, local_files_only=True))
    except CacheNotFound:
        return None


def _check_paths(name: str, paths: Sequence[str]) -> None:
    """Refuse names that lead out of the cache: the client joins them to its folder."""
    for path in paths:
        if PurePosixPath(path).is_absolute() or ".." in path.split("/") or not path.isprintable():
            found = f"the server names a file outside of the repository: {path[:80]!r}"
            raise SettingError(name, found, "Check MODELSCOPE_ENDPOINT and the proxy.")


def _is_complete(path: Path, listed: Any) -> bool:
    """Whether a file of the cache is the listed one. The client moves complete files only to their place."""
    if not path.is_file() or path.stat().st_size != listed.size:
        return False
    hashed = bool(listed.sha256) and listed.size <= _HASHED_BYTES
    return not hashed or hashlib.sha256(path.read_bytes()).hexdigest() == str(listed.sha256)
