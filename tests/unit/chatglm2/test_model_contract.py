"""What transformers' mixin of generation tests checks of a causal model: shapes of each step, and equal tokens.

Its other mixin, of common tests, is run as it is shipped (tests/parity/test_transformers_mixin.py). Not here, with the
reason: generation without input needs a beginning-of-sequence token, which ChatGLM2 does not have; group, constrained,
contrastive and DoLa search and the quantized cache are refused by transformers itself, and assisted generation is in
test_generate_surface.py; offloaded caches need a GPU; encoder-decoder, vision and sliding-window models are others.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_layout import tiny_config
from torch import Tensor
from transformers import AutoModelForCausalLM, StaticCache

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM

LAYERS, HEADS, GROUPS, CHANNELS, VOCABULARY = 2, 4, 2, 32, 96
ROWS, LENGTH, NEW = 2, 7, 5  # of the prompts, and tokens to generate
SETTINGS: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture
def model() -> ChatGLM2ForCausalLM:
    torch.manual_seed(0)
    return ChatGLM2ForCausalLM(tiny_config()).eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 9, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "beams, sampling": {"num_beams": 3, "do_sample": True},
}


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_shapes_of_each_step(model: ChatGLM2ForCausalLM, ids: Tensor, way: str, use_cache: bool) -> None:
    model.set_attn_implementation("eager")
    wanted = ("output_scores", "output_logits", "output_attentions", "output_hidden_states", "return_dict_in_generate")
    output = model.generate(ids, **SETTINGS | WAYS[way], **dict.fromkeys(wanted, True), use_cache=use_cache)
    rows = ROWS * max(WAYS[way].get("num_beams", 1), WAYS[way].get("num_return_sequences", 1))
    assert output.sequences.shape == (ROWS * WAYS[way].get("num_return_sequences", 1), LENGTH + NEW)
    for step in range(NEW):
        seen = LENGTH + step
        asked = 1 if use_cache and step else seen
        assert output.scores[step].shape == output.logits[step].shape == (rows, VOCABULARY)
        assert [weights.shape for weights in output.attentions[step]] == [(rows, HEADS, asked, seen)] * LAYERS
        assert [states.shape for states in output.hidden_states[step]] == [(rows, asked, CHANNELS)] * (LAYERS + 1)
    if use_cache:
        cached = output.past_key_values.layers
        assert [layer.keys.shape for layer in cached] == [(rows, GROUPS, LENGTH + NEW - 1, CHANNELS // HEADS)] * LAYERS


def greedy(model: Any, **more: Any) -> Tensor:
    """The new tokens, (R, N)."""
    found: Tensor = model.generate(**SETTINGS | more)
    given = more.get("input_ids")
    return found if given is None else found[:, given.shape[1] :]


def continued(model: Any, ids: Tensor) -> Tensor:
    """In two calls, the second from the cache of the first."""
    first = model.generate(ids, **SETTINGS | {"max_new_tokens": 2}, return_dict_in_generate=True)
    again = model.generate(
        first.sequences, **SETTINGS | {"max_new_tokens": NEW - 2}, past_key_values=first.past_key_values
    )
    found: Tensor = again[:, LENGTH:]
    return found


def padded_left(model: Any, ids: Tensor) -> Tensor:
    padding = torch.zeros(ROWS, 3, dtype=torch.int64)
    mask = torch.cat([padding, torch.ones_like(ids)], dim=1)
    return greedy(model, input_ids=torch.cat([padding, ids], dim=1), attention_mask=mask)


def embedded(model: Any, ids: Tensor, **more: Any) -> Tensor:
    return greedy(model, inputs_embeds=model.get_input_embeddings()(ids), **more)


STATIC = {"cache_implementation": "static", "disable_compile": True}
EQUAL: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "no cache": lambda model, ids: greedy(model, input_ids=ids, use_cache=False),
    "static cache": lambda model, ids: greedy(model, input_ids=ids, **STATIC),
    "static cache of the caller": lambda model, ids: greedy(
        model, input_ids=ids, past_key_values=StaticCache(config=model.config, max_cache_len=LENGTH + NEW)
    ),
    "from its own cache": continued,
    "padding on the left": padded_left,
    "positions": lambda model, ids: greedy(model, input_ids=ids, position_ids=torch.arange(LENGTH).expand(ROWS, -1)),
    "embeddings": embedded,
    "embeddings, static cache": lambda model, ids: embedded(model, ids, **STATIC),
    "embeddings, beams": lambda model, ids: embedded(model, ids, num_beams=3),
    "eager attention": lambda model, ids: (model.set_attn_implementation("eager"), greedy(model, input_ids=ids))[1],
    "a copy": lambda model, ids: greedy(copy.deepcopy(model), input_ids=ids),
    "a pickle": lambda model, ids: greedy(pickle.loads(pickle.dumps(model)), input_ids=ids),
}


@pytest.mark.parametrize("way", EQUAL)
def test_the_same_tokens(model: ChatGLM2ForCausalLM, ids: Tensor, way: str) -> None:
    expected = greedy(model, input_ids=ids, **({"num_beams": 3} if "beams" in way else {}))
    assert len(set(expected.flatten().tolist())) > NEW
    assert torch.equal(EQUAL[way](model, ids), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saved_and_loaded_it_is_the_same(
    model: ChatGLM2ForCausalLM, ids: Tensor, dtype: torch.dtype, tmp_path: Path
) -> None:
    model.to(dtype).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for loaded in (
        ChatGLM2ForCausalLM.from_pretrained(tmp_path, dtype="auto"),
        AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu"),
    ):
        assert loaded.dtype == dtype
        assert not loaded.training
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    again = ChatGLM2Config.from_pretrained(tmp_path)
    assert again.to_diff_dict() == pickle.loads(pickle.dumps(copy.deepcopy(again))).to_diff_dict()
    assert again.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
    assert not loaded.all_tied_weights_keys


@pytest.mark.parametrize("size", [VOCABULARY + 9, VOCABULARY - 9])
def test_a_resized_vocabulary(model: ChatGLM2ForCausalLM, ids: Tensor, size: int, tmp_path: Path) -> None:
    ids = ids.clamp(max=size - 1)
    before = model(ids).logits
    model.resize_token_embeddings(size)
    assert model.config.padded_vocab_size == model.config.vocab_size == size
    after = model(ids).logits
    assert after.shape[2] == size
    kept = min(size, VOCABULARY)
    torch.testing.assert_close(after[..., :kept], before[..., :kept])
    model.save_pretrained(tmp_path)
    assert torch.equal(ChatGLM2ForCausalLM.from_pretrained(tmp_path)(ids).logits, after)


def test_states_that_the_configuration_asks_for(model: ChatGLM2ForCausalLM, ids: Tensor) -> None:
    """With labels and without logits too, where the last layer otherwise computes its output at labels only."""
    model.set_attn_implementation("eager")
    model.config.output_hidden_states = model.config.output_attentions = True
    output = model(ids, labels=ids, skip_logits=True)
    assert [tuple(states.shape) for states in output.hidden_states] == [(ROWS, LENGTH, CHANNELS)] * (LAYERS + 1)
    assert [tuple(weights.shape) for weights in output.attentions] == [(ROWS, HEADS, LENGTH, LENGTH)] * LAYERS
    assert model(ids, output_hidden_states=False).hidden_states is None


@pytest.mark.slow
def test_generation_compiles_without_a_break(model: ChatGLM2ForCausalLM, ids: Tensor) -> None:
    expected = greedy(model, input_ids=ids)
    model.forward = torch.compile(model.forward, backend="aot_eager", fullgraph=True)  # type: ignore[method-assign]
    assert torch.equal(greedy(model, input_ids=ids, **STATIC), expected)
