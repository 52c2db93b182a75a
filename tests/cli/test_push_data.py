"""`kyon-pl build-data --push` with the real client against a local Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import DatasetCard
from push_asker import TOKEN, PushAsker

from kyon_pl.data import read_jsonl_file

READ_AGAIN = """
import json
from datasets import load_dataset
print(json.dumps(load_dataset("kyon/bo", split="train").to_list()))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer(token=TOKEN) as hub:
        yield hub


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command for a role of two rows; the name of its output suggests another split."""
    role = tmp_path / "me/Bo"
    (role / "dialogues").mkdir(parents=True)
    (role / "system_prompt.txt").write_text("You are Bo, the ferryman.")
    turns = [{"role": ("Ada", "Bo")[i % 2], "text": f"line {i}"} for i in range(4)]
    (role / "dialogues/quay.jsonl").write_text(json.dumps({"dialogue": turns}) + "\n{}\n")
    return ["build-data", "--characters", str(role), "--output", str(tmp_path / "me/test.jsonl")]


def test_pushed_rows_and_card_can_be_loaded(
    hub: HubServer, kyon_pl: PushAsker, words: list[str], tmp_path: Path
) -> None:
    answer = kyon_pl(*words, "--push", "bo")
    assert answer.status == 0, answer.err
    assert f"and a card: {hub.endpoint}/datasets/kyon/bo" in answer.err.splitlines()[-1]
    assert "kyon/bo" in hub.private
    sent = {name: file.content.read_bytes() for name, file in hub.repositories["datasets", "kyon/bo"].files.items()}
    output = tmp_path / "me/test.jsonl"
    assert sent["test.jsonl"] == output.read_bytes()
    card = DatasetCard(sent["README.md"].decode())
    assert card.data.size_categories == ["n<1K"]
    for line in ("| mode | fixed |", "| rows | 2 |", "| characters | 2 × Bo |", "| dropped | 1 × no object with "):
        assert line in card.text
    assert not [name for name, data in sent.items() if str(tmp_path).encode() in data]

    assert json.loads(kyon_pl("python", READ_AGAIN).out.splitlines()[-1]) == read_jsonl_file(output)
    commits = len(hub.commits)
    assert "nothing new" in kyon_pl(*words, "--push", "kyon/bo").err
    assert len(hub.commits) == commits


@pytest.mark.parametrize(
    ("repo_id", "token", "said"),
    [
        ("a b", TOKEN, "--push: 'a b' is not the name of a repository"),
        ("bo", None, "there is no token on this machine"),
        ("bo", "hf_wrong", "the Hub rejects the token of this machine (401)"),
    ],
)
def test_refused_push_builds_no_rows(
    hub: HubServer, kyon_pl: PushAsker, words: list[str], repo_id: str, token: str | None, said: str
) -> None:
    answer = kyon_pl(*words, "--push", repo_id, token=token)
    assert (answer.status, said in answer.err, answer.err.count("\n")) == (2, True, 1), answer.err
    assert not Path(words[-1]).exists()


def test_rows_are_kept_if_the_push_fails(hub: HubServer, kyon_pl: PushAsker, words: list[str]) -> None:
    answer = kyon_pl(*words, "--push", "other/bo")
    assert answer.status == 2
    assert "push to dataset other/bo at 127.0.0.1" in answer.err
    assert "this token has no write access (403)" in answer.err
    assert len(read_jsonl_file(words[-1])) == 2
    assert ("datasets", "other/bo") not in hub.repositories
