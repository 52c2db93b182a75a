"""Attacks on files: every format that a command reads × every way of damage, and every key of JSON × wrong values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from attack import Attack, Surroundings
from values import SURROGATE, WRONG, keys_of, with_value, without, write_json
from ways import OF_BYTES, OF_TEXT, Damage
from world import World

FIT = "fit --config ../in/config.yaml --auto_resume true"
PREVIEW = "preview --config ../in/config.yaml --rows 1"
CHAT = "chat --max_new_tokens 2 --prompt hi --adapter"
PUSH = "push --repo_id me/x --dry_run true --adapter"


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        kind: its name.
        file: that is damaged, below `in`, or below `out` if it starts with `out/`.
        needs: the inputs that are lent.
        commands: that read it, with their options; each is an attack.
        text: whether damage to text makes sense.
        places: of which a refusal names one; the name of the file is always one.
        moved: (from, to) below the folder of the attempt, before the damage.
    """

    kind: str
    file: str
    needs: tuple[str, ...]
    commands: tuple[str, ...]
    text: bool = True
    places: tuple[str, ...] = ()
    moved: tuple[str, str] | None = None


CONFIG = ("config.yaml", "rows.jsonl")
RUN = "runs/lightning_logs/version_0"
STEP = f"{RUN}/checkpoints/step=1"
GOES_ON = ("in/runs", "out/runs")
RESUME = f"{FIT} --trainer.default_root_dir runs --data.cache_dir ../home/cache"


def _rows(name: str, more: str = "") -> Format:
    commands = (f"{PREVIEW} --data.source ../in/{name}{more}", f"{FIT} --data.source ../in/{name}{more}")
    return Format(name, name, (*CONFIG, name), commands, text=name != "rows.parquet", places=("data.source", "in/rows"))


def _of_base(folder: str, file: str, text: bool = True) -> Format:
    commands = (
        f"{FIT} --model.base ../in/{folder}",
        f"{PREVIEW} --model.base ../in/{folder}",
        f"doctor --config ../in/config.yaml --model.base ../in/{folder}",
    )
    return Format(
        f"{folder}/{file}", f"{folder}/{file}", (*CONFIG, folder), commands, text, places=(f"in/{folder}", "model.base")
    )


def _of_adapter(file: str, text: bool = True, folder: str = "adapter") -> Format:
    at = f"../in/{folder}"
    commands = (
        f"{CHAT} {at}",
        f"merge --output merged --adapter {at}",
        f"convert-adapter --output converted --adapter {at}",
        f"{PUSH} {at}",
        f"fit --config ../in/config.yaml --model.adapter {at}",
    )
    return Format(
        f"{folder}/{file}", f"{folder}/{file}", (*CONFIG, folder), commands, text, places=(f"in/{folder}", "adapter")
    )


def _of_run(file: str, *commands: str, text: bool = True) -> Format:
    return Format(
        f"run/{Path(file).name.replace('step=1', 'STEP')}",
        f"{RUN}/{file}",
        (*CONFIG, "runs"),
        commands,
        text,
        places=("runs", "version_0", "checkpoint state"),
    )


def _of_resumed(file: str, text: bool = True) -> Format:
    return Format(
        f"resumed/{Path(file).name}",
        f"out/{RUN}/{file}",
        (*CONFIG, "runs"),
        (RESUME, f"{RESUME} --trainer.max_steps 2"),
        text,
        ("runs", "version_0", "checkpoint state"),
        GOES_ON,
    )


def _of_merged(folder: str, file: str, text: bool = True) -> Format:
    return Format(
        f"{folder}/{file}", f"{folder}/{file}", (folder,), (f"{CHAT} ../in/{folder}",), text, places=(f"in/{folder}",)
    )


def _of_role(file: str) -> Format:
    commands = (
        "build-data --characters ../in/roles/Bo --output rows.jsonl",
        f"{CHAT} ../in/adapter --character ../in/roles/Bo",
    )
    return Format(f"role/{file}", f"roles/Bo/{file}", ("roles", "adapter"), commands, places=("roles/Bo",))


