"""Writes kyon_pl/cli/options.json and docs/configuration.md from the parsers of the commands, so that both say what the
code says.

make docs
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace, capture_parser
from peft import LoraConfig

from kyon_pl.cli.commands import COMMANDS, load_command
from kyon_pl.cli.options import TABLE, Option
from kyon_pl.cli.tools import add_doctor_options, add_preview_options
from kyon_pl.training import LinearDecay
from kyon_pl.training.callbacks import ReplySettings, StepCheckpoint

HERE = Path(__file__).parent
PAGE = HERE / "configuration.md"
REFERENCE = yaml.safe_load((HERE.parent / "configs/lora.yaml").read_text(encoding="utf-8"))
OF_LIGHTNING = ("fit", "validate", "test", "predict")
# commands whose parser has the settings of fit from the table -> what adds their own options
OWN_OPTIONS = {"preview": add_preview_options, "doctor": add_doctor_options}
READS_SETTINGS = (*OF_LIGHTNING, *OWN_OPTIONS)
# settings that a library explains: its first sentences are enough
OF_LIBRARIES, LONGEST_MEANING = ("trainer.", "model.lora.", "ckpt_path", "weights_only"), 240
MEANINGS = {"seed_everything": "the random seed of the whole run."}  # in place of Lightning's
USUAL_OF_PEFT = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "rank_pattern",
    "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights",
)  # fmt: skip

INTRODUCTION = """# Configuration

Written by `make docs` from the code; do not edit.

A setting is a key of the YAML (`data:`, below it `source: rows.jsonl`) and an option of the same name
(`--data.source rows.jsonl`). What comes later on a command line wins: `--config configs/lora.yaml --config
configs/overlay/ddp.yaml --trainer.devices 4`. Lists are replaced as a whole; `callbacks+:` appends to one. The column
*reference run* has the values of `configs/lora.yaml`; where it is empty, that run uses the default. `kyon-pl fit
--print_config` writes all settings as a YAML file to start from, and each run saves its own as `config.yaml`.

