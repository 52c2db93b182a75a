"""The examples run as they are written, and their results are what they print."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adapters_made import written_adapter
from limits import HANG_S
from peft import PeftModel

from kyon_pl import ChatGLM2ForCausalLM, ChatGLMTokenizer
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


def printed(example: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What an example prints, run in this process."""
    monkeypatch.setattr(sys, "argv", [example, *words])
    runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name="__main__")
    return capsys.readouterr().out


def lines(text: str) -> dict[str, str]:
    """The lines `NAME: TEXT`."""
    return dict(line.split(": ", 1) for line in text.splitlines())


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("adapters")
    found = [str(written_adapter(kind, folder / kind)) for kind in ("fused", "rsLoRA")]
    tokenizer = ChatGLMTokenizer.from_pretrained(BASE)
    for adapter in found:
        tokenizer.save_pretrained(adapter)
    return found


def test_inference(adapters: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    replies = lines(printed("inference", adapters[:1], monkeypatch, capsys))
    assert replies["merged"] == replies["adapter"]
    assert replies["base"] not in ("", replies["adapter"])


def test_streaming(adapters: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    streamed, iterated, *_ = printed("streaming", adapters[:1], monkeypatch, capsys).splitlines()
    assert streamed == iterated != ""


def test_several_adapters(
    adapters: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = lines(printed("several_adapters", adapters, monkeypatch, capsys))
    assert len({replies["one"], replies["another"], replies["both"]}) == 3
    assert (replies["one in a batch"], replies["another in a batch"]) == (replies["one"], replies["another"])


@pytest.mark.slow
def test_hf_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    said = printed("hf_trainer", [], monkeypatch, capsys)
    losses = [float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", said)]
    assert len(losses) == 4, said
    assert losses[-1] < losses[0] / 2, losses
    base = ChatGLM2ForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    weights = PeftModel.from_pretrained(base, tmp_path / "adapter").named_parameters()
    assert all(weight.count_nonzero() for name, weight in weights if "lora_B" in name)
