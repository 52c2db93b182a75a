"""A repository on the Hub that is about to be written to."""

from __future__ import annotations

import logging
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants

from kyon_pl.hub_errors import Kind

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
