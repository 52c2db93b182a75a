"""Models and data by repository id: through huggingface_hub's cache, with more patience, and one clear text a failure.

`HF_ENDPOINT`, `HF_HUB_OFFLINE` and `HF_HOME` are huggingface_hub's and work as it documents them. A token comes from
`HF_TOKEN` or `hf auth login`, never from a setting of ours. Nothing here runs or unpickles what it fetches.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from json import JSONDecodeError
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the base of all that goes wrong on the wire: of httpx up to 1.x, of httpx2 since 2.0
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from kyon_pl.demo import BASE
from kyon_pl.errors import KyonError, MachineError, MissingFileError, SettingError

log = logging.getLogger(__name__)

T = TypeVar("T")
Kind = Literal["model", "dataset"]

PICKLED_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", *PICKLED_WEIGHTS)
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

RETRY_WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0)
LONGEST_RETRY_AFTER_SECONDS = 60.0
_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
# RuntimeError is what hf_xet, the client of the Hub's storage service, raises for anything
_HUB_ERRORS = (OSError, HTTPError, HFValidationError, JSONDecodeError, RuntimeError)
_LOGIN = "set HF_TOKEN, or run `hf auth login`, for an account that may read it"
_ELSEWHERE = "Or fetch the files elsewhere, from ModelScope too, and name their folder instead of the id."


def fetch_model(repo_or_folder: str, revision: str | None, *, patterns: Sequence[str]) -> Path:
    """A folder that holds a model's files: an existing one as it is, else a snapshot in the Hub's cache.

    Pickled weights are downloaded only where there are no safetensors: many repositories hold both, at 12 GB each.

    Args:
        repo_or_folder: a folder, an id such as `THUDM/chatglm2-6b`, or `demo`, the embedded base.
        revision: a branch, tag or commit; None: the newest.
        patterns: names of the wanted files, such as `*.safetensors`; no others are downloaded.

    Raises:
        MissingFileError: no such folder, repository or revision, none of the files there, or no way to the Hub.
        SettingError: the Hub refuses this account, or its address or the token cannot be right.
        MachineError: the cache cannot be read or written.
    """
    folder, where = Path(os.path.expanduser(repo_or_folder)), repo_or_folder  # noqa: PTH111 (Path's raises at `~nobody`)
    if repo_or_folder == "demo":
        folder = BASE
    elif folder.is_dir():
        if revision:
            log.warning("%s is a folder: revision %s is not looked at", repo_or_folder, revision)
    else:
        where = _where(repo_or_folder, "model", revision)
        safe = [pattern for pattern in patterns if pattern not in PICKLED_WEIGHTS]
        folder = _snapshot(repo_or_folder, revision, safe)
        if len(safe) < len(patterns) and not any(folder.glob("*.safetensors")):
            folder = _snapshot(repo_or_folder, revision, patterns)
    if not any(next(folder.glob(pattern), None) for pattern in patterns):
        found = f"none of the wanted files is there ({', '.join(patterns)})"
        raise MissingFileError(where, found, "Name a folder or repository that holds them.")
    return folder


def fetch_config(repo_or_folder: str, revision: str | None) -> Path:
    """The model's `config.json` alone: a kilobyte that tells what the rest would need. Raises as `fetch_model` does."""
    return fetch_model(repo_or_folder, revision, patterns=["config.json"]) / "config.json"


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
            _check_settings()
            return download()
        except KyonError:
            raise
        except _HUB_ERRORS as error:
            wait_seconds = next(waits, None)
            if wait_seconds is None or not _may_pass(error):
                raise explain_hub_error(error, repo, kind, revision) from error
            wait_seconds = max(wait_seconds, _retry_after_seconds(error))
            log.warning("%s %s: %s; trying again in %g s", kind, repo, _reason(_told(error)), wait_seconds)
        time.sleep(wait_seconds)


def explain_hub_error(error: Exception, repo: str, kind: Kind, revision: str | None) -> KyonError:
    """The error of ours that says what `error`, from huggingface_hub or datasets, means for this repository."""
    told = _told(error)
    if told is None and kind == "dataset" and isinstance(error, OSError) and error.errno is None:
        told = _ask_again(repo, kind, revision)  # datasets drops what the Hub said and keeps a sentence of its own
    where = _where(repo, kind, revision)
    if isinstance(told, HfHubHTTPError):
        return _explain_answer(told, where, repo, kind)
    if not isinstance(told, (HTTPError, OfflineModeIsEnabled)):
        return _explain_local(told or error, where, repo)
    missing = f"not all of it is in the cache {constants.HF_HUB_CACHE}"
    if isinstance(told, OfflineModeIsEnabled):
        fix = f"Run once with a network and HF_HUB_OFFLINE=0. {_ELSEWHERE}"
        return MissingFileError(where, f"{missing}, and HF_HUB_OFFLINE forbids to fetch it", fix)
    fix = f"Check the network, or set HF_ENDPOINT to a mirror. {_ELSEWHERE}"
    return MissingFileError(where, f"{missing}, and the Hub is out of reach ({_reason(told)})", fix)


