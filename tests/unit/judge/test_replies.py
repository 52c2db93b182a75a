"""The replies of both sides: kept one by one, not generated again, and never those of another comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kyon_pl.chat.model import ChatModel, ChatReply, Sampling
from kyon_pl.errors import SettingError
from kyon_pl.judge.questions import Question, QuestionRows
from kyon_pl.judge.replies import collect_replies, open_folder
from kyon_pl.judge.sides import Side, with_names
from kyon_pl.runs.prompt_format import PromptFormat

QUESTIONS = [Question(f"Q{number}?", "") for number in range(4)]


class CannedRows(QuestionRows):
    def __init__(self) -> None:
        super().__init__({"source": "demo"}, "demo", None, 4)

    def read(self, template: str | None = None, train_turns: str | None = None) -> list[tuple[Question, list[int]]]:
        return [(question, [number]) for number, question in enumerate(QUESTIONS)]


@dataclass
class CannedModel(ChatModel):
    asked: list[tuple[int, str | None]] = field(default_factory=list)
    interrupted_at: int | None = None

    def reply(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_text: Callable[[str], object] = lambda text: None,
        adapter: str | None = "",
    ) -> ChatReply:
        self.asked.append((prompt[0], adapter))
        if prompt[0] == self.interrupted_at:
            return ChatReply("half a", stopped=False, interrupted=True)
        return ChatReply(f"reply {prompt[0]}", stopped=prompt[0] > 0)


@dataclass(frozen=True)
class CannedSide(Side):
    model: CannedModel = field(default_factory=lambda: CannedModel(None, "base", "raw", "last", ("one",)))

    def load(self, max_tokens: int) -> ChatModel:
        return self.model

    def prompt_format(self) -> PromptFormat | None:
        return None


def test_an_interrupted_reply_is_not_kept_and_the_others_are_not_generated_again(tmp_path: Path) -> None:
    side = CannedSide("base", tmp_path, is_base=True)
    side.model.interrupted_at = 2
    for wanted in ([0, 1, 2], [2]):
        side.model.asked.clear()
        with pytest.raises(KeyboardInterrupt):
            collect_replies(tmp_path, [side], CannedRows(), QUESTIONS, 8)
        assert side.model.asked == [(number, None) for number in wanted]  # the base: without an adapter
    side.model.interrupted_at = None
    replies = collect_replies(tmp_path, [side], CannedRows(), QUESTIONS, 8)
    assert replies == {"base": ["reply 0 […]", "reply 1", "reply 2", "reply 3"]}
    side.model.asked.clear()
    assert collect_replies(tmp_path, [side], CannedRows(), QUESTIONS, 8) == replies
    assert side.model.asked == []


def test_a_folder_of_another_comparison_is_refused(tmp_path: Path) -> None:
    weights = tmp_path / "one"
    weights.mkdir()
    (weights / "adapter_model.safetensors").write_bytes(b"abc")
    sides, folder = [Side("one", weights), Side("base", weights, is_base=True)], tmp_path / "judge"
    for _ in range(2):
        open_folder(folder, sides, QUESTIONS, 8)
    for questions, tokens, what in ((QUESTIONS[1:], 8, "questions"), (QUESTIONS, 9, "max_new_tokens")):
        with pytest.raises(SettingError, match=f"with other {what}"):
            open_folder(folder, sides, questions, tokens)
    (weights / "adapter_model.safetensors").write_bytes(b"abd")
    with pytest.raises(SettingError, match="with other sides"):
        open_folder(folder, sides, QUESTIONS, 8)
    assert json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["max_new_tokens"] == 8


def test_names_are_unique_and_tell_runs_apart() -> None:
    folders = ["a/version_0/checkpoints/step=1", "a/version_0/checkpoints/step=2", "a/version_1/checkpoints/step=1"]
    one, two, other = (Side("", Path(folder)) for folder in folders)
    base = Side("base", Path(folders[0]), is_base=True)
    assert [side.name for side in with_names([base, one])] == ["base", "step=1"]
    assert [side.name for side in with_names([one, two])] == ["step=1", "step=2"]
    assert [side.name for side in with_names([one, one])] == ["step=1", "step=1 (2)"]
    assert [side.name for side in with_names([one, other])] == ["version_0/step=1", "version_1/step=1"]
