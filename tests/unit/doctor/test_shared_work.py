"""Work and memory of a run whose rows share beginnings: what is computed, and what attention keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kyon_pl.data.dialogue_data import DialogueData
from kyon_pl.doctor.work import PUBLISHED_SOURCE, Schedule, count_work, estimate_work
from kyon_pl.training.callbacks.memory_guard import describe_size

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


@pytest.mark.parametrize(("rows_per_cluster", "gain"), [(1, 1.0), (2, 1.24), (5, 1.445), (None, 1.64)])
def test_published_rows(rows_per_cluster: int | None, gain: float) -> None:
    data = {"source": PUBLISHED_SOURCE, "tokenizer": "x", "tokenizer_revision": None}
    shared = estimate_work(data | {"batching": "shared", "rows_per_cluster": rows_per_cluster}, ONE_EPOCH)
    plain = estimate_work(data | {"batching": "packed"}, ONE_EPOCH)
    assert shared.steps is not None
    assert plain.steps is not None
    assert shared.steps == pytest.approx(plain.steps / gain, rel=0.001)
