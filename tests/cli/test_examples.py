"""The examples run as they are written, and their results are what they print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from limits import HANG_S
from peft import PeftModel

from kyon_pl import ChatGLM2ForCausalLM
from kyon_pl.demo import BASE

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_train_learns_and_writes_an_adapter_that_peft_loads(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "train.py")]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    losses = [float(loss) for loss in re.findall(r"^step \d+: val/loss ([\d.]+)$", run.stdout, re.MULTILINE)]
    assert len(losses) == 3, run.stdout
    assert losses[-1] < losses[0] / 4, losses
    assert re.search(r"^reply: .*阿砚", run.stdout, re.MULTILINE), run.stdout
    (folder,) = re.findall(r"^adapter: (.+)$", run.stdout, re.MULTILINE)

    base = ChatGLM2ForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, tmp_path / folder).eval()(ids).logits
    assert not torch.equal(before, after)


@pytest.mark.slow
def test_the_code_of_the_library_page_runs_as_it_is_written(tmp_path: Path) -> None:
    page = (EXAMPLES.parent / "docs/library.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    base = ChatGLM2ForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    weights = PeftModel.from_pretrained(base, tmp_path / "adapter").named_parameters()
    assert all(weight.count_nonzero() for name, weight in weights if "lora_B" in name)