REPORT = f"report ../in/{RUN} --output report"
VALIDATE = f"validate --config ../in/config.yaml --ckpt_path ../in/{RUN}/checkpoints/step=1.ckpt"
PREDICT = f"{VALIDATE.replace('validate', 'predict')} --data.predict_source ../in/rows.jsonl"


def formats(world: World) -> Iterator[Format]:
    """All kinds of files. Some have names that only the made world knows."""
    for name in ("rows.jsonl", "rows.ndjson", "rows.json", "rows.csv", "rows.tsv", "rows.txt", "rows.parquet"):
        yield _rows(name)
    yield _rows("messages.jsonl", " --data.context_column messages --data.target_column messages")
    yield Format(
        "config.yaml",
        "config.yaml",
        CONFIG,
        (FIT, PREVIEW, "doctor --config ../in/config.yaml", "validate --config ../in/config.yaml"),
        places=("config.yaml",),
    )
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        yield _of_base("base", file)
    yield _of_base("base", "tokenizer.model", text=False)
    yield _of_base("base", "model.safetensors", text=False)
    yield _of_base("shards", "model.safetensors.index.json")
    yield _of_base("shards", "model-00002-of-00002.safetensors", text=False)
    yield _of_base("pickled", "pytorch_model.bin", text=False)
    for file in ("adapter_config.json", "COMPLETE", "config.yaml", "tokenizer_config.json", "chat_template.jinja"):
        yield _of_adapter(file)
    yield _of_adapter("adapter_model.safetensors", text=False)
    yield _of_adapter("tokenizer.model", text=False)
    yield _of_adapter("README.md")
    yield _of_adapter("adapter_model.bin", text=False, folder="bin_adapter")
    for file in ("run.json", "config.yaml", "run.log", "held_out_replies.jsonl"):
        if (world.folder / "in" / RUN / file).exists():
            yield _of_run(file, REPORT, f"{CHAT} ../in/{RUN} --which last")
    (events,) = (world.folder / "in" / RUN).glob("events.out.tfevents.*")
    yield Format("run/events", f"{RUN}/{events.name}", ("runs",), (REPORT,), False, ("version_0",))
    yield _of_run(
        "checkpoints/step=1.ckpt",
        VALIDATE,
        PREDICT,
        f"fit --config ../in/config.yaml --ckpt_path ../in/{RUN}/checkpoints/step=1.ckpt",
        f"{CHAT} ../in/{RUN}/checkpoints/step=1.ckpt",
        text=False,
    )
    for file in ("adapter_config.json", "COMPLETE"):
        yield Format(
            f"run/step/{file}",
            f"{STEP}/{file}",
            ("runs",),
            (
                f"{CHAT} ../in/{RUN} --which last",
                f"merge --which last --output merged --adapter ../in/{RUN}",
                f"{PUSH} ../in/{RUN} --which last",
            ),
            places=("runs", "version_0"),
        )
    yield Format(
        "run/step/weights",
        f"{STEP}/adapter_model.safetensors",
        ("runs",),
        (f"{CHAT} ../in/{RUN} --which last", f"merge --which last --output merged --adapter ../in/{RUN}"),
        False,
        places=("runs", "version_0"),
    )
    for file in ("run.json", "config.yaml", "run.log", "held_out_replies.jsonl", "checkpoints/step=1/COMPLETE"):
        yield _of_resumed(file)
    yield _of_resumed("checkpoints/step=1.ckpt", text=False)
    yield _of_resumed(events.name, text=False)
    for folder in ("glm", "chatglm"):
        for path in sorted((world.folder / "in" / folder).iterdir()):
            if path.name not in (".gitattributes", "README.md"):
                yield _of_merged(folder, path.name, path.suffix not in (".safetensors", ".model"))
    for file in ("system_prompt.txt", "aliases.txt", "texts/0.txt", "dialogues/own.jsonl"):
        yield _of_role(file)
    yield Format(
        "dialogues.jsonl",
        "dialogues.jsonl",
        ("roles", "dialogues.jsonl"),
        ("build-data --characters ../in/roles/Bo --dialogues ../in/dialogues.jsonl --output rows.parquet",),
    )
    for path in sorted((world.folder / "in/cache").rglob("*")):
        if path.is_file():
            name = str(path.relative_to(world.folder / "in"))
            kind = f"cache/{'cache-…' if path.name.startswith('cache-') else path.name}"
            yield Format(
                kind,
                f"out/{name}",
                (*CONFIG, "cache"),
                (f"{FIT} --data.cache_dir cache", f"{PREVIEW} --data.cache_dir cache"),
                path.suffix == ".json",
                ("cache",),
                ("in/cache", "out/cache"),
            )


