"""Work and memory of a run whose rows share beginnings: what is computed, and what attention keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.chatglm2.checkpoint import random_base
from kyon_pl.data.dialogue_data import DialogueData
from kyon_pl.doctor.work import PUBLISHED_SOURCE, Schedule, count_work, estimate_work
from kyon_pl.training.callbacks.memory_guard import describe_size
from kyon_pl.training.throughput import executed_flop, flop_per_token

SLOTS = 96
ONE_EPOCH = Schedule(epochs=1, steps=None, accumulate=1, devices=1, limit_batches=None)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number in range(60):
            ids = [3, *[4 + number % 5] * int(rng.integers(4, 16)), *rng.integers(20, 90, 6).tolist(), 2]
            file.write(json.dumps({"input_ids": ids, "seq_len": len(ids) - 7}) + "\n")
    settings = {"batching": "shared", "rows_per_cluster": 4, "max_tokens": 40, "tokens_per_batch": SLOTS}
    own = {"source": str(tmp_path / "rows.jsonl"), "tokenizer": "random", "tokenizer_revision": None}
    return own | settings | {"validation_share": 0.0, "processes": 1, "cache_dir": str(tmp_path / "cache")}


def test_counted_rows(data: dict[str, Any]) -> None:
    module = DialogueData(**data | {"tokenizer": None})
    module.load("fit")
    planner = module.plan_training().planner
    batches = list(module.planned_batches())
    keys = [len(batch.key_index) for batch in batches if batch.key_index is not None]
    assert len(keys) == len(batches)
    assert max(keys) > 1.2 * SLOTS
    assert len({*keys}) > 1

    largest = module.largest_batches(1)[0]
    assert largest.key_index is not None
    assert len(largest.key_index) == max(keys)
    said = f"a batch of {SLOTS} tokens for rows of {largest.tokens}, {largest.trained_tokens} of them trained"
    assert describe_size(largest) == said

    work = count_work(data, None, ONE_EPOCH)
    assert work.training.keys == max(keys)
    assert (work.training.slots, work.slots) == (SLOTS, SLOTS * len(batches))
    plain = count_work(data | {"batching": "packed"}, None, ONE_EPOCH)
    assert plain.training.keys is None
    assert plain.slots is not None
    assert plain.slots > 1.2 * (work.slots or 0)

    shared = sum(batch.tokens - batch.computed_tokens for batch in batches)
    assert abs(planner.shared_tokens / shared - 1) < 0.1  # other clusters than those of this epoch


def test_executed_products(data: dict[str, Any]) -> None:
    """As torch counts the matrix products of forward and backward passes; attention's are left out."""
    config = ChatGLM2Config(num_layers=3, padded_vocab_size=96, hidden_size=32, ffn_hidden_size=48, kv_channels=8)
    base = random_base(config, dtype=torch.float32, device=torch.device("cpu"), attn_implementation="sdpa")
    base.requires_grad_(False).enable_input_require_grads()
    module = DialogueData(**data | {"tokenizer": None})
    module.load("fit")
    module.plan_training()
    batch = next(module.planned_batches())
    with FlopCounterMode(display=False) as counter:
        base(**batch.model_inputs(), use_cache=False, skip_logits=True).loss.backward()
    counted = counter.get_flop_counts()["Global"]
    products = counted[torch.ops.aten.mm] + counted.get(torch.ops.aten.addmm, 0)
    found = executed_flop(config, tokens=SLOTS, labels=batch.trained_tokens, row_tokens=0)
    assert found == pytest.approx(products, rel=0.03)  # norms and biases are no products
    assert flop_per_token(config, 0, recomputed=0) * batch.tokens > 1.5 * found


@pytest.mark.parametrize(("rows_per_cluster", "gain"), [(1, 1.0), (2, 1.24), (5, 1.445), (None, 1.64)])
def test_published_rows(rows_per_cluster: int | None, gain: float) -> None:
    data = {"source": PUBLISHED_SOURCE, "tokenizer": "x", "tokenizer_revision": None}
    shared = estimate_work(data | {"batching": "shared", "rows_per_cluster": rows_per_cluster}, ONE_EPOCH)
    plain = estimate_work(data | {"batching": "packed"}, ONE_EPOCH)
    assert shared.steps is not None
    assert plain.steps is not None
    assert shared.steps == pytest.approx(plain.steps / gain, rel=0.001)
