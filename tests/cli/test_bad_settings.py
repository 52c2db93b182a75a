"""Config files and texts that are hostile to the reader: one paragraph, status 2, at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kyon_pl.cli import main
from kyon_pl.cli.commands import NUMBERS, check_names
from kyon_pl.cli.messages import ARGUMENT_ERRORS, explain_refused_arguments
from kyon_pl.cli.options import options_of
from kyon_pl.errors import SettingError
from kyon_pl.training import LinearDecay


def unfolding(depth: int, width: int, line: str) -> str:
    """A YAML whose last anchor is `width ** depth` values."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [line.format(i=i, inner=", ".join([f"*a{i - 1}"] * width)) for i in range(1, depth + 1)]
    return "\n".join(lines)


LIGHTNING = "lightning.pytorch"
CONFIGS = {
    "lists of aliases": (unfolding(12, 9, "a{i}: &a{i} [{inner}]"), "unfolds into more than"),
    "merged aliases": (unfolding(12, 9, "a{i}: &a{i} {{<<: [{inner}]}}"), "unfolds into more than"),
    "a chain of aliases": (unfolding(300, 1, "a{i}: &a{i} [{inner}]"), "nested too deeply"),
    "itself": ("trainer: &a\n  logger: *a\n", "contains itself"),
    "brackets": ("a: " + "[" * 600 + "]" * 600, "nested too deeply"),
    "a list for a key": ("? [a, b]\n: 1\n", "a list in place of a key"),
    "no UTF-8": (b"a: \xff\n", "not UTF-8"),
    "NUL": ('data: {source: "x\\0y"}', "line 1: data.source: a NUL in its text"),
    "NUL of a class": (
        'trainer: {logger: {class_path: A, init_args: {name: "\\0"}}}',
        "trainer.logger: a NUL in its text",
    ),
    "half a character": ('data: {source: ["x\\uD800y"]}', "data.source: half a character"),
    "a long name": (f"trainer: {{default_root_dir: {'a' * 5000}}}", "trainer.default_root_dir: 'aaaa"),
    "5,000 digits": (f"seed_everything: {'9' * 5000}", "seed_everything: a number of 5,000 digits"),
    "the tokenizer": ("data: {tokenizer: demo}", "data.tokenizer: it follows model.base"),
    "control characters in a key": ('"a\\e]0;PWN\\a": 1', "a\ufffd]0;PWN\ufffd: there is no such setting"),
    "control characters in a value": ('data: {batching: "x\\e]0;\\a\\n"}', "Got value: x\ufffd]0;\ufffd"),
    "line ends in a key": ('"a\\nkyon-pl fit: all is well": 1', "a↵kyon-pl fit: all is well: there is no"),
}


def paragraph_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "\x1b" not in lines[0]
    return lines[0]


