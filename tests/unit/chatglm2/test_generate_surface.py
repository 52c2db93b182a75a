"""Every way to generate works or is refused by name.

`python tests/unit/chatglm2/test_generate_surface.py` prints the table of docs/library.md.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, MinLengthLogitsProcessor, TextStreamer

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import BASE
from kyon_pl.errors import SettingError

PAGE = Path(__file__).parents[3] / "docs/library.md"
TOKENIZER = ChatGLMTokenizer.from_pretrained(BASE)
NEW = 8  # tokens


class Silent(TextStreamer):
    """Prints nowhere."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        print(text, file=io.StringIO())


# name -> arguments of `generate`, and whether the tokens are those of greedy search
WAYS: dict[str, tuple[dict[str, Any], bool]] = {
    "do_sample, temperature, top_k, top_p, min_p, typical_p": (
        {"do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9},
        False,
    ),
    "num_beams": ({"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True}, False),
    "num_beams, do_sample": ({"num_beams": 2, "do_sample": True}, False),
    "num_beam_groups": ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, False),
    "penalty_alpha (contrastive search)": ({"penalty_alpha": 0.6, "top_k": 4}, False),
    "dola_layers": ({"dola_layers": "high"}, False),
    "force_words_ids (constrained beams)": ({"num_beams": 2, "force_words_ids": [[5]]}, False),
    "assistant_model": ({"assistant_model": "itself"}, True),
    "prompt_lookup_num_tokens": ({"prompt_lookup_num_tokens": 3}, True),
    "stop_strings": ({"stop_strings": ["never"], "tokenizer": TOKENIZER}, True),
    "logits_processor": ({"logits_processor": LogitsProcessorList([MinLengthLogitsProcessor(1, 2)])}, True),
    "prefix_allowed_tokens_fn": ({"prefix_allowed_tokens_fn": lambda batch, ids: list(range(3, 1800))}, False),
    "bad_words_ids, suppress_tokens": ({"bad_words_ids": [[5]], "suppress_tokens": [6]}, False),
    "repetition_penalty, no_repeat_ngram_size": ({"repetition_penalty": 1.2, "no_repeat_ngram_size": 2}, False),
    "min_new_tokens, forced_eos_token_id": ({"min_new_tokens": 3, "forced_eos_token_id": 2}, False),
    "guidance_scale": ({"guidance_scale": 1.5}, False),
    "sequence_bias": ({"sequence_bias": [[[5], -1.0]]}, False),
    "watermarking_config": ({"watermarking_config": {"bias": 1.0, "seeding_scheme": "lefthash"}}, False),
    "output_scores, output_logits, output_hidden_states": (
        {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_hidden_states": True},
        True,
    ),
    "streamer": ({"streamer": Silent(TOKENIZER)}, True),
    "max_time": ({"max_time": 60.0}, True),
    "use_cache=False": ({"use_cache": False}, True),
    'cache_implementation="static"': ({"cache_implementation": "static", "disable_compile": True}, True),
    'cache_implementation="quantized"': ({"cache_implementation": "quantized"}, False),
    "prefill_chunk_size": ({"prefill_chunk_size": 4}, True),
    "token_healing": ({"token_healing": True, "tokenizer": TOKENIZER}, False),
}


def load() -> ChatGLM2ForCausalLM:
    """The demo's base."""
    return ChatGLM2ForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model() -> ChatGLM2ForCausalLM:
    return load()


def result(model: ChatGLM2ForCausalLM, name: str) -> str:
    """`works`, or what transformers says."""
    arguments, is_greedy = WAYS[name]
    arguments = {key: model if value == "itself" else value for key, value in arguments.items()}
    prompt = TOKENIZER(["照看钟楼的是谁"], return_tensors="pt")
    settings = {"max_new_tokens": NEW, "do_sample": False} | arguments
    torch.manual_seed(0)
    try:
        output = model.generate(**prompt, **settings)
    except SettingError as error:
        return f"refused: {error.found}. {error.fix}"
    except (ValueError, ImportError) as error:
        words = str(error).splitlines()[0].partition(". ")[0].partition(", since")[0].rstrip(".")
        return f"refused by transformers: {words}"
    ids = output["sequences"] if arguments.get("return_dict_in_generate") else output
    start = prompt["input_ids"].shape[1]
    assert ids.shape[1] > start
    if is_greedy:
        assert torch.equal(ids, model.generate(**prompt, max_new_tokens=NEW, do_sample=False))
    return "works"


def row(name: str, found: str) -> str:
    """Of the table."""
    return f"| `{name}` | {found} |"


@pytest.mark.parametrize("name", WAYS)
def test_way_to_generate(model: ChatGLM2ForCausalLM, name: str) -> None:
    assert row(name, result(model, name)) in PAGE.read_text(encoding="utf-8").splitlines()


def main() -> None:
    """Print the table."""
    model = load()
    for name in WAYS:
        try:
            print(row(name, result(model, name)), flush=True)
        except Exception as error:
            print(row(name, f"FAILS {type(error).__name__}: {str(error)[:200]}"), flush=True)


if __name__ == "__main__":
    main()
