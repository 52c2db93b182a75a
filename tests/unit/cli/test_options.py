"""Unknown options and keys are refused from the table; whatever the parser of fit takes is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kyon_pl.cli import options
from kyon_pl.cli.commands import check_names
from kyon_pl.cli.options import help_text, options_of, read_table
from kyon_pl.errors import SettingError

ROOT = Path(__file__).parents[3]
LORA = str(ROOT / "configs/lora.yaml")
CLASS = "trainer:\n  callbacks+:\n  - class_path: a.B\n    init_args: {anything: {at: all}}\n"

TAKEN = {
    "the ways to name a config": [f"-c={LORA}", f"--config={LORA}", f"-c{LORA}", "--config", LORA],
    "a section as a file": ["--trainer", "trainer.yaml", "--model=model.yaml"],
    "keys of LoRA": ["--model.lora.r", "8", "--model.lora.init_args.r=8", "--model.lora.rank_pattern.x", "4"],
    "help on a class": ["--model.lora.help", "peft.LoraConfig", "--trainer.callbacks.help=StepCheckpoint"],
    "a list that grows": ["--trainer.callbacks+=a.B", "--trainer.callbacks.scheduling", "1", "--data.source+", "x"],
    "arguments of a class": [
        "--model.optimizer.init_args.lr",
        "1",
        "--model.optimizer.lr=1",
        "--trainer.logger.a=x",
    ],
    "keyword arguments": ["--trainer.strategy.dict_kwargs.anything", "1", "--trainer.max_time.days=1"],
    "what is no setting": ["--print_config", "--print_config=skip_null", "--ckpt_path=last", "--held_out.fit_rows=1"],
    "a value like an option": ["--data.name", "-5", "--data.name", "--my name", "--", "--anything"],
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_the_parser_takes_is_not_refused(name: str) -> None:
    check_names(["fit", *TAKEN[name]])


@pytest.mark.parametrize(
    ("typed", "where", "fix"),
    [
        (["--trainer.max_epoch", "3"], "trainer.max_epoch", "'trainer.max_epochs'"),
        (["--trainer.max_epoch=3"], "trainer.max_epoch", "'trainer.max_epochs'"),
        (["--data.sorce+=x"], "data.sorce", "'data.source'"),
        (["--data.source.x=1"], "data.source.x", "'data.source'"),
        (["--model.lora.rank=8"], "model.lora.rank", "model.lora"),
        (["--held_out.row=8"], "held_out.row", "held_out"),
        (["--zzz"], "zzz", "kyon-pl fit --help all"),
        (["--model.trust_remote_code=true"], "model.trust_remote_code", "Leave trust_remote_code out"),
    ],
)
def test_slips_are_refused_with_what_was_meant(typed: list[str], where: str, fix: str) -> None:
    with pytest.raises(SettingError, match=f"^{where}: .*{fix}"):
        check_names(["fit", *typed])


@pytest.mark.parametrize("config", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("command", ["fit", "predict", "preview", "doctor"])
def test_no_config_of_the_package_is_refused(config: Path, command: str) -> None:
    check_names([command, "--config", str(config)])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model:\n  bas: x\n", "line 2: model.bas"),
        ("trainer.max_epoch: 3\n", "line 1: trainer.max_epoch"),
        ("data:\n  source: x\nmodel:\n  lora:\n    rank: 3\n", "line 5: model.lora.rank"),
        ("seed_everythin: 1\n", "line 1: seed_everythin"),
        (CLASS + "modle: {}\n", "line 5: modle"),
        (CLASS, None),
        ("model: {lora: {class_path: a.B, init_args: {x: 1}}}\nckpt_path: x\nconfig: null\n", None),
        ("trainer:\n  <<: &more {max_epochs: 3}\n  devices: 2\n", None),
        ("trainer:\n  <<: &more {max_epoch: 3}\n", "line 2: trainer.max_epoch"),
        ("trainer.strategy.init_args.timeout: x\nmodel: {optimizer: {lr: 1}}\n", None),
    ],
)
def test_keys_of_a_file(text: str, line: str | None, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    if line is None:
        check_names(["fit", f"--config={file}"])
        return
    with pytest.raises(SettingError, match=f"mine.yaml, {line}: there is no such setting"):
        check_names(["fit", f"--config={file}"])


def test_with_another_lightning_its_keys_are_left_to_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "version", lambda name: "99")
    check_names(["fit", "--trainer.new_in_99=1", "--model.lora.new_in_99=1"])
    with pytest.raises(SettingError, match=r"data\.sorce"):
        check_names(["fit", "--data.sorce=x"])


def test_other_spellings_are_known() -> None:
    check_names(["chat", "-p", "x", "--json", "--compare=false"])
    check_names(["push", "--dry-run", "--repo_id=x"])
    check_names(["report", "a", "b", "--output", "c"])


def test_help_of_fit_fits_two_screens_and_has_what_the_reference_run_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    lines = help_text(["fit", "--help"]).splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 120
    reference = yaml.safe_load((ROOT / "configs/lora.yaml").read_text(encoding="utf-8"))
    for section in ("model", "data", "held_out"):
        for key in reference[section]:
            assert any(line.startswith(f"  --{section}.{key} ") for line in lines), key
    assert [line for line in lines if line.endswith(":")][-1].startswith("trainer")


def test_all_of_the_help_has_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in read_table()["commands"]:
        text = help_text([command, "--help", "all"])
        assert [name for name in options_of(command) if f"  --{name}" not in text] == []
