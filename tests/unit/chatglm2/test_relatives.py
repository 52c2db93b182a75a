"""Other ChatGLM models: compatible files load, others are refused with the name of the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published_layout import published_config, tiny_config, write_published_layout

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.chatglm2.checkpoint import load_base
from kyon_pl.chatglm2.tokenization import read_tokenizer
from kyon_pl.demo import BASE
from kyon_pl.errors import CheckpointError, SettingError

# differences of each published config.json from ChatGLM2-6B's
CHATGLM3 = {"_name_or_path": "THUDM/chatglm3-6b", "seq_length": 8192, "transformers_version": "4.30.2"}
RELATIVES: dict[str, tuple[dict[str, Any], str | None]] = {
    "chatglm2-6b": ({}, None),
    "chatglm2-6b-int4": ({"quantization_bit": 4}, "quantization_bit"),
    "chatglm2-6b-32k": ({"rope_ratio": 50}, "rope_ratio"),
    "chatglm3-6b": (CHATGLM3 | {"classifier_dropout": None}, None),
    "chatglm3-6b-base": (CHATGLM3 | {"seq_length": 32768, "rope_ratio": 1}, None),
    "chatglm3-6b-32k": (CHATGLM3 | {"seq_length": 32768, "rope_ratio": 50}, "rope_ratio"),
    "chatglm3-6b-128k": (CHATGLM3 | {"seq_length": 131072, "rope_ratio": 500}, "rope_ratio"),
    "glm-4-9b": ({"rope_ratio": 500, "eos_token_id": [151329]}, "rope_ratio"),
    "chatglm-6b": ({"position_encoding_2d": True}, "position_encoding_2d"),
}
ROLES = ["<|user|>", "<|observation|>"]
ROLE_TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>\n {{ message['content'] }}{% endfor %}"


@pytest.mark.parametrize("name", RELATIVES)
def test_weights_load_or_the_key_is_refused(name: str, tmp_path: Path) -> None:
    changed, refused = RELATIVES[name]
    torch.manual_seed(0)
    model = ChatGLM2ForCausalLM(tiny_config()).to(torch.float16).float().eval()
    write_published_layout(tmp_path, model, shards=2)
    (tmp_path / "config.json").write_text(json.dumps(published_config(model.config) | changed))
    settings = {"dtype": torch.float32, "device": torch.device("cpu"), "attn_implementation": "sdpa"}
    if refused:
        with pytest.raises(SettingError, match=refused):
            load_base(tmp_path, **settings)
        return
    ids = torch.randint(3, 96, (2, 20))
    with torch.no_grad():
        assert torch.equal(load_base(tmp_path, **settings)(ids).logits, model(ids).logits)


def tokenizer_folder(folder: Path, **settings: Any) -> Path:
    (folder / "tokenizer.model").write_bytes((BASE / "tokenizer.model").read_bytes())
    auto_map = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
    published = {"name_or_path": "THUDM/chatglm3-6b", "tokenizer_class": "ChatGLMTokenizer", "auto_map": auto_map}
    (folder / "tokenizer_config.json").write_text(json.dumps(published | settings))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"additional_special_tokens": ROLES, "chat_template": ROLE_TEMPLATE}, r"<\|observation\|>, <\|user\|>"),
        ({"additional_special_tokens": ROLES}, r"<\|observation\|>, <\|user\|>"),
        ({"chat_template": ROLE_TEMPLATE}, r"a chat_template with <\|role\|> tokens"),
    ],
)
def test_role_tokens_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"tokenizer_config.json: .*{message}, which ChatGLM2 does not have"):
        read_tokenizer(tokenizer_folder(tmp_path, **settings))


def test_without_role_tokens_text_is_encoded_as_chatglm2_does(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(tokenizer_folder(tmp_path))
    text = "<|user|>\n [gMASK]sop"
    assert tokenizer.encode(text) == ChatGLMTokenizer.from_pretrained(BASE).encode(text)
    tokenizer.save_pretrained(tmp_path / "again")  # with the five special tokens in its settings
    assert read_tokenizer(tmp_path / "again").encode(text) == tokenizer.encode(text)
