"""What a terminal, a pipe, a disk or a key press can do to a command: one paragraph or a quiet end, no traceback."""

from __future__ import annotations

import logging
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from limits import HANG_S

from kyon_pl.cli import main
from kyon_pl.logs import OneLine, Terminal, set_up_logging, write_run_log

ROOT = Path(__file__).parents[2]
PREVIEW = ["preview", "--config", str(ROOT / "configs/demo.yaml"), "--rows", "20"]


def run(words: list[str], shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of its own, in a shell where a redirection is given; standard error is kept."""
    command = " ".join([sys.executable, "-m", "kyon_pl", *words, shell])
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=HANG_S,
    )


@pytest.mark.parametrize(
    ("shell", "environment", "status"),
    [
        ("| head -1", {}, 141),
        ("| head -1", {"PYTHONUNBUFFERED": "1"}, 141),
        ("> /dev/full", {}, 2),
        (">&-", {}, 0),
        ("", {"PYTHONIOENCODING": "ascii"}, 0),
        ("", {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, 0),
    ],
)
def test_the_other_end_of_the_output(shell: str, environment: dict[str, str], status: int) -> None:
    done = run(PREVIEW, shell, **environment)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == status, done.stderr[-2000:]


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


@pytest.mark.slow
def test_a_run_outlives_its_terminal(tmp_path: Path) -> None:
    ours, its = pty.openpty()
    words = ["fit", "--config", str(ROOT / "configs/demo.yaml"), "--trainer.max_steps", "12", "--held_out", "null"]
    command = ["bash", "-c", "trap '' HUP; exec \"$@\"", "bash", sys.executable, "-m", "kyon_pl", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=its, stdout=its, stderr=its, start_new_session=True)
    os.close(its)
    said = b""
    while b"training from" not in said:
        said += os.read(ours, 65536)
    os.close(ours)
    assert process.wait(timeout=HANG_S) == 0
    assert "last adapter" in (tmp_path / "lightning_logs/version_0/run.log").read_text(encoding="utf-8")
