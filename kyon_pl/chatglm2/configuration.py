# mypy: allow-untyped-calls
"""The configuration of ChatGLM2, with the keys of the published `config.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig

from kyon_pl.errors import MissingFileError, SettingError
from kyon_pl.files import explained, read_json_object

# Keys of published configurations with only one implemented value, which is also the default of a missing key.
_IMPLEMENTED: dict[str, object] = {
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "interleaved_qkv": False,
    "model_type": "chatglm",
    "multi_query_attention": True,
    "original_rope": True,
    "position_encoding_2d": False,  # true for ChatGLM-6B, which has the same model_type
    "post_layer_norm": True,
    "pre_seq_len": None,
    "quantization_bit": 0,
    "quantization_config": None,
    "rmsnorm": True,
    "rope_theta": 10000,
    # ChatGLM2-6B-32k divides positions by it, ChatGLM3 and GLM-4 multiply the base by it; no key says which
    "rope_ratio": 1,
    "tie_word_embeddings": False,
}

# keys with which a `config.json` would have transformers import a module or a repository
_NAMES_CODE = re.compile(r"auto_map|_?(attn|experts)_implementation\w*|use_kernels|kernel_config")
INITIALIZER_RANGE = 0.02  # transformers' default
_POSITIVE_INTEGERS = (
    "num_layers",
    "padded_vocab_size",
    "hidden_size",
    "ffn_hidden_size",
    "kv_channels",
    "num_attention_heads",
    "multi_query_group_num",
    "seq_length",
)


class ChatGLM2Config(PreTrainedConfig):
    """Configuration of ChatGLM2 under the published key names. The defaults are ChatGLM2-6B's.

    transformers' names (`num_hidden_layers`, `vocab_size`, ...) are aliases of the same fields. A saved configuration
    can be read by the published code and by vLLM, which identify the model by its architecture `ChatGLMModel`.

    Source: `configuration_chatglm.py` and `config.json` of THUDM/chatglm2-6b.

    Attributes:
        num_layers: decoder layers.
        padded_vocab_size: rows of the embedding and of the head; larger than the tokenizer's vocabulary.
        hidden_size: channels of the residual stream.
        ffn_hidden_size: channels of the MLP's gate, and of its up projection.
        kv_channels: channels of one attention head; the first half is rotated.
        num_attention_heads: query heads.
        multi_query_group_num: key/value heads, each shared by an equal number of query heads.
        seq_length: maximum sequence length of the published model, in tokens. Not enforced here.
        layernorm_epsilon: added to the mean square in RMSNorm.
        add_qkv_bias: whether the fused query/key/value projection has a bias.
        use_cache: whether generation caches keys and values.
        initializer_range: standard deviation of random weights. As in published files, the default is not saved.
        apply_query_key_layer_scaling: no effect, as in the published code under torch 2.
        bias_dropout_fusion: no effect, since there is no dropout.

    Only the default is implemented for the other fields.

    Raises:
        SettingError: a value is not implemented or invalid.
    """

    model_type = "chatglm"
    tokenizer_class: ClassVar[str] = "ChatGLMTokenizer"  # for AutoTokenizer; as a ClassVar it is not saved
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "attention_bias": "add_qkv_bias",
        "head_dim": "kv_channels",
        "intermediate_size": "ffn_hidden_size",
        "max_position_embeddings": "seq_length",
        "num_hidden_layers": "num_layers",
        "num_key_value_heads": "multi_query_group_num",
        "rms_norm_eps": "layernorm_epsilon",
        "vocab_size": "padded_vocab_size",
    }

    num_layers: int = 28
    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    kv_channels: int = 128
    num_attention_heads: int = 32
    multi_query_group_num: int = 2
    seq_length: int = 32768
    layernorm_epsilon: float = 1e-5
    add_qkv_bias: bool = True
    use_cache: bool = True
    initializer_range: float = INITIALIZER_RANGE
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 2
    apply_query_key_layer_scaling: bool = True
    bias_dropout_fusion: bool = True

    # one implemented value each; saved because the published code has no defaults for them
    add_bias_linear: bool = False
    apply_residual_connection_post_layernorm: bool = False
    attention_dropout: float = 0.0
    attention_softmax_in_fp32: bool = True
    fp32_residual_connection: bool = False
    hidden_dropout: float = 0.0
    multi_query_attention: bool = True
    original_rope: bool = True
    post_layer_norm: bool = True
    rmsnorm: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Check all values."""
        kwargs.pop("auto_map", None)  # names code in a repository, which must not be saved again
        where = str(kwargs.get("name_or_path") or "ChatGLM2Config")
        super().__post_init__(**kwargs)
        self._check_implemented(where)
        self._check_shape(where)

    def _check_implemented(self, where: str) -> None:
        for key, implemented in _IMPLEMENTED.items():
            found = self.__dict__.get(key, implemented)
            if found != implemented:
                fix = "Use a base with ChatGLM2-6B's architecture: THUDM/chatglm2-6b, or a model derived from it."
                raise SettingError(f"{where}: {key}", f"{found!r}, and only {implemented!r} is implemented", fix)

    def _check_shape(self, where: str) -> None:
        for key in _POSITIVE_INTEGERS:
            value = getattr(self, key)
            if type(value) is not int or value < 1:
                raise SettingError(f"{where}: {key}", f"{value!r} is not a positive integer", "Set 1 or more.")
        for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, key)
            ids = value if isinstance(value, list) else [value]
            if not all(one is None or (type(one) is int and one >= 0) for one in ids):
                raise SettingError(f"{where}: {key}", f"{value!r} is not a token id", "Set a number from 0, or null.")
        if not isinstance(self.initializer_range, float) or not 0 < self.initializer_range < 100:
            found = f"{self.initializer_range!r} is not a standard deviation"
            raise SettingError(f"{where}: initializer_range", found, "Set a small number, such as 0.02.")
        if type(self.add_qkv_bias) is not bool:
            raise SettingError(f"{where}: add_qkv_bias", f"{self.add_qkv_bias!r}", "Set true or false.")
        if not isinstance(self.layernorm_epsilon, float) or not 0 < self.layernorm_epsilon <= 1:
            found = f"{self.layernorm_epsilon!r} is not a number between 0 and 1"
            raise SettingError(f"{where}: layernorm_epsilon", found, "Set a small one, such as 1e-5.")
        if self.num_attention_heads % self.multi_query_group_num:
            found = f"{self.multi_query_group_num} key/value heads for {self.num_attention_heads} query heads"
            raise SettingError(f"{where}: multi_query_group_num", found, "Set a divisor of num_attention_heads.")
        if self.kv_channels % 4:
            fix = "Set a multiple of 4: half of the channels are rotated, in pairs."
            raise SettingError(f"{where}: kv_channels", f"{self.kv_channels} channels per head", fix)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:  # transformers' own signature
        """Build from the content of a `config.json`, without the keys that name code.

        A value such as `kernels-community/flash-attn2` for `_attn_implementation` would have transformers download and
        import that repository. The caller chooses the attention, not the file.
        """
        return super().from_dict(without_code_keys(config_dict), **kwargs)

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        projected = (self.num_attention_heads + 2 * self.multi_query_group_num) * self.kv_channels
        attention = self.hidden_size * (projected + self.num_attention_heads * self.kv_channels)
        attention += projected if self.add_qkv_bias else 0
        layer = attention + 3 * self.hidden_size * self.ffn_hidden_size + 2 * self.hidden_size
        return self.num_layers * layer + 2 * self.padded_vocab_size * self.hidden_size + self.hidden_size

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`."""
        output: dict[str, Any] = super().to_dict()
        output["architectures"] = ["ChatGLMModel"]  # the published name; transformers writes that of the class here
        if output["initializer_range"] == INITIALIZER_RANGE:
            del output["initializer_range"]
        return output


def own_content(content: Mapping[str, Any], config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """The part of a `config.json` that describes the model: fields of its class, their aliases, and the dtype.

    transformers sets every other key as an attribute too, over its own methods and settings: with `text_config` or
    `return_dict` the model would be another one or none, and `id2label: 5` is an AttributeError.

    Args:
        content: of the file.
        config_class: the class of the configuration.
    """
    common = {field.name for field in fields(PreTrainedConfig)}
    own = {field.name for field in fields(config_class)} - common
    known = own | config_class.attribute_map.keys() | _IMPLEMENTED.keys() | {"dtype", "torch_dtype"}
    return {key: value for key, value in content.items() if key in known}


def check_dtype(content: Mapping[str, Any], path: Path) -> None:
    """Check the dtype that a `config.json` names.

    Raises:
        SettingError: it is not a torch dtype.
    """
    for key in sorted({"dtype", "torch_dtype"} & content.keys()):
        name = content[key]
        if name is not None and not (isinstance(name, str) and isinstance(getattr(torch, name, None), torch.dtype)):
            raise SettingError(f"{path}: {key}", f"{name!r} is not a torch dtype", "Set float16, or remove it.")


def without_code_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `config.json` without the keys that name code, such as `_attn_implementation` and `auto_map`."""
    return {key: value for key, value in content.items() if not _NAMES_CODE.fullmatch(key)}


def read_config(path: Path) -> ChatGLM2Config:
    """Read a `config.json`.

    Args:
        path: of the file or of its folder.

    Raises:
        MissingFileError: there is no such file.
        CheckpointError: it does not hold a JSON object, or transformers refuses it.
        SettingError: a value is not implemented or invalid; the error names the file and the key.
    """
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise MissingFileError(str(path), "there is no such file", "Give the folder of a ChatGLM2 base.")
    content = read_json_object(path)
    if "model_type" not in content:
        raise SettingError(f"{path}: model_type", "it is missing", "Give the config.json of a ChatGLM2 base.")
    check_dtype(content, path)
    try:
        with explained("transformers", path):
            config: ChatGLM2Config = ChatGLM2Config.from_dict(own_content(content, ChatGLM2Config))
    except SettingError as error:
        key = error.where.rpartition(": ")[2]
        raise SettingError(f"{path}: {key}", error.found, error.fix) from None
    return config
