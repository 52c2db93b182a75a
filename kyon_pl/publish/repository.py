"""Repositories on the Hub to push to, and readable errors for pushes that fail."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from kyon_pl.errors import KyonError, MissingFileError, SettingError
from kyon_pl.hub.download import check_hub_settings
from kyon_pl.hub.errors import (
    ANSWER_ERRORS,
    HUB_ERRORS,
    Kind,
    hub_cause,
    not_a_hub,
    raised_by_client,
    reason_of,
    repository_at,
)

log = logging.getLogger(__name__)

_LOGIN = "Set HF_TOKEN, or run `hf auth login`, with a token that can write (huggingface.co/settings/tokens)"
_UNCHANGED = "the repository is unchanged"


def prepare_repository(api: HfApi, repo_id: str, kind: Kind, private: bool, revision: str | None = None) -> str | None:
    """Create a repository if needed, and warn if it is public although `private` is set.

    Returns:
        The newest commit, to be passed as the parent of the next one.
    """
    api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
    info = api.repo_info(repo_id, repo_type=kind, revision=revision)
    if private and not info.private:
        log.warning("%s already exists and is public", repository_url(repo_id, kind))
    return info.sha


def repository_url(repo_id: str, kind: Kind) -> str:
    """The address of a repository, without the password that an endpoint may contain."""
    url = urlsplit(constants.ENDPOINT)
    prefix = "datasets/" if kind == "dataset" else ""
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}/{prefix}{repo_id}"


@contextmanager
def push_errors(repo_id: str, kind: Kind = "model", option: str = "--repo_id") -> Iterator[None]:
    """Translate errors of the Hub and of the network into a `KyonError`.

    Args:
        repo_id: the repository, as the user named it.
        kind: the kind of repository.
        option: the option that names it.

    Raises:
        KyonError: the error of `explain_push`.
    """
    try:
        check_hub_settings()
        yield
    except KyonError:
        raise
    except (*HUB_ERRORS, ValueError) as error:  # ValueError: metadata that the Hub rejects, or LFS errors
        raise explain_push(error, repo_id, kind, option) from error
    except ANSWER_ERRORS as error:
        if not raised_by_client(error):
            raise
        raise not_a_hub(f"push to {repository_at(repo_id, kind, None)}") from error


def explain_push(error: Exception, repo_id: str, kind: Kind = "model", option: str = "--repo_id") -> KyonError:
    """The `KyonError` for an error of huggingface_hub during a push."""
    if isinstance(error, LocalTokenNotFoundError):
        return SettingError(f"push to {repo_id}", "there is no token on this machine", _LOGIN)
    if isinstance(error, HFValidationError):
        return SettingError(option, f"{repo_id!r} is not the name of a repository", "Write NAME, or USER/NAME")
    where, answer = f"push to {repository_at(repo_id, kind, None)}", hub_cause(error)
    if isinstance(answer, HfHubHTTPError):
        return _explain_answer(answer, where, option)
    if isinstance(answer, OfflineModeIsEnabled):
        return SettingError(where, "HF_HUB_OFFLINE forbids requests", "Set HF_HUB_OFFLINE=0")
    fix = f"Check the network and push again: {_UNCHANGED}"
    return MissingFileError(where, f"the Hub cannot be reached ({reason_of(answer or error)})", fix)


def _explain_answer(answer: HfHubHTTPError, where: str, option: str) -> KyonError:
    status = answer.response.status_code
    if status == 401:
        sent = "authorization" in answer.response.request.headers
        found = "the Hub rejects the token of this machine" if sent else "there is no token on this machine"
        return SettingError(where, f"{found} (401)", _LOGIN)
    if status == 403:
        return SettingError(where, "this token has no write access (403)", f"Check the name. {_LOGIN}")
    if status == 404:
        return SettingError(where, "there is no such repository or branch (404)", f"Check {option} and --revision")
    if status in (409, 412):
        found = f"the repository changed during the push ({status}), and nothing was overwritten"
        return SettingError(where, found, "Check the new commit, and push again")
    fix = f"Push again later: {_UNCHANGED}, and uploaded files are not uploaded again"
    return MissingFileError(where, f"the Hub cannot accept the push now ({reason_of(answer)})", fix)
