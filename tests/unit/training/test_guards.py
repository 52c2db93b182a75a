"""Each guard stops what it is there to stop, says what to do, and changes nothing in a run that is well."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rigged
import torch
import yaml
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch import Callback, Trainer
from limits import HANG_S
from rigged import Rigged, fit, poison, rigged_module, trained, write_inputs

from kyon_pl import ChatGLM2LoRA
from kyon_pl.batch import Batch
from kyon_pl.cli import main
from kyon_pl.data.batches.plan import Batching, BatchPlanner
from kyon_pl.data.batches.sampler import largest_batches, smaller_batch_settings
from kyon_pl.errors import MachineError, TrainingError
from kyon_pl.lora import Checkpointing
from kyon_pl.runs.checkpoint_io import AdapterCheckpointIO
from kyon_pl.runs.integrity import fault_of_checkpoint
from kyon_pl.training.callbacks import AdapterGuard, FiniteGuard, MemoryGuard
from kyon_pl.training.callbacks.adapter_guard import STEPS_TO_MOVE

ROOT = Path(__file__).parents[3]
DEMO = ["fit", "--config", str(ROOT / "configs/demo.yaml"), "--trainer.limit_train_batches", "2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_inputs(tmp_path)
    return tmp_path


def lora_b(module: torch.nn.Module, layer: int = 1) -> torch.Tensor:
    name = f"layers.{layer}.self_attention.query_key_value.lora_B.default.weight"
    return next(value for key, value in module.named_parameters() if key.endswith(name))


# numbers that are not finite


@pytest.mark.parametrize("scaler", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_its_rows_are_written_out(
    folder: Path, scaler: bool, value: float
) -> None:
    module = rigged_module(folder)
    module.change_loss = poison(value)
    with pytest.raises(TrainingError, match=r"optimizer step 1: the loss is not finite.* kyon-pl preview") as stopped:
        fit(folder, module, [FiniteGuard()], scaler)
    file = folder / "run/not_finite-step=1.jsonl"
    assert str(file) in str(stopped.value)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["row"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [line["place"] for line in lines] == [f"{folder}/rows.jsonl, line {number}" for number in range(1, 7)]
    assert [line["micro_batch"] for line in lines] == [0] * 3 + [1] * 3
    assert all(math.isfinite(line["loss"]) for line in lines[:3])
    assert {line["loss"] for line in lines[3:]} == {str(value)}
    assert not lora_b(module).any(), "the optimizer must not have moved a weight"


class InfiniteGradients(Callback):
    """Overflows one gradient in some steps, counted from 0, as float16 would."""

    def __init__(self, steps: range) -> None:
        self.steps = steps

    def on_after_backward(self, trainer: Trainer, pl_module: Rigged) -> None:
        if trainer.global_step in self.steps:
            lora_b(pl_module).grad[0, 0] = math.inf


def test_a_skip_of_the_scaler_is_an_ordinary_thing(folder: Path) -> None:
    trainer = fit(folder, rigged_module(folder), [InfiniteGradients(range(1, 3)), FiniteGuard()], scaler=True)
    assert trainer.global_step == 4
    assert trainer.scaler.get_scale() == 65536 / 4


def test_skips_without_end_are_not(folder: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 18: the gradient overflows float16 even at a loss scale of 0.5"):
        fit(folder, rigged_module(folder), [InfiniteGradients(range(99)), FiniteGuard()], scaler=True, epochs=20)


def test_without_a_scaler_a_gradient_that_is_not_finite_stops_the_run(folder: Path) -> None:
    module = rigged_module(folder)
    with pytest.raises(
        TrainingError, match=r"step 2: the loss is finite but its gradient is not.*init_args\.lr to a third"
    ):
        fit(folder, module, [InfiniteGradients(range(1, 2)), FiniteGuard()])
    assert lora_b(module).isfinite().all()


def test_a_run_of_the_command_line_is_guarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ChatGLM2LoRA, "training_step", lambda self, batch, _: self.loss(batch, None) * math.nan)
    with pytest.raises(SystemExit) as stopped:
        main([*DEMO, "--trainer.num_sanity_val_steps", "0"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("kyon-pl fit: optimizer step 1: the loss is not finite")
    file = tmp_path / "lightning_logs/version_0/not_finite-step=1.jsonl"
    assert str(file) in said
    assert "train.jsonl, line" in file.read_text()
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_stops_both(folder: Path) -> None:
    """Row 5 is of rank 1; rank 0 would otherwise wait for it in the next step."""
    settings = os.environ | {"MASTER_PORT": str(find_free_network_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, rigged.__file__, str(folder)]
    ranks = [
        subprocess.Popen(command, env=settings | {"LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for rank, process in enumerate(ranks):
        _, said = process.communicate(timeout=HANG_S)
        assert "TrainingError: optimizer step 1: the loss is not finite" in said.splitlines()[-1], said
        assert f"not_finite-step=1-rank={rank}.jsonl" in said.splitlines()[-1]
    assert losses_of(folder / "run/not_finite-step=1-rank=1.jsonl")[:3] == ["nan"] * 3
    assert "nan" not in losses_of(folder / "run/not_finite-step=1-rank=0.jsonl")


def losses_of(file: Path) -> list[float | str]:
    return [json.loads(line)["loss"] for line in file.read_text().splitlines()]


# an adapter that learns nothing


def cut_off(model: torch.nn.Module) -> None:
    """Takes one lora_B out of the graph."""
    layer = next(
        module for name, module in model.named_modules() if name.endswith("1.self_attention.dense.lora_B.default")
    )
    layer.register_forward_hook(lambda module, inputs, output: output.detach())


def silence(model: torch.nn.Module) -> None:
    """Makes the gradient of one lora_B zero."""
    lora_b(model).register_hook(torch.zeros_like)


@pytest.mark.parametrize(("rig", "name"), [(cut_off, "dense"), (silence, "query_key_value")])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_a_layer_without_gradient_is_named_at_the_first_step(
    folder: Path, rig: Callable[[torch.nn.Module], None], name: str, checkpointing: Checkpointing
) -> None:
    module = rigged_module(folder, checkpointing=checkpointing)
    module.after_configure = rig
    words = rf"layers\.1\.self_attention\.{name}\.lora_B.*the first step gave it no gradient \(1 of 4 adapted layers\)"
    with pytest.raises(TrainingError, match=words):
        fit(folder, module, [AdapterGuard()])


@pytest.mark.parametrize(("epochs", "steps"), [(2, 4), (20, STEPS_TO_MOVE)])
def test_an_adapter_that_stays_zero_stops_the_run(folder: Path, epochs: int, steps: int) -> None:
    with pytest.raises(TrainingError, match=rf"still zero after {steps} optimizer steps \(4 of 4 .*init_args\.lr"):
        fit(folder, rigged_module(folder, rate=0.0), [AdapterGuard()], epochs=epochs)


def test_a_spike_is_said_with_its_rows(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One step of 28 has a loss a hundred times as large; nothing else is said, and nothing stops."""
    module = rigged_module(folder, rate=1e-4)
    steps = 0

    def spike(batch: Batch, loss: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return loss * 100 if steps in (2 * 22 + 1, 2 * 22 + 2) else loss

    module.change_loss = spike
    with caplog.at_level(logging.WARNING, "kyon_pl"):
        assert fit(folder, module, [FiniteGuard()], epochs=14).global_step == 28
    said = [record.getMessage() for record in caplog.records if "times the median" in record.getMessage()]
    assert len(said) == 1, said
    assert re.search(
        r"optimizer step 2\d: gradient norm .* \d\d+ times the median. The largest loss is in .*line \d+",
        said[0],
    )


# memory


@pytest.mark.parametrize("batching", ["packed", "padded"])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_guards_change_nothing_in_a_run_that_is_well(
    folder: Path, batching: Batching, checkpointing: Checkpointing
) -> None:
    """With dropout, so that the trial must not use up random numbers."""
    results = []
    for guards in ([], [FiniteGuard(), AdapterGuard(), MemoryGuard()]):
        module = rigged_module(folder, checkpointing=checkpointing)
        assert fit(folder, module, guards, epochs=12, batching=batching, tokens_per_batch=64).global_step >= 12
        results.append(trained(module))
    assert lora_b(module).any()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("batching", ["packed", "grouped", "padded"])
def test_the_largest_batches_are_those_of_the_whole_run(batching: Batching) -> None:
    lengths = np.random.default_rng(1).integers(4, 60, 50)
    planner = BatchPlanner(
        row_tokens=lengths,
        row_trained_tokens=lengths[::-1] // 3,
        batching=batching,
        rows_per_batch=4,
        tokens_per_batch=99,
    )
    used, epochs = 10, 1 if batching == "packed" else 6

    def weights(rows: tuple[int, ...]) -> tuple[int, int]:
        longest = 99 if batching == "packed" else max(lengths[list(rows)]) * len(rows)
        return int(longest), sum(planner.row_trained_tokens[list(rows)].tolist())

    plans = [planner.plan_epoch(epoch) for epoch in range(epochs)]
    every = [weights(plan.row_numbers(index)) for plan in plans for index in range(used)]
    found = [weights(batch.row_numbers) for batch in largest_batches(planner, used, 6)]
    assert found[0] == max(every)
    assert found[-1][::-1] == max((trained, slots) for slots, trained in every)
    assert [batch.step_trained_tokens for batch in largest_batches(planner, used, 6)] == [
        trained for _, trained in found
    ]


def out_of_memory_above(tokens: int) -> Callable[..., torch.Tensor]:
    """A `loss` that fails for larger batches, as a GPU would."""
    loss = ChatGLM2LoRA.loss

    def limited(self: ChatGLM2LoRA, batch: Batch, num_items_in_batch: float | None) -> torch.Tensor:
        activations = torch.ones(8)
        alive.append(weakref.ref(activations))
        if batch.input_ids.numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(self, batch, num_items_in_batch)

    return limited


alive: list[weakref.ref[torch.Tensor]] = []
PADDED = ["--data.batching", "padded", "--data.rows_per_batch", "6"]
CHECKPOINTED = ["--model.checkpointing", "full"]


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["--trainer.num_sanity_val_steps", "0"], "Set model.checkpointing to full"),
        (
            [*CHECKPOINTED, "--trainer.num_sanity_val_steps", "0"],
            "Lower data.tokens_per_batch from 1024 to 512, and raise trainer.accumulate_grad_batches from 2 to 4",
        ),
        (
            [*CHECKPOINTED, *PADDED, "--trainer.num_sanity_val_steps", "0"],
            "Lower data.rows_per_batch from 6 to 3, and raise trainer.accumulate_grad_batches from 2 to 4",
        ),
    ],
)
def test_out_of_memory_is_a_paragraph_before_the_first_step(
    words: list[str], fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ChatGLM2LoRA, "loss", out_of_memory_above(256))
    with pytest.raises(SystemExit) as stopped:
        main([*DEMO, *words])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("kyon-pl fit: trying the largest batches, a batch of "), said
    assert fix in said
    assert "tokens" in said


