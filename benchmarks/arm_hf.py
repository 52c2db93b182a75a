"""The arms that others would train with: HF Trainer with PEFT and `GlmForCausalLM`, and the original script.

Both are HF Trainers. The original's model is the same as ours under its published names, without packing, and with
the published code's loss: float32 logits of every position.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from arm_clock import Clock
from arm_names import Arm
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F  # noqa: N812 (its usual name)
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.chatglm2.checkpoint import random_base
from kyon_pl.chatglm2.glm import glm_config
from kyon_pl.data.batches.collate import DialogueCollator
from kyon_pl.lora import reference_lora

MOST_GROUPED = 50  # batches that transformers sorts together


def grouped_steps(rows: int, rows_per_batch: int) -> int:
    """Steps in which HF Trainer goes once from long rows to short ones: fewer would measure the long ones."""
    return min(rows // (rows_per_batch * 4), MOST_GROUPED)


def train_hf(arm: Arm, rows_file: Path, folder: Path, steps: int, clock: Clock, tiny: Path | None) -> dict[str, Any]:
    """Train by HF Trainer; arguments as `arm_ours.fit`."""
    return _train(arm, rows_file, folder, steps, clock, _glm(clock.device, tiny), dataloader_num_workers=2)


def train_original(
    arm: Arm, rows_file: Path, folder: Path, steps: int, clock: Clock, tiny: Path | None
) -> dict[str, Any]:
    """Train as the original script does; arguments as `arm_ours.fit`."""
    dtype = torch.float16 if clock.device.type == "cuda" else torch.float32
    base = random_base(_config(tiny), dtype=dtype, device=clock.device, attn_implementation="sdpa")
    for parameter in base.parameters():
        if parameter.ndim == 1:
            parameter.data = parameter.data.float()
    base.config.use_cache = False
    model = get_peft_model(base, reference_lora())
    model.enable_input_require_grads()
    return _train(arm, rows_file, folder, steps, clock, model, optim="adamw_torch", dataloader_num_workers=0)


def _config(tiny: Path | None) -> ChatGLM2Config:
    return ChatGLM2Config(**json.loads(tiny.read_text())) if tiny else ChatGLM2Config()


def _glm(device: torch.device, tiny: Path | None) -> torch.nn.Module:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        base = AutoModelForCausalLM.from_config(glm_config(_config(tiny)), dtype=dtype, attn_implementation="sdpa")
    base.config.use_cache = False
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "k_proj", "v_proj"])
    lora.task_type = "CAUSAL_LM"
    return get_peft_model(base, lora)


def _train(
    arm: Arm, rows_file: Path, folder: Path, steps: int, clock: Clock, model: torch.nn.Module, **options: Any
) -> dict[str, Any]:
    cuda, original = clock.device.type == "cuda", arm.kind == "original"
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=arm.rows_per_batch,
        train_sampling_strategy="group_by_length" if arm.grouped else "random",
        learning_rate=1e-4,
        bf16=cuda and not original,
        fp16=cuda and original,
        gradient_checkpointing=arm.checkpointing == "full",
        gradient_checkpointing_kwargs={"use_reentrant": original},  # the default of its time
        use_cpu=not cuda,
        seed=2023,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        **(options if cuda else options | {"dataloader_num_workers": 0}),
    )
    trainer = TimedTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(_rows(rows_file)),
        data_collator=DialogueCollator(0, "seed" if original else "target"),
        callbacks=[StepEnd(clock)],
    )
    trainer.train()
    return clock.result()


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [row | {"length": len(row["input_ids"])} for row in rows]


class StepEnd(TrainerCallback):
    """Marks the steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.tokens: torch.Tensor
        self.rows = 0
        self.loss: torch.Tensor

    def on_step_end(self, *words: Any, **state: Any) -> None:
        """A step has been given to the device."""
        self.clock.step(self.tokens, self.rows, self.loss)


class TimedTrainer(Trainer):  # type: ignore[misc]
    """HF's Trainer, which tells the clock's callback what each step held; nothing is waited for."""

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *words: Any, **options: Any) -> Any:
        """The loss; of the original, the published code's."""
        told = next(c for c in self.callback_handler.callbacks if isinstance(c, StepEnd))
        told.tokens, told.rows = (inputs["input_ids"] != 0).sum(), len(inputs["input_ids"])
        compute = super().compute_loss if "attention_mask" in inputs else published_loss
        loss = compute(model, inputs, *words, **options)
        told.loss = loss.detach()
        return loss


def published_loss(model: Any, inputs: dict[str, torch.Tensor], *words: Any, **options: Any) -> torch.Tensor:
    """The mean over labels, from float32 logits of all positions, as `modeling_chatglm.py` has it."""
    logits = model(input_ids=inputs["input_ids"]).logits.float()[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, inputs["labels"][:, 1:].flatten())
