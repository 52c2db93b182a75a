"""Writes the lock files from constraints.txt: each package's version with the SHA-256 of its published files.

    uv run --no-project requirements/lock.py           (or python requirements/lock.py, with uv on the PATH)

`test.lock` is everything in constraints.txt, for all systems and for Python 3.11 and newer. `cuda.lock` is what torch's
CUDA build for Linux needs besides; its CPU build needs none of it. `audit.lock` is what `make audit` runs. Lines of a
package that has not changed stay as they are.
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
# PyTorch's own index has the CPU builds; pip takes `2.13.0+cpu` for `torch==2.13.0`
CPU_BUILDS_OF_TORCH = {"2.13.0": ("6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",)}
HEADER = "# Written by requirements/lock.py; not by hand.\n"


def main() -> None:
    """Write the three files."""
    pinned = CONSTRAINTS.read_text(encoding="utf-8")
    everything = add_cpu_builds(resolve(pinned, "--no-deps"))
    write("test", everything)
    torch = next(line for line in pinned.splitlines() if line.startswith("torch=="))
    with_cuda = resolve(torch, "--constraints", str(CONSTRAINTS))
    write("cuda", {name: text for name, text in with_cuda.items() if name not in everything})
    write("audit", resolve(AUDIT_TOOLS, "--constraints", str(CONSTRAINTS)))


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


def add_cpu_builds(packages: dict[str, str]) -> dict[str, str]:
    """The packages with the hashes of torch's CPU builds beside those of its published files."""
    first, *hashes = packages["torch"].splitlines(keepends=True)
    version = first.split("==")[1].split()[0]
    more = [f"    --hash=sha256:{digest} \\\n" for digest in CPU_BUILDS_OF_TORCH[version]]
    return packages | {"torch": "".join([first, *more, *hashes])}


def write(name: str, packages: dict[str, str]) -> None:
    """Write one lock file, in the order of names."""
    (HERE / f"{name}.lock").write_text(HEADER + "".join(packages[key] for key in sorted(packages)), encoding="utf-8")


if __name__ == "__main__":
    main()
