"""What went wrong between here and the Hub: whether it may pass, and one clear text for each failure."""

from __future__ import annotations

from json import JSONDecodeError
from typing import Literal
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
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

from kyon_pl.errors import KyonError, MachineError, MissingFileError, SettingError

Kind = Literal["model", "dataset"]

# RuntimeError is what hf_xet, the client of the Hub's storage service, raises for anything
HUB_ERRORS = (OSError, HTTPError, HFValidationError, JSONDecodeError, RuntimeError)
LONGEST_RETRY_AFTER_SECONDS = 60.0
_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_LOGIN = "set HF_TOKEN, or run `hf auth login`, for an account that may read it"
_ELSEWHERE = "Or fetch the files elsewhere, from ModelScope too, and name their folder instead of the id."


def explain_hub_error(error: Exception, repo: str, kind: Kind, revision: str | None) -> KyonError:
    """The error of ours that says what `error`, from huggingface_hub or datasets, means for this repository."""
    told = told_by(error)
    if told is None and kind == "dataset" and isinstance(error, OSError) and error.errno is None:
        told = _ask_again(repo, kind, revision)  # datasets drops what the Hub said and keeps a sentence of its own
    where = place_of(repo, kind, revision)
    if isinstance(told, HfHubHTTPError):
        return _explain_answer(told, where, repo, kind)
    if not isinstance(told, (HTTPError, OfflineModeIsEnabled)):
        return _explain_local(told or error, where, repo)
    missing = f"not all of it is in the cache {constants.HF_HUB_CACHE}"
    if isinstance(told, OfflineModeIsEnabled):
        fix = f"Run once with a network and HF_HUB_OFFLINE=0. {_ELSEWHERE}"
        return MissingFileError(where, f"{missing}, and HF_HUB_OFFLINE forbids to fetch it", fix)
    fix = f"Check the network, or set HF_ENDPOINT to a mirror. {_ELSEWHERE}"
    if "Timeout" in type(told).__name__:
        fix = f"Set HF_HUB_ETAG_TIMEOUT above {constants.HF_HUB_ETAG_TIMEOUT} (seconds) if the Hub is slow. {fix}"
    return MissingFileError(where, f"{missing}, and the Hub is out of reach ({reason_of(told)})", fix)


def _explain_answer(answer: HfHubHTTPError, where: str, repo: str, kind: Kind) -> KyonError:
    status = answer.response.status_code
    if isinstance(answer, GatedRepoError):
        found = f"it is gated: only accounts that its owner let in may read it ({status})"
        return SettingError(where, found, f"Ask for access at {_page(repo, kind)}, then {_LOGIN}.")
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
    return MissingFileError(where, f"the Hub does not give it out now ({reason_of(answer)})", fix)


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
    return MissingFileError(where, reason_of(error), fix)


def told_by(error: BaseException | None) -> BaseException | None:
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


def may_pass(error: Exception) -> bool:
    """Whether the same request may do later: a busy or broken server, or a broken connection."""
    told = told_by(error)
    if isinstance(told, HfHubHTTPError):
        return told.response.status_code in _PASSING_STATUS
    return isinstance(told, HTTPError)


def retry_after_seconds(error: Exception) -> float:
    """How long the server asks to wait, up to a minute."""
    told = told_by(error)
    header = told.response.headers.get("Retry-After", "") if isinstance(told, HfHubHTTPError) else ""
    return min(float(header), LONGEST_RETRY_AFTER_SECONDS) if header.isdecimal() else 0.0


def reason_of(error: BaseException | None) -> str:
    """The error in a few words: a status, or its kind and first line."""
    if isinstance(error, HfHubHTTPError):
        return f"{error.response.status_code} {error.response.reason_phrase}"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def place_of(repo: str, kind: Kind, revision: str | None) -> str:
    """A repository as the messages name it, with the Hub that was asked."""
    return f"{kind} {repo}{f', revision {revision},' if revision else ''} at {_host()}"


def _page(repo: str, kind: Kind) -> str:
    """Where a person asks for access: a mirror has no such page."""
    path = f"{'datasets/' if kind == 'dataset' else ''}{repo}"
    mirrored = "" if _host() == "huggingface.co" else f", or at huggingface.co/{path} if that is a mirror"
    return f"{_host()}/{path}{mirrored}"


def _host() -> str:
    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]  # an address may hold a password
