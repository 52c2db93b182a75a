"""Writes the lock files from constraints.txt: each package's version with the SHA-256 of its published files.

    uv run --no-project requirements/lock.py           (or python requirements/lock.py, with uv on the PATH)

`test.lock` is everything in constraints.txt but torch, for all systems and for Python 3.11 and newer.
`torch-cuda.lock` is torch as PyPI has it, with the CUDA libraries that its build for Linux needs, and `torch-cpu.lock`
the build without them, which PyTorch's own index has. `audit.lock` is what `make audit` runs, and `site.lock` what
`make site` does.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CONSTRAINTS = HERE.parent / "constraints.txt"
OLDEST_PYTHON = "3.11"
AUDIT_TOOLS = "pip-audit\npip-licenses\ncyclonedx-bom[validation]\nzizmor\n"
SITE_TOOLS = "mkdocs-material\nmkdocstrings-python\n"
# the SHA-256 of PyTorch's CPU build for Linux on x86-64 and Python 3.11
CPU_BUILDS = {"2.13.0": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"}
HEADER = "# Written by requirements/lock.py; not by hand.\n"


def main() -> None:
    """Write the five files."""
    pinned = CONSTRAINTS.read_text(encoding="utf-8")
    everything = resolve(pinned, "--no-deps")
    torch = everything.pop("torch")
    version = torch.partition("==")[2].split()[0]
    with_cuda = resolve(f"torch=={version}", "--constraints", str(CONSTRAINTS))
    write("test", everything)
    write("torch-cuda", {name: text for name, text in with_cuda.items() if name not in everything})
    write("torch-cpu", {"torch": f"torch=={version}+cpu \\\n    --hash=sha256:{CPU_BUILDS[version]}\n"})
    write("audit", resolve(AUDIT_TOOLS, "--constraints", str(CONSTRAINTS)))
    write("site", resolve(SITE_TOOLS, "--constraints", str(CONSTRAINTS)))


def resolve(requirements: str, *options: str) -> dict[str, str]:
    """Each package of a resolution by its name, as `name==version` with markers and hashes.

    Args:
        requirements: lines of a requirements file.
        options: further ones of uv.
    """
    command = ["uv", "pip", "compile", "-", *options, "--universal", "--python-version", OLDEST_PYTHON]
    command += ["--generate-hashes", "--no-annotate", "--no-header", "--quiet"]
    done = subprocess.run(command, input=requirements, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    blocks = re.split(r"^(?=[a-z0-9])", done.stdout, flags=re.MULTILINE)
    return {block.partition("==")[0]: block for block in blocks if "==" in block}


def write(name: str, packages: dict[str, str]) -> None:
    """Write one lock file, in the order of names."""
    (HERE / f"{name}.lock").write_text(HEADER + "".join(packages[key] for key in sorted(packages)), encoding="utf-8")


if __name__ == "__main__":
    main()
