"""Runs whose terminal, log and curves fail: they end with the same adapter, or save and say so."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from limits import HANG_S
from tqdm import tqdm

from kyon_pl.cli import main
from kyon_pl.logs import set_up_logging
from kyon_pl.training.callbacks.stop_signals import handled_signals

ROOT = Path(__file__).parents[2]
FIT = ["fit", "--config", str(ROOT / "configs/demo.yaml"), "--trainer.max_steps", "3", "--held_out", "null"]
FIT += ["--trainer.num_sanity_val_steps", "0", "--trainer.limit_val_batches", "1", "--trainer.log_every_n_steps", "1"]
DISTURBING = """
import logging, os, signal
from pathlib import Path
from lightning.pytorch import Callback


class Full(Callback):
    "The disk is full under everything that is not the product."

    def on_train_start(self, trainer, pl_module):
        for file in Path(trainer.log_dir).glob("events.*"):
            file.unlink()
            file.symlink_to("/dev/full")
        for handler in logging.getLogger("kyon_pl").handlers:
            if getattr(handler, "target", None):
                full = os.open("/dev/full", os.O_WRONLY)
                os.dup2(full, handler.target.stream.fileno())


class Hangup(Callback):
    "As the kernel and the shell both send it when a terminal is closed."

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 1 and batch_idx % 2 == 0:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("disturbing.py").write_text(DISTURBING)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "disturbing", raising=False)
    yield
    set_up_logging()


def adapter(run: Path) -> bytes:
    return (run / "checkpoints/step=3/adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("undisturbed")
    main([*FIT, "--trainer.default_root_dir", str(folder)])
    return adapter(folder / "lightning_logs/version_0")


def test_a_run_without_curves_and_log_says_so_once_and_goes_on(
    undisturbed: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*FIT, "--allow_code", "disturbing", "--trainer.callbacks+=disturbing.Full"])
    run = Path("lightning_logs/version_0")
    said = capsys.readouterr().err
    assert adapter(run) == undisturbed
    assert said.count("run.log cannot be written (No space left on device)") == 1
    assert said.count("end here: they cannot be written (No space left on device)") == 1
    assert "Traceback" not in said
    assert "Logging error" not in said


def test_a_hangup_saves_and_the_same_command_goes_on(undisturbed: bytes) -> None:
    """And it leaves nothing in the process that called `main`: no handler, no open bar under which others are drawn."""
    handlers = [signal.getsignal(number) for number in handled_signals()]
    bars = len(tqdm._instances)
    with pytest.raises(SystemExit) as ended:
        main([*FIT, "--allow_code", "disturbing", "--trainer.callbacks+=disturbing.Hangup"])
    assert ended.value.code == 128 + signal.SIGHUP
    assert [signal.getsignal(number) for number in handled_signals()] == handlers
    assert len(tqdm._instances) == bars
    run = Path("lightning_logs/version_0")
    assert "SIGHUP: stopped after optimizer step 2, which is saved" in (run / "run.log").read_text(encoding="utf-8")
    assert [file.name for file in (run / "checkpoints").glob("*.ckpt")] == ["step=2.ckpt"]
    main([*FIT, "--allow_code", "disturbing", "--trainer.callbacks+=disturbing.Hangup"])
    assert adapter(run) == undisturbed


def test_a_signal_that_is_ignored_stays_so() -> None:
    assert {signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU} < set(handled_signals())
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in handled_signals()
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize(
    ("logger", "line"),
    [("lightning.pytorch.loggers.CSVLogger", "metrics: logs/lightning_logs/version_0/metrics.csv"), ("false", None)],
)
def test_the_end_names_the_metrics_that_there_are(
    logger: str, line: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["--trainer.logger.save_dir", "logs"] if line else []
    main([*FIT, "--trainer.logger", logger, *folder, "--trainer.max_steps", "1"])
    said = capsys.readouterr().err
    assert "tensorboard" not in said
    assert line is None or line in said.splitlines()
    if line:
        metrics = Path(line.partition(": ")[2])
        assert "train/loss" in metrics.read_text(encoding="utf-8")
        assert "model.lora.r: 16" in (metrics.parent / "hparams.yaml").read_text(encoding="utf-8").splitlines()
        assert "⟦" in (metrics.parent / "texts/what is trained.md").read_text(encoding="utf-8")


COMMAND = [sys.executable, "-m", "kyon_pl", *FIT]


@pytest.mark.slow
@pytest.mark.parametrize(
    "shell", ["2>&1 | head -n 1", "| true", "> /dev/full", "2> /dev/full", "> /dev/full 2>&1", ">&- 2>&- <&-"]
)
def test_a_run_outlives_the_other_end_of_its_output(shell: str, undisturbed: bytes) -> None:
    command = f"set -o pipefail; {' '.join(COMMAND)} {shell}"
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run(["bash", "-c", command], env=buffered, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert adapter(Path("lightning_logs/version_0")) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True])
def test_a_run_whose_terminal_is_closed_ends_or_saves(ignored: bool, undisturbed: bytes) -> None:
    validated = [*COMMAND, "--trainer.val_check_interval", "2"]  # after each step, and the best one is saved
    process, terminal = pty.fork()  # the terminal controls the child, so that closing it sends SIGHUP
    if process == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        os.execv(sys.executable, validated)
    said = b""
    while b"checkpoint: " not in said:
        said += os.read(terminal, 65536)
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    run = Path("lightning_logs/version_0")
    log = (run / "run.log").read_text(encoding="utf-8")
    if ignored:
        assert status == 0, log
    else:
        assert status == 129, log
        assert log.splitlines()[-1].endswith("which is saved; the same command resumes from there")
        subprocess.run(validated, check=True, capture_output=True, timeout=HANG_S)
    assert adapter(run) == undisturbed
