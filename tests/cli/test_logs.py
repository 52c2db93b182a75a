"""What a run tells, on the terminal and in `run.log`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kyon_pl.cli import main
from kyon_pl.logs import set_up_logging

ROOT = Path(__file__).parents[2]
DEMO = ["fit", "--config", str(ROOT / "configs/demo.yaml"), "--trainer.enable_progress_bar", "false"]
SHORT = [*DEMO, "--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "2"]
# fails when the base is there and the run folder too
FAILING = [*SHORT, "--model.lora.target_modules", "[nowhere]"]
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} rank 0 (INFO   |WARNING|ERROR  ) (.+)")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    set_up_logging()


def lines_of(log: Path = Path("lightning_logs/version_0/run.log")) -> list[str]:
    """The events of a run.log; each is one line of one form."""
    matches = [LINE.fullmatch(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert all(matches)
    return [match[2] for match in matches if match]


def test_a_run_tells_its_story_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    main(SHORT)
    told = lines_of()
    beginnings = (
        "kyon-pl fit: kyon_pl ",
        "config: ",
        "batches: packed, 1,024 tokens each, 2 of them",
        "data: train: 800 rows",
        "run: 800 training rows, 92 validation rows → 6 optimizer steps → highest learning rate 0.005",
        "estimate: 6 optimizer steps",
        "only 6 optimizer steps",
        "attention: sdpa",
        "base: demo in float32",
        "LoRA: ",
        "val/loss before the first step: ",
        "training from optimizer step 0",
        "validation after step 2: val/loss ",
        "checkpoint: lightning_logs/version_0/checkpoints/best-step=2.ckpt",
        "validation after step 4: val/loss ",
        "validation after step 6: val/loss ",
        "trained to step 6: 6 steps in ",
        "asked   ",
        "  base  ",
        "  tuned ",
        "checkpoint: lightning_logs/version_0/checkpoints/step=6.ckpt",
        "best adapter: ",
        "last adapter: ",
        "curves: ",
        "next: kyon-pl chat --adapter lightning_logs/version_0 --character demo",
        "next: kyon-pl predict ",
    )
    places = [next(i for i, line in enumerate(told) if line.startswith(text)) for text in beginnings]
    assert places == sorted(places), told
    assert len(told) < 43
    terminal = capsys.readouterr().err
    assert [line for line in terminal.splitlines() if line in told] == told  # the same lines, as they are


def test_the_terminal_can_be_quiet_and_the_file_has_it_all(capsys: pytest.CaptureFixture[str]) -> None:
    main([*SHORT, "--log_level", "warning", "--trainer.max_epochs", "1"])
    assert "data: " not in capsys.readouterr().err
    assert any(line.startswith("data: train: ") for line in lines_of())


def test_the_last_line_of_a_failed_run_is_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(FAILING)
    assert stopped.value.code == 2
    terminal = capsys.readouterr().err
    assert "Traceback" not in terminal
    assert lines_of()[-1] == terminal.splitlines()[-1]
    assert "nowhere" in lines_of()[-1]


def test_debug_shows_the_traceback_and_ends_alike(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*FAILING, "--debug"])
    assert stopped.value.code == 2
    terminal = capsys.readouterr().err
    assert "Traceback (most recent call last)" in terminal
    assert lines_of()[-1] == terminal.splitlines()[-1]


def test_an_error_that_nobody_foresaw_is_the_last_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word of ours, the traceback is Python's own."""
    Path("stumbling.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Stumble(Callback):\n"
        "    def on_train_batch_end(self, *_):\n"
        "        raise ZeroDivisionError('over a\\nstone')\n"
    )
    monkeypatch.syspath_prepend(".")
    with pytest.raises(ZeroDivisionError):
        main([*SHORT, "--allow_code", "stumbling", "--trainer.callbacks+=stumbling.Stumble"])
    assert lines_of()[-1] == "stopped at step 0: ZeroDivisionError: over a"


@pytest.mark.parametrize("words", [["--log_level", "loud"], ["--debug"]])
def test_options_that_make_no_sense_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words if words == ["--debug"] else ["fit", *words])
    assert stopped.value.code == 2
    assert "Use one of: " in capsys.readouterr().err


def test_other_ranks_speak_of_trouble_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("RANK", "3")
    set_up_logging()
    logging.getLogger("kyon_pl.anything").info("a story")
    logging.getLogger("kyon_pl.anything").warning("trouble")
    assert capsys.readouterr().err == "[rank 3] trouble\n"
