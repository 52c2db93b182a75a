"""What ranks exchange in an optimizer step: the adapter's gradients, two scalars, and Lightning's word of SIGTERM; and
where they share out the base, its frozen weights.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from runs import ACCUMULATE, SHAPE, ForkServers, Way, only_run, write_inputs

from kyon_pl.chatglm2 import ChatGLM2Config

OVERLAYS = Path(__file__).parents[2] / "configs/overlay"


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["ddp", "fsdp"])
def test_gradients_and_two_scalars(overlay: str, servers: ForkServers, tmp_path: Path) -> None:
    folder, way = tmp_path / "inputs", Way(2)
    write_inputs(folder, way)
    settings = yaml.safe_load((folder / "run.yaml").read_text())
    settings["trainer"]["callbacks"].append({"class_path": "count_bytes.CountExchanged"})
    settings["trainer"]["log_every_n_steps"] = 100  # an entry costs one small tensor more
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    words = ("--config", str(OVERLAYS / f"{overlay}.yaml"), "--trainer.devices", "2", "--trainer.max_steps", "6")
    statuses, said = servers.fit(folder, way, "", *words)
    assert statuses == [0, 0], said[-3000:]
    saved = torch.load(only_run(folder) / "checkpoints/step=6.ckpt", weights_only=True)["state_dict"]
    trained = sum(tensor.numel() for tensor in saved.values())
    found = Counter(tuple(exchange) for exchange in json.loads((folder / "exchanged.json").read_text()))
    gathered = sum(kind[1] * times for kind, times in found.items() if kind[0] == "all_gather")
    frozen = ChatGLM2Config(**{key: value for key, value in SHAPE.items() if key != "model_type"}).parameter_count
    # of a sharded base each rank gives its half twice a micro-batch, forward and backward; the last norm only once
    assert gathered == pytest.approx(frozen * ACCUMULATE if overlay == "fsdp" else 0, rel=1e-2)
    assert {kind: times for kind, times in found.items() if kind[0] != "all_gather"} == {
        ("all_reduce", trained): 1,  # float32
        ("all_reduce", 1): 2,  # whether a loss is not finite, 4 bytes; whether a signal came, 8 bytes
        ("broadcast", 1): ACCUMULATE,  # Lightning's, 8 bytes a micro-batch; no setting turns it off
    }
