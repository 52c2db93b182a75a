"""The versions of what this package depends on, read from the installed metadata: nothing of it is imported."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, metadata, requires

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from kyon_pl.doctor.report import Finding
from kyon_pl.errors import MachineError

# Releases that were uploaded by a thief of credentials, whose code runs when they are imported.
# Source: https://github.com/Lightning-AI/pytorch-lightning/issues/21691
MALICIOUS = {"lightning": ("2.6.2", "2.6.3")}
RESULTS_DEPEND_ON = ("torch", "lightning", "transformers", "peft")
CURE = "pip install -c constraints.txt -e . installs versions that were tried"


@dataclass(frozen=True)
class Package:
    """A dependency.

    Attributes:
        name: as `pip install` takes it.
        version: the installed one; None: it is not installed.
        wanted: the versions that are admitted, such as `>=2.11`.
        malicious: whether this release steals.
    """

    name: str
    version: str | None
    wanted: str
    malicious: bool

    @property
    def usable(self) -> bool:
        """Whether it is installed, harmless, and of a version that is admitted."""
        if self.version is None or self.malicious:
            return False
        try:
            return Requirement(f"{self.name}{self.wanted}").specifier.contains(self.version, prereleases=True)
        except InvalidVersion:
            return False


def packages() -> list[Package]:
    """What `kyon-pl` requires, its extras aside.

    Raises:
        MachineError: `kyon-pl` itself is not installed, so nobody says what it needs.
    """
    try:
        lines = requires("kyon-pl") or []
    except PackageNotFoundError as error:
        raise MachineError("kyon-pl", "it is not installed in this Python", "pip install -e . in its folder") from error
    wanted = [requirement for requirement in map(Requirement, lines) if requirement.marker is None]
    return [_package(requirement) for requirement in wanted]


def refuse_malicious_releases() -> None:
    """Stop before the first import of a release that is known to steal.

    Raises:
        MachineError: one is installed.
    """
    for name, versions in MALICIOUS.items():
        for version in _installed(name):
            if version in versions:
                raise MachineError(f"{name} {version}", _harm(), _rescue(name))


def python_finding() -> Finding:
    """The version of Python."""
    found, wanted = platform.python_version(), str(metadata("kyon-pl")["Requires-Python"])
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Finding("Python", "ok", found)
    return Finding("Python", "missing", f"{found}, and {wanted} is needed", "Make an environment of such a Python")


def package_findings(found: list[Package]) -> Iterator[Finding]:
    """One line for those that are as they should be, and one for each of the others."""
    usable = [package for package in found if package.usable]
    if usable:
        named = [f"{package.name} {package.version}" for package in usable if package.name in RESULTS_DEPEND_ON]
        yield Finding("packages", "ok", f"{', '.join(named)} and {len(usable) - len(named)} others")
    for package in found:
        if package.malicious:
            yield Finding(package.name, "missing", f"{package.version}: {_harm()}", _rescue(package.name))
        elif package.version is None:
            yield Finding(package.name, "missing", f"not installed ({package.wanted} is needed)", CURE)
        elif not package.usable:
            yield Finding(package.name, "missing", f"{package.version}, and {package.wanted} is needed", CURE)


def _package(requirement: Requirement) -> Package:
    versions = _installed(requirement.name)
    bad = [version for version in versions if version in MALICIOUS.get(requirement.name, ())]
    version = next(iter(bad or versions), None)
    return Package(requirement.name, version, str(requirement.specifier), malicious=bool(bad))


def _installed(name: str) -> list[str]:
    """Every version on the path: a bad one behind a good one can still be imported."""
    return [distribution.version for distribution in distributions(name=name)]


def _harm() -> str:
    return "a malicious release that steals credentials when it is imported; it was not imported here"


def _rescue(name: str) -> str:
    return (
        f"pip uninstall {name}, then {CURE}; if it was ever imported, replace every token and key that this account "
        "could read"
    )
