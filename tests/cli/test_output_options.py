"""No output destroys an input: every option that names something to write, against every one that names something to
read, found by walking the options of all commands.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kyon_pl.cli import main
from kyon_pl.cli.commands import COMMANDS
from kyon_pl.cli.options import options_of
from kyon_pl.demo import ASSETS, BASE

ROOT = Path(__file__).parents[2]

# every option that takes a text is in one of these: what a command writes there is checked (OUTPUTS), gets a name of
# its own below the folder (FOLDERS), is read (INPUTS), or is no path
OUTPUTS = {"output", "bad_rows_file", "data.bad_rows_file", "replies.path", "png"}
FOLDERS = {"trainer.default_root_dir", "data.cache_dir"}
# option -> the file that is to stay, and what the option is given where that is not the file
INPUTS = {
    "data.source": ("source.jsonl", None),
    "data.validation_source": ("validation.jsonl", None),
    "data.test_source": ("test.jsonl", None),
    "data.predict_source": ("predict.jsonl", None),
    "model.base": ("base/config.json", "base"),
    "model.random_config": ("base/config.json", "base"),
    "model.adapter": ("adapter/adapter_config.json", "adapter"),
    "ckpt_path": ("step=1.ckpt", None),
    "characters": ("roles/Bo/system_prompt.txt", "roles"),
    "dialogues": ("dialogues.jsonl", None),
    "tokenizer": ("base/tokenizer_config.json", "base"),
    "retrieval": ("base/config.json", "base"),
    "runs": ("run/run.json", "run"),
    "adapter": ("adapter/adapter_config.json", "adapter"),
    "base": ("base/config.json", "base"),
    "password_file": ("settings.yaml", None),
    "file": ("log.txt", None),
    "speakers": ("speakers.csv", None),
    "first": ("adapter/adapter_config.json", "adapter"),
    "second": ("adapter/adapter_config.json", "adapter"),
    "checkpoints_of": ("run/run.json", "run"),
    "questions": ("source.jsonl", None),
    "config": ("settings.yaml", None),
}
READ_ONLY_COMMANDS = ("chat", "web", "push", "doctor")  # a conversation, the Hub and the terminal get what they write
NO_PATHS = {
    *("data.context_column", "data.name", "data.revision", "data.split", "data.target_column", "data.template"),
    *("data.test_split", "data.validation_split", "model.revision", "revision", "template", "tokenizer_revision"),
    *(
        "aliases",
        "asker",
        "character",
        "commit_message",
        "endpoint",
        "endpoint_model",
        "first_server",
        "host",
        "name",
        "prompt",
        "push",
        "repo_id",
        "second_server",
        "server",
        "system",
        "user",
    ),
    *("allow_patterns", "delete_patterns", "ignore_patterns"),
    *("trainer.accelerator", "trainer.devices", "trainer.gradient_clip_algorithm", "trainer.max_time"),
    *("trainer.model_registry", "trainer.profiler", "trainer.strategy", "trainer.val_check_interval"),
}
NOT_WRITTEN = {("fit", "replies.path"), ("validate", "replies.path"), ("test", "replies.path")}
NOT_WRITTEN |= {("preview", "replies.path")}


def takes_text(types: list[Any]) -> bool:
    return any(takes_text(kind["list"]) if "list" in kind else kind in ("text", "Path") for kind in types)


def test_every_option_is_known_as_an_output_or_not() -> None:
    """A new one is to be put into a table above, and its command made to check it if it is an output."""
    tables = [OUTPUTS, FOLDERS, {*INPUTS}, NO_PATHS]
    for command in COMMANDS:
        for name, option in options_of(command).items():
            found = sum(name in table for table in tables) + name.startswith("model.lora.")  # PEFT's, none is a path
            assert found <= 1, f"{name} is in several tables"
            assert found or not takes_text(option.types), f"--{name} of {command}: is it an output?"


def written(command: str) -> list[str]:
    if command in READ_ONLY_COMMANDS:
        return []
    return sorted(name for name in OUTPUTS & options_of(command).keys() if (command, name) not in NOT_WRITTEN)


LIKE_FIT = [("validate", "data.bad_rows_file"), ("test", "data.bad_rows_file"), ("predict", "data.bad_rows_file")]
PAIRS = [
    pytest.param(command, output, marks=[pytest.mark.slow] if (command, output) in LIKE_FIT else [])
    for command in COMMANDS
    for output in written(command)
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("source", "validation", "test", "predict"):
        shutil.copyfile(ASSETS / "validation.jsonl", f"{name}.jsonl")
    shutil.copytree(BASE, "base")
    for name in ("adapter", "run", "roles/Bo"):
        Path(name).mkdir(parents=True)
    Path("adapter/adapter_config.json").write_text("{}")
    Path("run/run.json").write_text('{"finished_at_step": null, "fingerprint": {}}')
    Path("roles/Bo/system_prompt.txt").write_text("You are Bo.")
    turns = [{"role": "Al", "text": "Hello?"}, {"role": "Bo", "text": "Hello, Al."}]
    Path("dialogues.jsonl").write_text(json.dumps({"dialogue": turns}) + "\n")
    Path("log.txt").write_text("Al: Hello?\nBo: Hello, Al.\n")
    Path("speakers.csv").write_text("line,speaker,certainty,words\n")
    torch.save({"state_dict": {}}, "step=1.ckpt")
    Path("settings.yaml").write_text("{}\n")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def words_of(command: str, **options: str | None) -> list[str]:
    """A command that works but for its outputs."""
    words: dict[str, str | None] = {}
    if options_of(command).keys() >= {"data.source"}:
        words = {"config": str(ROOT / "configs/demo.yaml"), "data.processes": "1"}
    required = [name for name, option in options_of(command).items() if option.required and name != "output"]
    words |= {name: INPUTS[name][1] or INPUTS[name][0] for name in required if name != "runs"}
    if command == "build-data":
        words |= {"output": "rows.jsonl", "dialogues": "dialogues.jsonl"}
    words |= options
    runs = ["run"] if command == "report" else []
    config = ["--config", "settings.yaml"] if command in ("fit", "validate", "test", "predict", "preview") else []
    pairs = [(f"--{name}", value) for name, value in words.items() if value is not None and name != "runs"]
    return [command, *runs, *(word for pair in pairs[:1] for word in pair), *config, *(w for p in pairs[1:] for w in p)]


def refused(words: list[str], output: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One paragraph that names the output, status 2, and nothing has changed."""
    before = contents(folder)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    said = capsys.readouterr().err
    assert stopped.value.code == 2, words
    paragraph = said.strip().splitlines()[-1]
    assert output in paragraph, said
    assert "Traceback" not in said
    assert contents(folder) == before, words


