"""Whether a secret stands in any file below a folder, also inside archives such as checkpoints."""

from __future__ import annotations

import gzip
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path


def files_with(secret: str, *folders: Path) -> list[str]:
    """The files below these folders whose name or content holds the secret; members of archives as `file!member`."""
    found = (pair for folder in folders for pair in _contents(folder))
    return [name for name, content in found if holds(secret, name.encode()) or holds(secret, content)]


def holds(secret: str, content: bytes) -> bool:
    """Whether the secret is there in plain, in UTF-16, or in base64, at whatever place of three it begins."""
    plain = secret.encode()
    # of base64 the first and the last characters also depend on the neighbours
    encoded = (b64encode(b"\0" * shift + plain)[4:-4] for shift in range(3))
    return any(form in content for form in (plain, secret.encode("utf-16-le"), *encoded))


def _contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield str(file), file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                yield from ((f"{file}!{member}", archive.read(member)) for member in archive.namelist())
        if file.suffix == ".gz":
            yield f"{file}!", gzip.decompress(file.read_bytes())