def _snapshot(repo: str, revision: str | None, patterns: Sequence[str]) -> Path:
    def download() -> str:
        return snapshot_download(repo, revision=revision, allow_patterns=list(patterns))

    return Path(from_hub(download, repo, "model", revision))


def _explain_answer(answer: HfHubHTTPError, where: str, repo: str, kind: Kind) -> KyonError:
    status = answer.response.status_code
    if isinstance(answer, GatedRepoError):
        page = f"{_host()}/{'datasets/' if kind == 'dataset' else ''}{repo}"
        found = f"it is gated: only accounts that its owner let in may read it ({status})"
        return SettingError(where, found, f"Ask for access at {page}, then {_LOGIN}.")
    if isinstance(answer, RepositoryNotFoundError):
        found = f"there is no such {kind}, or it is private ({status}), and no folder of this name here"
        return MissingFileError(where, found, f"Check the name; if it is private, {_LOGIN}.")
    if isinstance(answer, RevisionNotFoundError):
        fix = "Name a branch, a tag or a commit of it, or leave the revision out for the newest."
        return MissingFileError(where, f"the {kind} is there, but not this revision ({status})", fix)
    if status in (401, 403):
        sent = "authorization" in answer.response.request.headers
        found = "it refuses the token of this machine" if sent else "it asks for a token, and there is none here"
        return SettingError(where, f"{found} ({status})", f"Check the name, then {_LOGIN}.")
    fix = f"Try again later: complete files stay in the cache. {_ELSEWHERE}"
    return MissingFileError(where, f"the Hub does not give it out now ({_reason(answer)})", fix)


def _explain_local(error: BaseException, where: str, repo: str) -> KyonError:
    """What is left: the name, the disk, an address where no Hub answers, the storage service."""
    if isinstance(error, HFValidationError):
        found = "there is no such folder, and it is not the id of a repository either"
        return MissingFileError(repo, found, "Name a folder that exists, or an id such as THUDM/chatglm2-6b.")
    if isinstance(error, OSError) and error.errno is not None:
        fix = "Make room and check the rights there, or set HF_HOME to another folder."
        return MachineError(str(error.filename or constants.HF_HOME), f"cannot be used ({error.strerror})", fix)
    if isinstance(error, JSONDecodeError):
        return SettingError(where, "what answers there is not a Hub", "Check HF_ENDPOINT and the proxy.")
    fix = f"Try again, with HF_HUB_DISABLE_XET=1 if it speaks of CAS or Xet. {_ELSEWHERE}"
    return MissingFileError(where, _reason(error), fix)


def _told(error: BaseException | None) -> BaseException | None:
    """What the Hub or the network said: the first such error among this one and its causes."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, (HTTPError, OfflineModeIsEnabled)):
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def _ask_again(repo: str, kind: Kind, revision: str | None) -> Exception | None:
    """What the Hub says when it is asked for a file of this repository; None if all is well."""
    try:
        get_hf_file_metadata(hf_hub_url(repo, "README.md", repo_type=kind, revision=revision))
    except EntryNotFoundError:
        return None
    except (OSError, HTTPError, HFValidationError) as error:
        return error
    return None


def _may_pass(error: Exception) -> bool:
    """Whether the same request may do later: a busy or broken server, or a broken connection."""
    told = _told(error)
    if isinstance(told, HfHubHTTPError):
        return told.response.status_code in _PASSING_STATUS
    return isinstance(told, HTTPError)


def _retry_after_seconds(error: Exception) -> float:
    """How long the server asks to wait, up to a minute."""
    told = _told(error)
    header = told.response.headers.get("Retry-After", "") if isinstance(told, HfHubHTTPError) else ""
    return min(float(header), LONGEST_RETRY_AFTER_SECONDS) if header.isdecimal() else 0.0


def _reason(error: BaseException | None) -> str:
    """The error in a few words: a status, or its kind and first line."""
    if isinstance(error, HfHubHTTPError):
        return f"{error.response.status_code} {error.response.reason_phrase}"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _where(repo: str, kind: Kind, revision: str | None) -> str:
    return f"{kind} {repo}{f', revision {revision},' if revision else ''} at {_host()}"


def _host() -> str:
    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]  # an address may hold a password


def _check_settings() -> None:
    """The address and the token, before a client trips over them and quotes them."""
    if urlsplit(constants.ENDPOINT).scheme not in ("http", "https"):
        fix = "Write the whole address, such as https://hf-mirror.com, or unset it for huggingface.co."
        raise SettingError("HF_ENDPOINT", "the address does not begin with http:// or https://", fix)
    token = get_token()
    if token and not (token.isascii() and token.isprintable()):
        fix = "Copy it again from the Hub's settings page: hf_ and then letters and digits, without quotes."
        raise SettingError("HF_TOKEN (or `hf auth login`)", "the token holds a character that no token has", fix)
