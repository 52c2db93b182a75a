"""Attacks on settings: every key of every command × every kind of wrong value, from the table of options; and every
argument of the classes that settings name × every kind of wrong value, from their signatures.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import yaml
from attack import Attack
from values import SURROGATE, WRONG
from world import World

from kyon_pl.cli.options import options_of, read_table

BASIS = {
    "fit": "--config ../in/config.yaml",
    "validate": "--config ../in/config.yaml",
    "predict": "--config ../in/config.yaml --data.predict_source ../in/rows.jsonl",
    "preview": "--config ../in/config.yaml --rows 1",
    "doctor": "--config ../in/config.yaml",
    "chat": "--adapter ../in/adapter --prompt hi --max_new_tokens 2",
    "merge": "--adapter ../in/adapter --output merged",
    "convert-adapter": "--adapter ../in/adapter --output converted",
    "push": "--adapter ../in/adapter --repo_id me/x --dry_run true",
    "report": "../in/runs/lightning_logs/version_0 --output report",
    "build-data": "--characters ../in/roles/Bo --output rows.jsonl",
}
NEEDS = ("config.yaml", "rows.jsonl", "adapter", "roles")
SETTINGS_OF = {"fit": "", "preview": "data.", "doctor": "model."}  # the settings of fit that are tried with a command
# as long a run as was asked for: nothing is wrong with it
LONG_RUNS = {
    (key, kind) for key in ("trainer.max_epochs", "trainer.max_steps") for kind in ("1e9", "1e30", "-1", "null")
}
CALLBACKS, LOGGERS = "lightning.pytorch.callbacks", "lightning.pytorch.loggers"
# a setting that names a class -> such classes
CLASSES = {
    "model.optimizer": ("torch.optim.AdamW", "torch.optim.SGD", "torch.optim.Adafactor"),
    "model.schedule": (
        "kyon_pl.training.LinearDecay",
        "torch.optim.lr_scheduler.StepLR",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "torch.optim.lr_scheduler.OneCycleLR",
    ),
    "trainer.callbacks": (
        "kyon_pl.training.callbacks.StepCheckpoint",
        "kyon_pl.training.callbacks.SpreadValidations",
        f"{CALLBACKS}.ModelCheckpoint",
        f"{CALLBACKS}.EarlyStopping",
        f"{CALLBACKS}.LearningRateMonitor",
        f"{CALLBACKS}.ModelSummary",
        f"{CALLBACKS}.RichProgressBar",
        f"{CALLBACKS}.TQDMProgressBar",
        f"{CALLBACKS}.Timer",
    ),
    "trainer.logger": (f"{LOGGERS}.TensorBoardLogger", f"{LOGGERS}.CSVLogger"),
    "trainer.strategy": ("lightning.pytorch.strategies.DDPStrategy",),
    "trainer.plugins": ("lightning.pytorch.plugins.MixedPrecision",),
    "trainer.profiler": ("lightning.pytorch.profilers.SimpleProfiler", "lightning.pytorch.profilers.PyTorchProfiler"),
}


def wrong_settings(world: World) -> Iterator[Attack]:
    """Every key × every kind of wrong value, in a YAML file; texts also on the command line."""
    for command, basis in BASIS.items():
        own = {option["name"] for option in read_table()["commands"][command]["options"]}
        section = SETTINGS_OF.get(command)
        for key in options_of(command):
            if key in own or (section is not None and key.startswith(section)):
                for kind, value in WRONG.items():
                    if (key, kind) not in LONG_RUNS:
                        yield from _attacks(world, command, basis, key, kind, value)


def wrong_arguments(world: World) -> Iterator[Attack]:
    """Every argument of a class that a setting names, and one that it lacks × every kind of wrong value."""
    for key, classes in CLASSES.items():
        for path in classes:
            parameters = inspect.signature(resolve_name(path)).parameters.values()
            named = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
            for kind, value in WRONG.items():
                if kind == SURROGATE:
                    continue
                for name in (*named, "no_such_argument"):
                    yield _of_class(world, key, path, name, kind, {name: value})
                yield _of_class(world, key, path, "init_args", kind, value)


def _of_class(world: World, key: str, path: str, name: str, kind: str, arguments: object) -> Attack:
    section, _, last = key.partition(".")
    chosen: object = {"class_path": path, "init_args": arguments}

    def make(folder: Path) -> list[str]:
        world.lend(folder, *NEEDS)
        document = {section: {last: [chosen] if last == "callbacks" else chosen}}
        (folder / "in/wrong.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
        return [*BASIS["fit"].split(), "--config", "../in/wrong.yaml"]

    return Attack(
        kind=f"arguments of {last}",
        how=f"{path.rpartition('.')[2]}.{name}: {kind}",
        command="fit",
        make=make,
        places=(key, name, path.rpartition(".")[2], "wrong.yaml"),
    )


def _attacks(world: World, command: str, basis: str, key: str, kind: str, value: object) -> Iterator[Attack]:
    def lend(folder: Path) -> None:
        world.lend(folder, *NEEDS, *(["runs"] if command == "report" else []))

    def in_file(folder: Path) -> list[str]:
        lend(folder)
        document = value
        for part in reversed(key.split(".")):
            document = {part: document}
        (folder / "in/wrong.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
        return [*basis.split(), "--config", "../in/wrong.yaml"]

    def typed(folder: Path) -> list[str]:
        lend(folder)
        text = value if isinstance(value, str) else json.dumps(value)
        return [*basis.split(), f"--{key}={text}"]

    shown = [value] if isinstance(value, str) and value else [] if isinstance(value, str) else [json.dumps(value)]
    names = (key.rpartition(".")[2], key.partition(".")[0])
    if kind != SURROGATE:
        yield Attack(
            kind="settings in a file",
            how=f"{key}: {kind}",
            command=command,
            make=in_file,
            places=(*names, *shown, "wrong.yaml"),
        )
    if kind != "NUL":  # no command line can hold one
        yield Attack(kind="settings typed", how=f"{key}: {kind}", command=command, make=typed, places=(*names, *shown))
