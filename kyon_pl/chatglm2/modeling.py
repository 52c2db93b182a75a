# mypy: allow-untyped-calls, allow-untyped-decorators
"""ChatGLM2 under the published parameter names: embedding, layers, head and loss.

Shapes: R rows of a batch, T tokens a row, C hidden channels, V vocabulary.
Source of names and layout: `modeling_chatglm.py` of THUDM/chatglm2-6b.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.glm.modeling_glm import GlmRMSNorm
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from kyon_pl.chatglm2.attention import FLASH, can_run_varlen, rotary_angles, row_bounds, row_starts, shared_mask
from kyon_pl.chatglm2.configuration import ChatGLM2Config
from kyon_pl.chatglm2.layers import ChatGLM2Attention, ChatGLM2Layer
from kyon_pl.chatglm2.published_chat import PublishedChat
from kyon_pl.errors import SettingError

NOT_TRAINED = -100


class ChatGLM2PreTrainedModel(PreTrainedModel):
    """Attributes that transformers reads to load, save, place and checkpoint the model."""

    config_class = ChatGLM2Config
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = {"ChatGLM2Layer"}  # noqa: RUF012 (transformers' type, as below)
    _skip_keys_device_placement = {"past_key_values"}  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True
    # published, but not a parameter; see rotary_angles()
    _keys_to_ignore_on_load_unexpected = {r"^transformer\.rotary_pos_emb\.inv_freq$"}  # noqa: RUF012
    _can_record_outputs = {"hidden_states": ChatGLM2Layer, "attentions": ChatGLM2Attention}  # noqa: RUF012


class ChatGLM2Embedding(nn.Module):
    """The embedding under its published name."""

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__()
        self.word_embeddings: nn.Module = nn.Embedding(config.padded_vocab_size, config.hidden_size)


class ChatGLM2Encoder(nn.Module):
    """The decoder layers and the final norm under their published names."""

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ChatGLM2Layer(config, layer_idx) for layer_idx in range(config.num_layers))
        self.final_layernorm = GlmRMSNorm(config.hidden_size, eps=config.layernorm_epsilon)


class ChatGLM2Model(ChatGLM2PreTrainedModel):
    """ChatGLM2 without the loss: token ids to hidden states. As published, it holds the head but does not apply it."""

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__(config)
        self.embedding = ChatGLM2Embedding(config)
        self.encoder = ChatGLM2Encoder(config)
        self.output_layer: nn.Module = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding, (V, C)."""
        return self.embedding.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding."""
        self.embedding.word_embeddings = value

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        key_index: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        kept: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """Hidden states (R, T, C) after the final norm; arguments as in `ChatGLM2ForCausalLM.forward`.

        With `kept`, (N,) flat indices of tokens, hidden states (N, C) of these tokens: the last layer computes keys and
        values of all tokens, and all else of these only.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        if cu_seqlens is not None and position_ids is None:
            raise ValueError("cu_seqlens without position_ids: rotary angles need the positions within each row")
        if key_index is not None and (cu_seqlens is None or cu_seqlens_k is None):
            raise ValueError("key_index needs position_ids, cu_seqlens and cu_seqlens_k")
        hidden: Tensor = self.embedding.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        packed = position_ids is not None and attention_mask is None and past_key_values is None
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0) + seen

        mask: Any = None  # (…, T, keys), as the attention implementation takes it
        if packed and self.config._attn_implementation in FLASH and can_run_varlen(hidden):
            if cu_seqlens is None or max_seqlen is None:
                cu_seqlens, max_seqlen = row_bounds(position_ids.expand(hidden.shape[:2]))
        elif key_index is not None:
            assert cu_seqlens is not None
            assert cu_seqlens_k is not None
            mask = shared_mask(position_ids, cu_seqlens, cu_seqlens_k, len(key_index))
            if self.config._attn_implementation == "eager":
                mask = torch.where(mask, 0.0, torch.finfo(hidden.dtype).min).to(hidden.dtype)
            cu_seqlens = max_seqlen = cu_seqlens_k = None
        else:
            cu_seqlens = max_seqlen = None
            # before the cache is created: with a cache, transformers does not detect packed rows
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=hidden,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        position_embeddings = rotary_angles(position_ids, channels=self.config.kv_channels // 2, dtype=hidden.dtype)
        last = len(self.encoder.layers) - 1
        for number, layer in enumerate(self.encoder.layers):
            hidden = layer(
                hidden,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                past_key_values=past_key_values,
                cu_seqlens=cu_seqlens,
                max_seqlen=max_seqlen,
                key_index=key_index,
                cu_seqlens_k=cu_seqlens_k,
                kept=kept if number == last else None,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.encoder.final_layernorm(hidden), past_key_values=past_key_values
        )


class ChatGLM2ForCausalLM(PublishedChat, ChatGLM2PreTrainedModel, GenerationMixin):
    """ChatGLM2 with a language modeling head. Loads and saves the published parameter names.

    `attn_implementation` is `eager`, `sdpa`, `varlen` or `fa4`. `varlen` and `fa4` are torch's flash attention and
    flash-attn-4 over packed rows (`position_ids` without `attention_mask`) on CUDA in half precision; with a mask, with
    a cache, on a CPU or in float32 they fall back to `sdpa`. `sdpa` and `eager` keep packed rows apart by a mask.

    Norms and rotary angles are computed in float32 for weights of any dtype.
    """

    accepts_loss_kwargs = True  # transformers' Trainer then passes num_items_in_batch

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__(config)
        self.transformer = ChatGLM2Model(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head, (V, C)."""
        return self.transformer.output_layer

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.transformer.output_layer = new_embeddings

    def heal_tokens(self, input_ids: Tensor, tokenizer: Any = None) -> Tensor:  # type: ignore[override]
        """Refuse `generate(token_healing=True)`.

        Raises:
            SettingError: always: transformers heals with a beginning-of-sequence token, which ChatGLM2 does not use.
        """
        found = "it needs a beginning-of-sequence token, which ChatGLM2 does not use"
        raise SettingError("token_healing", found, "Leave it out")

    def prepare_inputs_for_generation(
        self,
        *args: Any,
        inputs_embeds: Tensor | None = None,  # by this name transformers sees that they can be generated from
        tokenizer: Any = None,
        assistant_tokenizer: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Drop the tokenizers of `generate`, for stop strings, which transformers would pass on to `forward`."""
        return super().prepare_inputs_for_generation(*args, inputs_embeds=inputs_embeds, **kwargs)  # type: ignore[misc]  # of a protocol

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: float | Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool = False,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        trained_positions: Tensor | None = None,
        key_index: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """Compute logits, and the loss if there are labels.

        Args:
            input_ids: (R, T), int64.
            attention_mask: (R, T), 1 at tokens, 0 at padding on either side. Not needed for right padding.
            position_ids: (R, T), int64. Without an attention mask they may restart: the rows are then packed.
            past_key_values: transformers' cache.
            inputs_embeds: (R, T, C), in place of `input_ids`.
            labels: (R, T), int64, not shifted; -100 is ignored, and so is the first token of each row. With
                `key_index`, (1, K).
            use_cache: if None, the configuration's setting, or False with labels.
            num_items_in_batch: divisor of the summed loss; the number of labels in this batch if None.
            logits_to_keep: compute logits of the last N positions only, or of these positions; 0 means all.
            skip_logits: return None as `logits`. The loss needs logits at labels only; those of all positions would
                take most of the memory of a training step. The last layer then computes its output at labels only,
                unless hidden states or attention weights are returned.
            cu_seqlens: (rows + 1,), int32, bounds of packed rows for `varlen`; computed from `position_ids` if None.
            max_seqlen: length of the longest packed row in tokens, or an upper bound; as `cu_seqlens` if None.
            trained_positions: (N,), int64, flat indices (row * T + column) into `labels` of the tokens that predict a
                label, one position before it; computed from `labels` if None. If this, `cu_seqlens` and `max_seqlen`
                are given, the forward pass does not synchronize with the device.
            key_index: (K,), int64, for rows (R = 1) that share their beginnings: the place in the T tokens of each
                token of each row, row after row. The T tokens hold a shared beginning once, in the first of its rows.
                `position_ids`, `cu_seqlens` (bounds of each row's own tokens), `cu_seqlens_k`, `max_seqlen` and
                `trained_positions` must be given, and there is no attention mask.
            cu_seqlens_k: (rows + 1,), int32, bounds of the rows in `key_index`.
            output_attentions: also return attention weights (eager only); if None, the configuration's setting.
            output_hidden_states: also return the hidden states between layers; if None, the configuration's setting.

        Returns:
            The loss in float32 (zero, with a graph, if there are no labels to train), logits (R, T, V) and the cache.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`, `cu_seqlens` without `position_ids`, or
                `key_index` without what it needs.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        kept = None
        if labels is not None:
            if trained_positions is None:
                if key_index is not None:
                    raise ValueError("key_index needs trained_positions")
                trained_positions = find_trained_positions(labels, position_ids if attention_mask is None else None)
            predicting = trained_positions if key_index is None else key_index.index_select(0, trained_positions)
            if skip_logits and not (output_hidden_states or output_attentions) and len(predicting):
                kept = predicting
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=(self.config.use_cache and labels is None) if use_cache is None else use_cache,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            key_index=key_index,
            cu_seqlens_k=cu_seqlens_k,
            kept=kept,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        hidden = outputs.last_hidden_state
        loss = logits = None
        if labels is not None:
            assert trained_positions is not None
            targets = labels.flatten().index_select(0, trained_positions + 1)
            hidden_at_labels = hidden.flatten(0, 1).index_select(0, predicting) if kept is None else hidden
            loss = self._loss(hidden_at_labels, targets, num_items_in_batch)
        if not skip_logits:
            selected = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.transformer.output_layer(hidden[:, selected])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(self, hidden: Tensor, targets: Tensor, num_items: float | Tensor | None) -> Tensor:
        """The loss of (N, C) hidden states and the (N,) ids that they predict."""
        logits = self.transformer.output_layer(hidden)
        total = F.cross_entropy(logits.float(), targets, reduction="sum")
        if isinstance(num_items, Tensor):
            return total / num_items.to(total.device)
        return total / (num_items or targets.numel() or 1)


def find_trained_positions(labels: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """Flat indices (row * T + column) of the hidden states that predict a label. This synchronizes with the device.

    Args:
        labels: (R, T), int64, -100 where nothing is trained.
        position_ids: (R, T) of packed rows: the first token of a row is not predicted from the previous row.

    Returns:
        (N,), int64.
    """
    trained = labels[:, 1:] != NOT_TRAINED
    if position_ids is not None:
        trained = trained & ~row_starts(position_ids)[:, 1:]
    rows, columns = trained.nonzero(as_tuple=True)
    return rows * labels.shape[1] + columns
