"""Ways of damaging a file: each takes a path, and leaves something else there."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

Damage = Callable[[Path], None]

DEEP = 100_000
ESCAPES = "\x1b]0;PWNED\x07\x1b[31m\u202e"
HUGE = 10**400


def content(change: Callable[[bytes], bytes]) -> Damage:
    """Damage to the bytes of a file."""

    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def cut(share: float) -> Damage:
    return content(lambda old: old[: int(len(old) * share)])


def flip(share: float) -> Damage:
    """One bit of the byte at that share of the file."""

    def change(old: bytes) -> bytes:
        place = min(int(len(old) * share), len(old) - 1)
        return old[:place] + bytes([old[place] ^ 1 << int(share * 97) % 8]) + old[place + 1 :] if old else old

    return content(change)


def inserted(text: bytes, share: float = 0.5) -> Damage:
    return content(lambda old: old[: int(len(old) * share)] + text + old[int(len(old) * share) :])


def recoded(encoding: str) -> Damage:
    return content(lambda old: old.decode("utf-8", "replace").encode(encoding, "replace"))


def replaced(make: Callable[[Path], object]) -> Damage:
    """Something else than a regular file in its place."""

    def damage(path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        make(path)

    return damage


def locked(path: Path) -> None:
    path.chmod(0)


def archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("rows.jsonl", "{}")
    return stream.getvalue()


def laughs() -> bytes:
    """A short YAML of 9 ** 9 values."""
    lines = ["data: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return "\n".join(lines).encode()


class Trap:
    """Pickled, it is code that makes a file."""

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (Path("sprung"),)


PLACES = (0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999)

# what happens to any file
OF_BYTES: dict[str, Damage] = {
    "empty": content(lambda old: b""),
    **{f"cut at {share}": cut(share) for share in PLACES[1:]},
    **{f"a bit flipped at {share}": flip(share) for share in PLACES},
    "zeroed": content(lambda old: bytes(len(old))),
    "zeroed from the middle on": content(lambda old: old[: len(old) // 2] + bytes(len(old) - len(old) // 2)),
    "a hole of zeros": content(lambda old: old[: len(old) // 3] + bytes(64) + old[len(old) // 3 + 64 :]),
    "binary": content(lambda old: Random(1).randbytes(max(len(old), 64))),
    "0xff in the middle": inserted(b"\xff\xfe\xff"),
    "NUL in the middle": inserted(b"\0"),
    "NUL at the start": inserted(b"\0", 0),
    "twice": content(lambda old: old + old),
    "gzip": content(gzip.compress),
    "zip": content(lambda old: archive()),
    "HTML": content(lambda old: b"<!DOCTYPE html><html><body>404</body></html>"),
    "PNG": content(lambda old: b"\x89PNG\r\n\x1a\n" + bytes(64)),
    "pickle with code": content(lambda old: pickle.dumps(Trap())),
    "Parquet's mark": content(lambda old: b"PAR1" + bytes(40) + b"PAR1"),
    "pointer of git LFS": content(
        lambda old: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    ),
    "2 MB of one letter": content(lambda old: b"a" * 2_000_000),
    "missing": replaced(lambda path: None),
    "a folder": replaced(Path.mkdir),
    "a FIFO": replaced(os.mkfifo),
    "a link to /dev/zero": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a link to /dev/null": replaced(lambda path: path.symlink_to("/dev/null")),
    "a link to /proc/self/mem": replaced(lambda path: path.symlink_to("/proc/self/mem")),
    "a dangling link": replaced(lambda path: path.symlink_to("nowhere")),
    "a link to itself": replaced(lambda path: path.symlink_to(path.name)),
    "mode 000": locked,
}

# what happens to files of text, JSON or not
OF_TEXT: dict[str, Damage] = {
    "UTF-16": recoded("utf-16"),
    "UTF-32": recoded("utf-32"),
    "GBK": recoded("gbk"),
    "BOM": content(lambda old: b"\xef\xbb\xbf" + old),
    "CRLF": content(lambda old: old.replace(b"\n", b"\r\n")),
    "CR": content(lambda old: old.replace(b"\n", b"\r")),
    "blank lines": content(lambda old: b"\n \n\t\n"),
    "control characters": inserted(ESCAPES.encode()),
    "only control characters": content(lambda old: ESCAPES.encode()),
    "lone surrogates": content(lambda old: b'{"context": "\\ud800", "target": "\\udfff", "a": "\\ud800"}\n'),
    "null": content(lambda old: b"null"),
    "a number": content(lambda old: b"5"),
    "a huge number": content(lambda old: str(HUGE).encode()),
    "NaN": content(lambda old: b"NaN"),
    "a text": content(lambda old: b'"text"'),
    "an empty list": content(lambda old: b"[]"),
    "a list of numbers": content(lambda old: b"[1, 2, 3]"),
    "an empty object": content(lambda old: b"{}"),
    "an object of other keys": content(lambda old: b'{"a": {"b": [1, null, "c"]}}'),
    "a list nested deeply": content(lambda old: b"[" * DEEP + b"]" * DEEP),
    "objects nested deeply": content(lambda old: b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    "a number of 5,000 digits": content(lambda old: b'{"data": ' + b"9" * 5000 + b"}"),
    "aliases of aliases": content(lambda old: laughs()),
    "tags of YAML": content(lambda old: b"data: [!!int '', !!bool x, !!timestamp x, !!python/name:os.system x]"),
    "a key twice": content(lambda old: b'{"context": "a", "context": "b", "r": 1, "r": 2}\n'),
    "a key of 5,000 letters": content(lambda old: b'{"' + b"k" * 5000 + b'": 1}\n'),
    "a key of control characters": content(lambda old: b'{"\\u001b]0;x\\u0007\\n": 1}\n'),
}
