"""A base that was a folder when it was recorded: found from any other folder, and never looked up on the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kyon_pl.cli import main
from kyon_pl.demo import BASE, name_to_record
from kyon_pl.errors import MissingFileError
from kyon_pl.runs.adapters import adapter_base

FIT = """
seed_everything: 1
trainer: {accelerator: cpu, max_steps: 1, enable_progress_bar: false, num_sanity_val_steps: 0}
model: {base: models/base, lora: {r: 2, lora_alpha: 4, target_modules: [query_key_value]}}
data: {source: rows.jsonl, validation_share: 0.0, max_tokens: 64, tokens_per_batch: 64, workers: 0}
"""
CHAT = ["chat", "--which", "last", "-p", "a", "--max_new_tokens", "1", "--adapter"]
RUN = "lightning_logs/version_0"


def recorded(adapter: Path) -> str:
    base: str = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    return base


def record(adapter: Path, base: str) -> None:
    content = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": base}
    (adapter / "adapter_config.json").write_text(json.dumps(content))


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The adapter of a run whose base was given as a relative folder; the current folder is another one then."""
    (tmp_path / "there").mkdir()
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    shutil.copytree(BASE, "models/base")
    Path("fit.yaml").write_text(FIT)
    Path("rows.jsonl").write_text('{"context": "a###b", "target": "c"}\n')
    main(["fit", "--config", "fit.yaml"])
    monkeypatch.chdir(tmp_path / "away")
    monkeypatch.setattr("kyon_pl.hub.download.snapshot_download", refuse)
    return tmp_path / "there" / RUN / "checkpoints/step=1"


def refuse(*words: object, **named: object) -> str:
    raise AssertionError("the Hub was asked")


def test_relative_base_is_recorded_as_an_absolute_folder(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "there/models/base"
    assert recorded(trained) == str(base)
    main([*CHAT, f"../there/{RUN}"])
    main(["merge", "--which", "last", "--adapter", f"../there/{RUN}", "--output", "merged"])
    record_of_merge = json.loads(Path("merged/kyon_pl.json").read_text())
    assert (record_of_merge["base"], record_of_merge["adapter"]) == (str(base), str(tmp_path / "there" / RUN))

    # recorded by an earlier version: relative to where the run was started, above the adapter
    record(trained, "models/base")
    main([*CHAT, f"../there/{RUN}"])
    assert f"base: {base}" in capsys.readouterr().err.replace("../there", str(tmp_path / "there"))

    base.rename(tmp_path / "moved")
    for name in (str(base), "~/no/base", "./models/base", "../models/base", "base"):
        record(trained, name)
        with pytest.raises(SystemExit) as stopped:
            main([*CHAT, f"../there/{RUN}"])
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert stopped.value.code == 2
        assert "there is no folder" in last, last
        assert "--base" in last
    main([*CHAT, f"../there/{RUN}", "--base", str(tmp_path / "moved")])


@pytest.mark.parametrize("name", ["demo", "THUDM/chatglm2-6b", "nothing/here", "nobody"])
def test_other_names_are_recorded_unchanged(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()  # `demo` means the embedded base all the same
    assert name_to_record(name) == name


def test_pushed_adapter_names_no_folder_of_this_machine(trained: Path) -> None:
    from kyon_pl.publish.push import _additions, base_name

    base = base_name(trained)
    sent = next(
        file for file in _additions(trained, ["adapter_config.json"], "", base) if "config" in file.path_in_repo
    )
    assert isinstance(sent.path_or_fileobj, bytes)
    assert json.loads(sent.path_or_fileobj)["base_model_name_or_path"] == "base"
    record(trained, "base")
    shutil.rmtree(str(base))
    with pytest.raises(MissingFileError, match="there is no folder 'base'"):
        adapter_base(trained)
