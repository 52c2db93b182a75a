"""`kyon-pl merge` as it is typed: a GLM that needs no kyon_pl, and nothing half-written wherever it is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from limits import HANG_S
from peft import LoraConfig, PeftModel

from kyon_pl import ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.cli import main
from kyon_pl.demo import ASSETS, BASE
from kyon_pl.lora import attach_lora, trainable_names, write_adapter

PROMPTS = [
    json.loads(line)["context"]
    for line in (ASSETS / "validation.jsonl").read_text(encoding="utf-8").splitlines()[::3][:20]
]
MESSAGES = [{"role": "user", "content": "who are you? [gMASK]sop"}]
WITHOUT_KYON = """
import json, sys
sys.modules["kyon_pl"] = None  # importing it fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
given = json.load(sys.stdin)
text = tokenizer.apply_chat_template(given["messages"], add_generation_prompt=True, tokenize=False)
prompts = [tokenizer(prompt, return_tensors="pt") for prompt in [*given["prompts"], text]]
replies = [model.generate(**p, max_new_tokens=12, do_sample=False)[0, p.input_ids.shape[1] :] for p in prompts]
print(json.dumps({
    "model": type(model).__name__,
    "prompts": [prompt.input_ids[0].tolist() for prompt in prompts],
    "replies": [reply.tolist() for reply in replies],
    "texts": [tokenizer.decode(reply, skip_special_tokens=True) for reply in replies],
}))
"""


@pytest.fixture(scope="module")
def live() -> PeftModel:
    """The demo's base in float32, so that no two logits are equal, with a random adapter that changes what it says."""
    torch.manual_seed(0)
    base = ChatGLM2ForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = attach_lora(base, LoraConfig(r=8, target_modules=["query_key_value", "dense"]), "demo").eval()
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


@pytest.fixture(scope="module")
def adapter(live: PeftModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    trained = trainable_names(live)
    write_adapter(live, {name: value for name, value in live.state_dict().items() if name in trained}, folder)
    return folder


def test_glm_without_kyon_pl_goes_on_in_the_same_way(live: PeftModel, adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "glm"
    main(["merge", "--adapter", str(adapter), "--format", "glm", "--dtype", "float32", "--output", str(folder)])
    given = json.dumps({"prompts": PROMPTS, "messages": MESSAGES})
    command = [sys.executable, "-c", WITHOUT_KYON, str(folder)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    tokenizer = ChatGLMTokenizer.from_pretrained(BASE)
    chat = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    prompts = [*(tokenizer.encode(prompt) for prompt in PROMPTS), chat]
    assert found["prompts"] == prompts
    settings = {"max_new_tokens": 12, "do_sample": False}
    replies = [live.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist() for ids in prompts]
    assert found["replies"] == replies
    assert found["texts"] == [tokenizer.decode(reply) for reply in replies]
    assert found["model"] == "GlmForCausalLM"
    with live.disable_adapter():
        base = [live.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist() for ids in prompts[:5]]
    assert base != replies[:5]  # the adapter is heard


def test_killed_in_the_middle_leaves_nothing_that_could_be_used(adapter: Path, tmp_path: Path) -> None:
    output, side = tmp_path / "merged", tmp_path / ".merged.writing"
    words = ["merge", "--adapter", str(adapter), "--output", str(output)]
    # what the command calls: without the command line's imports it starts in half the time
    code = f"from pathlib import Path; from kyon_pl.export.merge import merge; merge(Path('{output}'), '{adapter}')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + HANG_S
    while not side.is_dir() and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == {side.name, ".merged.lock"}

    main(words)
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    assert (output / "kyon_pl.json").is_file()


def test_the_last_line_says_where_and_a_second_merge_overwrites_nothing(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["merge", "--adapter", str(adapter), "--output", "merged"]
    main(words)
    *_, wrote, following = capsys.readouterr().err.strip().splitlines()
    assert wrote.startswith("wrote merged: demo and adapter as chatglm")
    assert following == "next: kyon-pl chat --adapter merged"
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "nothing is overwritten" in capsys.readouterr().err.strip().splitlines()[-1]
