"""A config runs no code: it names classes of allowed packages, of the kind that each setting takes, and no function.

The traps are modules that leave a file when they are imported, and functions that would leave one when they are called.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml
from limits import HANG_S

from kyon_pl.cli import main

CALLBACKS = "lightning.pytorch.callbacks"
TRAP = """
import pathlib, torch, lightning.pytorch
pathlib.Path("sprung").touch()
class Adam(torch.optim.AdamW): pass
class Hook(lightning.pytorch.Callback): pass
def function(*args): pathlib.Path("called").touch()
"""
FIT = {
    "seed_everything": 1,
    "trainer": {"accelerator": "cpu", "max_steps": 1, "enable_progress_bar": False, "num_sanity_val_steps": 0},
    "model": {"base": "demo", "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e-3}}},
    "data": {"source": "demo", "max_tokens": 64, "tokens_per_batch": 64, "workers": 0, "validation_share": 0.0},
}
# what a value may not name, and what the paragraph says of it
OTHER_CODE = {
    "trap.Adam": "trap.Adam is code of another package",
    "os.system": "os.system is code of another package",
    "subprocess.Popen": "subprocess.Popen is code of another package",
    "torch.os.system": "posix.system is code of another package",
    "torch.utils.data.dataloader.os.system": "posix.system is code of another package",
    "builtins.exec": "builtins.exec is code of another package",
}
FUNCTIONS = ("torch.hub.load", "kyon_pl.cli.main", "kyon_pl.__main__.main", "kyon_pl.training.optimizer.gradient_norm")
SETTINGS = ("model.optimizer", "model.schedule", "trainer.callbacks", "trainer.logger", "trainer.profiler",
            "trainer.strategy", "trainer.plugins", "trainer.accelerator", "model.lora", "held_out")  # fmt: skip


def nested(name: str, value: Any) -> dict[str, Any]:
    for key in reversed(name.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def in_lambda(value: Any) -> list[dict[str, Any]]:
    return [{"class_path": f"{CALLBACKS}.LambdaCallback", "init_args": {"on_fit_start": value}}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    (tmp_path / "trap.py").write_text(TRAP)
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(FIT))
    return tmp_path


def refusal(command: str, settings: dict[str, Any] | list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The paragraph that a config or options are refused with."""
    typed = settings if isinstance(settings, list) else ["--config", "evil.yaml"]
    if isinstance(settings, dict):
        Path("evil.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as stopped:
        main([command, "--config", "fit.yaml", *typed])
    paragraph = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2, paragraph
    assert paragraph.startswith(f"kyon-pl {command}: ")
    assert not Path("sprung").exists()
    assert not Path("called").exists()
    assert not Path("lightning_logs").exists()
    return paragraph


@pytest.mark.parametrize(("setting", "path"), zip(SETTINGS, cycle(OTHER_CODE), strict=False))
def test_a_class_of_another_package(setting: str, path: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = {"class_path": path, "init_args": {"command": "touch called", "anything": {"class_path": "trap.Adam"}}}
    assert OTHER_CODE[path] in refusal("fit", nested(setting, value), capsys)


@pytest.mark.parametrize("path", OTHER_CODE)
def test_a_name_without_class_path(path: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert OTHER_CODE[path] in refusal("fit", nested("model.schedule", path), capsys)
    assert OTHER_CODE[path] in refusal("fit", [f"--trainer.callbacks+={path}"], capsys)


@pytest.mark.parametrize("command", ["validate", "test", "predict", "preview", "doctor"])
def test_every_command(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those that train nothing: preview and doctor import no class at all."""
    for settings in (
        nested("model.optimizer", {"class_path": "trap.Adam"}) | nested("trainer.devices", 1),
        nested("trainer.callbacks", ["trap.Adam"]),
        ["--trainer.logger", json.dumps([{"class_path": "trap.Adam"}])],
    ):
        assert "trap.Adam is code of another package" in refusal(command, settings, capsys)


LAUNCHER = "torch.distributed.launcher.api.elastic_launch"  # its instances start a program when they are called


@pytest.mark.parametrize("path", ["os.system", "trap.function", "torch.os.system", FUNCTIONS[0], LAUNCHER])
def test_what_is_called_later(path: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An argument of an allowed class may be a function by its type; from a config it is none."""
    config = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 1}
    instance = {"class_path": path, "init_args": {"config": config, "entrypoint": "/bin/true"}}
    value = instance if path == LAUNCHER else path
    paragraph = refusal("fit", nested("trainer.callbacks", in_lambda(value)), capsys)
    assert "trainer.callbacks.init_args.on_fit_start: " in paragraph


@pytest.mark.parametrize("path", FUNCTIONS)
def test_a_function_in_place_of_a_class(path: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for setting, value in (("model.optimizer", {"class_path": path}), ("model.schedule", path)):
        assert f"{setting}: " in refusal("fit", nested(setting, value), capsys)


def test_no_config_widens_this(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "a config file cannot allow code" in refusal("fit", {"allow_code": "trap"}, capsys)
    (folder / "inner.yaml").write_text("class_path: trap.Adam\n")
    assert "a config cannot include another" in refusal("fit", {"config": "inner.yaml"}, capsys)
    (folder / "model.yaml").write_text("optimizer: {class_path: trap.Adam}\n")
    assert "trap.Adam is code" in refusal("fit", ["--model", "model.yaml"], capsys)
    assert "trap.Adam is code" in refusal("fit", ["--trainer.callbacks.help", "trap.Adam"], capsys)
    assert "is not a module" in refusal("fit", ["--allow_code", "jsonargparse"], capsys)
    assert "is not a module" in refusal("fit", ["--allow_code", "trap;os"], capsys)


@pytest.mark.slow
def test_allowed_code_is_named_each_time(folder: Path) -> None:
    """It is not in the config of the run, so that resuming asks for it again."""
    evil = {"model": {"optimizer": {"class_path": "trap.Adam", "init_args": {"lr": 1e-3}}}}
    (folder / "evil.yaml").write_text(yaml.safe_dump(evil))
    words = [sys.executable, "-m", "kyon_pl", "fit", "--config", "fit.yaml", "--config", "evil.yaml"]
    words += ["--trainer.callbacks+=trap.Hook"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*words, *more], capture_output=True, text=True, timeout=HANG_S, cwd=folder)

    allowed = run("--allow_code", "trap")
    assert allowed.returncode == 0, allowed.stderr
    assert (folder / "sprung").exists()
    [saved] = folder.glob("lightning_logs/version_0/config.yaml")
    assert "trap.Adam" in saved.read_text()
    assert "allow_code" not in saved.read_text()
    words[4:] = ["--config", str(saved)]
    again = run("--ckpt_path", "last", "--trainer.max_steps", "2", "--allow_changed_settings", "true")
    assert again.returncode == 2
    assert "add --allow_code trap to the command line. No config stores that: add it again" in again.stderr