@pytest.mark.parametrize(
    "words",
    [
        ["import-role", "HOME/x.txt", "--output", "role"],
        ["import-role", "novel.txt", "--kind", "novel", "--name", "Bo", "--speakers", "HOME/x.csv", "--output", "role"],
        ["build-data", "--characters", "demo", "--dialogues", "HOME/x", "--output", "rows.jsonl"],
        ["preview", "--config", "demo", "--data.cache_dir", "HOME/x"],
        ["doctor", "--config", "demo", "--data.cache_dir", "HOME/x"],
    ],
)
def test_the_home_of_a_user_that_does_not_exist(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("novel.txt").write_text("“Who is there?” said Bo.\n", encoding="utf-8")
    paragraph = paragraph_of([word.replace("HOME", "~nobody-here") for word in words], capsys)
    assert "~nobody-here/x" in paragraph
    assert not [*tmp_path.glob("~*")]


def test_doctor_without_the_home_of_its_base(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--config", "demo", "--model.base", "~nobody-here/x"])
    assert stopped.value.code == 1
    assert "missing: base" in capsys.readouterr().out


@pytest.mark.parametrize("name", CONFIGS)
def test_config_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content, said = CONFIGS[name]
    Path("mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in paragraph_of(["fit", "--config", "mine.yaml"], capsys)


@pytest.mark.parametrize(
    ("command", "key"), [("merge", "format"), ("push", "private"), ("chat", "asker"), ("web", "port")]
)
def test_null_is_no_value(
    command: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser accepts null for any type, and then the function would get it."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(f"{key}: null\n", encoding="utf-8")
    needed = {"merge": ["--output", "merged"], "push": ["--repo_id", "a/b"]}
    said = paragraph_of([command, *needed.get(command, []), "--config", "mine.yaml"], capsys)
    assert said.startswith(f"kyon-pl {command}: --{key}: null. "), said


SHORT = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--trainer.num_sanity_val_steps=0"]
CLASSES = {
    "a value that PEFT refuses": (["--model.lora.task_type", "x"], "peft.LoraConfig: Invalid task type: 'x'"),
    "an argument without another": (["--model.lora.layers_pattern", "h"], "`layers_to_transform` must also be"),
    "a callback's choice": (
        [f"--trainer.callbacks+={LIGHTNING}.callbacks.Timer", "--trainer.callbacks.interval", "x"],
        f"{LIGHTNING}.callbacks.Timer: Unsupported parameter value `Timer(interval=x)`",
    ),
    "a package that is not there": (
        ["--trainer.logger.class_path", f"{LIGHTNING}.loggers.CometLogger"],
        f"{LIGHTNING}.loggers.CometLogger: ",
    ),
    "a callback that looks at the start": (
        [f"--trainer.callbacks+={LIGHTNING}.callbacks.ModelSummary", "--trainer.callbacks.max_depth", "-5"],
        "`max_depth` can be -1, 0 or > 0, got -5",
    ),
    "a callback that looks in the run": (
        [f"--trainer.callbacks+={LIGHTNING}.callbacks.EarlyStopping", "--trainer.callbacks.monitor=os.getcwd", *SHORT],
        "trainer.callbacks: EarlyStopping: Early stopping conditioned on metric `os.getcwd` which is not available",
    ),
    "an optimizer that looks in the run": (
        ["--model.optimizer.capturable", "true", *SHORT],
        "model.optimizer: torch.optim.adam: If capturable=True, params and state_steps must be on supported devices",
    ),
    "a strategy that looks at the start": (
        ["--trainer.strategy", f"{LIGHTNING}.strategies.DDPStrategy", "--trainer.strategy.process_group_backend", "x"],
        "trainer.strategy: DDPStrategy: ",
    ),
    "a profiler whose file has too long a name": (
        [
            *(f"--trainer.profiler={LIGHTNING}.profilers.SimpleProfiler", "--trainer.profiler.filename", "x" * 300),
            *("--trainer.profiler.dirpath", ".", *SHORT),
        ],
        "trainer.profiler: SimpleProfiler: File name too long: ",
    ),
    "a schedule that looks at the start": (
        ["--model.schedule", "torch.optim.lr_scheduler.OneCycleLR"],
        "model.schedule: OneCycleLR: You must define either total_steps OR (epochs AND steps_per_epoch)",
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_what_classes_say_of_their_arguments(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is one paragraph that names the class, and no traceback."""
    monkeypatch.chdir(tmp_path)
    words, found = CLASSES[name]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "demo", "--trainer.accelerator", "cpu", "--held_out", "null", *words])
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("kyon-pl fit: ")
    assert found in last
    assert "Namespace(" not in last


def raised_by(call: Callable[[], object]) -> Exception:
    with pytest.raises(ARGUMENT_ERRORS) as caught:
        call()
    return caught.value


def test_other_errors_are_not_blamed_on_arguments() -> None:
    """Those of this package, and of what an optimizer calls back: the training step, and torch in it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    matrix = torch.zeros(2, 3)
    assert explain_refused_arguments(raised_by(lambda: optimizer.step(lambda: matrix @ matrix))) is None
    assert explain_refused_arguments(raised_by(lambda: LinearDecay(optimizer, "x"))) is None  # type: ignore[arg-type]
    explained = explain_refused_arguments(raised_by(lambda: torch.optim.SGD([], lr=1)))
    assert str(explained).startswith("model.optimizer: SGD: optimizer got an empty parameter list")


@pytest.mark.parametrize("file", ["fifo", "folder", "/dev/zero", "/proc/self/mem", "a\0b", "a" * 5000, "\udcff.yaml"])
@pytest.mark.parametrize("command", ["fit", "doctor", "merge"])
def test_what_is_no_file(
    command: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe without a writer, a device without an end: nothing is waited for."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Path("folder").mkdir()
    assert len(paragraph_of([command, f"--config={file}"], capsys)) < 600


PATHS = ["--model.base", "--model.adapter", "--ckpt_path", "--data.source", "--data.cache_dir", "--data.bad_rows_file",
         "--trainer.default_root_dir", "--model.random_config"]  # fmt: skip


@given(option=st.sampled_from(PATHS), text=st.text(max_size=400), bad=st.sampled_from(["\0", "\ud800", "a" * 256]))
@settings(max_examples=60, deadline=None)
def test_texts_of_options(option: str, text: str, bad: str) -> None:
    """No file has such a name, wherever in it the fault is."""
    place = len(text) // 2
    value = f"x{text[:place]}{bad}{text[place:]}"
    for words in ([option, value], [f"{option}={value}"]):
        if not (value.startswith("-") and len(words) == 2):
            with pytest.raises(SettingError, match=option):
                check_names(["fit", *words])


@given(
    name=st.sampled_from(sorted(options_of("fit"))), text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
)
@settings(max_examples=200, deadline=None)
def test_ordinary_texts_are_left_to_the_parser(name: str, text: str) -> None:
    check_names(["fit", f"--{name}={text}".replace("\0", " ")])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--trainer.num_nodes", "trainer.num_nodes: a number of 31 digits"),
        ("--trainer.devices", "trainer.devices: "),
        ("--data.tokens_per_batch", "data.tokens_per_batch: a number of 31 digits"),
        ("--data.max_tokens", "data.max_tokens: a number of 31 digits"),
    ],
)
def test_numbers_that_no_library_holds(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in paragraph_of(["fit", "--config", "demo", option, "1" + "0" * 30], capsys)


@pytest.mark.parametrize("name", NUMBERS)
def test_variables_that_are_numbers(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ("x", "", "-1", "1.5", "\x1b[31m"):
        monkeypatch.setenv(name, value)
        assert f"${name}: " in paragraph_of(["fit", "--config", "demo"], capsys)


def test_a_process_with_such_a_variable() -> None:
    environment = os.environ | {"SLURM_PROCID": "x"}
    words = [sys.executable, "-m", "kyon_pl", "doctor"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("kyon-pl: $SLURM_PROCID: 'x' is not a number")
