"""`kyon-pl chat`: one reply in a script, and a conversation in a pseudo-terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from imported import OPTIONAL, imported_by
from limits import HANG_S
from web_host import write_small_adapter

from kyon_pl.chat.command import chat
from kyon_pl.chat.conversation import Conversation, Turn
from kyon_pl.chat.loading import load_chat_model
from kyon_pl.chat.model import ChatModel, ChatReply, Sampling
from kyon_pl.chat.role_play import RolePlay
from kyon_pl.cli import main
from kyon_pl.demo import ASSETS, BASE
from kyon_pl.roles.contexts import ContextLimits
from kyon_pl.roles.role import read_role
from kyon_pl.runs.prompt_format import PROMPT_FORMAT

ROWS = 3
NEW_TOKENS = "16"


@pytest.fixture(scope="module")
def adapter(runs: dict[str, Path]) -> Path:
    return runs["on"] / "checkpoints/step=4"


@pytest.fixture(scope="module")
def model(adapter: Path) -> ChatModel:
    return load_chat_model(str(adapter), "last", None, None, None)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    lines = (ASSETS / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[::40]][:ROWS]


@pytest.fixture(scope="module")
def predicted(runs: dict[str, Path], rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The replies of `predict` to the rows."""
    folder = tmp_path_factory.mktemp("predicted")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    words = ["--config", str(runs["on"] / "config.yaml"), "--ckpt_path", str(runs["on"] / "checkpoints/step=4.ckpt")]
    words += ["--data.predict_source", str(folder / "rows.jsonl"), "--replies.path", str(folder / "replies.jsonl")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # run.log is written there
        main(["predict", *words, "--model.max_new_tokens", NEW_TOKENS, "--trainer.logger", "false"])
    replies = [json.loads(line)["reply"] for line in (folder / "replies.jsonl").read_text("utf-8").splitlines()]
    assert len({*replies}) == ROWS
    return replies


def reply_to(context: str, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    main(["chat", "-p", context, "--json", "--max_new_tokens", NEW_TOKENS, *words])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.parametrize("kind", ["adapter", "chatglm", "glm"])
def test_one_shot_says_what_predict_says(
    kind: str,
    adapter: Path,
    rows: list[dict[str, str]],
    predicted: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = adapter
    if kind != "adapter":
        folder = tmp_path / kind
        main(["merge", "--adapter", str(adapter), "--output", str(folder), "--format", kind, "--dtype", "float32"])
    answers = [reply_to(row["context"], capsys, "--adapter", str(folder)) for row in rows]
    assert [answer["reply"] for answer in answers] == predicted
    assert [answer["prompt"] for answer in answers] == [row["context"] for row in rows]


def test_the_base_is_another(
    adapter: Path, rows: list[dict[str, str]], predicted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """By itself and beside the tuned model."""
    compared = reply_to(rows[0]["context"], capsys, "--adapter", str(adapter), "--compare")
    alone = reply_to(rows[0]["context"], capsys, "--adapter", str(BASE))
    assert compared["base"] == alone["reply"] != compared["reply"] == predicted[0]


def test_a_question_from_standard_input(
    adapter: Path, rows: list[dict[str, str]], predicted: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["chat", "--adapter", str(adapter), "--max_new_tokens", NEW_TOKENS, "-p", "-"]
    command = [sys.executable, "-m", "kyon_pl", *words]
    run = subprocess.run(command, input=rows[1]["context"], capture_output=True, text=True, timeout=HANG_S)
    assert run.returncode == 0, run.stderr
    assert run.stdout == predicted[1] + "\n"  # what it says of itself goes to standard error


def test_draws_depend_on_the_seed_alone(adapter: Path, rows: list[dict[str, str]]) -> None:
    model = load_chat_model(str(adapter), "last", None, None, None)
    said = []
    for seed in (1, 1, 2):
        conversation = Conversation(model)
        said.append(conversation.ask(rows[0]["context"], Sampling(24, 3.0, 1.0, 1.0, seed)).text)
    assert said[0] == said[1] != said[2]


def test_older_turns_go_where_the_room_ends(model: ChatModel) -> None:
    """Whole rounds; system prompt and question stay."""
    conversation = Conversation(model, max_tokens=120, system="SYSTEM")
    conversation.turns = [Turn(f"q{n}", f"q{n}", ChatReply(f"a{n} " * 8, True)) for n in range(9)]
    text = model.tokenizer.decode(conversation.prompt_ids("LAST", 20))
    assert len(conversation.prompt_ids("LAST", 20)) <= 100
    assert "SYSTEM" in text
    assert text.endswith("LAST")
    assert "q8" in text
    assert "q0" not in text


@pytest.mark.parametrize("spoken", ["{}", "「{}」"])
@pytest.mark.parametrize("number", [None, 1])
def test_a_role_is_asked_as_its_rows_were_made(
    spoken: str, number: int | None, model: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last row of a dialogue, and the same conversation typed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Bo/texts").mkdir(parents=True)
    (tmp_path / "Bo/system_prompt.txt").write_text("You are Bo, who rows the ferry.", encoding="utf-8")
    scene = "\n".join(f"{name}:{spoken.format(text)}" for name, text in [("Ada", "Fog?"), ("Bo", "Ring twice.")])
    for name, text in {"fog": scene, "rope": "Bo mends ropes on the quay."}.items():
        (tmp_path / f"Bo/texts/{name}.txt").write_text(text, encoding="utf-8")
    turns = [("Ada", "Is it far?"), ("Bo", "Two hundred strokes."), ("Ada", "In this fog?"), ("Bo", "Not yet.")]
    dialogue = {"dialogue": [{"role": role, "text": spoken.format(text)} for role, text in turns]}
    (tmp_path / "quay.jsonl").write_text(json.dumps(dialogue), encoding="utf-8")
    words = ["--characters", "Bo", "--dialogues", "quay.jsonl", "--output", "rows.jsonl", "--tokenizer", "demo"]
    main(["build-data", *words, *(["--memory_number", str(number)] if number else [])])
    row = json.loads((tmp_path / "rows.jsonl").read_text("utf-8").splitlines()[-1])

    role = RolePlay(read_role(tmp_path / "Bo"), "auto", ContextLimits(memory_number=number), model.count_tokens)
    conversation = Conversation(model, role=role, asker="Ada")
    first = role.question("Is it far?", "Ada")
    reply = f"Bo:{spoken.format('Two hundred strokes.')}"
    conversation.turns = [Turn("Is it far?", first, ChatReply(reply, True))]
    assert conversation.prompt(role.question("In this fog?", "Ada")) == row["context"]
    assert len(role.context(first, []).memories) == (number or 2)
    assert role.question("Eve: In this fog?", "Ada") == (
        "Eve:「In this fog?」" if spoken == "「{}」" else "Eve: In this fog?"
    )
    assert role.question("Eve:「In this fog?」", "Ada") == "Eve:「In this fog?」"
    assert role.question("「In this fog?」", "Ada") == "Ada:「In this fog?」"
    assert role.question("In this fog?", "") == "In this fog?"


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_adapter(tmp_path_factory.mktemp("second") / "another", 2)


def test_several_adapters_take_turns(adapter: Path, second: Path, rows: list[dict[str, str]]) -> None:
    """Each says what it says alone, the base too, in whatever order."""
    question, sampling = rows[0]["context"], Sampling(12)
    alone = [Conversation(load_chat_model(str(folder), "last", None, None, None)) for folder in (adapter, second)]
    expected = [conversation.ask(question, sampling).text for conversation in alone]
    both = load_chat_model([str(adapter), str(second)], "last", None, None, None)
    assert [*both.adapters] == [adapter.parents[1].name, "another"]
    base = alone[0].compare(sampling).text
    assert len({*expected, base}) == 3
    for name, said in zip([*both.adapters, *both.adapters], [*expected, *expected], strict=True):
        conversation = Conversation(both, adapter=name)
        assert conversation.ask(question, sampling).text == said
        assert conversation.compare(sampling).text == base


def changed_adapter(adapter: Path, folder: Path, **settings: str) -> Path:
    """A copy that says something else of its base, or of the words that it was trained with."""
    shutil.copytree(adapter, folder)
    for file, key in (("adapter_config.json", "base_model_name_or_path"), (PROMPT_FORMAT, "template")):
        if key in settings:
            content = yaml.safe_load((folder / file).read_text(encoding="utf-8")) | {key: settings[key]}
            (folder / file).write_text(json.dumps(content), encoding="utf-8")  # which is YAML too
    return folder


def test_adapters_that_do_not_go_together(
    adapter: Path, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_base = changed_adapter(adapter, tmp_path / "one", base_model_name_or_path="somebody/another-base")
    other_words = changed_adapter(adapter, tmp_path / "two", template="chatglm2")
    for folder, said in (
        (other_base, "was trained on somebody/another-base"),
        (other_words, "was trained with template 'chatglm2'"),
        (BASE, "is a merged model"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["chat", "-p", "x", "--adapter", f"[{second}, {folder}]"])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_one_reply_imports_no_more_than_it_needs(second: Path) -> None:
    """`import peft` imports bitsandbytes where it is installed, which imports scipy."""
    words = ["chat", "--adapter", str(second), "-p", "x", "--max_new_tokens", "1"]
    assert set(imported_by(words, *OPTIONAL, "datasets")) <= {"bitsandbytes", "scipy"}


def test_what_is_refused(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = tmp_path / "adapter"
    recorded.mkdir()
    for file in adapter.iterdir():
        (recorded / file.name).write_bytes(file.read_bytes())
    role = tmp_path / "role"
    role.mkdir()
    (role / "system_prompt.txt").write_text("很长" * 9000, encoding="utf-8")
    for words, said in (
        (["--template", "chatglm2"], "trained with 'raw'"),
        (["--template", "none"], "there is no 'none'"),
        (["--temperature", "-1"], "temperature: -1.0 is out of range"),
        (["--max_tokens", "10"], "leaves no room for a prompt"),
        (["--character", str(tmp_path / "nobody")], "nobody"),
        (["--base", str(tmp_path / "none")], "none"),
        (["-p", " "], "it is empty"),
        (["-p", "很长" * 9000], "question: too long"),
        (["--system", "很长" * 9000], "system prompt: too long"),
        (["--character", str(role)], "role/system_prompt.txt: too long"),
        (["--trust_remote_code", "true"], "no code from a repository is ever run"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["chat", "--adapter", str(recorded), *(words if "-p" in words else ["-p", "x", *words])])
        assert stopped.value.code == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("kyon-pl chat: ")
        assert said in last, last


class Session:
    """`kyon-pl chat` in a pseudo-terminal."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.ours, its = pty.openpty()
        environment = os.environ | {"XDG_STATE_HOME": str(folder), "TERM": "xterm", "COLUMNS": "100"}
        command = [sys.executable, "-m", "kyon_pl", "chat", *words]
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=its, stdout=its, stderr=its, start_new_session=True
        )
        os.close(its)
        self.reads: list[str] = []

    def until(self, pattern: str, again: Callable[[], object] = lambda: None) -> str:
        """What is printed until something matches; the program must not end before.

        Args:
            pattern: a regular expression.
            again: called after each two seconds without a match.
        """
        said, until_s = b"", time.monotonic() + HANG_S
        while not re.search(pattern, said.decode(errors="ignore")):
            assert time.monotonic() < until_s, said.decode(errors="ignore")[-2000:]
            if select.select([self.ours], [], [], 2)[0]:
                part = os.read(self.ours, 65536)
                self.reads.append(part.decode(errors="ignore"))
                said += part
            else:
                again()
        return said.decode(errors="ignore")

    def type(self, text: str) -> None:
        data = f"{text}\n".encode()
        while data:
            data = data[os.write(self.ours, data[:512]) :]
            if len(data) > 512:  # as a terminal hands on a paste: while it is echoed
                while select.select([self.ours], [], [], 0)[0]:
                    os.read(self.ours, 65536)

    def ask(self, text: str) -> str:
        """The answer, up to the next prompt."""
        self.type(text)
        return self.until(r"\n(\x1b\[\?2004h)?> $")


@pytest.fixture
def session(adapter: Path, second: Path, tmp_path: Path) -> Iterator[Session]:
    session = Session(tmp_path, "--adapter", f"[{adapter}, {second}]", "--max_new_tokens", "24")
    session.until(r"lists the commands\s+(\x1b\[\?2004h)?> $")
    yield session
    if session.process.poll() is None:
        os.killpg(session.process.pid, signal.SIGKILL)
    session.process.wait()
    os.close(session.ours)


def test_a_conversation_in_a_terminal(session: Session, tmp_path: Path, rows: list[dict[str, str]]) -> None:
    first = session.ask("南枝:「竹笛是什么颜色？」")
    before = len(session.reads)
    again = session.ask("/retry")
    assert "temperature 0.8 for this reply" in again
    assert again.splitlines()[-2:-1] != first.splitlines()[-2:-1] != session.ask("/retry").splitlines()[-2:-1]
    assert len(session.reads) - before > 5, "it comes token by token"
    assert "temperature 0.0" in session.ask("/params")
    assert "temperature 0.8" in session.ask("/params temperature 0.8")
    assert "is out of range" in session.ask("/params top_p 7")
    assert "no number" in session.ask("/params top_p much")
    assert "there is no 'heat'" in session.ask("/params heat 1")
    assert "temperature 0.0" in session.ask("/params temperature 0")
    assert "max_new_tokens 2040" in session.ask("/params max_new_tokens 2040")
    assert "too long" in session.ask("/retry")  # and the turn is still there
    assert "max_new_tokens 24" in session.ask("/params max_new_tokens 24")
    assert "base: " not in first
    assert "yes" in session.ask("/compare")
    assert "base: " in session.ask("南枝:「钟楼在哪里？」")
    assert "removed: 南枝:「钟楼在哪里？」" in session.ask("/undo")
    assert "added to talk.jsonl" in session.ask("/save talk.jsonl")
    (row,) = map(json.loads, (tmp_path / "talk.jsonl").read_text("utf-8").splitlines())
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert row["messages"][0]["content"] == "南枝:「竹笛是什么颜色？」"
    assert "system prompt: 你是绵卷" in session.ask("/system 你是绵卷")
    assert "nothing has been said" in session.ask("/undo")
    assert "nothing has been said" in session.ask("/retry")
    assert "no such command" in session.ask("/fly")
    assert "Did you mean /retry?" in session.ask("/retyr")
    assert "/reset or /retry" in session.ask("/re")
    assert "/memories: nothing has been said" in session.ask("/mem")
    assert "adapter: version_0" in session.ask("/ad\t\t").replace("step=4", "version_0")  # Tab writes the rest
    assert "adapter: another" in session.ask("/adapter an\t")
    assert "adapter: version_0" in session.ask("/adapter v\t")
    assert "role: 绵卷" in session.ask("/cha\tdemo/绵\t")
    assert re.search(r"\r\n绵卷[:：]", session.ask("你好"))
    assert "role: none" in session.ask("/character no\t")
    assert "there is no such file" in session.ask("/character nowhere")
    assert re.search(r"adapter: step=4; others: another|adapter: version_0; others: another", session.ask("/adapter"))
    assert "there is no 'third'" in session.ask("/adapter third")
    assert "adapter: another; others: version_0" in session.ask("/adapter another")
    assert "role: none" in session.ask("/character none")
    assert "/retry" in session.ask("/help")
    assert "too long" in session.ask("长" * 10_000)
    assert "a new conversation" in session.ask("/reset")
    session.type("/quit")
    assert session.process.wait(timeout=HANG_S) == 0
    kept = (tmp_path / "kyon_pl/chat_history").read_text(encoding="utf-8")
    assert "南枝:「竹笛是什么颜色？」" in kept


def test_ctrl_c_stops_the_reply_and_not_the_program(session: Session) -> None:
    session.ask("/params max_new_tokens 1500")
    session.ask("/params repetition_penalty 0.5")  # what was said is said again: it does not end by itself
    session.type("Pell:「tell me all」")
    session.until(r"tell me all」\s+\S{9}")
    os.killpg(session.process.pid, signal.SIGINT)
    session.until(r"\[…\]\s+(\x1b\[\?2004h)?> $")
    assert "removed: Pell" in session.ask("/undo")
    # one that comes between the prompt and the wait for keys is seen with the next signal
    os.killpg(session.process.pid, signal.SIGINT)
    at_the_prompt = r"ends the program\)\s+(\x1b\[\?2004h)?> $"  # before, the terminal would drop Ctrl-D
    session.until(at_the_prompt, again=lambda: os.killpg(session.process.pid, signal.SIGINT))
    os.write(session.ours, b"\x04")
    assert session.process.wait(timeout=HANG_S) == 0


def test_it_is_a_function_too(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat(adapter=str(adapter), prompt="\x1b[2J[gMASK]sop</s>", max_new_tokens=4)
    assert "\x1b" not in capsys.readouterr().out