def test_an_estimate_that_was_too_low_is_made_up_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All layers are checkpointed, which is said, recorded and changes no weight; if that fails too, the run ends."""
    monkeypatch.chdir(tmp_path)
    loss = ChatGLM2LoRA.loss

    def limited(self: ChatGLM2LoRA, batch: Batch, num_items_in_batch: float | None) -> torch.Tensor:
        if self.checkpointing != "full" and self.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(self, batch, num_items_in_batch)

    short = [*DEMO, "--trainer.max_steps", "2", "--trainer.num_sanity_val_steps", "0", "--held_out", "null"]
    main([*short, "--model.checkpointing", "full", "--trainer.default_root_dir", "by_hand"])
    monkeypatch.setattr(ChatGLM2LoRA, "loss", limited)
    capsys.readouterr()
    main([*short, "--model.checkpointing", "auto", "--trainer.default_root_dir", "auto"])
    assert capsys.readouterr().err.count("all layers are checkpointed now") == 1
    by_hand, auto = (Path(name) / "lightning_logs/version_0" for name in ("by_hand", "auto"))
    assert yaml.safe_load((auto / "config.yaml").read_text())["model"]["checkpointing"] == "full"
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (auto / "checkpoints/step=2" / file).read_bytes() == (by_hand / "checkpoints/step=2" / file).read_bytes()
    assert "checkpointing: full" in (auto / "checkpoints/step=2/config.yaml").read_text()
    monkeypatch.setattr(ChatGLM2LoRA, "loss", out_of_memory_above(256))
    with pytest.raises(SystemExit):
        main([*short, "--model.checkpointing", "auto", "--trainer.default_root_dir", "short"])
    said = capsys.readouterr().err
    assert said.count("all layers are checkpointed now") == 1
    assert "Lower data.tokens_per_batch" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("batching", "rows", "longest_row", "words"),
    [
        (
            "packed",
            8,
            2048,
            "data.tokens_per_batch from 2048 to 1024 and data.max_tokens from 2048 to 1024, and raise ",
        ),
        ("packed", 8, 1024, "data.tokens_per_batch from 2048 to 1024, and raise "),
        ("padded", 1, 3000, "data.max_tokens from 3000 to 1500"),
    ],
)
def test_what_to_lower_is_a_setting_that_the_run_takes(
    batching: Batching, rows: int, longest_row: int, words: str
) -> None:
    """A packed batch may not be smaller than `max_tokens`."""
    assert smaller_batch_settings(batching, rows, 2048, longest_row, 16).startswith(words)


def test_out_of_memory_does_not_keep_the_batch_alive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever catches the error can go on with a smaller batch."""
    alive.clear()
    monkeypatch.setattr(ChatGLM2LoRA, "loss", out_of_memory_above(0))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        fit(folder, rigged_module(folder), [MemoryGuard()])
    assert isinstance(caught.value.__cause__, MachineError)
    assert len(alive) == 1
    assert alive[0]() is None


