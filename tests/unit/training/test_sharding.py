"""Of a base that ranks share, each rank reads its own share of the files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from limits import HANG_S
from published_layout import tiny_config, write_published_layout
from safetensors.torch import save_file

from kyon_pl import ChatGLM2ForCausalLM

RANK = Path(__file__).with_name("read_share.py")
SLACK_BYTES = 8 * 2**20  # headers and configurations, and pages around the shares, which the kernel maps with them


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's counts are those of Linux")
def test_a_rank_reads_its_share_of_the_files(tmp_path: Path) -> None:
    """Safetensors, and pickled shards; half of 55 MB on each of two ranks."""
    torch.manual_seed(0)
    config = tiny_config(num_layers=1, hidden_size=1024, ffn_hidden_size=8192, kv_channels=128)
    model = ChatGLM2ForCausalLM(config).half()
    pickled, safe = tmp_path / "pickled", tmp_path / "safe"
    write_published_layout(pickled, model)
    safe.mkdir()
    (safe / "config.json").write_bytes((pickled / "config.json").read_bytes())
    save_file(model.state_dict(), safe / "model.safetensors")
    ranks = [
        subprocess.Popen(
            [sys.executable, RANK, str(rank), tmp_path / "store", tmp_path / f"{rank}.json", pickled, safe]
        )
        for rank in (0, 1)
    ]
    assert [rank.wait(HANG_S) for rank in ranks] == [0, 0]
    for rank in (0, 1):
        for found in json.loads((tmp_path / f"{rank}.json").read_text()):
            assert found["right"]
            assert found["base"] > 6 * SLACK_BYTES
            read = found["mapped"] + found["read"]
            assert 0.4 * found["base"] < read < 0.5 * found["base"] + SLACK_BYTES, found
