"""Models and data by repository id: through huggingface_hub's cache, with more patience, and one clear text a failure.

`HF_ENDPOINT`, `HF_HUB_OFFLINE` and `HF_HOME` are huggingface_hub's and work as it documents them. A token comes from
`HF_TOKEN` or `hf auth login`, never from a setting of ours. Nothing here runs or unpickles what it fetches.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import constants, get_session, get_token, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from kyon_pl.errors import KyonError, MissingFileError, SettingError
from kyon_pl.hub.errors import (
    HUB_ERRORS,
    Kind,
    explain_hub_error,
    may_pass,
    place_of,
    reason_of,
    retry_after_seconds,
    told_by,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

PICKLED_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", *PICKLED_WEIGHTS)
LICENCE_FILES = ("MODEL_LICENSE", "LICENSE")  # ChatGLM2's is the former
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

RETRY_WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0)


def fetch_model(repo_or_folder: str, revision: str | None, *, patterns: Sequence[str]) -> Path:
    """A folder that holds a model's files: an existing one as it is, else a snapshot in the Hub's cache.

    Pickled weights are downloaded only where there are no safetensors: many repositories hold both, at 12 GB each.

    Args:
        repo_or_folder: a folder, or an id such as `THUDM/chatglm2-6b`.
        revision: a branch, tag or commit; None: the newest.
        patterns: names of the wanted files, such as `*.safetensors`; no others are downloaded.

    Raises:
        MissingFileError: no such folder, repository or revision, none of the files there, or no way to the Hub.
        SettingError: the Hub refuses this account, or its address or the token cannot be right.
        MachineError: the cache cannot be read or written.
    """
    folder, where = Path(os.path.expanduser(repo_or_folder)), repo_or_folder  # noqa: PTH111 (Path's raises at `~nobody`)
    if folder.is_dir():
        if revision:
            log.warning("%s is a folder: revision %s is not looked at", repo_or_folder, revision)
    else:
        where = place_of(repo_or_folder, "model", revision)
        safe = [pattern for pattern in patterns if pattern not in PICKLED_WEIGHTS]
        folder = _snapshot(repo_or_folder, revision, safe)
        if len(safe) < len(patterns) and not any(folder.glob("*.safetensors")):
            folder = _snapshot(repo_or_folder, revision, patterns)
    if not any(next(folder.glob(pattern), None) for pattern in patterns):
        found = f"none of the wanted files is there ({', '.join(patterns)})"
        raise MissingFileError(where, found, "Name a folder or repository that holds them.")
    return folder


def from_hub(download: Callable[[], T], repo: str, kind: Kind, revision: str | None) -> T:
    """The result of `download()`, which is called again when the Hub was busy or the connection broke.

    huggingface_hub 2.4 itself repeats the look-up of a file and resumes a body that ends early, but not the look-up of
    a repository, nor a body that is answered with a server error or cut by a reset.

    Raises:
        KyonError: as `explain_hub_error` gives it.
    """
    waits = iter(RETRY_WAITS_SECONDS)
    while True:
        try:
            check_hub_settings()
            with limited_waits():
                return download()
        except KyonError:
            raise
        except HUB_ERRORS as error:
            wait_seconds = next(waits, None)
            if wait_seconds is None or not may_pass(error):
                raise explain_hub_error(error, repo, kind, revision) from error
            wait_seconds = max(wait_seconds, retry_after_seconds(error))
            log.warning("%s %s: %s; trying again in %g s", kind, repo, reason_of(told_by(error)), wait_seconds)
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
                _announce(place_of(repo, "model", revision))
        return look_up(local_files_only=False)

    return Path(from_hub(download, repo, "model", revision))


@cache
def _announce(where: str) -> None:
    """Say once a process what is downloaded: huggingface_hub draws its progress bars on a terminal only."""
    log.info("%s: downloading what is not yet in the cache %s", where, constants.HF_HUB_CACHE)


@contextmanager
def limited_waits() -> Iterator[None]:
    """No look-up waits longer than HF_HUB_ETAG_TIMEOUT; bodies keep huggingface_hub's own HF_HUB_DOWNLOAD_TIMEOUT.

    Left alone, huggingface_hub 2.4 waits for ever for a repository's commit and its list of files, and seven times for
    a file's size, a minute each.
    """
    hooks = get_session().event_hooks["request"]
    hooks.append(_limit_wait)
    try:
        yield
    finally:
        hooks.remove(_limit_wait)


def _limit_wait(request: Any) -> None:  # of httpx or httpx2: see HTTPError
    limits = request.extensions["timeout"]
    for phase, seconds in limits.items():
        if seconds is None or request.method == "HEAD":
            limits[phase] = constants.HF_HUB_ETAG_TIMEOUT


def check_hub_settings() -> None:
    """The address and the token, before a client trips over them and quotes them.

    Raises:
        SettingError: one of them cannot be right.
    """
    if urlsplit(constants.ENDPOINT).scheme not in ("http", "https"):
        fix = "Write the whole address, such as https://hf-mirror.com, or unset it for huggingface.co."
        raise SettingError("HF_ENDPOINT", "the address does not begin with http:// or https://", fix)
    token = get_token()
    if token and not (token.isascii() and token.isprintable()):
        fix = "Copy it again from the Hub's settings page: hf_ and then letters and digits, without quotes."
        raise SettingError("HF_TOKEN (or `hf auth login`)", "the token holds a character that no token has", fix)
