"""The published config.json is read and written under its own keys; values that are not implemented are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from published_layout import published_config, tiny_config

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.chatglm2.checkpoint import load_base
from kyon_pl.chatglm2.configuration import read_config
from kyon_pl.demo import BASE
from kyon_pl.errors import SettingError


def test_defaults_are_the_6b_shape() -> None:
    config = ChatGLM2Config()
    assert (config.num_layers, config.hidden_size, config.ffn_hidden_size) == (28, 4096, 13696)
    assert (config.num_attention_heads, config.multi_query_group_num, config.kv_channels) == (32, 2, 128)
    assert (config.padded_vocab_size, config.seq_length, config.layernorm_epsilon) == (65024, 32768, 1e-5)


@pytest.mark.skipif("KYON_CHATGLM2_DIR" not in os.environ, reason="KYON_CHATGLM2_DIR is unset")
def test_defaults_equal_the_published_file() -> None:
    published = json.loads((Path(os.environ["KYON_CHATGLM2_DIR"]) / "config.json").read_text())
    assert published == published_config(ChatGLM2Config())
    config = ChatGLM2Config.from_pretrained(os.environ["KYON_CHATGLM2_DIR"])
    defaults = ChatGLM2Config().to_dict()
    assert {key: value for key, value in config.to_dict().items() if value != defaults[key]} == {
        "_name_or_path": "THUDM/chatglm2-6b",
        "dtype": "float16",
    }


def test_saves_the_published_keys(tmp_path: Path) -> None:
    published = published_config(tiny_config(layernorm_epsilon=1e-6))
    (tmp_path / "config.json").write_text(json.dumps(published))
    config = ChatGLM2Config.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/config.json").read_text())
    # auto_map names remote code; transformers maintains the others
    rewritten = {"auto_map", "_name_or_path", "torch_dtype", "transformers_version"}
    assert {key: saved[key] for key in published.keys() - rewritten} == {
        key: value for key, value in published.items() if key not in rewritten
    }
    assert saved["dtype"] == "float16"
    assert "auto_map" not in saved
    assert ChatGLM2Config.from_pretrained(tmp_path / "saved").to_dict() == config.to_dict() | {"_name_or_path": ""}


def test_has_the_names_of_transformers() -> None:
    config = ChatGLM2Config(num_hidden_layers=3, vocab_size=99)
    assert (config.num_layers, config.padded_vocab_size) == (3, 99)
    assert (config.num_key_value_heads, config.head_dim, config.max_position_embeddings) == (2, 128, 32768)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("add_bias_linear", True),
        ("apply_residual_connection_post_layernorm", True),
        ("attention_dropout", 0.1),
        ("attention_softmax_in_fp32", False),
        ("fp32_residual_connection", True),
        ("hidden_dropout", 0.1),
        ("interleaved_qkv", True),
        ("model_type", "llama"),
        ("multi_query_attention", False),
        ("original_rope", False),
        ("position_encoding_2d", True),
        ("post_layer_norm", False),
        ("pre_seq_len", 128),
        ("quantization_bit", 4),
        ("rmsnorm", False),
        ("rope_ratio", 50),
        ("rope_theta", 500000),
        ("tie_word_embeddings", True),
        ("multi_query_group_num", 3),
        ("kv_channels", 6),
    ],
)
def test_refuses_what_is_not_implemented(key: str, value: object) -> None:
    with pytest.raises(SettingError, match=key) as refusal:
        ChatGLM2Config(**{key: value})
    assert str(value) in refusal.value.found


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_experts_implementation", "auto_map"])
def test_a_config_cannot_name_code_to_import(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would download and import the repository, were it asked."""
    content = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    named = {"AutoConfig": "evil--code.Config"} if key == "auto_map" else "evil/kernel"
    for file in BASE.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").write_text(json.dumps(content | {key: named}), encoding="utf-8")
    asked: list[str] = []
    monkeypatch.setattr("transformers.integrations.hub_kernels.get_kernel", lambda *a, **k: asked.append(str(a)))
    base = load_base(tmp_path, dtype=torch.float32, device=torch.device("cpu"), attn_implementation="sdpa")
    assert base.config._attn_implementation == "sdpa"
    assert "evil" not in json.dumps(read_config(tmp_path).to_dict())
    assert "evil" not in json.dumps(ChatGLM2Config.from_pretrained(tmp_path).to_dict())
    assert asked == []