A setting that takes a class (`class_path`) takes classes of kyon_pl, torch and Lightning. For a class of another
package, such as `bitsandbytes.optim.AdamW8bit`, add `--allow_code bitsandbytes` to the command line, once for each
package; configs do not store it.
"""


def main() -> None:
    """Write the table and the page."""
    written = table()
    TABLE.write_text(as_json(written), encoding="utf-8")
    PAGE.write_text(page(written), encoding="utf-8")
    print(f"wrote {TABLE} and {PAGE}")


def table() -> dict[str, Any]:
    """The table of all options, in the layout of options.json."""
    of_lightning = {name: options_of(name) for name in OF_LIGHTNING}
    shared = [name for name in of_lightning["fit"] if all(name in options for options in of_lightning.values())]
    shared = [name for name in shared if name not in ("ckpt_path", "weights_only")]
    settings = [of_lightning["fit"][name] for name in shared]
    of_fit = [option for name, option in of_lightning["fit"].items() if name not in shared]
    commands = {}
    for name, (text, _) in COMMANDS.items():
        options = of_lightning[name] if name in OF_LIGHTNING else options_of(name)
        own = [option for key, option in options.items() if key not in of_lightning["fit"]]
        if name in OF_LIGHTNING:
            own = [option for key, option in options.items() if key not in shared]
        elif name in READS_SETTINGS:
            own += of_fit
        runs = "RUN... " if name == "report" else ""
        commands[name] = {
            "summary": text.partition(":  ")[0],
            "usage": f"kyon-pl {name} {runs}[--config FILE_OR_NAME] [--KEY VALUE ...]",
            "reads_settings": name in READS_SETTINGS,
            "options": own,
        }
    versions = {"trainer": {"lightning": version("lightning")}, "model.lora": {"peft": version("peft")}}
    return {"versions": versions, "settings": settings, "commands": commands}


def as_json(written: dict[str, Any]) -> str:
    """The table as JSON, one option a line."""
    lines = ["{", f' "versions": {json.dumps(written["versions"])},', ' "settings": [']
    lines += [_option_lines(written["settings"], "  "), " ],", ' "commands": {']
    for name, entry in written["commands"].items():
        head = json.dumps({key: value for key, value in entry.items() if key != "options"}, ensure_ascii=False)
        comma = "" if name == [*written["commands"]][-1] else ","
        lines += [f'  {json.dumps(name)}: {head[:-1]}, "options": [', _option_lines(entry["options"], "   ")]
        lines += [f"  ]}}{comma}"]
    return "\n".join(line for line in [*lines, " }", "}"] if line) + "\n"


def _option_lines(options: list[dict[str, Any]], indent: str) -> str:
    return ",\n".join(indent + json.dumps(option, ensure_ascii=False) for option in options)


def options_of(command: str) -> dict[str, dict[str, Any]]:
    """The options of a command by name, those of the classes `LoraConfig` and `ReplySettings` included.

    Args:
        command: its name.
    """
    if command in OWN_OPTIONS:
        parser = ArgumentParser()
        OWN_OPTIONS[command](parser)
    else:
        parser = capture_parser(load_command(command), [command])
    if command in OF_LIGHTNING:
        parser = parser._subcommands_action._name_parser_map[command]
    entries: dict[str, dict[str, Any]] = {}
    for action in parser._actions:
        if type(action).__name__ == "ActionLink":
            continue
        if action.default is argparse.SUPPRESS or action.dest == "config" or action.dest.endswith(".help"):
            continue
        entries[action.dest] = entry(action)
        if action.dest == "model.lora" and command in OF_LIGHTNING:
            entries |= {name: entry(action) for name, action in of_class(LoraConfig, "model.lora").items()}
        if action.dest == "held_out" and command in OF_LIGHTNING:
            entries |= {name: entry(action) for name, action in of_class(ReplySettings, "held_out").items()}
    return entries


def of_class(kind: type, prefix: str) -> dict[str, argparse.Action]:
    """The arguments of a class by name, under a prefix."""
    parser = ArgumentParser()
    parser.add_class_arguments(kind, prefix)
    actions = {
        action.dest: action
        for action in parser._actions
        if action.default is not argparse.SUPPRESS and not action.dest.endswith(".help")
    }
    if kind is LoraConfig:
        for field in fields(LoraConfig):
            if (name := f"{prefix}.{field.name}") in actions:
                actions[name].help = field.metadata.get("help", "")
    return actions


def entry(action: argparse.Action) -> dict[str, Any]:
    """An option as a line of the table, without what an `Option` has by default."""
    longest = LONGEST_MEANING if action.dest.startswith(OF_LIBRARIES) else None
    written = {
        "name": action.dest,
        "types": ["flag"] if action.nargs == 0 else types(getattr(action, "_typehint", action.type)),
        "default": in_yaml(action.default),
        "meaning": MEANINGS.get(action.dest) or meaning(action.help or "", longest),
        "required": bool(getattr(action, "required", False)),
    }
    absent = {"default": None, "meaning": "", "required": False}
    return {key: value for key, value in written.items() if key not in absent or value != absent[key]}


def types(hint: Any) -> list[Any]:
    """The types that an option takes, as `Option` has them."""
    origin, inner = get_origin(hint), get_args(hint)
    names = {str: "text", int: "int", float: "number", bool: "true/false", type(None): "null", None: "text"}
    if hint in names:
        return [names[hint]]
    if origin is Literal:
        return [{"choices": list(inner)}]
    if origin in (Union, UnionType):
        return unique(kind for part in inner for kind in types(part))
    if hint is dict or (isinstance(origin, type) and issubclass(origin, dict)):
        return ["mapping"]
    if inner and "Callable" in str(origin):
        return ["class"]
    if inner:  # a list or another container
        return [{"list": unique(kind for part in inner for kind in types(part))}]
    return [getattr(hint, "__name__", str(hint))]


def unique(kinds: Iterable[Any]) -> list[Any]:
    """Without duplicates, in order."""
    found: list[Any] = []
    for kind in kinds:
        if kind not in found:
            found.append(kind)
    return found


def in_yaml(value: Any) -> Any:
    """A default as plain data."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    return list(value) if isinstance(value, tuple) else value


