"""What comes in: known vulnerabilities and licences of everything that the lock files install.

    make audit
    python requirements/audit.py LOCK ... --python PYTHON [--advisories DIR]

pip-audit compares each version in the lock files with the advisories in `advisories/`, which are records in OSV's
format that a small server on this machine answers with, and then with all of OSV, if that can be reached; what was left
out is said. pip-licenses tells the licences of the packages that PYTHON has installed, and each must be in
`licences.txt`. The exit status is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).parent
OSV = "https://api.osv.dev/v1/query"


class Advisories(BaseHTTPRequestHandler):
    """Answers OSV's `/v1/query` with `records`."""

    records: list[dict[str, Any]]  # set before the server starts

    def do_POST(self) -> None:
        """Answer with the records of one version of one package."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = [one for one in self.records if is_affected(one, asked["package"]["name"], asked["version"])]
        body = json.dumps({"vulns": found} if found else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def is_affected(record: dict[str, Any], name: str, version: str) -> bool:
    """Whether an advisory lists a version of a package.

    Args:
        record: in OSV's format, with the affected versions as a list.
        name: of the package.
        version: of the package.
    """
    return any(
        canonicalize_name(part["package"]["name"]) == canonicalize_name(name)
        and Version(version) in map(Version, part["versions"])
        for part in record["affected"]
    )


def audit(locks: list[Path], url: str) -> bool:
    """Whether pip-audit finds nothing in lock files; it prints what it finds.

    Args:
        locks: of pip, with hashes.
        url: of OSV or of a server like it.
    """
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    command += ["--vulnerability-service", "osv", "--osv-url", url, "--strict"]
    for lock in locks:
        command += ["--requirement", str(lock)]
    return subprocess.run(command, check=False).returncode == 0


def is_reachable(url: str) -> bool:
    """Whether a server of advisories answers."""
    try:
        return requests.post(url, json={"package": {"name": "pip", "ecosystem": "PyPI"}}, timeout=10).ok
    except requests.RequestException:
        return False


def refused_licences(python: str) -> list[str]:
    """The packages with a licence that is not in `licences.txt`, each with it.

    Args:
        python: the interpreter of the environment.
    """
    lines = (HERE / "licences.txt").read_text(encoding="utf-8").splitlines()
    allowed = {line for line in lines if line and not line.startswith("#")}
    command = [sys.executable, "-m", "piplicenses", "--python", python, "--from=mixed", "--format=json"]
    packages = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    refused = [one for one in packages if set(parts(one["License"])) - allowed]
    return [f"{one['Name']} {one['Version']}: {one['License']}" for one in refused]


def parts(expression: str) -> list[str]:
    """The names in a licence expression, all of which must be allowed."""
    return [name.strip() for name in re.split(r" AND | OR |;", re.sub("[()]", "", expression))]


def main() -> None:
    """Audit, print and exit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("locks", nargs="+", type=Path)
    parser.add_argument("--python", default=sys.executable, help="of the environment whose licences are read")
    parser.add_argument(
        "--advisories", type=Path, default=HERE / "advisories", help="folder of records in OSV's format"
    )
    given = parser.parse_args()

    Advisories.records = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted(given.advisories.glob("*.json"))
    ]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Advisories)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"advisories of this repository: {len(Advisories.records)}", flush=True)
    clean = audit(given.locks, f"http://127.0.0.1:{server.server_port}/v1/query")
    if is_reachable(OSV):
        print("OSV:", flush=True)
        clean = audit(given.locks, OSV) and clean
    else:
        print("OSV cannot be reached from here: only the advisories of this repository were compared")
    refused = refused_licences(given.python)
    print("\n".join([f"licences that are not in licences.txt: {len(refused)}", *refused]))
    sys.exit(0 if clean and not refused else 1)


if __name__ == "__main__":
    main()
