"""Writes docs/configuration.md from the parsers of the commands, so that it cannot say anything that they do not.

make docs
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace, capture_parser
from lightning.pytorch.cli import LightningArgumentParser
from peft import LoraConfig

from kyon_pl.cli.arguments import add_fit_arguments
from kyon_pl.cli.commands import COMMANDS, command
from kyon_pl.training import LinearDecay
from kyon_pl.training.callbacks import ReplySettings, StepCheckpoint

HERE = Path(__file__).parent
PAGE = HERE / "configuration.md"
REFERENCE = yaml.safe_load((HERE.parent / "configs/lora.yaml").read_text(encoding="utf-8"))
TAKES_THE_YAML = ("fit", "validate", "test", "predict", "preview", "doctor")
LONGEST = 240  # characters of what a library says of its own setting: the first sentences will do
OF_LIBRARIES = ("trainer.", "model.lora.", "ckpt_path", "weights_only")
OF_PEFT = ("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform")
OF_PEFT += ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights")

INTRODUCTION = """# Configuration

Made by `make docs` from what the commands themselves say; not written by hand.

A setting is a key of the YAML (`data:`, below it `source: rows.jsonl`) and an option of the same name
(`--data.source rows.jsonl`). What comes later in a command line wins: `--config configs/lora.yaml --config
configs/overlay/ddp.yaml --trainer.devices 4`. Lists are replaced as a whole; `callbacks+:` adds to one. `null` is
nothing, no limit, or left to the program, as its line says. The column *reference run* has what `configs/lora.yaml`
says; where it is empty, the default holds there too. `kyon-pl fit --print_config` writes all of it as a file to start
from, and each run keeps its own as `config.yaml`.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


def page() -> str:
    """The whole page, as Markdown."""
    parser = LightningArgumentParser()
    add_fit_arguments(parser)
    actions = list(settings_of(parser))
    parts = [INTRODUCTION]
    parts += section("The run", [a for a in actions if "." not in a.dest and a.dest != "held_out"])
    for name, title in (("model", "`model`: the base and its adapter"), ("data", "`data`: the rows and their batches")):
        parts += section(title, [a for a in actions if a.dest.startswith(f"{name}.")])
        parts += nested() if name == "model" else []
    parts += section("`held_out`: replies to held-out questions", of_class(ReplySettings, "held_out"))
    parts += section("`replies`: the file that predict writes", [a for a in actions if a.dest.startswith("replies.")])
    parts += section("`trainer`: Lightning's Trainer", [a for a in actions if a.dest.startswith("trainer.")])
    step_checkpoint = "trainer.callbacks: kyon_pl.training.callbacks.StepCheckpoint"
    parts += section(f"`{step_checkpoint}`", of_class(StepCheckpoint, "init_args"))
    parts += ["## The other commands\n", f"{', '.join(TAKES_THE_YAML)} take the YAML and the options above.\n"]
    for name, (text, _) in COMMANDS.items():
        if name not in TAKES_THE_YAML:
            summary = text.partition(":  ")[0]
            parts += section(f"`kyon-pl {name}`", settings_of(capture_parser(command(name), [name])), 3, summary)
    return "\n".join(parts)


def nested() -> list[str]:
    """The classes among the settings of the model."""
    lora = [a for name in OF_PEFT for a in of_class(LoraConfig, "model.lora") if a.dest == f"model.lora.{name}"]
    explained = {f"model.lora.{field.name}": field.metadata.get("help", "") for field in fields(LoraConfig)}
    for action in lora:
        action.help = explained[action.dest]
    note = "PEFT's own settings, the usual ones; all of them: `kyon-pl fit --model.lora.help peft.LoraConfig`."
    parts = section("`model.lora`", lora, 3, note)
    schedule = [a for a in of_class(LinearDecay, "model.schedule.init_args") if a.dest.endswith("warmup_steps")]
    note = "Any schedule that is made from an optimizer and a number of steps; this one is the default."
    return parts + section("`model.schedule`: kyon_pl.training.LinearDecay", schedule, 3, note)


