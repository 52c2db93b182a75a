"""`kyon-pl build-data --push`: uploads rows to the Hub as a data set with a card, as one commit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, DatasetCard, DatasetCardData, HfApi
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from kyon_pl import __version__
from kyon_pl.hub.download import checked_requests
from kyon_pl.logs import from_here
from kyon_pl.publish.repository import prepare_repository, push_errors, repository_url

log = logging.getLogger(__name__)

OPTION = "--push"
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}


def check_push(repo_id: str) -> str:
    """Check the token and the name of a data set before rows are built.

    Args:
        repo_id: USER/NAME; a NAME alone goes to the account of the token.

    Returns:
        USER/NAME.

    Raises:
        SettingError: no token, a token that the Hub rejects, or an invalid name of a repository.
        MissingFileError: the Hub cannot be reached.
    """
    with push_errors(repo_id, "dataset", OPTION), checked_requests():
        validate_repo_id(repo_id)
        user = HfApi().whoami()["name"]
    return repo_id if "/" in repo_id else f"{user}/{repo_id}"


def push_data(repo_id: str, rows: Path, facts: Mapping[str, str], private: bool) -> None:
    """Upload a file of rows and a card to a data set on the Hub.

    Args:
        repo_id: USER/NAME; the data set is created if needed.
        rows: Parquet or JSONL.
        facts: rows of the card's table, name to value; `rows` is the number of rows.
        private: whether a new data set is private; an existing one is not changed.

    Raises:
        SettingError: no token, no write access, or a conflict.
        MissingFileError: the Hub cannot be reached.
    """
    api = HfApi()
    card = str(data_card(repo_id, rows.name, facts))
    files = [CommitOperationAdd(rows.name, rows), CommitOperationAdd("README.md", card.encode())]
    with push_errors(repo_id, "dataset", OPTION):
        with checked_requests():
            parent = prepare_repository(api, repo_id, "dataset", private)
        message = f"{rows.name}, with kyon-pl build-data"
        commit = api.create_commit(repo_id, files, repo_type="dataset", commit_message=message, parent_commit=parent)
    url = repository_url(repo_id, "dataset")
    if commit.oid == parent:
        log.info("nothing new: %s already has all rows of %s", url, from_here(rows))
    else:
        log.info("pushed %s (%.1f MB) and a card: %s", from_here(rows), rows.stat().st_size / 1e6, url)


def data_card(repo_id: str, file: str, facts: Mapping[str, str]) -> DatasetCard:
    """The card of a data set: what the rows are, how they were built, how to use them. It contains no local paths.

    Args:
        repo_id: USER/NAME.
        file: the name of the file in the repository; it becomes the split train, whatever its name.
        facts: rows of the table, name to value; `rows` is the number of rows.
    """
    count = int(facts["rows"].replace(",", ""))
    header = DatasetCardData(
        task_categories=["text-generation"],
        size_categories=[next((size for limit, size in _SIZES.items() if count < limit), "n>10M")],
        tags=["role-play", "dialogue", "chatglm2", "kyon_pl"],
        pretty_name=repo_id.partition("/")[2],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": file}]}],
    )
    table = "\n".join(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in facts.items())
    text = f"""# {repo_id.partition("/")[2]}

Rows of role-play dialogue for fine-tuning ChatGLM2-6B, built with `kyon-pl build-data` {__version__}.

| | |
|---|---|
{table}

`context` is the prompt: system prompt, memories, dialogue so far and question, joined by `###`; `target` is the reply.
`character`, `question`, `dialogue` (role, file and number, null if unknown) and `source` are the origin of a row.

```bash
kyon-pl fit --config configs/lora.yaml --data.source {repo_id}
```

Characters and lines may belong to others: check their terms before you make these rows public.
"""
    return DatasetCard(f"---\n{header.to_yaml()}\n---\n\n{text}")
