# mypy: allow-untyped-calls
"""The configuration of ChatGLM2: the published `config.json`, key by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig

from kyon_pl.chatglm2.files import read_json_object
from kyon_pl.errors import MissingFileError, SettingError

# For each key of published configurations whose other values ask for another model: the value that is built here. A key
# that is left out stands for it.
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
    "position_encoding_2d": False,  # ChatGLM-6B, the first one, has the same model_type
    "post_layer_norm": True,
    "pre_seq_len": None,
    "quantization_bit": 0,
    "quantization_config": None,
    "rmsnorm": True,
    "rope_theta": 10000,
    # ChatGLM2-6B-32k divides positions by it, ChatGLM3 and GLM-4 multiply the base by it, and no key tells which
    "rope_ratio": 1,
    "tie_word_embeddings": False,
}

INITIALIZER_RANGE = 0.02  # transformers' default
_COUNTS = (
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
    """The shape of a ChatGLM2, under the published key names; the defaults are ChatGLM2-6B's.

    transformers' own names (`num_hidden_layers`, `vocab_size`, ...) read and write the same fields. What is saved is
    readable by the published code and by vLLM, which know the model by its architecture `ChatGLMModel`.

    Source: `configuration_chatglm.py` and `config.json` of THUDM/chatglm2-6b.

    Attributes:
        num_layers: decoder layers.
        padded_vocab_size: rows of the embedding and of the head; more than the tokenizer has ids.
        hidden_size: channels of the residual stream.
        ffn_hidden_size: channels of the feed-forward's gate, and of what it gates.
        kv_channels: channels of one attention head; the first half of them is rotated.
        num_attention_heads: query heads.
        multi_query_group_num: key/value heads, each shared by an equal number of query heads.
        seq_length: tokens that the model was made for. Nothing is cut or refused here because of it.
        layernorm_epsilon: added to the mean square in RMSNorm.
        add_qkv_bias: whether the fused query/key/value projection has a bias.
        use_cache: whether generation keeps keys and values.
        initializer_range: standard deviation of random weights. Published files leave it out, and so does a file that
            is saved here, unless it is another one.
        apply_query_key_layer_scaling: without effect, here as in the published code under torch 2.
        bias_dropout_fusion: without effect, since there is no dropout.

    The other fields have one value that is implemented, the default.

    Raises:
        SettingError: a key asks for something that the model does not implement, or the shape is impossible.
    """

    model_type = "chatglm"
    tokenizer_class: ClassVar[str] = "ChatGLMTokenizer"  # what AutoTokenizer looks for; not a field, so it is not saved
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

    # one value each; named here so that a saved file holds what the published code reads without a default
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
        """Refuse what is not implemented, then let transformers do its part."""
        kwargs.pop("auto_map", None)  # it names remote code, which is never run and must not be saved again
        where = str(kwargs.get("name_or_path") or "ChatGLM2Config")
        super().__post_init__(**kwargs)
        self._refuse_other_models(where)
        self._refuse_impossible_shapes(where)

    def _refuse_other_models(self, where: str) -> None:
        for key, implemented in _IMPLEMENTED.items():
            found = self.__dict__.get(key, implemented)
            if found != implemented:
                raise SettingError(
                    where=f"{where}: {key}",
                    found=f"{found!r}, and only {implemented!r} is implemented",
                    fix="Use a base of ChatGLM2-6B's design: THUDM/chatglm2-6b, or a model derived from it.",
                )

    def _refuse_impossible_shapes(self, where: str) -> None:
        for key in _COUNTS:
            value = getattr(self, key)
            if type(value) is not int or value < 1:
                raise SettingError(f"{where}: {key}", f"{value!r} is no count", "Set a whole number, 1 or more.")
        if type(self.add_qkv_bias) is not bool:
            raise SettingError(f"{where}: add_qkv_bias", f"{self.add_qkv_bias!r}", "Set true or false.")
        if not isinstance(self.layernorm_epsilon, float) or not 0 < self.layernorm_epsilon < 1:
            found = f"{self.layernorm_epsilon!r} is no small positive number"
            raise SettingError(f"{where}: layernorm_epsilon", found, "Set one, such as 1e-5.")
        if self.num_attention_heads % self.multi_query_group_num:
            raise SettingError(
                where=f"{where}: multi_query_group_num",
                found=f"{self.multi_query_group_num} key/value heads for {self.num_attention_heads} query heads",
                fix="Choose a number that divides num_attention_heads.",
            )
        if self.kv_channels % 4:
            raise SettingError(
                where=f"{where}: kv_channels",
                found=f"{self.kv_channels} channels a head",
                fix="Choose a multiple of 4: half of the channels are rotated, in pairs.",
            )

    @property
    def parameter_count(self) -> int:
        """Weights of a model of this shape."""
        projected = (self.num_attention_heads + 2 * self.multi_query_group_num) * self.kv_channels
        attention = self.hidden_size * (projected + self.num_attention_heads * self.kv_channels)
        attention += projected if self.add_qkv_bias else 0
        layer = attention + 3 * self.hidden_size * self.ffn_hidden_size + 2 * self.hidden_size
        return self.num_layers * layer + 2 * self.padded_vocab_size * self.hidden_size + self.hidden_size

    def to_dict(self) -> dict[str, Any]:
        """Every key and value, as `config.json` holds them."""
        output: dict[str, Any] = super().to_dict()
        output["architectures"] = ["ChatGLMModel"]  # transformers would write the class's own name
        if output["initializer_range"] == INITIALIZER_RANGE:
            del output["initializer_range"]
        return output


def read_config(path: Path) -> ChatGLM2Config:
    """The configuration in a `config.json`.

    Args:
        path: of the file, or of the folder that holds it.

    Raises:
        MissingFileError: there is no such file.
        CheckpointError: it holds no JSON object.
        SettingError: a key asks for something that is not implemented or impossible; file and key are named.
    """
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise MissingFileError(str(path), "there is no such file", "Give the folder of a ChatGLM2 base.")
    content = read_json_object(path)
    if "model_type" not in content:
        raise SettingError(f"{path}: model_type", "it is missing", "Give the config.json of a ChatGLM2 base.")
    for key in {"dtype", "torch_dtype"} & content.keys():
        name = content[key]
        if name is not None and not (isinstance(name, str) and isinstance(getattr(torch, name, None), torch.dtype)):
            raise SettingError(f"{path}: {key}", f"{name!r} is no dtype of torch", "Set float16, or leave the key out.")
    try:
        config: ChatGLM2Config = ChatGLM2Config.from_dict(content)
    except SettingError as error:
        key = error.where.rpartition(": ")[2]
        raise SettingError(f"{path}: {key}", error.found, error.fix) from None
    return config
