"""The literal command of the README against a Hub: real ids, the published layout, code that must not run, and a token
that must not be written anywhere.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from hub_server import HubServer, hub_environment
from limits import HANG_S
from published_layout import tiny_config, write_published_layout
from token_search import files_with, holds

from kyon_pl import ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import ASSETS, BASE

ROOT = Path(__file__).parents[2]
COMMAND = "kyon-pl fit --config configs/lora.yaml"


TOKEN = "hf_0123456789secret"
MODEL, DATA = "THUDM/chatglm2-6b", "silk-road/Chat_Suzumiya_Fusion"


def kyon_pl(*words: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, where its run folder and all that it writes stay."""
    command = [
        sys.executable,
        "-m",
        "kyon_pl",
        *words,
        "--trainer.precision",
        "32-true",
        "--trainer.accelerator",
        "cpu",
    ]
    return subprocess.run(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANG_S
    )


@pytest.mark.slow
def test_reference_command_trains_from_the_hub(tmp_path: Path) -> None:
    vocabulary = len(ChatGLMTokenizer.from_pretrained(BASE))
    model, data, home = tmp_path / "model", tmp_path / "data", tmp_path / "home"
    base = ChatGLM2ForCausalLM(tiny_config(padded_vocab_size=vocabulary + 11))
    write_published_layout(model, base, tokenizer_model=BASE / "tokenizer.model")
    assert len(list(model.glob("pytorch_model-*.bin"))) == 7
    assert len(list(model.glob("*.py"))) >= 2  # each raises if it is run
    data.mkdir()
    with (ASSETS / "train.jsonl").open(encoding="utf-8") as rows:
        (data / "train.jsonl").write_text("".join(islice(rows, 80)), encoding="utf-8")
    (tmp_path / "configs").symlink_to(ROOT / "configs")

    with HubServer({MODEL: model}, {DATA: data}, token=TOKEN, private=(MODEL, DATA)) as hub:
        env = hub_environment(hub, home, token=TOKEN)
        run = kyon_pl(*COMMAND.split()[1:], "--debug", folder=tmp_path, env=env)
        assert run.returncode == 0, run.stderr[-3000:]
        home.joinpath("token").write_text(TOKEN)  # as `hf auth login` does
        env = hub_environment(hub, home) | {"HF_HUB_VERBOSITY": "debug"}
        failed = kyon_pl(*COMMAND.split()[1:], "--debug", "--data.source", "org/none", folder=tmp_path, env=env)
    said = ("80 rows in silk-road/Chat_Suzumiya_Fusion", "base: THUDM/chatglm2-6b", "last adapter:", "next: kyon-pl")
    for words in said:
        assert words in run.stderr, run.stderr[-3000:]
    checkpoints = tmp_path / "lightning_logs/version_0/checkpoints"
    (adapter,) = (folder for folder in checkpoints.iterdir() if folder.is_dir() and folder.name.startswith("step="))
    files = {file.name for file in adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "config.yaml", "tokenizer.model"} <= files
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == MODEL
    assert not [file for file in home.rglob("*.py") if file.stat().st_size]

    assert failed.returncode == 2
    assert "Traceback" in failed.stderr
    assert "dataset org/none at 127.0.0.1" in failed.stderr.splitlines()[-1]
    assert {request.authorized for request in hub.asked("* /api/*")} == {True}
    assert {request.authorized for request in hub.asked("* /large-files/*")} == {False}  # another host
    for printed in (run.stdout, run.stderr, failed.stdout, failed.stderr):
        assert not holds(TOKEN, printed.encode())
    written = {file.suffix for file in (tmp_path / "lightning_logs").rglob("*")}
    assert {".ckpt", ".log", ".yaml", ".safetensors"} <= written
    assert list((tmp_path / "lightning_logs").rglob("events.out.tfevents.*"))
    assert files_with(TOKEN, tmp_path) == [str(home / "token")]
