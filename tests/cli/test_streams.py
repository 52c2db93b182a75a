"""What a terminal, a pipe, a disk or a key press can do to a command: one paragraph or a quiet end, no traceback."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from limits import HANG_S

from kyon_pl.cli import main
from kyon_pl.logs import OneLine, Terminal, set_up_logging, write_run_log

ROOT = Path(__file__).parents[2]
HELP = ["fit", "--help", "all"]
PREVIEW = ["preview", "--config", str(ROOT / "configs/demo.yaml"), "--rows", "20"]


def test_warnings_of_libraries_have_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        set_up_logging()
        warnings.warn("no such backend: \x1b]0;pwned\x07\u202e", stacklevel=1)
    said = capsys.readouterr().err
    assert "UserWarning: no such backend: \ufffd]0;pwned\ufffd\ufffd\n" in said


def run(words: list[str], shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of its own, in a shell where a redirection is given; standard error is kept.

    Its output is buffered unless the environment given says otherwise, whatever the tests were started with.
    """
    command = " ".join([sys.executable, "-m", "kyon_pl", *words, shell])
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env=os.environ | {"PYTHONUNBUFFERED": ""} | environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=HANG_S,
    )


@pytest.mark.parametrize(
    ("words", "shell", "environment", "status"),
    [
        (HELP, "| true", {}, 141),
        (HELP, "| true", {"PYTHONUNBUFFERED": "1"}, 141),
        (HELP, "> /dev/full", {}, 2),
        (HELP, "> /dev/full", {"PYTHONUNBUFFERED": "1"}, 2),
        (["--version"], "> /dev/full", {}, 2),  # so short that it is written at the end
        (["--version"], "> /dev/full 2> /dev/full", {}, 2),
        (["--version"], ">&- 2>&- <&-", {}, 0),
        (["fit", "--nowhere"], "2> /dev/full", {}, 2),
        (["fit", "--nowhere"], "2>&-", {}, 2),
        (PREVIEW, "| head -1", {"PYTHONIOENCODING": "ascii"}, 141),
        (PREVIEW, ">&-", {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, 0),
    ],
)
def test_the_other_end_of_the_output(words: list[str], shell: str, environment: dict[str, str], status: int) -> None:
    done = run(words, shell, **environment)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == status, done.stderr[-2000:]
    if status == 2 and ">" in shell and "2>" not in shell:
        assert done.stderr.startswith("kyon-pl"), done.stderr
        assert "standard output: the disk is full" in done.stderr


@pytest.mark.parametrize("name", ["\x1b]0;title\x07", "two\nlines", "right\u202eto left"])
def test_a_name_from_data_is_harmless_in_an_error(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({name: "a", "target": "b"}) + "\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        main([*PREVIEW, "--data.source", str(rows), "--debug"])
    said = capsys.readouterr().err
    assert not set("\x1b\x07\u202e") & set(said)
    assert "no column 'context'; the columns are" in said.splitlines()[-1]


def test_names_of_speakers_are_harmless_in_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"role": "a\x1b[31m\nforged", "text": "hm"}, {"role": "b", "text": "ah"}]
    folder = tmp_path / "role"
    (folder / "dialogues").mkdir(parents=True)
    (folder / "system_prompt.txt").write_text("b", encoding="utf-8")
    (folder / "dialogues/d.jsonl").write_text(json.dumps({"dialogue": turns}), encoding="utf-8")
    with pytest.raises(SystemExit):  # nobody in the dialogue has the name of the role
        main(["build-data", "--characters", str(folder), "--output", str(tmp_path / "rows.jsonl")])
    said = capsys.readouterr().err
    assert "forged" in said
    assert "\x1b" not in said
    assert "\nforged" not in said


@pytest.mark.parametrize("words", [PREVIEW, ["doctor"], ["merge", "--output", "merged"]])
def test_ctrl_c_ends_any_command_without_a_traceback(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kyon_pl", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and b"torch" not in Path(f"/proc/{process.pid}/maps").read_bytes():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=HANG_S)
    assert "Traceback" not in said
    assert process.returncode in (130, 2, 1)  # a command that had just ended by itself


def test_an_error_of_the_system_is_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["report", "--output", "x" * 5000, "--runs", "[.]"])
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_line_of_the_log_is_one_line_without_control_characters() -> None:
    record = logging.LogRecord("kyon_pl", logging.INFO, "", 1, "asked %s", ("a\x1b]0;PWNED\x07\nforged\u202e",), None)
    assert OneLine("%(message)s").format(record) == "asked a\ufffd]0;PWNED\ufffd↵forged\ufffd"


class Gone:
    """A terminal that was closed."""

    def write(self, text: str) -> Any:
        raise OSError(5, "Input/output error")

    flush = write


def test_a_closed_terminal_does_not_stop_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up_logging()
    log = logging.getLogger("kyon_pl")
    write_run_log(tmp_path, rank=0)
    monkeypatch.setattr(sys, "stderr", Gone())
    log.info("one")
    log.info("two")
    monkeypatch.undo()
    assert [handler.level > logging.CRITICAL for handler in log.handlers if isinstance(handler, Terminal)] == [True]
    lines = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert [line[-3:] for line in lines] == ["one", "two"]