@pytest.mark.parametrize(("command", "output"), PAIRS)
def test_an_output_is_no_input(command: str, output: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = [name for name in INPUTS if name in options_of(command) or name == "config"]
    assert inputs
    for number, name in enumerate(inputs):
        file, given = INPUTS[name]
        Path(f"link_{number}").symlink_to(file)
        target = f"link_{number}" if number % 2 else file
        words = words_of(command, **({} if name == "config" else {name: given or file}), **{output: target})
        refused(words, output, folder, capsys)


@pytest.mark.parametrize(("command", "output"), PAIRS)
def test_an_output_is_no_other_output_and_no_file_from_elsewhere(
    command: str, output: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        "mine.jsonl",
        "mine.png",
        "nowhere/../mine.jsonl",
        "/dev/null",
        "~no-such-user/x.jsonl",
        f"{'x' * 300}.jsonl",
    ]
    Path("mine.jsonl").write_text('{"context": "a", "target": "b"}\n')
    Path("mine.png").write_bytes(b"\x89PNG\r\n\x1a\n of mine")
    for name in names:
        refused(words_of(command, **{output: name}), output, folder, capsys)
    for other in written(command):
        if other != output:
            refused(words_of(command, **{other: "new.jsonl", output: "new.jsonl"}), "also written as", folder, capsys)


def test_a_run_without_a_folder_of_its_own_keeps_the_config_it_was_given(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LightningCLI saves the settings as config.yaml into the log folder, which may be the current one."""
    shutil.copyfile(ROOT / "configs/demo.yaml", "config.yaml")
    words = ["fit", "--config", "config.yaml", "--trainer.logger", "false"]
    refused(words, "config.yaml is read as --config", folder, capsys)
    refused([*words[:2], str(ROOT / "configs/demo.yaml"), *words[3:]], "is from elsewhere", folder, capsys)
