"""The literal command of the README against a Hub: real ids, the published layout, and code that must not run."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

from hub_server import HubServer, hub_environment
from published_layout import tiny_config, write_published_layout

from kyon_pl import ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import ASSETS, BASE

ROOT = Path(__file__).parents[2]
COMMAND = "kyon-pl fit --config configs/lora.yaml"


def test_reference_command_trains_from_the_hub(tmp_path: Path) -> None:
    vocabulary = len(ChatGLMTokenizer.from_pretrained(BASE))
    model, data = tmp_path / "model", tmp_path / "data"
    base = ChatGLM2ForCausalLM(tiny_config(padded_vocab_size=vocabulary + 11))
    write_published_layout(model, base, tokenizer_model=BASE / "tokenizer.model")
    assert len(list(model.glob("pytorch_model-*.bin"))) == 7
    assert len(list(model.glob("*.py"))) >= 2  # each raises if it is run
    data.mkdir()
    with (ASSETS / "train.jsonl").open(encoding="utf-8") as rows:
        (data / "train.jsonl").write_text("".join(islice(rows, 80)), encoding="utf-8")
    (tmp_path / "configs").symlink_to(ROOT / "configs")

    served = {"models": {"THUDM/chatglm2-6b": model}, "datasets": {"silk-road/Chat_Suzumiya_Fusion": data}}
    with HubServer(**served) as hub:
        words = [*COMMAND.split()[1:], "--trainer.precision", "32-true", "--trainer.accelerator", "cpu"]
        run = subprocess.run(
            [sys.executable, "-m", "kyon_pl", *words],
            cwd=tmp_path,
            env=hub_environment(hub, tmp_path / "home"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert run.returncode == 0, run.stderr[-3000:]
    said = ("80 rows in silk-road/Chat_Suzumiya_Fusion", "base: THUDM/chatglm2-6b", "last adapter:", "next: kyon-pl")
    for words in said:
        assert words in run.stderr, run.stderr[-3000:]
    checkpoints = tmp_path / "lightning_logs/version_0/checkpoints"
    (adapter,) = (folder for folder in checkpoints.iterdir() if folder.is_dir() and folder.name.startswith("step="))
    files = {file.name for file in adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "config.yaml", "tokenizer.model"} <= files
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "THUDM/chatglm2-6b"
    assert not [file for file in (tmp_path / "home").rglob("*.py") if file.stat().st_size]