def damaged(world: World) -> Iterator[Attack]:
    """Every format × every way of damage × every command that reads it."""
    for format in formats(world):
        ways = OF_BYTES | (OF_TEXT if format.text else {})
        for how, damage in ways.items():
            for number, command in enumerate(format.commands):
                yield _attack(world, format, f"{how} ({number})", command, damage)


def _attack(world: World, format: Format, how: str, command: str, damage: Damage, *places: str) -> Attack:
    def make(folder: Path) -> list[str]:
        world.lend(folder, *format.needs)
        if format.moved:
            (folder / format.moved[0]).rename(folder / format.moved[1])
        path = folder / format.file if format.file.startswith("out/") else folder / "in" / format.file
        damage(path)
        return command.split()[1:]

    return Attack(
        kind=format.kind,
        how=how,
        command=command.split()[0],
        make=make,
        places=(Path(format.file).name, *format.places, *places),
        surroundings=Surroundings(powerless=how.startswith("mode 000")),
    )


def wrong_values(world: World) -> Iterator[Attack]:
    """Every key of every JSON and YAML file of these formats × every kind of wrong value, and its absence."""
    for format in formats(world):
        path = (
            world.folder / format.file.replace("out/", "in/")
            if format.file.startswith("out/")
            else world.folder / "in" / format.file
        )
        if path.suffix in (".json", ".jsonl", ".ndjson") or path.name == "COMPLETE":
            lines = path.suffix in (".jsonl", ".ndjson")
            yield from _keys(
                world,
                format,
                json.loads(path.read_text().splitlines()[0] if lines else path.read_text()),
                _write_lines if lines else write_json,
            )
        elif path.suffix == ".yaml" and format.kind != "config.yaml":
            yield from _keys(world, format, yaml.safe_load(path.read_text()), _write_yaml)
        elif path.suffix in (".ckpt", ".bin"):
            yield from _keys(world, format, torch.load(path, weights_only=True), _save)


def _keys(world: World, format: Format, document: Any, write: Callable[[Path, Any], None]) -> Iterator[Attack]:
    for place in keys_of(document):
        name = ".".join(map(str, place))
        for kind, value in WRONG.items():
            if kind == SURROGATE and write is _write_yaml:
                continue
            for number, command in enumerate(format.commands):
                changed = _Written(write, document, place, value)
                yield _attack(world, format, f"{name}: {kind} ({number})", command, changed, *map(str, place))
        yield _attack(
            world, format, f"{name}: missing", format.commands[0], _Without(write, document, place), *map(str, place)
        )


@dataclass(frozen=True)
class _Written:
    """Writes a document with another value at a place."""

    write: Callable[[Path, Any], None]
    document: Any
    place: tuple[str | int, ...]
    value: Any

    def __call__(self, path: Path) -> None:
        self.write(path, with_value(self.document, self.place, self.value))


@dataclass(frozen=True)
class _Without:
    """Writes a document without a key."""

    write: Callable[[Path, Any], None]
    document: Any
    place: tuple[str | int, ...]

    def __call__(self, path: Path) -> None:
        self.write(path, without(self.document, self.place))


def _write_lines(path: Path, document: Any) -> None:
    others = path.read_text(encoding="utf-8").splitlines()[1:]
    path.write_text("\n".join([json.dumps(document), *others]) + "\n", encoding="utf-8")


def _write_yaml(path: Path, document: Any) -> None:
    path.write_text(yaml.safe_dump(document), encoding="utf-8")


def _save(path: Path, document: Any) -> None:
    torch.save(document, path)
