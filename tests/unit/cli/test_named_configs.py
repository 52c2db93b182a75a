"""A config by its name, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from kyon_pl.cli.settings import CONFIGS, names, with_named_configs
from kyon_pl.errors import SettingError

ROOT = Path(__file__).parents[3]


def test_the_package_has_all_of_them() -> None:
    there = {path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in ROOT.glob("configs/**/*.yaml")}
    assert set(names()) == there
    assert (CONFIGS / "lora.yaml").read_bytes() == (ROOT / "configs/lora.yaml").read_bytes()


def test_names_become_paths_and_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("seed").write_text("a file of the reader's own", encoding="utf-8")
    lora, ddp = f"{CONFIGS}/lora.yaml", f"{CONFIGS}/overlay/ddp.yaml"
    words = ["fit", "--config", "lora", "-c", "configs/overlay/ddp.yaml", "--config=lora", "--config", "seed"]
    assert with_named_configs(words) == ["fit", "--config", lora, "-c", ddp, f"--config={lora}", "--config", "seed"]
    others = ["fit", "lora", "--data.source", "demo", "--config", "lorax", "--config", "../lora", "--config"]
    assert with_named_configs(others) == others


def test_a_missing_file_is_said_before_a_parser_is_there() -> None:
    for slip in ("configs/demo.yml", "demos.yaml"):
        with pytest.raises(SettingError, match=f"there is no file '{slip}'.*Did you mean 'demo'"):
            with_named_configs(["fit", "--config", slip])
    assert with_named_configs(["fit", "--config", "demo.txt"])[-1] == "demo.txt"
