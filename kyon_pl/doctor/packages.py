"""The versions of the required packages, read from the installed metadata without importing them."""

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

# Releases whose import runs code that steals credentials.
# Source: https://github.com/Lightning-AI/pytorch-lightning/issues/21691
MALICIOUS = {"lightning": ("2.6.2", "2.6.3")}
MALICIOUS_FOUND = "a malicious release that steals credentials when it is imported; it was not imported here"
NAMED_PACKAGES = ("torch", "lightning", "transformers", "peft")  # results depend on their versions
INSTALL_FIX = "pip install -c constraints.txt -e . installs tested versions"


@dataclass(frozen=True)
class Package:
    """A required package.

    Attributes:
        name: the name for `pip install`.
        version: the installed version; None: not installed.
        wanted: the accepted versions, such as `>=2.11`.
        malicious: whether the installed release is known to be malicious.
    """

    name: str
    version: str | None
    wanted: str
    malicious: bool

    @property
    def usable(self) -> bool:
        """Whether an accepted version is installed that is not malicious."""
        if self.version is None or self.malicious:
            return False
        try:
            return Requirement(f"{self.name}{self.wanted}").specifier.contains(self.version, prereleases=True)
        except InvalidVersion:
            return False


def packages() -> list[Package]:
    """The packages that `kyon-pl` requires, without those of its extras.

    Raises:
        MachineError: `kyon-pl` is not installed, so that its requirements are unknown.
    """
    try:
        lines = requires("kyon-pl") or []
    except PackageNotFoundError as error:
        fix = "Run pip install -e . in its folder"
        raise MachineError("kyon-pl", "it is not installed in this Python", fix) from error
    return [_package(requirement) for requirement in map(Requirement, lines) if requirement.marker is None]


def refuse_malicious_releases() -> None:
    """Stop before a malicious release is imported.

    Raises:
        MachineError: one is installed.
    """
    for name, versions in MALICIOUS.items():
        for version in _installed_versions(name):
            if version in versions:
                raise MachineError(f"{name} {version}", MALICIOUS_FOUND, _removal(name))


def python_finding() -> Finding:
    """Whether the version of Python is supported."""
    version, wanted = platform.python_version(), str(metadata("kyon-pl")["Requires-Python"])
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding("Python", "ok", version)
    return Finding("Python", "missing", f"{version}; {wanted} is needed", "Make an environment with such a Python")


def package_findings(required: list[Package]) -> Iterator[Finding]:
    """One finding for all usable packages, and one for each of the others."""
    usable = [package for package in required if package.usable]
    if usable:
        named = [f"{package.name} {package.version}" for package in usable if package.name in NAMED_PACKAGES]
        yield Finding("packages", "ok", f"{', '.join(named)} and {len(usable) - len(named)} others")
    for package in required:
        if package.malicious:
            yield Finding(package.name, "missing", f"{package.version}: {MALICIOUS_FOUND}", _removal(package.name))
        elif package.version is None:
            yield Finding(package.name, "missing", f"not installed; {package.wanted} is needed", INSTALL_FIX)
        elif not package.usable:
            yield Finding(package.name, "missing", f"{package.version}; {package.wanted} is needed", INSTALL_FIX)


def _package(requirement: Requirement) -> Package:
    versions = _installed_versions(requirement.name)
    malicious = [version for version in versions if version in MALICIOUS.get(requirement.name, ())]
    version = next(iter(malicious or versions), None)
    return Package(requirement.name, version, str(requirement.specifier), malicious=bool(malicious))


def _installed_versions(name: str) -> list[str]:
    """All versions on the path: a later entry can still be imported."""
    return [distribution.version for distribution in distributions(name=name)]


def _removal(name: str) -> str:
    return (
        f"pip uninstall {name}, then {INSTALL_FIX}; if it was ever imported, replace every token and key that this "
        "account could read"
    )
