"""`kyon-pl doctor`. The versions of packages are checked before any of the packages is imported."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kyon_pl.doctor.packages import Package, package_findings, packages, python_finding
from kyon_pl.doctor.report import Finding, Report, print_report

if TYPE_CHECKING:
    from jsonargparse import Namespace


def doctor(read_settings: Callable[[], Namespace], *, as_json: bool, with_config: bool) -> None:
    """Report what this machine has, what a run with these settings needs, and what is missing. Downloads nothing.

    Args:
        read_settings: returns the settings of fit; called only if all packages can be imported.
        as_json: print one JSON object instead of text.
        with_config: report on the settings too, not only on the machine.

    Raises:
        KyonError: from `read_settings`.
        MachineError: `kyon-pl` is not installed.
        SystemExit: status 1 if something is missing.
    """
    installed = packages()
    if all(package.usable for package in installed):
        report = _full_report(read_settings(), installed, with_config)
    else:
        report = _package_report(installed)
    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False, indent=2))
    else:
        print_report(report)
    if report.missing:
        raise SystemExit(1)


def _package_report(installed: list[Package]) -> Report:
    """The packages alone: examining the rest would import them."""
    rest = Finding("the rest", "warning", "not checked: that would import the packages", "Fix them and run this again")
    findings = [python_finding(), *package_findings(installed), rest]
    return Report(machine=findings, config=[], numbers=_numbers(installed))


def _full_report(settings: Namespace, installed: list[Package], with_config: bool) -> Report:
    from kyon_pl.doctor.examine import examine_config, examine_machine

    with _quiet():
        machine, lines, numbers = examine_machine(settings)
        findings = [python_finding(), *package_findings(installed), *lines]
        report = Report(findings, [], _numbers(installed) | numbers)
        if with_config:
            examine_config(report, settings, machine)
    return report


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what a run logs about its data."""
    log = logging.getLogger("kyon_pl.data")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def _numbers(installed: list[Package]) -> dict[str, Any]:
    versions = {package.name: package.version for package in installed}
    return {"python": platform.python_version(), "packages": versions}
