"""A base and rows of ModelScope, from `fit` to a reply, and once more without a network."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest
from huggingface_hub import constants
from modelscope_server import ModelScopeServer

from kyon_pl.cli import main
from kyon_pl.demo import ASSETS

BASE = "modelscope:ZhipuAI/chatglm2-6b"
RUN = Path("lightning_logs/version_0")
SHORT = ["--trainer.max_steps", "2", "--trainer.num_sanity_val_steps", "0", "--trainer.enable_progress_bar", "false"]
SHORT += ["--held_out", "null", "--data.validation_source", "null"]


def base_finding(capsys: pytest.CaptureFixture[str]) -> str:
    """What the doctor, which downloads nothing, finds about the base."""
    with suppress(SystemExit):  # before the download, this machine is too small for it
        main(["doctor", "--config", "demo", "--model.base", BASE, "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]["config"]
    return next(str(finding["found"]) for finding in findings if finding["name"] == "base")


@pytest.mark.slow
def test_from_fit_to_a_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ASSETS / "base", "base")
    Path("rows").mkdir()
    with (ASSETS / "train.jsonl").open(encoding="utf-8") as rows:
        Path("rows/train.jsonl").write_text("".join(islice(rows, 60)), encoding="utf-8")
    with ModelScopeServer({"ZhipuAI/chatglm2-6b": Path("base")}, {"org/rows": Path("rows")}) as server:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.endpoint)
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
        assert f"12.5 GB to download, into {tmp_path}/cache" in base_finding(capsys)
        main(["fit", "--config", "demo", "--model.base", BASE, "--data.source", "modelscope:org/rows", *SHORT])
    said = capsys.readouterr().err
    assert "data: 60 rows in " in said
    assert f"base: {BASE}" in said
    settings = next(RUN.glob("checkpoints/*/adapter_config.json")).read_text(encoding="utf-8")
    assert json.loads(settings)["base_model_name_or_path"] == BASE

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    main(["chat", "-p", "钟楼在哪里？", "--max_new_tokens", "8"])
    assert capsys.readouterr().out.strip()
    assert base_finding(capsys).startswith(f"{BASE}, 1.8 million parameters: {tmp_path}/cache/")
