"""The same rows cut into batches in many ways, each trained through the real data module, model and trainer.

Rows 0 to 7 are the first optimizer step and rows 8 to 12 the last one, which is partial. Ways that choose themselves
which rows go together are given the first eight rows only, all of them for one step.

As a script it is one rank of two: `python one_step.py FOLDER`, with LOCAL_RANK and MASTER_PORT set.
"""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from peft import LoraConfig, PeftModel
from torch import Tensor

from kyon_pl import ChatGLM2Config, ChatGLM2ForCausalLM, ChatGLM2LoRA, DialogueDataModule
from kyon_pl.chatglm2.checkpoint import random_base
from kyon_pl.data.batches.plan import Batching
from kyon_pl.lora import attach_lora, write_adapter
from kyon_pl.training.callbacks import StepMetrics

SEED = 2023
ROWS, ROWS_OF_FIRST_STEP = 13, 8
LONGEST_ROW = 40  # tokens


@dataclass(frozen=True)
class Way:
    """One way to train on the rows.

    Attributes:
        rows_per_batch: of one process, where batches are padded.
        tokens_per_batch: of one process, where they are packed.
        accumulate: micro-batches of one process in an optimizer step.
        rows: how many of the rows there are.
    """

    batching: Batching = "padded"
    rows_per_batch: int = 8
    tokens_per_batch: int = 512
    accumulate: int = 1
    rows: int = ROWS
    checkpointing: str = "none"
    loss_normalization: Literal["tokens", "batch"] = "tokens"


ONE_PROCESS = {
    "padded 8": Way(),
    "padded 4 x accumulation 2": Way(rows_per_batch=4, accumulate=2),
    "padded 2 x accumulation 4": Way(rows_per_batch=2, accumulate=4),  # of the last step only three are left
    "grouped": Way("grouped", rows=ROWS_OF_FIRST_STEP),
    "grouped 3 x accumulation 3": Way("grouped", rows_per_batch=3, accumulate=3, rows=ROWS_OF_FIRST_STEP),
    "packed": Way("packed", rows=ROWS_OF_FIRST_STEP),
    "packed x accumulation 8": Way("packed", tokens_per_batch=64, accumulate=8, rows=ROWS_OF_FIRST_STEP),
    "shared": Way("shared", rows=ROWS_OF_FIRST_STEP),
    "shared x accumulation 8": Way("shared", tokens_per_batch=64, accumulate=8, rows=ROWS_OF_FIRST_STEP),
    "mean of means": Way(rows_per_batch=4, accumulate=2, loss_normalization="batch"),
}
TWO_PROCESSES = {
    "2 processes": Way(rows_per_batch=4),
    "2 processes x accumulation 2": Way(rows_per_batch=2, accumulate=2, checkpointing="full"),
    "2 processes, packed x accumulation 4": Way("packed", tokens_per_batch=64, accumulate=4, rows=ROWS_OF_FIRST_STEP),
    "2 processes, shared x accumulation 4": Way("shared", tokens_per_batch=64, accumulate=4, rows=ROWS_OF_FIRST_STEP),
    "2 processes, mean of means": Way(rows_per_batch=4, loss_normalization="batch"),
}


def write_inputs(folder: Path) -> None:
    """A tiny base, an adapter whose B is not zero, so that A has a gradient too, and two files of rows."""
    torch.manual_seed(SEED)
    base = tiny_base("sdpa")
    base.save_pretrained(folder / "base")
    model = with_adapter(base)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    write_adapter(model, trained, folder / "adapter")
    rows = [random_row() for _ in range(ROWS)]
    for count in (ROWS, ROWS_OF_FIRST_STEP):
        lines = "".join(json.dumps(row) + "\n" for row in rows[:count])
        (folder / f"{count}_rows.jsonl").write_text(lines)


def tiny_base(attention: str) -> ChatGLM2ForCausalLM:
    """Two layers, ids below 96; weights wide enough that attention is far from even."""
    config = ChatGLM2Config(
        num_layers=2,
        padded_vocab_size=96,
        hidden_size=32,
        ffn_hidden_size=48,
        kv_channels=8,
        num_attention_heads=4,
        initializer_range=0.3,
    )
    return random_base(config, dtype=torch.float32, device=torch.device("cpu"), attn_implementation=attention)


def with_adapter(base: ChatGLM2ForCausalLM) -> PeftModel:
    """The base in an adapter whose B is as random as its A."""
    model = attach_lora(base, LoraConfig(r=4, lora_alpha=8, target_modules=["query_key_value"]), "tiny")
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


def random_row() -> dict[str, Any]:
    """Five to 40 ids, the end of sequence last, trained from a random place on: trained tokens differ widely.

    Rows begin alike, and differ from a random place on.
    """
    length = int(torch.randint(5, LONGEST_ROW + 1, ()))
    ids = torch.randint(3, 96, (length - 1,)).tolist()
    alike = min(length - 1, int(torch.randint(0, 9, ())))
    ids[:alike] = range(3, 3 + alike)
    return {"input_ids": [*ids, 2], "seq_len": int(torch.randint(2, length, ()))}


class GradientRecorder(Callback):
    """Keeps all gradients of each optimizer step as one vector, as the optimizer finds them."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        trained = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        self.gradients.append(torch.cat([parameter.grad.flatten() for parameter in trained]))


def train(folder: Path, name: str, way: Way, processes: int = 1) -> dict[str, Tensor]:
    """One epoch.

    Returns:
        `gradients`: (steps, adapter parameters), `loss`: (steps,) as it is logged; both float32.
    """
    recorder, logger = GradientRecorder(), CSVLogger(folder / "logs", name)
    module = ChatGLM2LoRA(
        base=str(folder / "base"),
        adapter=str(folder / "adapter"),
        checkpointing=way.checkpointing,
        loss_normalization=way.loss_normalization,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
    )
    data = DialogueDataModule(
        source=str(folder / f"{way.rows}_rows.jsonl"),
        validation_share=0.0,
        max_tokens=LONGEST_ROW,
        batching=way.batching,
        rows_per_batch=way.rows_per_batch,
        tokens_per_batch=way.tokens_per_batch,
        shuffle=False,
        workers=0,
        processes=1,
        cache_dir=str(folder / f"cache_of_{processes}"),  # both write theirs at the same time
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="32-true",
        max_epochs=1,
        accumulate_grad_batches=way.accumulate,
        log_every_n_steps=1,
        logger=logger,
        callbacks=[recorder, StepMetrics()],
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    loss = logged_losses(logger) if trainer.is_global_zero else []
    return {"gradients": torch.stack(recorder.gradients), "loss": torch.tensor(loss)}


def logged_losses(logger: CSVLogger) -> list[float]:
    with (Path(logger.log_dir) / "metrics.csv").open() as stream:
        return [float(row["train/loss"]) for row in csv.DictReader(stream) if row["train/loss"]]


def main(folder: Path) -> None:
    """This rank's part in all ways of two processes; rank 0 writes what came of them."""
    results = {name: train(folder, name, way, processes=2) for name, way in TWO_PROCESSES.items()}
    if torch.distributed.get_rank() == 0:
        torch.save(results, folder / "two_processes.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