def meaning(text: str, longest: int | None) -> str:
    """One line from a docstring's paragraph; its first sentences where it may not be that long."""
    text = re.sub(r"\s+", " ", text)
    while longest and len(text) > longest and ". " in text.rstrip(". "):
        text = text.rstrip(". ").rpartition(". ")[0] + "."
    text = re.sub(r"\s*Defaults?(?: to|:) ?`{0,2}[^`]*?`{0,2}\.?$", "", text)
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?([\w()]+)`", r"`\1`", text).replace("``", "`")
    return re.sub(r" \(type: .*$| \(default: .*$", "", text).strip()


def page(written: dict[str, Any]) -> str:
    """The whole page, as Markdown.

    Args:
        written: the table.
    """
    settings = [Option(**line) for line in [*written["settings"], *written["commands"]["fit"]["options"]]]

    def of(prefix: str) -> list[Option]:
        return [option for option in settings if option.name.startswith(f"{prefix}.")]

    run = [option for option in settings if "." not in option.name and option.name != "held_out"]
    parts = [INTRODUCTION, *section("The run", run)]
    parts += section(
        "`model`: the base and its adapter", (o for o in of("model") if not o.name.startswith("model.lora."))
    )
    usual = [option for option in of("model.lora") if option.name.rpartition(".")[2] in USUAL_OF_PEFT]
    note = "The usual settings of PEFT; all of them: `kyon-pl fit --help all`."
    parts += section("`model.lora`", sorted(usual, key=lambda o: USUAL_OF_PEFT.index(o.name[11:])), 3, note)
    note = "Any schedule that is made from an optimizer and a number of steps; this one is the default."
    warmup = class_options(LinearDecay, "model.schedule.init_args", ("warmup_steps", "warmup_share"))
    parts += section("`model.schedule`: kyon_pl.training.LinearDecay", warmup, 3, note)
    parts += section("`data`: the rows and their batches", of("data"))
    parts += section("`held_out`: replies to held-out questions", of("held_out"))
    parts += section("`replies`: the file that predict writes", of("replies"))
    parts += section("`trainer`: Lightning's Trainer", of("trainer"))
    step_checkpoint = "trainer.callbacks: kyon_pl.training.callbacks.StepCheckpoint"
    parts += section(f"`{step_checkpoint}`", class_options(StepCheckpoint, "init_args", ("every_n_steps", "keep")))
    parts += ["## The other commands\n", f"{', '.join(READS_SETTINGS)} take the YAML and the options above.\n"]
    for name, command in written["commands"].items():
        if name not in READS_SETTINGS:
            options = [Option(**line) for line in command["options"]]
            parts += section(f"`kyon-pl {name}`", options, 3, command["summary"])
    return "\n".join(parts)


def class_options(kind: type, prefix: str, names: tuple[str, ...]) -> list[Option]:
    """Some arguments of a class, under a prefix."""
    actions = of_class(kind, prefix)
    return [Option(**entry(actions[f"{prefix}.{name}"])) for name in names]


def section(title: str, options: Iterable[Option], level: int = 2, note: str = "") -> list[str]:
    """A heading and a table, one line for each option."""
    rows = [row(option) for option in options]
    lines = [f"{'#' * level} {title}\n"] + ([f"{note}\n"] if note else [])
    if any(reference for _, _, _, reference, _ in rows):
        lines += ["| setting | takes | default | reference run | meaning |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(cells)} |" for cells in rows]
    else:
        lines += ["| setting | takes | default | meaning |", "|---|---|---|---|"]
        lines += [f"| {' | '.join((*cells[:3], cells[4]))} |" for cells in rows]
    return [*lines, ""]


def row(option: Option) -> tuple[str, str, str, str, str]:
    """Name, types, default, value in the reference run, meaning."""
    value: Any = REFERENCE
    for key in option.name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    same = value is None or value == option.default or option.name == "trainer.callbacks"
    reference = "" if same else f"`{Option(name='', types=[], default=value).default_text}`"
    default = "required" if option.required else f"`{option.default_text}`"
    return f"`{option.name}`", option.takes("`"), default, reference, option.meaning.replace("|", "\\|")


if __name__ == "__main__":
    main()
