"""The search for a token finds one that is planted in each kind of file that a run writes."""

from __future__ import annotations

import base64
import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from token_search import files_with, holds
from torch.utils.tensorboard import SummaryWriter

TOKEN = "hf_0123456789secret"


def deflate(file: Path, text: str) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.txt", text * 50)


def write_events(file: Path, text: str) -> None:
    with SummaryWriter(str(file.parent)) as writer:
        writer.add_text("a", text)


PLANT: dict[str, Callable[[Path, str], object]] = {
    "run.log": lambda file, text: file.write_text(f"a line\nwith {text}\n"),
    "config.yaml": lambda file, text: file.write_text(f"a: {text}\n"),
    "step=1.ckpt": lambda file, text: torch.save({"a": [text], "w": torch.zeros(3)}, file),
    "archive.ckpt": deflate,
    "adapter_model.safetensors": lambda file, text: save_file({"w": torch.zeros(3)}, file, {"a": text}),
    "events": write_events,
    "rows.jsonl.gz": lambda file, text: file.write_bytes(gzip.compress(text.encode() * 50)),
    "basic": lambda file, text: file.write_bytes(base64.b64encode(f"user:{text}".encode())),
    "wide": lambda file, text: file.write_text(text, encoding="utf-16"),
    "in a name": lambda file, text: (file.parent / f"{text}.lock").touch(),
}


@pytest.mark.parametrize("name", PLANT)
def test_a_planted_token_is_found(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "deep" / "down"
    folder.mkdir(parents=True)
    PLANT[name](folder / name, "hf_another0123456789")
    assert files_with(TOKEN, tmp_path) == []
    PLANT[name](folder / name, TOKEN)
    assert files_with(TOKEN, tmp_path)


def test_what_is_printed_is_searched_too() -> None:
    assert holds(TOKEN, f"Authorization: Bearer {TOKEN}".encode())
    assert not holds(TOKEN, b"Authorization: Bearer <TOKEN>")
