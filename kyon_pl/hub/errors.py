"""Errors of requests to the Hub: whether to retry, and a KyonError for each."""

from __future__ import annotations

import traceback
from json import JSONDecodeError
from typing import Literal
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the base class of network errors: of httpx up to 1.x, of httpx2 since 2.0
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from kyon_pl.errors import KyonError, MachineError, MissingFileError, SettingError

Kind = Literal["model", "dataset"]

# RuntimeError: raised by hf_xet, the client of the Hub's storage service
HUB_ERRORS = (OSError, HTTPError, HFValidationError, JSONDecodeError, RuntimeError)
# what huggingface_hub raises where JSON of another shape than a Hub's is answered
ANSWER_ERRORS = (AssertionError, AttributeError, KeyError, TypeError, ValueError)
MAX_RETRY_AFTER_SECONDS = 60.0
_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_LOGIN = "set HF_TOKEN, or run `hf auth login`, for an account with access"
_ELSEWHERE = "Or name a copy instead: a folder, or on ModelScope, such as modelscope:ZhipuAI/chatglm2-6b."


def explain_hub_error(error: Exception, repo: str, kind: Kind, revision: str | None) -> KyonError:
    """The KyonError for an error of huggingface_hub or datasets about a repository."""
    cause = hub_cause(error)
    if cause is None and kind == "dataset" and isinstance(error, OSError) and error.errno is None:
        cause = _request_error(repo, kind, revision)  # datasets has dropped the Hub's error
    where = repository_at(repo, kind, revision)
    if isinstance(cause, HfHubHTTPError):
        return _explain_response(cause, where, repo, kind)
    if not isinstance(cause, (HTTPError, OfflineModeIsEnabled)):
        return _explain_local(cause or error, where, repo)
    missing = f"not all of it is in the cache {constants.HF_HUB_CACHE}"
    if isinstance(cause, OfflineModeIsEnabled):
        fix = f"Run once with a network and HF_HUB_OFFLINE=0. {_ELSEWHERE}"
        return MissingFileError(where, f"{missing}, and HF_HUB_OFFLINE forbids a download", fix)
    fix = f"Check the network, or set HF_ENDPOINT to a mirror. {_ELSEWHERE}"
    if "Timeout" in type(cause).__name__:
        fix = f"Set HF_HUB_ETAG_TIMEOUT above {constants.HF_HUB_ETAG_TIMEOUT} (seconds) if the Hub is slow. {fix}"
    return MissingFileError(where, f"{missing}, and the Hub is out of reach ({reason_of(cause)})", fix)


def _explain_response(error: HfHubHTTPError, where: str, repo: str, kind: Kind) -> KyonError:
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        found = f"it is gated: its owner must grant access ({status})"
        return SettingError(where, found, f"Ask for access at {_page(repo, kind)}, then {_LOGIN}.")
    if isinstance(error, RepositoryNotFoundError):
        found = f"there is no such {kind}, or it is private ({status}), and no folder of this name here"
        return MissingFileError(where, found, f"Check the name; if it is private, {_LOGIN}.")
    if isinstance(error, RevisionNotFoundError):
        fix = "Give a branch, a tag or a commit of it, or leave the revision out for the newest."
        return MissingFileError(where, f"the {kind} is there, but not this revision ({status})", fix)
    if status in (401, 403):
        sent = "authorization" in error.response.request.headers
        found = "it refuses the token of this machine" if sent else "it needs a token, and this machine has none"
        return SettingError(where, f"{found} ({status})", f"Check the name, then {_LOGIN}.")
    fix = f"Try again later: complete files stay in the cache. {_ELSEWHERE}"
    return MissingFileError(where, f"the Hub cannot serve it now ({reason_of(error)})", fix)


def _explain_local(error: BaseException, where: str, repo: str) -> KyonError:
    """The KyonError for an invalid name, the disk, an address that is not a Hub, or the storage service."""
    if isinstance(error, HFValidationError):
        found = "there is no such folder, and it is not the id of a repository either"
        return MissingFileError(repo, found, "Give an existing folder, or an id such as THUDM/chatglm2-6b.")
    if isinstance(error, OSError) and error.errno is not None:
        fix = "Free space and check the permissions there, or set HF_HOME to another folder."
        return MachineError(str(error.filename or constants.HF_HOME), f"cannot be used ({error.strerror})", fix)
    if isinstance(error, JSONDecodeError):
        return not_a_hub(where)
    fix = f"Try again, with HF_HUB_DISABLE_XET=1 if the message names CAS or Xet. {_ELSEWHERE}"
    return MissingFileError(where, reason_of(error), fix)


def not_a_hub(where: str) -> SettingError:
    """The error for an answer that no Hub would give.

    Args:
        where: the repository, with the host.
    """
    return SettingError(where, "the server there is not a Hub", "Check HF_ENDPOINT and the proxy.")


def raised_by_client(error: BaseException, client: str = "huggingface_hub.") -> bool:
    """Whether an error was raised in a client, and not in code that only calls it."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(str(frame.f_globals["__name__"]).startswith(client) for frame, _ in frames)


def hub_cause(error: BaseException | None) -> BaseException | None:
    """The first error of the Hub or the network among an error and its causes."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, (HTTPError, OfflineModeIsEnabled)):
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def _request_error(repo: str, kind: Kind, revision: str | None) -> Exception | None:
    """The error of a request for a file of this repository; None if the repository can be read."""
    try:
        get_hf_file_metadata(hf_hub_url(repo, "README.md", repo_type=kind, revision=revision))
    except EntryNotFoundError:
        return None
    except (OSError, HTTPError, HFValidationError) as error:
        return error
    return None


def is_transient(error: Exception) -> bool:
    """Whether a retry may succeed: the server is busy or failed, or the connection broke."""
    cause = hub_cause(error)
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in _TRANSIENT_STATUS
    return isinstance(cause, HTTPError)


def retry_after_seconds(error: Exception) -> float:
    """The server's `Retry-After`, up to `MAX_RETRY_AFTER_SECONDS`; 0 if there is none."""
    cause = hub_cause(error)
    header = cause.response.headers.get("Retry-After", "") if isinstance(cause, HfHubHTTPError) else ""
    return min(float(header), MAX_RETRY_AFTER_SECONDS) if header.isdecimal() else 0.0


def reason_of(error: BaseException | None) -> str:
    """A short description of an error: its HTTP status, or its type and first line."""
    if isinstance(error, HfHubHTTPError):
        return f"{error.response.status_code} {error.response.reason_phrase}"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def repository_at(repo: str, kind: Kind, revision: str | None) -> str:
    """The name of a repository in messages, with the host of the Hub."""
    return f"{kind} {repo}{f', revision {revision},' if revision else ''} at {_host()}"


def _page(repo: str, kind: Kind) -> str:
    """The page for requesting access; a mirror has none."""
    path = f"{'datasets/' if kind == 'dataset' else ''}{repo}"
    mirrored = "" if _host() == "huggingface.co" else f", or at huggingface.co/{path} if that is a mirror"
    return f"{_host()}/{path}{mirrored}"


def _host() -> str:
    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]  # without user and password
