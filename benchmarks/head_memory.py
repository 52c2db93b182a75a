"""Peak memory of one packed batch of the 6B shape: the head at every position, and at trained positions only.

    python benchmarks/head_memory.py

Both with full gradient checkpointing, bf16, 8192 tokens of rows of the committed lengths.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from rows import LENGTHS
from torch.nn import functional as F  # noqa: N812 (its usual name)

from kyon_pl import ChatGLM2Config
from kyon_pl.chatglm2.checkpoint import random_base
from kyon_pl.data.batches.collate import DialogueCollator, PlannedCollator
from kyon_pl.data.batches.sampler import MicroBatch
from kyon_pl.lora import attach_lora, reference_lora

TOKENS = 8192


def main() -> None:
    """Measure and print."""
    device = torch.device("cuda")
    base = random_base(ChatGLM2Config(), dtype=torch.bfloat16, device=device, attn_implementation="varlen")
    model = attach_lora(base, reference_lora(), "random").train()
    base.gradient_checkpointing_enable({"use_reentrant": False})
    rows, total = [], 0
    for context, target in json.loads(LENGTHS.read_text(encoding="utf-8"))["rows"]:
        length = min(context + target + 1, 2048)
        if total + length > TOKENS:
            break
        ids = np.random.default_rng(0).integers(300, 64000, length)
        rows.append({"input_ids": ids, "seq_len": length - target - 1})
        total += length
    batch = PlannedCollator(DialogueCollator(), TOKENS, 2048)((MicroBatch(tuple(range(len(rows))), 1), rows))
    inputs = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in batch.model_inputs().items()}
    for name, everywhere in (("trained positions only", False), ("every position", True)):
        for _ in range(2):
            model.zero_grad()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            with torch.autocast("cuda", torch.bfloat16):
                output = model(**inputs, use_cache=False, skip_logits=not everywhere)
                loss = output.loss
                if everywhere:  # as the published code has it: float32 logits of all positions, shifted
                    logits = output.logits.float()[:, :-1].flatten(0, 1)
                    loss = F.cross_entropy(logits, inputs["labels"][:, 1:].flatten())
            loss.backward()
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(f"RESULT head at {name}: peak {peak:.2f} GiB, loss {loss.item():.4f}, {batch.trained_tokens} trained")
        del output, loss


if __name__ == "__main__":
    main()
