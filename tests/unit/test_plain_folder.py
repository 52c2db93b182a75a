"""A base in a plain folder, as ModelScope's client or a hand put it there: the same files, and others beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published_layout import tiny_config, write_published_layout

from kyon_pl import ChatGLMTokenizer
from kyon_pl.chatglm2.checkpoint import load_base, random_base
from kyon_pl.demo import BASE
from kyon_pl.errors import MissingFileError
from kyon_pl.hub.download import ADAPTER_FILES, MODEL_FILES, TOKENIZER_FILES, fetch_model
from kyon_pl.runs.fingerprint import fingerprint_of_base

WHERE = {"dtype": torch.float32, "device": torch.device("cpu"), "attn_implementation": "sdpa"}
# what ModelScope's client leaves beside the published files
BESIDE = {
    ".msc": b"\x80\x04broken pickle",
    ".mv": b"Revision:master",
    ".mdl": b"\x80",
    "configuration.json": b"{not JSON",
}
BESIDE |= {
    "README.md": b"hello",
    "training_args.bin": b"\x80\x04broken pickle",
    "._____temp/model.safetensors": b"half",
}


def test_other_files_in_the_folder_are_not_read(tmp_path: Path) -> None:
    model = random_base(tiny_config(), **WHERE)
    folder = write_published_layout(
        tmp_path / "ZhipuAI" / "chatglm2-6b", model, tokenizer_model=BASE / "tokenizer.model"
    )
    fingerprint = fingerprint_of_base(folder)
    for name, content in BESIDE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    assert fetch_model(str(folder), None, patterns=[*MODEL_FILES, *TOKENIZER_FILES]) == folder
    loaded = load_base(folder, **WHERE).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor.half().float()), name
    assert len(ChatGLMTokenizer.from_pretrained(folder)) == len(ChatGLMTokenizer.from_pretrained(BASE))
    assert fingerprint_of_base(folder) == fingerprint


def test_a_folder_without_the_wanted_files(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    with pytest.raises(MissingFileError, match=r"none of the wanted files is there \(adapter_config"):
        fetch_model(str(tmp_path), None, patterns=ADAPTER_FILES)
