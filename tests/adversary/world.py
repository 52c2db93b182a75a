"""The healthy inputs that attacks damage: every kind of file that a command reads, made once by the commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import torch
import yaml
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from kyon_pl.demo import BASE
from kyon_pl.demo.corpus import role_memories
from kyon_pl.demo.grammar import CHARACTERS

Run = Callable[[list[str], Path], None]
"""Runs a command line in a folder."""

CONFIG = {
    "seed_everything": 1,
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 1,
        "limit_val_batches": 1,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {"monitor": "val/loss", "filename": "best-{step}", "auto_insert_metric_name": False},
            }
        ],
    },
    "model": {
        "base": "demo",
        "checkpointing": "none",
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["query_key_value"]},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e-3}},
    },
    "data": {
        "source": "../in/rows.jsonl",
        "validation_source": "../in/rows.jsonl",
        "max_tokens": 128,
        "tokens_per_batch": 128,
        "workers": 0,
        "processes": 1,
    },
    "held_out": {"fit_rows": 1, "validate_rows": 1, "max_new_tokens": 2},
}
ROWS = [{"context": f"You are Bo.###Ann:「question {n}」", "target": f"Bo:「answer {n}」"} for n in range(8)]
DIALOGUES = [
    {
        "dialogue": [{"role": "Ann", "text": f"「question {n}」"}, {"role": "Bo", "text": f"「answer {n}」"}],
        "source": "x",
    }
    for n in range(4)
]


class World:
    """Makes the inputs in a folder.

    Args:
        folder: of the inputs; each is a file or folder in it.
        run: runs a command line.
    """

    def __init__(self, folder: Path, run: Run) -> None:
        self.folder = folder
        self.run = run

    def make(self) -> None:
        """Make all inputs. They are in `in`; the commands run in `out`, as those of an attempt do."""
        place = self.folder / "in"
        place.mkdir(parents=True)
        (self.folder / "out").mkdir()
        (place / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
        make_rows(place)
        make_role(place / "roles/Bo")
        (place / "dialogues.jsonl").write_text(json_lines(DIALOGUES), encoding="utf-8")
        make_bases(place)
        words = ["fit", "--config", "../in/config.yaml", "--data.cache_dir", "../in/cache"]
        self.run([*words, "--trainer.default_root_dir", "../in/runs"], self.folder / "out")
        (run,) = (place / "runs/lightning_logs").iterdir()
        shutil.copytree(run / "checkpoints/step=1", place / "adapter")
        shutil.copytree(place / "adapter", place / "bin_adapter")
        torch.save(load_file(place / "bin_adapter/adapter_model.safetensors"), place / "bin_adapter/adapter_model.bin")
        (place / "bin_adapter/adapter_model.safetensors").unlink()
        (place / "bin_adapter/COMPLETE").unlink()
        for format in ("glm", "chatglm"):
            words = ["merge", "--format", format, "--adapter", "../in/adapter", "--output", f"../in/{format}"]
            self.run(words, self.folder / "out")

    def healthy(self) -> list[list[str]]:
        """One command line of each kind that succeeds in `out` and is quick."""
        fit = "--config ../in/config.yaml --data.cache_dir ../home/cache"
        return [
            line.split()
            for line in (
                f"fit {fit} --trainer.default_root_dir ../home/runs",
                f"validate {fit} --trainer.default_root_dir ../home/runs",
                f"preview {fit} --rows 1",
                f"doctor {fit}",
                "chat --adapter ../in/adapter --prompt hi --max_new_tokens 2",
                "chat --adapter ../in/glm --prompt hi --max_new_tokens 2",
                "merge --adapter ../in/adapter --output ../home/merged",
                "convert-adapter --adapter ../in/adapter --output ../home/converted",
                "push --adapter ../in/adapter --repo_id me/x --dry_run true",
                "build-data --characters ../in/roles/Bo --output ../home/rows.jsonl",
            )
        ]

    def lend(self, folder: Path, *names: str) -> None:
        """Copy inputs into the `in` of an attempt.

        Args:
            folder: of the attempt.
            names: of the inputs.
        """
        for name in names:
            source, target = self.folder / "in" / name, folder / "in" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target)


def json_lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def make_rows(place: Path) -> None:
    """The same rows in every format that is read."""
    (place / "rows.jsonl").write_text(json_lines(ROWS), encoding="utf-8")
    (place / "rows.ndjson").write_text(json_lines(ROWS), encoding="utf-8")
    (place / "rows.json").write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), encoding="utf-8")
    for name, mark in (("rows.csv", ","), ("rows.tsv", "\t")):
        lines = [mark.join(("context", "target")), *(mark.join((row["context"], row["target"])) for row in ROWS)]
        (place / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (place / "rows.txt").write_text("".join(f"Ann: {n}?\nBo: {n}!\n\n" for n in range(8)), encoding="utf-8")
    parquet.write_table(pa.Table.from_pylist(ROWS), place / "rows.parquet")
    messages = [
        {"messages": [{"role": "user", "content": row["context"]}, {"role": "assistant", "content": row["target"]}]}
        for row in ROWS
    ]
    (place / "messages.jsonl").write_text(json_lines(messages), encoding="utf-8")


def make_role(folder: Path) -> None:
    """A role with everything that a role folder may have."""
    for name in ("texts", "dialogues"):
        (folder / name).mkdir(parents=True)
    (folder / "system_prompt.txt").write_text(CHARACTERS[0].system_prompt, encoding="utf-8")
    (folder / "aliases.txt").write_text("Bo\nBobby\n", encoding="utf-8")
    for number, memory in enumerate(role_memories(CHARACTERS[0])[:3]):
        (folder / f"texts/{number}.txt").write_text(memory, encoding="utf-8")
    (folder / "dialogues/own.jsonl").write_text(json_lines(DIALOGUES), encoding="utf-8")


def make_bases(place: Path) -> None:
    """The demo's base, in shards of safetensors, and as one pickle of tensors."""
    shutil.copytree(BASE, place / "base")
    weights = load_file(place / "base/model.safetensors")
    names = sorted(weights)
    for name in ("shards", "pickled"):
        shutil.copytree(BASE, place / name, ignore=shutil.ignore_patterns("model.safetensors"))
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, place / "shards" / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (place / "shards/model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    torch.save(weights, place / "pickled/pytorch_model.bin")
