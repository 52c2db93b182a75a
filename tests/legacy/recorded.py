"""What `make_artefacts.py` records of a version and `test_legacy.py` measures again."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

RUN = "lightning_logs/version_0"
CHECKPOINT = f"{RUN}/checkpoints/step=45.ckpt"  # the newest one of the interrupted run
FINISHED = "finished/step=60"  # the adapter of the undisturbed run
FIT = ["fit", "--config", "run.yaml"]
VALIDATE = ["validate", "--config", f"{RUN}/config.yaml", "--ckpt_path", CHECKPOINT, "--trainer.logger", "false"]
QUESTIONS = {
    "demo role": ["--character", "demo", "--asker", "南枝", "--prompt", "谁在照看磨坊？"],
    "no role": ["--prompt", "你是绵卷。###照看磨坊的是阿暖。###南枝:「谁在照看磨坊？」"],
}
FORMATS = ("chatglm", "glm")


def chat_words(adapter: str, question: str) -> list[str]:
    """The command that asks one of `QUESTIONS`."""
    return [
        "chat",
        "--adapter",
        adapter,
        *QUESTIONS[question],
        "--max_new_tokens",
        "32",
        "--temperature",
        "0",
        "--json",
    ]


def merge_words(format: str, output: str) -> list[str]:
    """The command that merges the finished adapter."""
    return ["merge", "--adapter", FINISHED, "--format", format, "--dtype", "float32", "--output", output]


def convert_words(output: str) -> list[str]:
    """The command that converts the finished adapter."""
    return ["convert-adapter", "--adapter", FINISHED, "--to", "glm", "--output", output]


def printed_loss(output: str) -> float:
    """The `val/loss` in the table that `validate` prints."""
    match = re.search(r"val/loss\D+([\d.]+)", output)
    assert match, output
    return float(match[1])


def sha256_of_file(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def sha256_of_tensors(folder: Path) -> str:
    """SHA-256 of all tensors in a folder's safetensors files, in order of their names: name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def hardware() -> dict[str, str]:
    """What the last bits of a result depend on; two runs give the same bytes where these are equal."""
    return {"torch": torch.__version__, "cpu": cpu_model(), "cpu capability": torch.backends.cpu.get_cpu_capability()}


def cpu_model() -> str:
    """Name, family and model of the CPU in /proc/cpuinfo; `unknown` where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    return ", ".join(f"{key} {found[key]}" for key in ("model name", "cpu family", "model") if key in found)
