"""From dialogues to a chat: what `chat`, `web` and `predict` ask is, byte for byte, what `build-data` writes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kyon_pl.chat.web import app
from kyon_pl.chat.web.sessions import Sessions, SessionSettings
from kyon_pl.cli import main
from kyon_pl.runs.prompt_format import PROMPT_FORMAT, read_prompt_format

# role -> words in its memories, words in its dialogues, options of build-data
ROLES = {
    "memories": ("「{}」", "{}", ["--tokenizer", "demo", "--memory_number", "2", "--memory_length", "60"]),
    "dialogues": ("{}", "「{}」", ["--tokenizer", "demo", "--history_length", "24"]),
    "none": ("{}", "{}", ["--memory_number", "3", "--memory_length", "70"]),
    "original": ("{}", "「{}」", ["--mode", "original", "--memory_number", "2"]),
}
SCENES = ("雾里渡船慢", "钟楼今天响三下", "豆饼一枚贝币", "阿砚爱下棋", "竹笛是绿色的")
QUESTIONS = ("钟楼里是谁在忙呀？", "那渡船呢，雾里开吗？", "豆饼多少钱？")
LAST_WORDS = "嗯嗯。"
NEW_TOKENS = "12"
ADAPTER = "lightning_logs/version_0"


def write_dialogues(folder: Path, dialogues: list[list[tuple[str, str]]]) -> None:
    folder.mkdir(parents=True)
    lines = [{"dialogue": [{"role": role, "text": text} for role, text in turns]} for turns in dialogues]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "dialogues.jsonl").write_text(text, encoding="utf-8")


def write_role(name: str, spoken_in_memories: str, spoken: str) -> None:
    folder = Path("roles", name)
    (folder / "texts").mkdir(parents=True)
    (folder / "system_prompt.txt").write_text(f"你在扮演{name}：\n“撑船的”。 \n", encoding="utf-8")
    for number, scene in enumerate(SCENES):
        text = f"南枝:{spoken_in_memories.format(scene + '吗？')}\n{name}:{spoken_in_memories.format(scene + '。')}"
        (folder / f"texts/{number}.txt").write_text(text, encoding="utf-8")
    askers = ["南枝", "南枝", "白露"]
    dialogues = [
        [(asker, spoken.format(f"问{number}？")), (name, spoken.format(f"答{number}。"))]
        for number, asker in enumerate(askers * 2)
    ]
    write_dialogues(folder / "dialogues", dialogues)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the roles, each file with its own form, and a run of one step on all of them."""
    folder = tmp_path_factory.mktemp("asked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, (in_memories, spoken, options) in ROLES.items():
            write_role(name, in_memories, spoken)
            main(["build-data", "--characters", f"roles/{name}", "--output", f"{name}.jsonl", *options])
        words = ["--data.source", json.dumps([f"{name}.jsonl" for name in ROLES]), "--data.validation_source", "null"]
        words += ["--trainer.max_steps", "1", "--held_out", "null", "--data.workers", "0", "--data.processes", "1"]
        main(["fit", "--config", "demo", *words, "--trainer.enable_progress_bar", "false"])
    return folder


@pytest.fixture(autouse=True)
def in_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def expected_prompts(name: str, replies: list[str], folder: Path) -> list[str]:
    """The contexts that build-data writes for the questions, each after the earlier ones with their replies."""
    told, dialogues = list[tuple[str, str]](), []
    for question, reply in zip(QUESTIONS, replies, strict=False):
        told.append(("南枝", ROLES[name][1].format(question)))
        dialogues.append([*told, (name, LAST_WORDS)])
        speaker, colon, words = reply.partition(":")
        told.append((speaker, words) if colon else ("", reply))
    write_dialogues(folder / name, dialogues)
    words = ["--dialogues", str(folder / name), "--output", str(folder / f"{name}.jsonl"), *ROLES[name][2]]
    main(["build-data", "--characters", f"roles/{name}", *words])
    rows = map(json.loads, (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["context"] for row in rows if row["target"] == f"{name}:{LAST_WORDS}"]


def questions_to(name: str) -> int:
    """Number of questions; mode original writes `:` before the reply of no one, which is in the third prompt."""
    return 2 if name == "original" else 3


def is_trained_form(name: str, contexts: list[str]) -> bool:
    """Whether the role has memories in its prompts, and the first question in the last one's history, if it fits."""
    first = f"南枝:{ROLES[name][1].format(QUESTIONS[0])}###"
    return SCENES[1] in contexts[0] and (first in contexts[-1]) == (name != "dialogues")


@pytest.mark.parametrize("name", ROLES)
def test_chat_asks_what_build_data_writes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Typed with and without a name, with quotes and without; the name that is left out is the usual one."""
    typed = [f"南枝：{QUESTIONS[0]}", QUESTIONS[1], f"南枝: {ROLES[name][1].format(QUESTIONS[2])}"][
        : questions_to(name)
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in typed)))
    words = ["--adapter", ADAPTER, "--character", f"roles/{name}", "--max_new_tokens", NEW_TOKENS]
    main(["chat", "--json", *words])
    captured = capsys.readouterr()
    answers = [json.loads(line) for line in captured.out.splitlines()]
    assert [answer["question"] for answer in answers] == typed
    prompts = expected_prompts(name, [answer["reply"] for answer in answers], tmp_path)
    assert is_trained_form(name, prompts)
    assert [answer["prompt"] for answer in answers] == prompts
    assert "differs" not in captured.err
    capsys.readouterr()

    main(["chat", "--json", "-p", typed[0], *words])
    assert json.loads(capsys.readouterr().out)["prompt"] == prompts[0]


class Page:
    """In place of the server: keeps the sessions that it would answer."""

    local_url = ""
    sessions: Sessions
    initial: SessionSettings

    def open(self, sessions: Sessions, initial: SessionSettings, *address: Any) -> Page:
        self.sessions, self.initial = sessions, initial
        return self

    def block_thread(self) -> None:
        """End at once."""


def test_web_asks_what_build_data_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The roles of the newest run are those of its rows."""
    pytest.importorskip("gradio")
    page = Page()
    monkeypatch.setattr(app, "open_page", page.open)
    main(["web", "--max_new_tokens", NEW_TOKENS])
    assert [*page.sessions.roles] == [*ROLES]
    for name in ROLES:
        settings = SessionSettings(role=name, asker=page.initial.asker, sampling=page.initial.sampling)
        turns, prompts = (), []
        for question in QUESTIONS[: questions_to(name)]:
            *_, turns = page.sessions.ask(turns, question, settings)
            prompts.append(page.sessions.conversation(turns, settings).prompt_text(int(NEW_TOKENS)))
        assert prompts == expected_prompts(name, [turn.reply.text for turn in turns], tmp_path)


def test_predict_asks_as_the_run_was_trained(capsys: pytest.CaptureFixture[str]) -> None:
    """Also with another template in its settings, which it says."""
    (checkpoint,) = Path(ADAPTER, "checkpoints").glob("step=1.ckpt")
    rows = [json.loads(line) for line in Path("dialogues.jsonl").read_text(encoding="utf-8").splitlines()][:2]
    replies = []
    for template in ("raw", "chatglm2"):
        words = ["--config", f"{ADAPTER}/config.yaml", "--ckpt_path", str(checkpoint), "--data.template", template]
        words += ["--data.predict_source", "dialogues.jsonl", "--replies.path", f"{template}.replies.jsonl"]
        main(["predict", *words, "--model.max_new_tokens", NEW_TOKENS, "--trainer.logger", "false"])
        said = "trained with data.template raw, data.train_turns last, which is used; not data.template chatglm2"
        assert (said in capsys.readouterr().err) == (template == "chatglm2")
        lines = Path(f"{template}.replies.jsonl").read_text(encoding="utf-8").splitlines()
        replies.append([json.loads(line) for line in lines][:2])
    assert [reply["prompt"] for reply in replies[0]] == [row["context"] for row in rows]
    assert replies[0] == replies[1]
    words = ["--adapter", ADAPTER, "--character", "roles/dialogues", "--temperature", "0", "--top_p", "1"]
    main(["chat", "--json", "-p", rows[0]["question"], "--max_new_tokens", NEW_TOKENS, *words])
    answer = json.loads(capsys.readouterr().out)
    assert (answer["prompt"], answer["reply"]) == (replies[0][0]["prompt"], replies[0][0]["reply"])


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, list[str]]:
    """The prompt of a question, and what was said of the role."""
    main(["chat", "--json", "-p", QUESTIONS[0], "--adapter", ADAPTER, "--max_new_tokens", "1", *words])
    captured = capsys.readouterr()
    return json.loads(captured.out)["prompt"], [line for line in captured.err.splitlines() if "role " in line]


def test_a_role_that_differs_from_the_rows_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, said = asked(capsys, "--character", "roles/none")
    assert said == []
    folder = here / "elsewhere/none"
    (folder / "texts").mkdir(parents=True)
    (folder / "system_prompt.txt").write_text("你是另一个人。", encoding="utf-8")
    (folder / "texts/0.txt").write_text("钟楼里是阿砚。", encoding="utf-8")
    prompt, said = asked(capsys, "--character", str(folder), "--memory_number", "1")
    system = before.partition("###")[0]
    assert prompt == f"{system}###钟楼里是阿砚。###南枝:{QUESTIONS[0]}"
    (line,) = said
    assert line.endswith(
        "role none: differs from the run's rows: system prompt (the run's is used), memories (those given here are "
        "used), memory_number (1 is used, and the run's rows had 3)"
    )
    folder.rename(folder.with_name("stranger"))
    prompt, said = asked(capsys, "--character", str(folder.with_name("stranger")))
    assert prompt == f"你是另一个人。###钟楼里是阿砚。###南枝:{QUESTIONS[0]}"
    (line,) = said
    assert "role stranger: it is not in the run's rows (memories, dialogues, none, original)" in line


def test_each_command_says_the_next_with_what_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    def following(*words: str) -> str:
        main([*words])
        return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("next: "))

    given = ["--data.source", "none.jsonl", "--data.validation_share", "0", "--model.base=demo"]
    fit = "--data.source none.jsonl --data.validation_share 0 --model.base=demo"
    assert following("preview", *given, "--rows", "0") == f"next: kyon-pl fit --config character {fit}"
    assert following("preview", "--rows=0", "--config", "lora", *given) == f"next: kyon-pl fit --config lora {fit}"
    fast = ["--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    fast += ["--held_out", "null", "--trainer.default_root_dir", "my runs", "--data.workers", "0"]
    chat = "next: kyon-pl chat --adapter 'my runs/lightning_logs/version_0' --character roles/none"
    assert following("fit", "--config", "lora", *given, *fast) == chat


def test_the_form_stays_with_the_adapter(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A merged model has it, too; a published adapter has no paths of this machine; without it all is as before."""
    folder = here / ADAPTER / "checkpoints/step=1"
    form = read_prompt_format(folder)
    assert [one.location for one in form.roles.values()] == [str(here / "roles" / name) for name in ROLES]
    assert yaml.safe_load(form.without_locations().text())["roles"]["none"]["question"] == "{asker}:{words}"
    assert str(here) not in form.without_locations().text()
    prompt, _ = asked(capsys, "--character", "roles/memories")
    main(["merge", "--adapter", ADAPTER, "--which", "last", "--output", "merged"])
    assert capsys.readouterr().err.endswith("next: kyon-pl chat --adapter merged --character roles/memories\n")
    assert asked(capsys, "--character", "roles/memories", "--adapter", "merged")[0] == prompt
    (folder / PROMPT_FORMAT).rename(here / "kept")
    bare, said = asked(capsys, "--character", "roles/memories", "--asker", "南枝", "--which", "last")
    (here / "kept").rename(folder / PROMPT_FORMAT)
    assert bare.endswith(f"###南枝:「{QUESTIONS[0]}」")  # by its memories
    assert bare != prompt
    assert said == []