def test_other_errors_are_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ChatGLM2LoRA, batch: Batch, num_items_in_batch: float | None) -> torch.Tensor:
        raise RuntimeError("something else")

    monkeypatch.setattr(ChatGLM2LoRA, "loss", fail)
    with pytest.raises(RuntimeError, match="something else") as caught:
        fit(folder, rigged_module(folder), [MemoryGuard()])
    assert caught.value.__cause__ is None


# the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("left_bytes", [0, 5_000, 12_000, 24_000])
def test_a_full_disk_is_a_paragraph_and_the_older_checkpoint_stays(
    folder: Path, small_disk: Path, left_bytes: int
) -> None:
    """However far the writing comes: the adapter, the checkpoint, or the marker."""
    module = rigged_module(folder)
    writer = AdapterCheckpointIO(module.write_adapter, "model: {}\n")
    trainer = fit(folder, module, [], plugins=[writer])
    first, second = small_disk / "step=1.ckpt", small_disk / "step=2.ckpt"
    trainer.save_checkpoint(first)
    assert fault_of_checkpoint(first) is None
    (small_disk / "filler").write_bytes(b"." * (shutil.disk_usage(small_disk).free - left_bytes))
    with pytest.raises(MachineError, match=r"step=2.ckpt: the disk is full .*Make room"):
        trainer.save_checkpoint(second)
    assert fault_of_checkpoint(first) is None
    assert {path.name for path in small_disk.iterdir()} == {"filler", "step=1", "step=1.ckpt"}


# waiting for the device


def count_waits(folder: Path, precision: str, epochs: int, guards: list[Callback]) -> int:
    """How often torch warns that the host waits for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            fit(folder, rigged_module(folder), guards, epochs=epochs, accelerator="gpu", precision=precision)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_guards_make_the_host_wait_a_few_times_a_run_and_not_each_step(folder: Path, precision: str) -> None:
    """The one wait a step of FiniteGuard is for an event; behind a gradient scaler's own wait it has happened."""
    extra = []
    for epochs in (12, 15):
        alone = count_waits(folder, precision, epochs, [])
        guarded = count_waits(folder, precision, epochs, [FiniteGuard(), AdapterGuard(), MemoryGuard()])
        extra.append(guarded - alone)
    assert extra[0] == extra[1] < 10
