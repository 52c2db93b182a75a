"""Errors of ModelScope's client, modelscope_hub, as KyonErrors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from kyon_pl.errors import KyonError, MachineError, MissingFileError, SettingError
from kyon_pl.hub.errors import ANSWER_ERRORS, Kind, raised_by_client

TOKEN = "MODELSCOPE_API_TOKEN"
_RETRY = "Try again: what has arrived stays in the cache, and the download goes on from there."


@contextmanager
def explained(name: str, kind: Kind, revision: str) -> Iterator[None]:
    """Raise the KyonError for an error of the client about a repository.

    Args:
        name: `modelscope:OWNER/NAME`.
        kind: model or dataset.
        revision: branch, tag or commit.
    """
    from modelscope_hub import HubError
    from requests import RequestException

    try:
        yield
    except KyonError:
        raise
    except (HubError, RequestException, OSError) as error:
        raise _explain(error, name, kind, revision) from error
    except ANSWER_ERRORS as error:
        if not raised_by_client(error, "modelscope_hub."):
            raise
        raise _not_modelscope(name) from error


def _explain(error: BaseException, name: str, kind: Kind, revision: str) -> KyonError:
    from modelscope_hub import errors
    from requests.exceptions import JSONDecodeError

    if isinstance(error, errors.FileDownloadError) and error.failed_files:
        file, cause = next(iter(error.failed_files.items()))
        return _explain(cause, f"{name}, {file}", kind, revision)
    if isinstance(error, errors.CacheNotFound):
        found = f"revision {revision} is not in the cache, and HF_HUB_OFFLINE forbids a download"
        return MissingFileError(name, found, "Run once with a network and HF_HUB_OFFLINE=0.")
    if isinstance(error, errors.NotExistError):
        found = f"there is no such {kind} with a revision {revision} at {_host()}, or it is private (404)"
        return MissingFileError(name, found, f"Check the name; if it is private, set {TOKEN}.")
    if isinstance(error, (errors.AuthenticationError, errors.PermissionDeniedError)):
        found = f"{_host()} refuses the token" if os.environ.get(TOKEN) else f"{_host()} asks for a token"
        fix = f"Set {TOKEN} to a token of an account with access."
        return SettingError(name, f"{found} ({error.status_code})", fix)
    if isinstance(error, JSONDecodeError):
        return _not_modelscope(name)
    if isinstance(error, OSError) and error.errno is not None:
        where = str(error.filename or name)
        fix = "Free space and check the permissions there, or set MODELSCOPE_CACHE to another folder."
        return MachineError(where, f"cannot be used ({error.strerror})", fix)
    if isinstance(error, errors.FileIntegrityError):
        return MissingFileError(name, f"it arrives damaged from {_host()} ({_reason(error)})", _RETRY)
    fix = f"Check the network and MODELSCOPE_ENDPOINT. {_RETRY} If all is there, HF_HUB_OFFLINE=1 needs no network."
    return MissingFileError(name, f"{_host()} cannot serve it now ({_reason(error)})", fix)


def _reason(error: BaseException) -> str:
    """A short description of an error: its HTTP status, or its first cause."""
    from modelscope_hub import APIError

    while (cause := error.__cause__ or error.__context__) is not None:
        if isinstance(error, APIError) and error.status_code:
            return str(error.status_code)
        error = cause
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _not_modelscope(name: str) -> SettingError:
    return SettingError(name, f"{_host()} is not ModelScope", "Check MODELSCOPE_ENDPOINT and the proxy.")


def _host() -> str:
    from modelscope_hub import HubConfig

    endpoint = HubConfig(token="").endpoint or ""
    return urlsplit(endpoint).netloc.rpartition("@")[2]  # without user and password
