"""A repository on the Hub to push to, and the errors of pushing as one paragraph each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from kyon_pl.errors import KyonError, MissingFileError, SettingError
from kyon_pl.hub.download import check_hub_settings
from kyon_pl.hub.errors import HUB_ERRORS, Kind, hub_cause, reason_of, repository_at

_LOGIN = "Set HF_TOKEN, or run `hf auth login`, with a token that may write (huggingface.co/settings/tokens)"
_UNCHANGED = "the repository is as it was"


@contextmanager
def told(repo_id: str, kind: Kind = "model", option: str = "--repo_id") -> Iterator[None]:
    """Turn what goes wrong between here and the Hub into an error of ours.

    Args:
        repo_id: the repository, as it was named.
        kind: of repository.
        option: that names it.

    Raises:
        KyonError: as `explain_push` gives it.
    """
    try:
        check_hub_settings()
        yield
    except KyonError:
        raise
    except (*HUB_ERRORS, ValueError) as error:  # ValueError: metadata that the Hub refuses, or LFS errors
        raise explain_push(error, repo_id, kind, option) from error


def explain_push(error: Exception, repo_id: str, kind: Kind = "model", option: str = "--repo_id") -> KyonError:
    """The error of ours for what huggingface_hub raised while it wrote to a repository."""
    if isinstance(error, LocalTokenNotFoundError):
        return SettingError(f"push to {repo_id}", "there is no token on this machine", _LOGIN)
    if isinstance(error, HFValidationError):
        return SettingError(option, f"{repo_id!r} is no name of a repository", "Write NAME, or USER/NAME")
    where, answer = f"push to {repository_at(repo_id, kind, None)}", hub_cause(error)
    if isinstance(answer, HfHubHTTPError):
        return _explain_answer(answer, where, option)
    if isinstance(answer, OfflineModeIsEnabled):
        return SettingError(where, "HF_HUB_OFFLINE forbids it", "Set HF_HUB_OFFLINE=0")
    fix = f"Check the network and push again: {_UNCHANGED}"
    return MissingFileError(where, f"the Hub cannot be written to ({reason_of(answer or error)})", fix)


def _explain_answer(answer: HfHubHTTPError, where: str, option: str) -> KyonError:
    status = answer.response.status_code
    if status == 401:
        sent = "authorization" in answer.response.request.headers
        found = "the Hub refuses the token of this machine" if sent else "there is no token on this machine"
        return SettingError(where, f"{found} (401)", _LOGIN)
    if status == 403:
        return SettingError(where, "this token may not write there (403)", f"Check the name. {_LOGIN}")
    if status == 404:
        return SettingError(where, "there is no such repository or branch (404)", f"Check {option} and --revision")
    if status in (409, 412):
        found = f"somebody has changed the repository in the meantime ({status}), and nothing was written over it"
        return SettingError(where, found, "Look at what is there now, and push again")
    fix = f"Push again later: {_UNCHANGED}, and files that have arrived are not sent twice"
    return MissingFileError(where, f"the Hub does not take it now ({reason_of(answer)})", fix)


log = logging.getLogger(__name__)


def prepare_repository(api: HfApi, repo_id: str, kind: Kind, private: bool, revision: str | None = None) -> str | None:
    """Make the repository if need be, and say whether others can see it.

    Returns:
        its newest commit, behind which ours is to come.
    """
    api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
    info = api.repo_info(repo_id, repo_type=kind, revision=revision)
    if private and not info.private:
        log.warning("%s is there already and is public", page(repo_id, kind))
    return info.sha


def page(repo_id: str, kind: Kind) -> str:
    """The repository's address, without what an endpoint may hold besides: a password."""
    url = urlsplit(constants.ENDPOINT)
    prefix = "datasets/" if kind == "dataset" else ""
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}/{prefix}{repo_id}"
