"""Time and memory of `kyon-pl merge` at the 6B's shape: a random base in the published layout, a random adapter.

python benchmarks/merge_6b.py FOLDER    needs 13 GB there for the base, and 13 more for one merged model at a time
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM
from kyon_pl.demo import BASE
from kyon_pl.lora import reference_lora
from kyon_pl.lora.merge import merge

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from published_layout import published_config

SHARDS = 7
FORMATS = ("chatglm", "glm")


def random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A weight in float16: norms of one, everything else normal."""
    if "layernorm" in name:
        return torch.ones(shape, dtype=torch.float16)
    return torch.empty(shape).normal_(std=0.02, generator=generator).half()


def write_random_base(folder: Path, config: ChatGLM2Config) -> None:
    """Write `config.json`, pickled shards with their index, and a tokenizer; one shard is in memory at a time."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ChatGLM2ForCausalLM(config).state_dict().items()}
    generator, names, weight_map = torch.Generator().manual_seed(0), sorted(shapes), {}
    for number in range(SHARDS):
        file = f"pytorch_model-{number + 1:05d}-of-{SHARDS:05d}.bin"
        held = names[number * len(names) // SHARDS : (number + 1) * len(names) // SHARDS]
        torch.save({name: random_tensor(name, shapes[name], generator) for name in held}, folder / file)
        weight_map |= dict.fromkeys(held, file)
    total_bytes = 2 * sum(shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(published_config(config)))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(BASE / name, folder / name)


def write_random_adapter(folder: Path, base: Path, config: ChatGLM2Config) -> None:
    """The reference run's kind of adapter, of random tensors."""
    settings: LoraConfig = reference_lora()
    with torch.device("meta"):
        model = get_peft_model(ChatGLM2ForCausalLM(config), settings)
    generator = torch.Generator().manual_seed(1)
    shapes = {name: t.shape for name, t in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    settings.base_model_name_or_path = str(base)
    settings.save_pretrained(str(folder))
    tensors = {name: torch.empty(shape).normal_(std=0.02, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def private_bytes() -> int:
    """Memory of this process that is nobody else's and no mapped file."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def measure(folder: Path, form: str) -> None:
    """Merge in this process, and print time and peak."""
    peak_bytes, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak_bytes[0] = max(peak_bytes[0], private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started_s = time.monotonic()
    merge(folder / form, str(folder / "adapter"), format=form)  # type: ignore[arg-type]
    seconds = time.monotonic() - started_s
    done.set()
    watcher.join()
    written_bytes = sum(path.stat().st_size for path in (folder / form).iterdir())
    print(f"{form}: {seconds:.0f} s, peak {peak_bytes[0] / 2**30:.2f} GiB private, {written_bytes / 1e9:.2f} GB")


def main(folder: Path) -> None:
    """Write what is not there yet, and merge into both formats, each in a process of its own."""
    base, config = folder / "base", ChatGLM2Config()
    if not base.is_dir():
        started_s = time.monotonic()
        write_random_base(base, config)
        print(f"base: {time.monotonic() - started_s:.0f} s", flush=True)
    if not (folder / "adapter").is_dir():
        write_random_adapter(folder / "adapter", base, config)
    for form in FORMATS:
        subprocess.run([sys.executable, __file__, str(folder), form], check=True)
        shutil.rmtree(folder / form)


if __name__ == "__main__":
    if sys.argv[2:]:
        measure(Path(sys.argv[1]), sys.argv[2])
    else:
        main(Path(sys.argv[1]))
