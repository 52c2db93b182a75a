"""The arms that train this package's model: by `kyon-pl fit`, and in a bare loop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from arm_clock import Clock, StepClock
from arm_names import SHIPPED, Arm
from lightning.pytorch import Trainer
from torch.nn.utils import clip_grad_norm_

from kyon_pl import ChatGLM2LoRA, DialogueDataModule
from kyon_pl.cli import main


def fit(arm: Arm, rows_file: Path, folder: Path, steps: int, clock: Clock, tiny: Path | None) -> dict[str, Any]:
    """Train by `kyon-pl fit`.

    Args:
        arm: what to measure.
        rows_file: what to train on.
        folder: for logs, checkpoints and encoded rows.
        steps: optimizer steps.
        clock: takes the times.
        tiny: `config.json` of a tiny shape, for a CPU.
    """
    StepClock.clock, StepClock.last_step = clock, steps
    main(["fit", *fit_options(arm, rows_file, folder, steps, clock.device.type, tiny)])
    return StepClock.found


def fit_options(arm: Arm, rows_file: Path, folder: Path, steps: int, device: str, tiny: Path | None) -> list[str]:
    """The words after `kyon-pl fit`."""
    words = SHIPPED[arm.shipped or "lora"]
    settings: dict[str, object] = {
        "model.base": "random",
        "data.source": rows_file,
        "data.cache_dir": folder / "encoded",
        "trainer.default_root_dir": folder,
        "trainer.profiler": "simple",
        "held_out": "null",
        "trainer.limit_val_batches": 4 if arm.shipped else 0,
    }
    if not arm.shipped:
        settings |= {
            "trainer.max_steps": steps,
            "trainer.precision": arm.precision if device == "cuda" else "32-true",
            "trainer.accumulate_grad_batches": 1,
            "trainer.num_sanity_val_steps": 0,
            "data.validation_share": 0.0,
            "data.tokens_per_step": "null",
            "data.tokens_per_batch": arm.tokens_per_batch,
            "model.compile": str(tiny is None).lower(),
            "model.checkpointing": arm.checkpointing,
            "model.quantization": arm.quantization or "null",
        }
    if tiny:
        settings |= {"model.random_config": tiny, "data.max_tokens": 128, "trainer.accelerator": "cpu"}
        settings |= {"data.workers": 0, "data.processes": 1, "trainer.enable_progress_bar": "false"}
        settings |= {"data.tokens_per_step": 2048} if arm.shipped else {}
    if arm.exact_tokens:
        settings["data.max_tokens"] = arm.exact_tokens
    settings |= dict(option.split("=", 1) for option in arm.options)
    words = words + [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    # keys of a list come behind those of its owner
    words += ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", str(folder)]
    return [*words, "--allow_code", "arm_clock", "--trainer.callbacks+", "arm_clock.StepClock"]


def bare(arm: Arm, rows_file: Path, folder: Path, steps: int, clock: Clock, tiny: Path | None) -> dict[str, Any]:
    """Train the same model on the same batches in a loop that logs nothing; arguments as `fit`."""
    cuda = clock.device.type == "cuda"
    trainer = Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=1,
        precision=arm.precision if cuda else "32-true",  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DialogueDataModule(
        source=str(rows_file),
        validation_share=0.0,
        max_tokens=arm.exact_tokens or (128 if tiny else 2048),
        tokens_per_batch=arm.tokens_per_batch,
        workers=0 if tiny else 2,
        processes=1 if tiny else None,
        cache_dir=str(folder / "encoded"),
    )
    layers = arm.checkpointing
    module = ChatGLM2LoRA(
        base="random",
        random_config=str(tiny) if tiny else None,
        compile=tiny is None,
        checkpointing=int(layers) if layers.isdecimal() else layers,  # type: ignore[arg-type]
        quantization=arm.quantization,  # type: ignore[arg-type]
    )
    data.trainer = module.trainer = trainer  # it trains nothing: it knows device and precision
    data.setup("fit")
    module.configure_model()
    return _loop(module, data, steps, clock, arm.weights == "fp16" and cuda)


def _loop(module: ChatGLM2LoRA, data: DialogueDataModule, steps: int, clock: Clock, scaled: bool) -> dict[str, Any]:
    trainer, device = module.trainer, clock.device
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = module.make_optimizer(parameters)
    scaler = torch.amp.GradScaler(device.type, enabled=scaled)
    batches, waited_s = iter(data.train_dataloader()), 0.0
    for _ in range(steps):
        asked_s = time.perf_counter()
        batch = next(batches)
        waited_s += time.perf_counter() - asked_s
        batch = trainer.strategy.batch_to_device(batch, device)
        with trainer.precision_plugin.train_step_context():
            loss = module.loss(batch, batch.step_trained_tokens)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(parameters, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if clock.step(batch.tokens, len(batch.row_numbers), loss, batch.computed_tokens, batch.trained_tokens):
            waited_s = 0.0
    clock.waited_s = waited_s
    return clock.result()
