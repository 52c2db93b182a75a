"""Two machines of two ranks each, as torchrun starts them, on the loopback interface: one run, one download each."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hub_server import HubServer, hub_environment
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from limits import HANG_S
from published_layout import tiny_config, write_published_layout

from kyon_pl import ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import ASSETS, BASE

ROOT = Path(__file__).parents[2]
MODEL, DATA = "THUDM/chatglm2-6b", "silk-road/Chat_Suzumiya_Fusion"
NODES, RANKS = 2, 4


def command(port: int) -> list[str]:
    torchrun = ["--nnodes", str(NODES), "--nproc-per-node", str(RANKS // NODES), "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test", "--local-addr", "127.0.0.1"]
    fit = ["--config", str(ROOT / "configs/lora.yaml"), "--data.tokens_per_step", "8192"]
    fit += ["--trainer.num_nodes", str(NODES), "--trainer.devices", str(RANKS // NODES)]
    fit += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    fit += ["--data.workers", "0", "--data.processes", "1", "--held_out", "null", "--trainer.max_epochs", "1"]
    return [sys.executable, "-m", "torch.distributed.run", *torchrun, "-m", "kyon_pl", "fit", *fit]


@pytest.mark.slow
def test_two_nodes(tmp_path: Path) -> None:
    vocabulary = len(ChatGLMTokenizer.from_pretrained(BASE))
    model, data = tmp_path / "model", tmp_path / "data"
    base = ChatGLM2ForCausalLM(tiny_config(padded_vocab_size=vocabulary + 11))
    write_published_layout(model, base, tokenizer_model=BASE / "tokenizer.model")
    data.mkdir()
    with (ASSETS / "train.jsonl").open(encoding="utf-8") as rows:
        (data / "train.jsonl").write_text("".join(islice(rows, 200)), encoding="utf-8")
    words = command(find_free_network_port())
    with HubServer({MODEL: model}, {DATA: data}) as hub:
        homes = [hub_environment(hub, tmp_path / f"home_{node}") for node in range(NODES)]
        said = [tmp_path / f"node_{node}.txt" for node in range(NODES)]
        nodes = [
            subprocess.Popen(words, cwd=tmp_path, env=env, stdout=file, stderr=file)
            for env, file in zip(homes, (path.open("w") for path in said), strict=True)
        ]
        try:
            statuses = [node.wait(timeout=HANG_S) for node in nodes]
        finally:
            for node in nodes:
                node.terminate()
        bodies = Counter(request.path for request in hub.asked("GET /large-files/*"))
    told = [path.read_text() for path in said]
    assert statuses == [0, 0], "\n".join(text[-3000:] for text in told)
    assert len(bodies) >= 7  # the shards of the base
    assert set(bodies.values()) == {NODES}, bodies
    for words_of_one in ("training from optimizer step 0 on", "last adapter:", "next: kyon-pl chat"):
        assert sorted(text.count(words_of_one) for text in told) == [0, 1]
    assert sorted("Epoch 0" in text for text in told) == [False, True]  # the progress bar
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]
    run = tmp_path / "lightning_logs/version_0"
    assert len(list(run.glob("events.out.*"))) == 1
    assert f"ranks: {RANKS} with equal settings" in (run / "run.log").read_text()
    assert len(list(run.glob("checkpoints/step=*/COMPLETE"))) == 1
