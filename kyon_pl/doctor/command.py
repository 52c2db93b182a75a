"""`kyon-pl doctor`. Nothing whose version is still to be looked at is imported before it was looked at."""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kyon_pl.doctor.packages import Package, package_findings, packages, python_finding
from kyon_pl.doctor.report import Finding, Report, print_report

if TYPE_CHECKING:
    from jsonargparse import Namespace

DESCRIPTION = """What this machine has, what a run with these settings needs, and what is missing. Takes the YAML and
the options of fit. Downloads nothing. Exit status: 0 if the run can work, 1 if something is missing, 2 if the settings
cannot be read."""


def run_doctor(args: list[str] | None) -> None:
    """Parse the options of `doctor`, look, and say what was found.

    Args:
        args: the command and its options; unset, those of this process.

    Raises:
        SettingError: a key or value that the parser does not take.
        MachineError: `kyon-pl` is not installed.
        SystemExit: status 1 if something is missing.
    """
    words = (sys.argv[1:] if args is None else args)[1:]
    found = packages()
    if all(package.usable for package in found):
        report, as_json = _look(words, found)
    else:
        report, as_json = _packages_alone(found), "--json" in words
    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False, indent=2))
    else:
        print_report(report)
    if report.missing:
        raise SystemExit(1)


def _packages_alone(found: list[Package]) -> Report:
    """To look further would import them."""
    rest = Finding(
        "the rest", "warning", "not looked at: that would import the packages", "Mend them and run this again"
    )
    findings = [python_finding(), *package_findings(found), rest]
    return Report(machine=findings, config=[], numbers=_numbers(found))


def _look(words: list[str], found: list[Package]) -> tuple[Report, bool]:
    from kyon_pl.doctor.examine import examine_config, examine_machine

    settings = _parse(words)
    with _quiet():
        machine, lines, numbers = examine_machine(settings)
        report = Report([python_finding(), *package_findings(found), *lines], [], _numbers(found) | numbers)
        if any(word.partition("=")[0] != "--json" for word in words):
            examine_config(report, settings, machine)
    return report, settings.json


def _parse(words: list[str]) -> Namespace:
    from lightning.pytorch.cli import LightningArgumentParser

    from kyon_pl.cli.arguments import add_fit_arguments
    from kyon_pl.cli.messages import explain
    from kyon_pl.cli.settings import check_config_files
    from kyon_pl.errors import SettingError

    parser = LightningArgumentParser(
        prog="kyon-pl doctor", description=DESCRIPTION, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--gpu_gib", type=float | None, default=None, help="plan for a GPU of so many GiB, on another machine"
    )
    add_fit_arguments(parser)
    check_config_files(words)
    try:
        settings = parser.parse_args(words)
    except argparse.ArgumentError as error:
        raise explain(error, ["doctor", *words]) from error
    if settings.gpu_gib is not None and not settings.gpu_gib > 0:
        raise SettingError("--gpu_gib", str(settings.gpu_gib), "Give the memory of a GPU in GiB, such as 16")
    return settings


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that a run would log about its data."""
    log = logging.getLogger("kyon_pl.data")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def _numbers(found: list[Package]) -> dict[str, Any]:
    return {"python": platform.python_version(), "packages": {package.name: package.version for package in found}}
