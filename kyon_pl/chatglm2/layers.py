# mypy: allow-untyped-calls
"""The decoder layer: transformers' GLM functions under the published parameter names.

Shapes: R rows of a batch, T tokens a row, C hidden channels, D channels a head.
Source of names and layout: `modeling_chatglm.py` of THUDM/chatglm2-6b.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.glm.modeling_glm import GlmRMSNorm, apply_rotary_pos_emb, eager_attention_forward

from kyon_pl.chatglm2.attention import FLASH, GatherKeys, decode_attention
from kyon_pl.chatglm2.configuration import ChatGLM2Config


class ChatGLM2Attention(nn.Module):
    """Grouped-query attention with one fused projection. Its rows are all queries, then all keys, then all values."""

    def __init__(self, config: ChatGLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.kv_channels
        self.num_key_value_groups = config.num_attention_heads // config.multi_query_group_num  # transformers' name
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        query_size = config.num_attention_heads * self.head_dim
        key_size = config.multi_query_group_num * self.head_dim
        self.split_sizes = [query_size, key_size, key_size]
        self.query_key_value = nn.Linear(config.hidden_size, sum(self.split_sizes), bias=config.add_qkv_bias)
        self.dense = nn.Linear(query_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        key_index: Tensor | None,
        cu_seqlens_k: Tensor | None,
        kept: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """(R, T, C) to (R, T, C), and the attention weights if the implementation returns them (eager).

        With `kept`, the result is (N, C): the output of these tokens only.
        """
        fused = self.query_key_value(hidden_states)
        query, key, value = (x.unflatten(-1, (-1, self.head_dim)) for x in fused.split(self.split_sizes, dim=-1))
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings, unsqueeze_dim=2)
        # under autocast, float32 angles promote half-precision queries and keys; the kernels need one dtype
        query, key = query.to(value.dtype), key.to(value.dtype)
        if key_index is not None:
            key, value = (GatherKeys.apply(x.flatten(0, 1), key_index).unsqueeze(0) for x in (key, value))
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        implementation = self.config._attn_implementation
        if query.shape[2] == 1 and implementation != "eager":
            return self.dense(decode_attention(query, key, value, attention_mask, self.scaling)), None
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        rows = {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen, "cu_seqlens_k": cu_seqlens_k}
        rows = rows if implementation in FLASH else {}
        output, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **rows)
        output = output.flatten(2)
        if kept is not None:
            output = output.flatten(0, 1).index_select(0, kept)
        return self.dense(output), weights


class ChatGLM2MLP(nn.Module):
    """SwiGLU with one fused projection. Its rows are the gate, then the up projection."""

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(R, T, C) to (R, T, C)."""
        gate, up = self.dense_h_to_4h(hidden_states).chunk(2, dim=-1)
        output: Tensor = self.dense_4h_to_h(F.silu(gate) * up)
        return output


class ChatGLM2Layer(GradientCheckpointingLayer):
    """A decoder layer. Its control flow depends on shapes, not on values, so a layer can be compiled alone."""

    def __init__(self, config: ChatGLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = GlmRMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.self_attention = ChatGLM2Attention(config, layer_idx)
        self.post_attention_layernorm = GlmRMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = ChatGLM2MLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        key_index: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """(R, T, C) to (R, T, C); with `kept`, flat indices of tokens, to (N, C): the output of these tokens only."""
        attended, _ = self.self_attention(
            self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            key_index=key_index,
            cu_seqlens_k=cu_seqlens_k,
            kept=kept,
        )
        if kept is not None:
            hidden_states = hidden_states.flatten(0, 1).index_select(0, kept)
        hidden_states = hidden_states + attended
        output: Tensor = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return output
