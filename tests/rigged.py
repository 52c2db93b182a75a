"""A tiny model and rows of ids whose training goes wrong on purpose.

As a script it is one rank of two: `python rigged.py FOLDER`, with LOCAL_RANK and MASTER_PORT set.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from peft import LoraConfig

from kyon_pl import ChatGLM2LoRA, DialogueDataModule
from kyon_pl.batch import Batch
from kyon_pl.training import LinearDecay
from kyon_pl.training.callbacks import FiniteGuard

SHAPE = {
    "num_layers": 2,
    "padded_vocab_size": 96,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "kv_channels": 8,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
}
POISONED_ROW = 5  # from 0; its place is line 6


class Rigged(ChatGLM2LoRA):
    """Goes wrong on purpose.

    Attributes:
        change_loss: what becomes of a batch's loss.
        after_configure: done to the model once it is there.
    """

    change_loss: Callable[[Batch, torch.Tensor], torch.Tensor] = staticmethod(lambda batch, loss: loss)
    after_configure: Callable[[torch.nn.Module], None] = staticmethod(lambda model: None)

    def configure_model(self) -> None:
        super().configure_model()
        self.after_configure(self)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return self.change_loss(batch, super().training_step(batch, batch_idx))


def write_inputs(folder: Path) -> None:
    """The shape of a tiny base, and 12 rows of 17 ids, of which 4 to 12 are trained."""
    (folder / "config.json").write_text(json.dumps({"model_type": "chatglm", **SHAPE}))
    ids = np.random.default_rng(0).integers(3, 96, (12, 16)).tolist()
    rows = [{"input_ids": [*row, 2], "seq_len": 13 - number % 9} for number, row in enumerate(ids)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rigged_module(folder: Path, kind: type[ChatGLM2LoRA] = Rigged, rate: float = 1e-2, **settings: Any) -> Any:
    """A module of that kind over the inputs in a folder; the rate falls from `rate` to 0."""
    return kind(
        base="random",
        random_config=str(folder / "config.json"),
        lora=LoraConfig(r=2, lora_dropout=0.1, target_modules=["query_key_value", "dense"]),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate, foreach=True),
        schedule=lambda optimizer, steps: LinearDecay(optimizer, steps, 0),
        **settings,
    )


def trained(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of what is trained, by its name."""
    return {name: value.detach().clone() for name, value in module.named_parameters() if value.requires_grad}


def fit(
    folder: Path, module: ChatGLM2LoRA, callbacks: list[Callback], scaler: bool = False, epochs: int = 2, **more: Any
) -> Trainer:
    """Two micro-batches of three rows a step, two steps an epoch; the trained module stays in `module`.

    Args:
        folder: of `write_inputs`.
        module: is trained.
        callbacks: all there are.
        scaler: train in float16 with a gradient scaler, on a CPU.
        epochs: how long.
        more: other settings of the trainer, of the data `batching`, `tokens_per_batch` and
            `validation_rows_per_batch`, and `ckpt_path`.
    """
    ckpt_path = more.pop("ckpt_path", None)
    torch.manual_seed(0)
    rows = DialogueDataModule(
        source=str(folder / "rows.jsonl"),
        validation_source=str(folder / "rows.jsonl"),
        validation_rows_per_batch=more.pop("validation_rows_per_batch", 12),
        batching=more.pop("batching", "padded"),
        rows_per_batch=3,
        tokens_per_batch=more.pop("tokens_per_batch", 64),
        max_tokens=32,
        shuffle=False,
        workers=0,
        processes=1,
        cache_dir=str(folder / "cache"),
    )
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        # Lightning would make bf16-mixed out of 16-mixed on a CPU; given as a plugin, it is what it is
        "plugins": [MixedPrecision("16-mixed", "cpu")] if scaler else [],
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=2,
        callbacks=callbacks,
        default_root_dir=folder / "run",
        **settings | more,
    )
    trainer.fit(module, datamodule=rows, ckpt_path=ckpt_path)
    return trainer


def poison(value: float) -> Callable[[Batch, torch.Tensor], torch.Tensor]:
    """Turns the loss of one row's batch into that."""
    return lambda batch, loss: loss * (value if POISONED_ROW in batch.row_numbers else 1)


def main(folder: Path) -> None:
    """This rank's part in a run of two whose second rank meets a loss that is no number."""
    module = rigged_module(folder)
    module.change_loss = poison(math.nan)
    fit(folder, module, [FiniteGuard()], devices=2, strategy="ddp")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
