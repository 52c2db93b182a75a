"""Whatever is wrong with a file or a setting: one paragraph that names it, status 2, nothing written over.

One row a case: what makes it, and what the paragraph says. Each runs `kyon-pl fit` in a folder of its own.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from torch import Tensor

from kyon_pl.cli import main
from kyon_pl.demo import BASE

GOOD = b'{"context": "a###b", "target": "c"}\n'
FIT = """
seed_everything: 1
trainer: {accelerator: cpu, max_steps: 1, enable_progress_bar: false, num_sanity_val_steps: 0}
model:
  base: demo
  lora: {r: 2, lora_alpha: 4, target_modules: [query_key_value]}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
data: {source: good.jsonl, validation_share: 0.0, max_tokens: 64, tokens_per_batch: 64, workers: 0}
"""
RATE = "--model.optimizer.init_args.lr"
NO_CODE = ["trust_remote_code", "no code from a repository is ever run"]
OTHER_KIND = ["something else than tensors"]

Prepare = Callable[[Path], list[str]]
"""Makes what is wrong in a folder, and returns what is typed to have it read."""


class Trap:
    """Pickled, it is code that makes a file."""

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (Path("sprung"),)


def row(line: bytes) -> Prepare:
    """The second of three lines."""
    return file("rows.jsonl", GOOD + line + b"\n" + GOOD, "--data.bad_rows", "error")


def file(name: str, content: bytes | Callable[[], bytes], *words: str) -> Prepare:
    def prepare(folder: Path) -> list[str]:
        (folder / name).write_bytes(content() if callable(content) else content)
        return ["--data.source", name, *words]

    return prepare


def table(**columns: Any) -> bytes:
    stream = BytesIO()
    parquet.write_table(pa.table(columns), stream)
    return stream.getvalue()


def damaged_table() -> bytes:
    content = bytearray(table(context=["a" * 500] * 9, target=["b"] * 9))
    content[4:60] = b"\xff" * 56
    return bytes(content)


def same_names() -> bytes:
    stream = BytesIO()
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    parquet.write_table(pa.Table.from_arrays(columns, names=["context", "target", "target"]), stream)
    return stream.getvalue()


def archive() -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("rows.jsonl", GOOD)
    return stream.getvalue()


def place(make: Callable[[Path], object], source: str = "rows.jsonl") -> Prepare:
    def prepare(folder: Path) -> list[str]:
        make(folder / "rows.jsonl")
        return ["--data.source", source]

    return prepare


def mixed(folder: Path) -> list[str]:
    (folder / "rows").mkdir()
    (folder / "rows/utf8.jsonl").write_bytes(GOOD)
    (folder / "rows/sjis.jsonl").write_bytes('{"context": "の", "target": "と"}'.encode("shift_jis"))
    return ["--data.source", "rows"]


def words(*typed: str) -> Prepare:
    return lambda folder: list(typed)


def yaml(content: str | bytes, *typed: str) -> Prepare:
    def prepare(folder: Path) -> list[str]:
        (folder / "mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return [*(typed or ("--config", "mine.yaml"))]

    return prepare


def base(change: Callable[[Path], object]) -> Prepare:
    def prepare(folder: Path) -> list[str]:
        change(Path(shutil.copytree(BASE, folder / "base")))
        return ["--model.base", "base"]

    return prepare


def base_file(name: str, content: bytes) -> Prepare:
    return base(lambda folder: (folder / name).write_bytes(content))


def cut(name: str, size: int) -> Prepare:
    return base(lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]))


def config(**changes: Any) -> Prepare:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(content))

    return base(change)


def weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Prepare:
    def rewrite(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return base(rewrite)


def small_vocabulary(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text()) | {"padded_vocab_size": 1024}
    (folder / "config.json").write_text(json.dumps(content))


def sharded(index: str, shard: bytes | None = None) -> Prepare:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(index)
        if shard is not None:
            (folder / "shard.safetensors").write_bytes(shard)

    return base(change)


def pickled(write: Callable[[Path], object]) -> Prepare:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        write(folder / "pytorch_model.bin")

    return base(change)


def adapter(settings: str, content: bytes = b"") -> Prepare:
    def prepare(folder: Path) -> list[str]:
        (folder / "adapter").mkdir()
        (folder / "adapter/adapter_config.json").write_text(settings)
        (folder / "adapter/adapter_model.safetensors").write_bytes(content)
        return ["--model.adapter", str(folder / "adapter")]

    return prepare


def checkpoint(write: Callable[[Path], object]) -> Prepare:
    def prepare(folder: Path) -> list[str]:
        write(folder / "x.ckpt")
        return ["--ckpt_path", "x.ckpt"]

    return prepare


def misspelt_checkpoint(folder: Path) -> list[str]:
    (folder / "step=5.ckpt").touch()
    return ["--ckpt_path", "step=4.ckpt"]


def cut_checkpoint(path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])


LORA = '{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["query_key_value"]}'
INDEX = '{"weight_map": {"transformer.output_layer.weight": "shard.safetensors"}}'

ROWS: dict[str, tuple[Prepare, list[str]]] = {
    "broken JSON": (row(b'{"context": "a", "target": '), ["broken JSON", "character 27"]),
    "single quotes": (row(b"{'context': 'a', 'target': 'b'}"), ["broken JSON", "double quotes"]),
    "null": (row(b'{"context": "a", "target": null}'), ["null in 'target'"]),
    "number": (row(b'{"context": 5, "target": "b"}'), ["no text in 'context': '5' (int)"]),
    "NaN": (row(b'{"context": "a", "target": NaN}'), ["no text in 'target': 'nan' (float)"]),
    "nested values": (row(b'{"context": {"a": ["b"]}, "target": "c"}'), ["no text in 'context'", "(dict)"]),
    "no object": (row(b'["a", "b"]'), ["not a row", "(list)"]),
    "lone surrogate": (row(b'{"context": "a", "target": "\\ud83d"}'), ["half a character in 'target'"]),
    "raw NUL": (row(b'{"context": "a", "target": "b\0c"}'), ["broken JSON", "control character"]),
    "escaped NUL": (row(b'{"context": "a", "target": "b\\u0000c"}'), ["'target': it holds a NUL"]),
    "nothing but NULs": (row(b"\0" * 100), ["broken JSON"]),
    "line in Shift JIS": (row('{"context": "の", "target": "と"}'.encode("shift_jis")), ["not UTF-8"]),
    "BOM inside": (row(b"\xef\xbb\xbf" + GOOD), ["broken JSON"]),
    "number of 5,000 digits": (row(b'{"context": "a", "target": ' + b"9" * 5000 + b"}"), ["4300 digits"]),
    "100,000 brackets": (row(b'{"context": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), ["recursion"]),
    "one key twice": (row(b'{"context": "a", "target": "b", "target": "c"}'), ["two values of 'target'"]),
    "column missing in a row": (row(b'{"context": "a"}'), ["no 'target'"]),
    "blank target": (row(b'{"context": "a", "target": " "}'), ["empty 'target'"]),
    "50 MB": (row(b'{"context": "a", "target": "' + b"b" * 50_000_000 + b'"}'), ["too long: 50,000,000 characters"]),
    "ids as text": (row(b'{"input_ids": ["a"], "seq_len": 1}'), ["no list of token ids"]),
    "ids that the base has not": (row(b'{"input_ids": [5000, 1], "seq_len": 1}'), ["id of 2,048 or more"]),
}
FILES: dict[str, tuple[Prepare, list[str]]] = {
    "empty": (file("rows.jsonl", b""), ["rows.jsonl", "no rows"]),
    "nothing but a BOM": (file("rows.jsonl", b"\xef\xbb\xbf"), ["rows.jsonl", "no rows"]),
    "BOM, then a broken line": (
        file("rows.jsonl", b"\xef\xbb\xbf" + GOOD + b"{", "--data.bad_rows", "error"),
        ["rows.jsonl, line 2", "broken JSON"],
    ),
    "all objects on one line, the last broken": (
        file("rows.jsonl", GOOD.strip() * 3 + b"{", "--data.bad_rows", "error"),
        ["rows.jsonl, line 1", "broken JSON", "character 107"],
    ),
    "UTF-16 cut off": (file("rows.jsonl", GOOD.decode().encode("utf-16")[:-1]), ["rows.jsonl", "not UTF-16"]),
    "no rows left": (
        file("rows.jsonl", b'{"context": "a", "target": null}\n' * 3),
        ["none of its 3 rows", "line 1"],
    ),
    "wrong columns": (file("rows.jsonl", b'{"q": 1, "a": 2}\n'), ["rows.jsonl", "no column 'context'", "are a, q"]),
    "gzip cut off": (file("rows.jsonl.gz", gzip.compress(GOOD)[:-9]), ["rows.jsonl.gz", "cannot be read", "complete"]),
    "zip named .jsonl": (file("rows.jsonl", archive), ["rows.jsonl, line 1"]),
    "HTML named .jsonl": (file("rows.jsonl", b"<!DOCTYPE html>\n<html>\n"), ["rows.jsonl, line 1", "broken JSON"]),
    "JSON cut off": (file("rows.json", b'[{"context": "a"},\n {"con'), ["rows.json, line 2", "broken JSON"]),
    "JSON object of lists": (file("rows.json", b'{"context": ["a"], "target": ["b"]}'), ["rows.json", "(list)"]),
    "JSON list of numbers": (file("rows.json", b"[1, 2]"), ["rows.json, row 1", "not a row"]),
    "JSON in Shift JIS": (
        file("rows.json", '[{"context": "の"}]'.encode("shift_jis")),
        ["rows.json", "not UTF-8", "byte 15"],
    ),
    "JSON of 100,000 brackets": (file("rows.json", b"[" * 100_000 + b"]" * 100_000), ["rows.json", "recursion"]),
    "CSV with one quote": (
        file("rows.csv", b'context,target\na,b\n"a,b\nc,d\n'),
        ["rows.csv, after line 2", "Close the quote"],
    ),
    "CSV with a quote inside": (
        file("rows.csv", b'context,target\na,"b" c\n'),
        ["rows.csv, after line 1", "Quote the whole cell"],
    ),
    "CSV with two columns of one name": (
        file("rows.csv", b"context,target,target\na,b,c\n"),
        ["rows.csv, line 1", "two columns are called 'target'"],
    ),
    "CSV with a short row behind empty lines": (
        file("rows.csv", b"\n\ncontext,target\na,b\n\na\n", "--data.bad_rows", "error"),
        ["rows.csv, line 6", "null in 'target'"],
    ),
    "CSV with a NUL": (
        file("rows.csv", b"context,target\na,b\na,b\0\n", "--data.bad_rows", "error"),
        ["rows.csv", "line", "NUL"],
    ),
    "CSV in Shift JIS": (
        file("rows.csv", "context,target\nの,と\n".encode("shift_jis")),
        ["rows.csv", "not UTF-8", "Excel"],
    ),
    "CSV of nothing but its header": (file("rows.csv", b"context,target\n"), ["rows.csv", "no rows"]),
    "Parquet cut off": (
        file("rows.parquet", table(context=["a"], target=["b"])[:-40]),
        ["not a readable Parquet file"],
    ),
    "Parquet damaged": (file("rows.parquet", damaged_table), ["rows.parquet", "not a readable Parquet file"]),
    "Parquet of numbers": (file("rows.parquet", table(context=[1], target=[2])), ["rows.parquet, row 1", "(int)"]),
    "Parquet of bytes": (
        file("rows.parquet", table(context=[b"a"], target=[b"b"])),
        ["rows.parquet, row 1", "(bytes)"],
    ),
    "Parquet with two columns of one name": (file("rows.parquet", same_names), ["two columns are called 'target'"]),
    "Arrow": (file("rows.arrow", b"ARROW1"), ["rows.arrow", "not a readable Arrow file"]),
    "Parquet in gzip": (file("rows.parquet.gz", gzip.compress(GOOD)), ["rows.parquet.gz", "suffix .gz cannot be read"]),
    "folder": (place(Path.mkdir), ["rows.jsonl", "no data file in this folder"]),
    "link to itself": (place(lambda path: path.symlink_to(path)), ["rows.jsonl", "broken link"]),
    "pipe": (place(os.mkfifo), ["rows.jsonl", "not a regular file"]),
    "device": (words("--data.source", "/dev/null"), ["/dev/null", "suffix (none) cannot be read"]),
    "pattern that nothing matches": (words("--data.source", "*.csv"), ["*.csv", "no file matches"]),
    "name of 5,000 characters": (words("--data.source", "a" * 5000 + ".jsonl"), ["data.source", "5,006 bytes"]),
    "no name": (words("--data.source", ""), ["data.source", "it is empty"]),
    "no names": (words("--data.source", "[]"), ["data.source", "it is empty"]),
    "home of nobody": (words("--data.source", "~nobody-here/rows.jsonl"), ["~nobody-here", "no such file or folder"]),
    "files of several encodings": (mixed, ["sjis.jsonl", "not UTF-8"]),
    "no such split": (words("--data.source", "demo", "--data.split", "dev"), ["data.split", "'dev'"]),
    "wrong validation source": (words("--data.validation_source", "none.csv"), ["none.csv", "no such file"]),
    "cache under a file": (words("--data.cache_dir", "good.jsonl/x"), ["data.cache_dir", "good.jsonl/x"]),
}
BASES: dict[str, tuple[Prepare, list[str]]] = {
    "no tokenizer": (base(lambda folder: (folder / "tokenizer.model").unlink()), ["base", "no tokenizer.model"]),
    "empty tokenizer": (base_file("tokenizer.model", b""), ["base/tokenizer.model", "not a SentencePiece model"]),
    "corrupt tokenizer": (cut("tokenizer.model", 9999), ["base/tokenizer.model", "not a SentencePiece model"]),
    "broken tokenizer_config": (base_file("tokenizer_config.json", b"{"), ["tokenizer_config.json, line 1", "JSON"]),
    "tokenizer of another base": (
        base(small_vocabulary),
        ["base/tokenizer.model", "1,024", "of the same base"],
    ),
    "truncated safetensors": (cut("model.safetensors", 100_000), ["base/model.safetensors", "cut short"]),
    "empty weights": (base_file("model.safetensors", b""), ["base/model.safetensors", "cannot be read"]),
    "weights that are a folder": (
        base(lambda folder: [(folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir()]),
        ["neither model.safetensors nor"],
    ),
    "no weights": (base(lambda folder: (folder / "model.safetensors").unlink()), ["neither model.safetensors nor"]),
    "missing shard": (sharded(INDEX), ["base/shard.safetensors", "index.json names it"]),
    "empty shard": (sharded(INDEX, shard=b""), ["base/shard.safetensors", "cannot be read"]),
    "broken index": (sharded("{\n"), ["model.safetensors.index.json, line 2", "broken JSON"]),
    "index without names": (sharded('{"weight_map": {"a": 1}}'), ["index.json", "weight_map"]),
    "index with an empty name": (sharded('{"weight_map": {"a": "x", "b": ""}}'), ["index.json", "weight_map"]),
    "index that leads out": (sharded('{"weight_map": {"a": "../x"}}'), ["index.json", "weight_map"]),
    "missing weight": (
        weights(lambda found: {name: found[name] for name in found if "final_layernorm" not in name}),
        ["1 missing", "final_layernorm.weight"],
    ),
    "unexpected weight": (weights(lambda found: found | {"surplus": torch.zeros(1)}), ["1 unexpected: surplus"]),
    "wrong shape": (
        weights(
            lambda found: {name: found[name][:9].clone() if "embedding" in name else found[name] for name in found}
        ),
        ["word_embeddings.weight (9, 160) instead of (2048, 160)"],
    ),
    "integers": (
        weights(lambda found: {name: found[name].to(torch.int8) for name in found}),
        ["base/model.safetensors: transformer.", "int8 in place of", "not quantized"],
    ),
    "pickle that runs code": (
        pickled(lambda path: torch.save({"transformer.output_layer.weight": Trap()}, path)),
        ["base/pytorch_model.bin", *OTHER_KIND],
    ),
    "bare pickle that runs code": (pickled(lambda path: path.write_bytes(pickle.dumps(Trap()))), OTHER_KIND),
    "pickle of a list": (pickled(lambda path: torch.save([1], path)), ["pytorch_model.bin", "a list in place of"]),
    "pickle of numbers": (
        pickled(lambda path: torch.save({"a": 1}, path)),
        ["pytorch_model.bin: a", "int in place of"],
    ),
    "empty pickle": (pickled(Path.touch), ["pytorch_model.bin", "cannot be read"]),
    "config that is no JSON": (base_file("config.json", b"{\n'a': 1}"), ["base/config.json, line 2", "broken JSON"]),
    "config that is a list": (base_file("config.json", b"[]"), ["base/config.json", "a list in place of an object"]),
    "config in UTF-16": (base_file("config.json", "{}".encode("utf-16")), ["base/config.json", "not UTF-8"]),
    "config of no model": (base_file("config.json", b"{}"), ["base/config.json: model_type", "missing"]),
    "config of another model": (config(model_type="llama"), ["base/config.json: model_type", "'llama'"]),
    "config with a refused key": (config(quantization_bit=4), ["base/config.json: quantization_bit", "4"]),
    "config of quantized weights": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        ["base/config.json: quantization_config", "gptq"],
    ),
    "config of another shape": (config(hidden_size=128), ["(2048, 160) instead of (2048, 128)"]),
    "config with a negative count": (config(num_layers=-1), ["base/config.json: num_layers", "not a positive integer"]),
    "config with a word for a number": (config(num_layers="four"), ["base/config.json: num_layers", "'four'"]),
    "config without heads": (config(multi_query_group_num=0), ["base/config.json: multi_query_group_num", "0"]),
    "config with a NaN": (config(layernorm_epsilon=float("nan")), ["base/config.json: layernorm_epsilon", "nan"]),
    "config of no dtype": (config(dtype="float7"), ["base/config.json: dtype", "'float7'"]),
    "generation_config that is a list": (base_file("generation_config.json", b"[]"), ["generation_config.json"]),
    "adapter without settings": (adapter("{"), ["adapter_config.json", "JSON"]),
    "adapter of another kind": (adapter('{"peft_type": "FOO"}'), ["adapter", "FOO"]),
    "empty adapter": (adapter(LORA), ["adapter", "cannot be read"]),
    "checkpoint that is a folder": (checkpoint(Path.mkdir), ["--ckpt_path", "no file 'x.ckpt'"]),
    "misspelt checkpoint": (misspelt_checkpoint, ["--ckpt_path", "no file 'step=4.ckpt'; the folder has step=5.ckpt."]),
    "empty checkpoint": (checkpoint(Path.touch), ["checkpoint x.ckpt", "cannot be read"]),
    "truncated checkpoint": (checkpoint(cut_checkpoint), ["checkpoint x.ckpt", "cannot be read", "truncated"]),
    "checkpoint that runs code": (checkpoint(lambda path: torch.save({"a": Trap()}, path)), ["x.ckpt", *OTHER_KIND]),
    "checkpoint of a list": (checkpoint(lambda path: torch.save([1], path)), ["checkpoint x.ckpt", "a list"]),
    "checkpoint with a wrong part": (
        checkpoint(lambda path: torch.save({"fingerprint": 5}, path)),
        ["checkpoint x.ckpt: fingerprint"],
    ),
}
SETTINGS: dict[str, tuple[Prepare, list[str]]] = {
    "negative learning rate": (words(RATE, "-1"), ["model.optimizer.init_args", "-1.0"]),
    "learning rate zero": (words(RATE, "0"), ["init_args.lr above 0"]),
    "learning rate NaN": (words(RATE, ".nan"), ["model.optimizer.init_args", "nan"]),
    "learning rate without end": (words(RATE, ".inf"), ["model.optimizer.init_args.lr", "inf is not finite"]),
    "learning rate of letters": (words(RATE, "fast"), ["model.optimizer.init_args.lr", "float", "fast"]),
    "negative weight decay": (words("--model.optimizer.init_args.weight_decay", "-1"), ["weight_decay", "-1.0"]),
    "max_tokens 0": (words("--data.max_tokens", "0"), ["data.max_tokens", "0 has no room"]),
    "negative max_tokens": (words("--data.max_tokens", "-5"), ["data.max_tokens", "-5"]),
    "rows_per_batch 0": (words("--data.rows_per_batch", "0"), ["data.rows_per_batch", "0 is too low"]),
    "workers -1": (words("--data.workers", "-1"), ["data.workers", "-1 is too low"]),
    "2,000 processes": (words("--data.processes", "2000"), ["data.processes", "2000 is too high", "1024"]),
    "a pack of all memory": (words("--data.tokens_per_batch", "17000000"), ["data.tokens_per_batch", "too high"]),
    "no name of a checkpoint": (words("--ckpt_path", ""), ["--ckpt_path", "there is no file"]),
    "validation_share 2": (words("--data.validation_share", "2"), ["data.validation_share", "2.0 is not a share"]),
    "no such template": (words("--data.template", "x"), ["data.template", "'x'", "raw"]),
    "dropout 1.5": (words("--model.lora.lora_dropout", "1.5"), ["model.lora.lora_dropout", "1.5"]),
    "negative dropout": (words("--model.lora.lora_dropout", "-0.1"), ["model.lora.lora_dropout", "-0.1"]),
    "r 0": (words("--model.lora.r", "0"), ["model.lora.r", "0 is impossible"]),
    "negative alpha": (words("--model.lora.lora_alpha", "-1"), ["model.lora.lora_alpha", "-1 is impossible"]),
    "no such layer": (words("--model.lora.target_modules", "[nothing]"), ["model.lora", "nothing"]),
    "max_new_tokens 0": (words("--model.max_new_tokens", "0"), ["model.max_new_tokens", "0 is too low"]),
    "hidden size 0": (words("--model.lr_for_hidden_size", "0"), ["model.lr_for_hidden_size", "0 is no hidden size"]),
    "endless hidden size": (words("--model.lr_for_hidden_size", "1" + "0" * 400), ["model.lr_for_hidden_size"]),
    "unknown precision": (words("--trainer.precision", "float7"), ["trainer.precision", "float7", "bf16-mixed"]),
    "devices 0": (words("--trainer.devices", "0"), ["trainer.devices", "'0'", "1 or more"]),
    "a million devices": (words("--trainer.devices", "1000000"), ["trainer.devices", "up to 1024"]),
    "devices of letters": (words("--trainer.devices", "x"), ["trainer.devices", "'x'"]),
    "unknown accelerator": (words("--trainer.accelerator", "warp"), ["trainer.accelerator", "'warp'", "gpu"]),
    "unknown strategy": (words("--trainer.strategy", "warp"), ["trainer.strategy", "'warp'", "ddp"]),
    "seed of letters": (words("--seed_everything", "lucky"), ["seed_everything", "lucky"]),
    "negative seed": (words("--seed_everything", "-1"), ["seed_everything", "-1 is no seed"]),
    "negative steps": (words("--trainer.max_steps", "-5"), ["trainer.max_steps", "-5"]),
    "no end": (words("--trainer.max_steps", "-1", "--trainer.max_epochs", "-1"), ["trainer.max_epochs", "no end"]),
    "accumulation over nothing": (words("--trainer.accumulate_grad_batches", "0"), ["accumulate_grad_batches", "0"]),
    "negative clipping": (words("--trainer.gradient_clip_val", "-1"), ["trainer.gradient_clip_val", "-1"]),
    "share above 1": (words("--trainer.limit_train_batches", "1.5"), ["trainer.limit_train_batches", "1.5"]),
    "validation that never comes": (
        words("--trainer.val_check_interval", "999"),
        ["trainer.val_check_interval", "999"],
    ),
    "time of letters": (words("--trainer.max_time", "never"), ["trainer", "never", "DD:HH:MM:SS"]),
    "no shape": (words("--model.base", "random", "--model.random_config", "none.json"), ["none.json", "no such file"]),
    "remote code": (words("--model.trust_remote_code", "true"), ["model.trust_remote_code", *NO_CODE]),
    "remote code of data": (words("--data.trust_remote_code=true"), ["data.trust_remote_code", *NO_CODE]),
    "remote code of nothing": (words("--trust_remote_code"), NO_CODE),
    "run folder under a file": (words("--trainer.default_root_dir", "good.jsonl"), ["good.jsonl", "cannot be written"]),
    "run folder where none can be": (words("--trainer.default_root_dir", "/proc/x"), ["/proc", "cannot be written"]),
    "YAML: list": (yaml("- a\n- b\n"), ["mine.yaml", "a list in place of settings"]),
    "YAML: empty": (yaml(""), ["mine.yaml", "nothing in place of settings"]),
    "YAML: tab": (yaml("model:\n\tbase: demo\n"), ["mine.yaml, line 2", "not YAML"]),
    "YAML: one key twice": (yaml("data:\n  split: a\n  split: b\n"), ["mine.yaml, line 3: split", "line 2"]),
    "YAML: list for a section": (yaml("seed_everything: 1\ndata: [1]\n"), ["mine.yaml, line 2: data", "a list"]),
    "YAML: UTF-16": (yaml("a: 1".encode("utf-16")), ["mine.yaml", "not UTF-8"]),
    "YAML: brackets": (yaml("a: " + "[" * 5000 + "]" * 5000), ["mine.yaml", "nested too deeply"]),
    "YAML: object of Python": (yaml("model: !!python/object/apply:os.mkdir [sprung]"), ["mine.yaml"]),
    "YAML: tag of nobody": (yaml("model: {base: !!x demo}"), ["mine.yaml: not YAML", "2002:x"]),
    "YAML: behind an equals sign": (yaml("model: {base: !!x demo}", "--config=mine.yaml"), ["mine.yaml: not YAML"]),
    "YAML: behind a letter": (yaml("model: {base: !!x demo}", "-c=mine.yaml"), ["mine.yaml: not YAML"]),
    "YAML: one key twice, behind a letter": (yaml("a: 1\na: 2\n", "-cmine.yaml"), ["mine.yaml, line 2: a", "line 1"]),
    "YAML: remote code": (yaml("model:\n  trust_remote_code: true\n"), ["mine.yaml, line 2", *NO_CODE]),
    "YAML: remote code off": (yaml("a:\n- trust_remote_code: false\n"), ["mine.yaml, line 2", *NO_CODE]),
}
CASES = {f"row: {name}": (make, ["rows.jsonl, line 2", *texts]) for name, (make, texts) in ROWS.items()}
CASES |= {f"file: {name}": case for name, case in FILES.items()}
CASES |= {f"model: {name}": case for name, case in BASES.items()}
CASES |= {f"setting: {name}": case for name, case in SETTINGS.items()}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_clear_paragraph(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare, texts = CASES[name]
    (tmp_path / "fit.yaml").write_text(FIT)
    (tmp_path / "good.jsonl").write_bytes(GOOD)
    typed = prepare(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "fit.yaml", *typed])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().split("\n")
    paragraphs = [line for line in lines if line.startswith("kyon-pl fit: ") and "lightning 2" not in line]
    assert paragraphs == lines[-1:], lines
    assert not any("Traceback" in line for line in lines)
    for text in texts:
        assert text in lines[-1]
    after = contents(tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert not [path for path in after.keys() - before.keys() if path.suffix == ".ckpt" or path.name == "sprung"]
    assert not (tmp_path / "sprung").exists()


def test_good_input_trains_and_the_trap_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would prove nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fit.yaml").write_text(FIT)
    (tmp_path / "good.jsonl").write_bytes(GOOD)
    main(["fit", "--config", "fit.yaml"])
    assert list(tmp_path.rglob("*.ckpt"))
    pickle.loads(pickle.dumps(Trap()))
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("command", "settings", "status", "found"),
    [
        ("preview", "data: {tokens_per_batch: null}", 2, "data.tokens_per_batch: null is no number"),
        ("doctor", "model: {lora: {target_modules: '(('}}", 1, "model.lora.target_modules: '((' is no regular"),
    ],
)
def test_other_commands_refuse_a_value(
    command: str,
    settings: str,
    status: int,
    found: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text(settings)
    with pytest.raises(SystemExit) as stopped:
        main([command, "--config", "demo", "--config", "wrong.yaml"])
    assert stopped.value.code == status
    output = capsys.readouterr()
    assert found in " ".join((output.out + output.err).split())


@pytest.mark.parametrize("command", ["preview", "doctor", "build-data"])
def test_other_commands_read_a_yaml_as_fit_does(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twice.yaml").write_text("data: {source: good.jsonl}\ndata: {source: other.jsonl}\n")
    with pytest.raises(SystemExit) as stopped:
        main([command, "--config", "twice.yaml"])
    assert stopped.value.code == 2
    assert "twice.yaml, line 2" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("typed", [["--data.source", "locked/rows.jsonl"], ["--trainer.default_root_dir", "locked"]])
def test_what_may_not_be_read_or_written(
    typed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fit.yaml").write_text(FIT)
    (tmp_path / "good.jsonl").write_bytes(GOOD)
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked/rows.jsonl").write_bytes(GOOD)
    (tmp_path / "locked/rows.jsonl").chmod(0)
    (tmp_path / "locked").chmod(0o555)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "fit.yaml", *typed])
    (tmp_path / "locked").chmod(0o755)
    assert stopped.value.code == 2
    assert "locked" in capsys.readouterr().err.strip().split("\n")[-1]