def settings_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The settings among a parser's actions: not its help, not its files."""
    for action in parser._actions:
        if action.default is not argparse.SUPPRESS and action.dest != "config" and not action.dest.endswith(".help"):
            yield action


def of_class(kind: type, prefix: str) -> list[argparse.Action]:
    """The settings that a class takes, under a prefix."""
    parser = ArgumentParser()
    parser.add_class_arguments(kind, prefix)
    return list(settings_of(parser))


def section(title: str, actions: Iterable[argparse.Action], level: int = 2, note: str = "") -> list[str]:
    """A heading and a table, one line for each setting."""
    rows = [line(action) for action in actions]
    lines = [f"{'#' * level} {title}\n"] + ([f"{note}\n"] if note else [])
    if any(reference for _, _, _, reference, _ in rows):
        lines += ["| setting | takes | default | reference run | meaning |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    else:
        lines += ["| setting | takes | default | meaning |", "|---|---|---|---|"]
        lines += [f"| {' | '.join((*row[:3], row[4]))} |" for row in rows]
    return [*lines, ""]


def line(action: argparse.Action) -> tuple[str, str, str, str, str]:
    """Name, type, default, value in the reference run, meaning."""
    hint = getattr(action, "_typehint", action.type)
    value: Any = REFERENCE
    for key in action.dest.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    reference = "" if value is None or value == action.default or action.dest == "trainer.callbacks" else shown(value)
    required = getattr(action, "required", False)
    default = "needed" if required else shown(action.default)
    takes = "flag" if action.nargs == 0 else " or ".join(dict.fromkeys(kinds(hint)))
    longest = LONGEST if action.dest.startswith(OF_LIBRARIES) else None
    return f"`{action.dest}`", takes, default, reference, meaning(action.help or "", longest)


def kinds(hint: Any) -> Iterator[str]:
    """The types that a setting takes, in YAML's words; for a class its name."""
    origin, inner = get_origin(hint), get_args(hint)
    names = {str: "text", int: "int", float: "number", bool: "true/false", type(None): "null", None: "text"}
    if hint in names:
        yield names[hint]
    elif origin is Literal:
        yield "/".join(f"`{value}`" for value in inner)
    elif origin in (Union, UnionType):
        for part in inner:
            yield from kinds(part)
    elif hint is dict or (isinstance(origin, type) and issubclass(origin, dict)):
        yield "mapping"
    elif inner and "Callable" in str(origin):
        yield "class"
    elif inner:  # a list or another container
        yield "list of " + " or ".join(dict.fromkeys(kind for part in inner for kind in kinds(part)))
    else:
        yield getattr(hint, "__name__", str(hint))


def shown(value: Any) -> str:
    """A value as it stands in YAML, or a class with what it is made with."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict) and "class_path" in value:
        made_with = ", ".join(f"{key}: {item}" for key, item in value.get("init_args", {}).items())
        return f"`{value['class_path'].rpartition('.')[2]}`" + (f" ({made_with})" if made_with else "")
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000).removesuffix("...\n").strip()
    return f"`{text}`"


def meaning(text: str, longest: int | None) -> str:
    """One line of Markdown out of a docstring's paragraph; its first sentences where it may not be that long."""
    text = re.sub(r"\s+", " ", text)
    while longest and len(text) > longest and ". " in text.rstrip(". "):
        text = text.rstrip(". ").rpartition(". ")[0] + "."
    text = re.sub(r"\s*Defaults?(?: to|:) ?`{0,2}[^`]*?`{0,2}\.?$", "", text)
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?([\w()]+)`", r"`\1`", text).replace("``", "`")
    text = re.sub(r" \(type: .*$| \(default: .*$", "", text)
    return text.replace("|", "\\|").strip()


if __name__ == "__main__":
    main()
