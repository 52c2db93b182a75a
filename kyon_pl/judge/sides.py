"""The sides of a comparison: a base, an adapter, a merged model, or a model behind a server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kyon_pl.chat.command import load_model
from kyon_pl.chat.loading import is_merged_model
from kyon_pl.chat.model import ChatModel
from kyon_pl.disk import expand_home
from kyon_pl.errors import MissingFileError, SettingError
from kyon_pl.runs.adapters import Which, base_with_weights, find_adapter
from kyon_pl.runs.integrity import CHECKPOINTS, fault_of_adapter, read_marker
from kyon_pl.runs.prompt_format import PromptFormat, read_prompt_format

BASE = "base"
_WEIGHTS = ("*.safetensors", "*.gguf", "*.bin")
_END_BYTES = 1 << 20  # of a file of weights; reading gigabytes would take minutes


@dataclass(frozen=True)
class Side:
    """A model that replies.

    Attributes:
        name: unique in the comparison.
        folder: of the adapter, or of the merged model.
        is_base: whether the adapter is switched off.
        server: address of the server that computes the replies; None: this machine.
        base: folder or Hub id of the base; None: the one that the adapter names.
        revision: of the base on the Hub.
    """

    name: str
    folder: Path
    is_base: bool = False
    server: str | None = None
    base: str | None = None
    revision: str | None = None

    @property
    def run(self) -> Path | None:
        """The run folder that the adapter is in; None if it is elsewhere."""
        return self.folder.absolute().parent.parent if self.folder.absolute().parent.name == CHECKPOINTS else None

    @property
    def tokenizer(self) -> str:
        """Folder or Hub id of the tokenizer.

        Raises:
            KyonError: the adapter names no base that can be used.
        """
        is_whole = self.server is not None or is_merged_model(self.folder)
        return str(self.folder) if is_whole else base_with_weights(self.base, self.folder)

    def prompt_format(self) -> PromptFormat | None:
        """How the prompts of its training were written; None if it is not recorded.

        Raises:
            CheckpointError: the record cannot be read.
        """
        return read_prompt_format(self.folder)

    def identity(self) -> str:
        """A hash of the weights: sizes and ends of the files, and whether the adapter is on.

        Raises:
            OSError: a file cannot be read.
        """
        digest = hashlib.sha256(f"{self.is_base} {self.base}".encode())
        for file in sorted(file for pattern in _WEIGHTS for file in self.folder.glob(pattern)):
            with file.open("rb") as stream:
                size = stream.seek(0, 2)
                stream.seek(max(0, size - _END_BYTES))
                digest.update(f"{file.name} {size}".encode() + stream.read())
        return digest.hexdigest()

    def load(self, max_tokens: int) -> ChatModel:
        """Load the model, or connect to its server.

        Args:
            max_tokens: maximum length of prompt and reply together.

        Raises:
            SettingError: a base is asked for, and the model is merged.
            KyonError: from what loads the model.
        """
        base, revision = (self.base, self.revision) if self.server is None else (None, None)
        model = load_model(str(self.folder), None, base, revision, None, self.server, max_tokens)
        if self.is_base and not model.adapters:
            raise _no_base(self.folder)
        return model


def find_sides(
    first: str,
    second: str | None,
    *,
    servers: tuple[str | None, str | None] = (None, None),
    which: Which | None = None,
    base: str | None = None,
    revision: str | None = None,
) -> tuple[Side, Side]:
    """Find both sides of a comparison; nothing is loaded.

    Args:
        first: as for `find_adapter`, the folder of a merged model, or `base` for the base of the other side.
        second: the other side, in the same forms; None: the newest run.
        servers: addresses of servers that compute their replies.
        which: the checkpoint to use of a run.
        base: folder or Hub id of the base of adapters.
        revision: of the base on the Hub.

    Raises:
        SettingError: both sides are a base, or the other side of a base is a merged model.
        MissingFileError: no such adapter, or a folder of a server's model that does not exist.
        CheckpointError: files that cannot be read.
    """
    if first == second == BASE:
        raise SettingError("--second", "both sides are the base", "Name an adapter, a run or a merged model")
    folders = [
        None if name == BASE else _find(name, at, which) for name, at in zip((first, second), servers, strict=True)
    ]
    other = next(folder for folder in folders if folder)
    sides = []
    for name, folder, server in zip((first, second), folders, servers, strict=True):
        if name == BASE and server is None and is_merged_model(other):
            raise _no_base(other)
        at = server if folder else server or next(filter(None, servers), None)
        sides.append(Side(BASE if name == BASE else "", folder or other, name == BASE, at, base, revision))
    one, two = with_names(sides)
    return one, two


def find_checkpoints(run: Path, base: str | None = None, revision: str | None = None) -> list[Side]:
    """The checkpoints of a run that are complete, by optimizer step; of equal ones, the first.

    Args:
        run: the run folder.
        base: folder or Hub id of the base.
        revision: of the base on the Hub.

    Raises:
        MissingFileError: there are fewer than two.
    """
    folders = [file.with_suffix("") for file in sorted((run / CHECKPOINTS).glob("*.ckpt"))]
    complete = sorted((folder for folder in folders if not fault_of_adapter(folder)), key=_step)
    unique: dict[str, Side] = {}
    for folder in complete:
        side = Side("", folder, base=base, revision=revision)
        unique.setdefault(side.identity(), side)
    if len(unique) < 2:
        found = f"{len(unique)} complete checkpoints" if (run / CHECKPOINTS).is_dir() else "it is not a run"
        fix = "Name a run folder with two or more, such as lightning_logs/version_0"
        raise MissingFileError(f"--checkpoints_of {run}", found, fix)
    return with_names([*unique.values()])


def with_names(sides: Sequence[Side]) -> list[Side]:
    """Name the sides: by the folder; by run and folder if they are of several runs; numbered where names are equal."""
    runs = {side.run for side in sides if not side.is_base}
    names = list[str]()
    for side in sides:
        name = side.name or _name(side, with_run=len(runs) > 1)
        names.append(next(one for one in _numbered(name) if one not in names))
    return [replace(side, name=name) for side, name in zip(sides, names, strict=True)]


def _find(name: str | None, server: str | None, which: Which | None) -> Path:
    folder = expand_home(name) if name else None
    if server is None and not (folder and is_merged_model(folder)):
        return find_adapter(name, which)
    if folder is None or not folder.is_dir():
        fix = "Name the folder of its model: of merge --format gguf, or the adapter's"
        raise MissingFileError(f"server {server}", f"no folder of its model ({name})", fix)
    return folder


def _no_base(folder: Path) -> SettingError:
    fix = "Name the base's folder in place of `base`"
    return SettingError("base", f"{folder} is a merged model, which cannot be asked without its adapter", fix)


def _step(folder: Path) -> int:
    return int(read_marker(folder)["step"])


def _name(side: Side, with_run: bool) -> str:
    run = side.run
    return f"{run.name}/{side.folder.name}" if with_run and run else side.folder.absolute().name


def _numbered(name: str) -> Iterable[str]:
    yield name
    number = 2
    while True:
        yield f"{name} ({number})"
        number += 1
