"""What hands and files can do to the chat in the terminal; the conversation goes on."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kyon_pl.chat import loading
from kyon_pl.chat.command import read_question
from kyon_pl.chat.conversation import MAX_QUESTION_CHARACTERS, Conversation, Turn
from kyon_pl.chat.model import ROLE_TEMPERATURE, ChatModel, ChatReply, Sampling, sampling_for, sampling_for_retry
from kyon_pl.chat.terminal import history
from kyon_pl.chat.terminal.commands import COMMANDS, completions, find_command, paths
from kyon_pl.chat.terminal.lines import NamedReply
from kyon_pl.chat.terminal.terminal import Terminal
from kyon_pl.chatglm2 import ChatGLMTokenizer
from kyon_pl.demo import BASE
from kyon_pl.errors import DataError, KyonError, MachineError, SettingError
from kyon_pl.roles.role import role_to_play


class EchoModel(ChatModel):
    """Repeats how long the prompt is; `failure` is raised once instead."""

    failure: BaseException | None = None

    def reply(self, prompt: list[int], *others: Any, **more: Any) -> ChatReply:
        if self.failure:
            failure, self.failure = self.failure, None
            raise failure
        return ChatReply(f"{len(prompt)} tokens", stopped=True)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Terminal:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    tokenizer = ChatGLMTokenizer.from_pretrained(BASE)
    model = EchoModel(tokenizer, "base", "raw", "last")
    conversation = Conversation(model, turns=[Turn("before", "before", ChatReply("yes", True))])
    return Terminal(conversation, Sampling(), lambda name: role_to_play(name))  # type: ignore[arg-type, return-value]


def run(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, typed: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
    terminal.run()


def questions(terminal: Terminal) -> list[str]:
    return [turn.typed for turn in terminal.conversation.turns]


@pytest.mark.parametrize(
    "command",
    [
        "/params seed 99999999999999999999",
        "/params seed -9999999999999999999",
        "/params seed " + "9" * 5000,
        "/params seed 1e3",
        "/params temperature 1e-30",
        "/params temperature 1e30",
        "/params temperature nan",
        "/params top_p 0",
        "/params top_p inf",
        "/params repetition_penalty 1e-30",
        "/params repetition_penalty -1",
        "/params max_new_tokens 0",
        "/save ~nobody-of-that-name/x.jsonl",
        "/save /proc/x/y",
        "/save /" + "x" * 5000,
        "/character ~nobody-of-that-name",
        "/character /" + "x" * 5000,
        "/character /proc/self/mem",
        "/character a\x00b",
        "/\x1b[2J",
    ],
    ids=lambda command: repr(command[:40]),
)
def test_a_refused_command_keeps_the_conversation(
    command: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = terminal.sampling
    run(terminal, monkeypatch, f"{command}\nand then\n".encode())
    said = capsys.readouterr().out
    assert questions(terminal) == ["before", "and then"]
    assert terminal.sampling == sampling
    assert re.match(r"> .{10}", said), said
    assert "\x1b" not in said


def test_a_retry_has_another_seed_and_can_sample() -> None:
    """On the page without a role, greedy decoding stays greedy: adapters are compared with it."""
    sampling = Sampling(seed=5)
    assert sampling_for_retry(sampling, 2, samples=True) == Sampling(temperature=0.8, seed=7)
    assert sampling_for_retry(sampling, 2, samples=False) == Sampling(seed=7)
    assert sampling_for_retry(Sampling(temperature=0.1), 1, samples=True) == Sampling(temperature=0.1, seed=1)


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_every_accepted_seed_can_be_used(seed: int) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(Sampling(seed=seed).seed)
    with pytest.raises(SettingError, match=r"seed: .* out of range"):
        Sampling(seed=seed + (1 if seed > 0 else -1))


@pytest.mark.parametrize("factor", [0.001, 1000.0])
def test_every_accepted_factor_leaves_something_to_draw(factor: float) -> None:
    from kyon_pl.chatglm2.generation import logits_processors

    sampling = Sampling(temperature=factor, top_p=1e-300, repetition_penalty=1 / factor)
    process = logits_processors(sampling.temperature, sampling.top_p, sampling.repetition_penalty)
    for scale in (1.0, 1e4):
        scores = process(torch.tensor([[0, 1]]), torch.linspace(-scale, scale, 50)[None])
        assert scores.softmax(-1).multinomial(1).shape == (1, 1)


def test_a_gpu_without_enough_memory_is_one_paragraph(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(loading, "stream_reply", fail)
    model = loading.LocalModel(ChatGLMTokenizer.from_pretrained(BASE), "base", "raw", "last", model=torch.nn.Module())
    with pytest.raises(MachineError, match=r"memory of the GPU.*Lower --max_tokens"):
        model.reply([1], Sampling())


@pytest.mark.parametrize("failure", [MemoryError(), KeyboardInterrupt(), OSError(28, "full")])
@pytest.mark.parametrize("command", ["a question", "/retry"])
def test_a_failure_keeps_the_conversation(
    failure: BaseException, command: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.conversation.model.failure = failure  # type: ignore[attr-defined]
    run(terminal, monkeypatch, f"{command}\nand then\n".encode())
    assert questions(terminal) == ["before", "and then"]


def test_bytes_that_are_no_text_are_replaced(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    run(terminal, monkeypatch, b"\xff\x00\x80 caf\xc3\xa9\nand then\n" + bytes(range(256)))
    assert questions(terminal)[1:3] == ["\ufffd\ufffd\ufffd café", "and then"]


def test_a_line_is_not_read_to_its_end(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    class LongText(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            size = len(buffer) if sum(read) < 8 * MAX_QUESTION_CHARACTERS else 0
            read.append(size)
            buffer[:size] = b"x" * size
            return size

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(LongText()), encoding="utf-8"))
    with pytest.raises(DataError, match="more than 1,000,000 characters"):
        read_question("-")
    assert sum(read) < 1.1 * MAX_QUESTION_CHARACTERS
    run(terminal, monkeypatch, b"x" * (MAX_QUESTION_CHARACTERS * 3) + b"\nand then\n")
    assert questions(terminal) == ["before", "and then"]


@pytest.mark.parametrize("typed", [b"\xff\xfe", b"\x89PNG\r\n\x1a\n", b"", b" \n", None])
def test_what_standard_input_cannot_ask(typed: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = None if typed is None else io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stream)
    with pytest.raises(KyonError):
        read_question("-")


@pytest.mark.parametrize("prompt", ["\udcff", "x" * (MAX_QUESTION_CHARACTERS + 1), " "])
def test_what_an_option_cannot_ask(prompt: str) -> None:
    with pytest.raises(KyonError):
        read_question(prompt)
    assert read_question("x" * MAX_QUESTION_CHARACTERS) == "x" * MAX_QUESTION_CHARACTERS


def unusable(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    home = {"proc": "/proc/x", "device": "/dev/null"}.get(kind, str(tmp_path))
    monkeypatch.setenv("HOME", home)
    if kind == "no home":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    file = Path(home, ".local/state/kyon_pl/chat_history")
    if kind == "folder":
        file.mkdir(parents=True)
    if kind == "full disk":  # libc's errors as Python raises them
        monkeypatch.setattr(
            "readline.write_history_file", lambda file: os.write(os.open("/dev/full", os.O_WRONLY), b"x")
        )
    if kind == "broken disk":
        file.parent.mkdir(parents=True)
        file.write_text("before\n")
        monkeypatch.setattr("readline.read_history_file", lambda file: os.open("/proc/x/y", os.O_RDONLY))


@pytest.mark.parametrize("kind", ["proc", "device", "no home", "folder", "full disk", "broken disk"])
def test_a_history_that_cannot_be_kept_is_one_line(
    kind: str,
    terminal: Terminal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    unusable(kind, tmp_path, monkeypatch)
    run(terminal, monkeypatch, b"and then\n")
    assert questions(terminal) == ["before", "and then"]
    (record,) = caplog.records
    assert record.getMessage().startswith("typed lines are not kept for the next chat: ")
    if kind == "broken disk":
        assert (tmp_path / ".local/state/kyon_pl/chat_history").read_text() == "before\n"


def test_a_history_is_kept(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(terminal, monkeypatch, b"and then\n")
    assert history.history_file().is_file()
    assert not caplog.records


@pytest.mark.parametrize(
    ("temperature", "top_p", "plays_role", "expected"),
    [
        (None, None, False, (0.0, 1.0)),
        (None, None, True, (0.8, 0.8)),
        (0.0, None, True, (0.0, 0.8)),
        (0.5, 0.9, True, (0.5, 0.9)),
        (0.5, None, False, (0.5, 1.0)),
    ],
)
def test_roles_are_sampled_as_the_published_model(
    temperature: float | None, top_p: float | None, plays_role: bool, expected: tuple[float, float]
) -> None:
    sampling = sampling_for(Sampling(seed=3), temperature, top_p, plays_role)
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (*expected, 3)


def test_every_command_has_its_method(terminal: Terminal) -> None:
    assert [callable(getattr(terminal, name[1:])) for name in COMMANDS] == [True] * len(COMMANDS)


@pytest.mark.parametrize(("typed", "meant"), [("/mem", "/memories"), ("/q", "/quit"), ("/re", ""), ("/undo", "/undo")])
def test_a_beginning_is_enough_if_only_one_command_has_it(typed: str, meant: str) -> None:
    if meant:
        assert find_command(typed) == meant
    else:
        with pytest.raises(SettingError, match="/reset or /retry"):
            find_command(typed)


@pytest.mark.parametrize(("typed", "suggested"), [("/retyr", "/retry"), ("/charcter", "/character"), ("/xyzzy", None)])
def test_a_typo_gets_a_suggestion(typed: str, suggested: str | None) -> None:
    with pytest.raises(SettingError, match="there is no such command") as error:
        find_command(typed)
    assert (f"Did you mean {suggested}?" in str(error.value)) == (suggested is not None)


def test_what_tab_offers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "roles/Bo").mkdir(parents=True)
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / ".hidden").touch()
    choices = {"/adapter": lambda begun: ["one", "my other"], "/save": paths}
    assert completions("/ad", choices) == ["/adapter "]
    assert completions("/re", choices) == ["/reset ", "/retry "]
    assert completions("/adapter ", choices) == ["/adapter my other", "/adapter one"]
    assert completions("/ad my o", choices) == ["/ad my other"]
    assert completions("/save ro", choices) == ["/save roles/", "/save rows.jsonl"]
    assert completions("/save roles/", choices) == ["/save roles/Bo/"]
    assert completions("/save ", choices) == ["/save roles/", "/save rows.jsonl"]
    assert completions("/save nowhere/x", choices) == completions("rows", choices) == completions("", choices) == []


@pytest.mark.parametrize(
    ("pieces", "printed"),
    [
        (["Tw", "o hundred strokes."], "Bo: Two hundred strokes."),
        (["B", "o", ":", " Not yet."], "Bo: Not yet."),
        (["\n", "Ferryman：", "Ring."], "\nFerryman：Ring."),
        (["Bob: no"], "Bo: Bob: no"),
        (["B"], "Bo: B"),
        ([], "Bo: "),
    ],
)
def test_a_reply_has_the_name_of_its_speaker_once(
    pieces: list[str], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    speaker = NamedReply(("Bo", "Ferryman"))
    for piece in pieces:
        speaker.print_piece(piece)
    speaker.end()
    assert capsys.readouterr().out == printed


def test_each_retry_is_sampled_with_another_seed(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    used: list[Sampling] = []
    monkeypatch.setattr(
        EchoModel, "reply", lambda self, prompt, sampling, *others: used.append(sampling) or ChatReply("x", True)
    )
    run(terminal, monkeypatch, b"/retry\n/ret\nnew\n/params temperature 0.3\n/retry\n")
    assert [(sampling.seed, sampling.temperature) for sampling in used] == [
        (1, ROLE_TEMPERATURE),
        (2, ROLE_TEMPERATURE),
        (0, 0.0),
        (1, 0.3),
    ]
    assert capsys.readouterr().out.count(f"temperature {ROLE_TEMPERATURE} for this reply") == 2
    assert questions(terminal) == ["before", "new"]
