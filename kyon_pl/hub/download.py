"""Downloads of models and data sets by repository id: huggingface_hub's cache, with retries and clear errors.

`HF_ENDPOINT`, `HF_HUB_OFFLINE` and `HF_HOME` work as huggingface_hub documents them. The token comes from `HF_TOKEN` or
`hf auth login`. Downloaded files are neither run nor unpickled here.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import constants, get_session, get_token, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from kyon_pl.disk import expand_home
from kyon_pl.errors import KyonError, MissingFileError, SettingError
from kyon_pl.hub.errors import (
    ANSWER_ERRORS,
    HUB_ERRORS,
    Kind,
    explain_hub_error,
    hub_cause,
    is_transient,
    not_a_hub,
    raised_by_client,
    reason_of,
    repository_at,
    retry_after_seconds,
)
from kyon_pl.hub.modelscope import fetch_from_modelscope, is_modelscope

log = logging.getLogger(__name__)

T = TypeVar("T")

PICKLED_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", *PICKLED_WEIGHTS)
LICENCE_FILES = ("MODEL_LICENSE", "LICENSE")  # the former in THUDM/chatglm2-6b
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "prompt_format.yaml")

_NAMES_IN_CACHE = ("ETag", "X-Linked-Etag", "X-Repo-Commit")
_NAME_IN_CACHE = re.compile(r'(W/)?"?(?!\.+"?$)[\w.:-]{1,200}"?', re.ASCII)

RETRY_WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0)


def fetch_model(repo_or_folder: str, revision: str | None, *, patterns: Sequence[str]) -> Path:
    """Return a folder with a model's files: a local folder, or a snapshot in the cache of the Hub or of ModelScope.

    Pickled weights are downloaded only if there are no safetensors: many repositories hold both, at 12 GB each.

    Args:
        repo_or_folder: a folder, or an id such as `THUDM/chatglm2-6b` or `modelscope:ZhipuAI/chatglm2-6b`.
        revision: branch, tag or commit; None for the newest.
        patterns: names of the files to download, such as `*.safetensors`.

    Raises:
        MissingFileError: the folder, repository, revision or files do not exist, or the Hub is out of reach.
        SettingError: the Hub denies access, or its address or the token is invalid.
        MachineError: the cache cannot be read or written.
    """
    folder, where = expand_home(repo_or_folder), repo_or_folder
    snapshot = _snapshot_of_modelscope if is_modelscope(repo_or_folder) else _snapshot
    if folder.is_dir():
        if revision:
            log.warning("%s is a folder: revision %s is ignored", repo_or_folder, revision)
    else:
        where = where if is_modelscope(where) else repository_at(where, "model", revision)
        safe = [pattern for pattern in patterns if pattern not in PICKLED_WEIGHTS]
        folder = snapshot(repo_or_folder, revision, safe)
        if len(safe) < len(patterns) and not any(folder.glob("*.safetensors")):
            folder = snapshot(repo_or_folder, revision, patterns)
    if not any(next(folder.glob(pattern), None) for pattern in patterns):
        found = f"none of the wanted files is there ({', '.join(patterns)})"
        raise MissingFileError(where, found, "Name a folder or repository that holds them.")
    return folder


def from_hub(download: Callable[[], T], repo: str, kind: Kind, revision: str | None) -> T:
    """Return `download()`, with retries if the Hub is busy or the connection breaks.

    huggingface_hub 2.4 retries the look-up of a file and resumes an incomplete body. It retries neither the look-up of
    a repository, nor a body after a server error or a reset.

    Raises:
        KyonError: from `explain_hub_error`.
    """
    waits = iter(RETRY_WAITS_SECONDS)
    while True:
        try:
            check_hub_settings()
            with checked_requests():
                return download()
        except KyonError:
            raise
        except HUB_ERRORS as error:
            wait_seconds = next(waits, None)
            if wait_seconds is None or not is_transient(error):
                raise explain_hub_error(error, repo, kind, revision) from error
            wait_seconds = max(wait_seconds, retry_after_seconds(error))
            log.warning("%s %s: %s; trying again in %g s", kind, repo, reason_of(hub_cause(error)), wait_seconds)
        except ANSWER_ERRORS as error:
            if not raised_by_client(error):
                raise
            raise not_a_hub(repository_at(repo, kind, revision)) from error
        time.sleep(wait_seconds)


def _snapshot(repo: str, revision: str | None, patterns: Sequence[str]) -> Path:
    def look_up(local_files_only: bool) -> str:
        allowed = list(patterns)
        return snapshot_download(repo, revision=revision, allow_patterns=allowed, local_files_only=local_files_only)

    def download() -> str:
        try:
            look_up(local_files_only=True)
        except LocalEntryNotFoundError:
            if not constants.HF_HUB_OFFLINE:
                _log_download(repository_at(repo, "model", revision))
        return look_up(local_files_only=False)

    return Path(from_hub(download, repo, "model", revision))


def _snapshot_of_modelscope(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    return fetch_from_modelscope(name, "model", revision, patterns=patterns)


@cache
def _log_download(where: str) -> None:
    """Log each download once per process; huggingface_hub shows progress bars on a terminal only."""
    log.info("%s: downloading what is not yet in the cache %s", where, constants.HF_HUB_CACHE)


@contextmanager
def checked_requests() -> Iterator[None]:
    """Apply HF_HUB_ETAG_TIMEOUT to every look-up, and check what is used as a name in the cache.

    Otherwise huggingface_hub 2.4 has no timeout for a repository's commit and list of files, and waits seven minutes
    for a file's size. Bodies keep HF_HUB_DOWNLOAD_TIMEOUT.
    """
    hooks = get_session().event_hooks
    hooks["request"].append(_limit_wait)
    hooks["response"].append(_check_names)
    try:
        yield
    finally:
        hooks["request"].remove(_limit_wait)
        hooks["response"].remove(_check_names)


def _limit_wait(request: Any) -> None:  # of httpx or httpx2: see HTTPError
    limits = request.extensions["timeout"]
    for phase, seconds in limits.items():
        if seconds is None or request.method == "HEAD":
            limits[phase] = constants.HF_HUB_ETAG_TIMEOUT


def _check_names(response: Any) -> None:
    """Refuse names that lead out of the cache: huggingface_hub 2.4 joins the ETag to the folder `blobs`.

    Raises:
        SettingError: a header of the look-up of a file, which cannot be the name of a file.
    """
    if response.request.method != "HEAD":
        return
    for header in _NAMES_IN_CACHE:
        value = response.headers.get(header)
        if value is not None and not _NAME_IN_CACHE.fullmatch(value):
            found = f"the server there is not a Hub: its {header}, {value[:80]!r}, cannot be the name of a file"
            raise SettingError(response.request.url.netloc.decode(), found, "Check HF_ENDPOINT and the proxy")


def check_hub_settings() -> None:
    """Check the Hub's address and the token, so that no client raises an error that quotes them.

    Raises:
        SettingError: one of them is invalid.
    """
    if urlsplit(constants.ENDPOINT).scheme not in ("http", "https"):
        fix = "Set the full address, such as https://hf-mirror.com, or unset it for huggingface.co."
        raise SettingError("HF_ENDPOINT", "the address does not begin with http:// or https://", fix)
    token = get_token()
    if token and not (token.isascii() and token.isprintable()):
        fix = "Copy it again from the Hub's settings page: hf_, then letters and digits, without quotes."
        raise SettingError("HF_TOKEN (or `hf auth login`)", "the token holds an invalid character", fix)
