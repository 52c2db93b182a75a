"""Every guard matters: each is disabled in a copy of the package, and the test that is named beside it must then fail.

`python tests/faults/guards_matter.py` does so for all, `python tests/faults/guards_matter.py fused scaler` for those
whose line has one of the words. In the slow suite it is `test_guards_matter.py`.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("kyon_pl", "tests", "configs", "pyproject.toml")
LIBRARIES = (
    "datasets",
    "peft",
    "lightning.pytorch.cli",
    "torch.utils.tensorboard",
    "torchmetrics",
    "transformers.models.glm.modeling_glm",
)
FAILED = 1  # pytest's status where tests ran and some failed; a test that is not there is another


@dataclass(frozen=True)
class Guard:
    """One guard.

    Attributes:
        name: what it is there for.
        file: where it is, in the package.
        old: a text that stands there once.
        new: what is put in its place to disable it.
        test: fails then.
    """

    name: str
    file: str
    old: str
    new: str
    test: str

    def __str__(self) -> str:
        return f"{self.name} [{self.file}] -> {self.test.split('/')[-1]}"


MODULE = "training/module.py"
GUARDS_TEST = "tests/unit/training/test_guards.py::"
MODULE_TEST = "tests/unit/training/test_module.py::"
CLI_TEST = "tests/cli/test_errors.py::test_error_is_one_clear_paragraph"
DEMO_TEST = "tests/cli/test_demo.py::"
CHECKPOINT_TEST = "tests/unit/runs/test_whole_checkpoints.py::"
RESUME_TEST = "tests/faults/test_kill_and_resume.py::test_kill_and_resume"

PRECISION = [
    Guard(
        "16-true is refused",
        "lora/frozen.py",
        '"32-true": torch.float32}',
        '"32-true": torch.float32, "16-true": torch.float16}',
        f"{CLI_TEST}[trained weights in half]",
    ),
    Guard(
        "adapters are float32 on a half-precision base",
        "lora/adapter.py",
        "get_peft_model(base, config)\n    except (ValueError, re.error)",
        "get_peft_model(base, config, autocast_adapter_dtype=False)\n    except (ValueError, re.error)",
        f"{MODULE_TEST}test_adapters_are_float32_on_a_half_precision_base",
    ),
    Guard(
        "no optimizer gets trained weights in half precision",
        MODULE,
        "assert all(parameter.dtype == torch.float32 for parameter in parameters)",
        "pass",
        f"{MODULE_TEST}test_trained_weights_in_half_precision_never_reach_the_optimizer",
    ),
    Guard(
        "norms are computed in float32",
        "chatglm2/layers.py",
        "class ChatGLM2Attention(nn.Module):",
        """class GlmRMSNorm(nn.Module):  # type: ignore[no-redef]
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(Tensor(size).fill_(1)), eps

    def forward(self, hidden):
        return self.weight * hidden / ((hidden * hidden).mean(-1, keepdim=True) + self.eps).sqrt()


class ChatGLM2Attention(nn.Module):""",
        f"{MODULE_TEST}test_norms_do_not_overflow_in_float16",
    ),
    Guard(
        "the loss is computed in float32",
        "chatglm2/modeling.py",
        "F.cross_entropy(logits.float(), targets",
        "F.cross_entropy(logits, targets",
        "tests/unit/chatglm2/test_modeling.py::test_loss_is_float32_in_half_precision",
    ),
    Guard(
        "a loss that is not finite stops the run",
        "training/callbacks/finite_guard.py",
        "if bad_losses:\n",
        "if False:\n",
        f"{GUARDS_TEST}test_a_loss_that_is_not_finite_stops_the_run_and_its_rows_are_written_out",
    ),
    Guard(
        "a loss that is not finite on one rank stops all",
        "training/callbacks/finite_guard.py",
        "dist.all_reduce(bad_losses)",
        "pass",
        f"{GUARDS_TEST}test_a_loss_that_is_not_finite_on_one_rank_stops_both",
    ),
    Guard(
        "a gradient that is not finite stops the run",
        "training/callbacks/finite_guard.py",
        "elif math.isfinite(norm) or",
        "elif True or",
        f"{GUARDS_TEST}test_without_a_scaler_a_gradient_that_is_not_finite_stops_the_run",
    ),
    Guard(
        "a gradient spike is logged",
        "training/callbacks/finite_guard.py",
        "norm > SPIKE_FACTOR * median",
        "False",
        f"{GUARDS_TEST}test_a_spike_is_said_with_its_rows",
    ),
    Guard(
        "an ordinary skip of the scaler does not stop the run",
        "training/callbacks/finite_guard.py",
        "(trainer.scaler is not None and scale >= SMALLEST_SCALE)",
        "False",
        f"{GUARDS_TEST}test_a_skip_of_the_scaler_is_an_ordinary_thing",
    ),
    Guard(
        "skips of the scaler without end stop the run",
        "training/callbacks/finite_guard.py",
        "SMALLEST_SCALE = 1.0",
        "SMALLEST_SCALE = 0.0",
        f"{GUARDS_TEST}test_skips_without_end_are_not",
    ),
    Guard(
        "the command line has the guard of finite numbers",
        "cli/lightning_cli.py",
        "            FiniteGuard(),\n",
        "",
        f"{GUARDS_TEST}test_a_run_of_the_command_line_is_guarded",
    ),
    Guard(
        "16-mixed is refused where Lightning would make bf16-mixed of it",
        "doctor/device.py",
        'if device_type == "cpu" and precision == "16-mixed":',
        "if False:",
        f"{CLI_TEST}[16-mixed on a CPU]",
    ),
    Guard(
        "a fused optimizer is refused where it cannot be clipped",
        "training/optimizer.py",
        'and optimizer.defaults.get("fused"):',
        "and False:",
        f"{MODULE_TEST}test_a_fused_optimizer_is_refused_where_lightning_cannot_clip",
    ),
    Guard(
        "the gradient norm is logged",
        "training/callbacks/step_metrics.py",
        "if self.grad_norm is not None:",
        "if False:",
        f"{DEMO_TEST}test_curves_are_there_and_finite",
    ),
    Guard(
        "the rate warms up",
        "training/optimizer.py",
        "if step < warmup_steps:",
        "if False:",
        "tests/unit/training/test_schedule.py",
    ),
]

RANKS = [
    Guard(
        "an adapted layer without gradient stops the run",
        "training/callbacks/adapter_guard.py",
        "check_gradients(pl_module)\n",
        "pass\n",
        f"{GUARDS_TEST}test_a_layer_without_gradient_is_named_at_the_first_step",
    ),
    Guard(
        "an adapter that stays zero stops the run",
        "training/callbacks/adapter_guard.py",
        "check_weights(pl_module, trainer.global_step)\n",
        "pass\n",
        f"{GUARDS_TEST}test_an_adapter_that_stays_zero_stops_the_run",
    ),
    Guard(
        "checkpointing is not the reentrant kind",
        "training/base.py",
        '{"use_reentrant": False}',
        '{"use_reentrant": True}',
        f"{GUARDS_TEST}test_guards_change_nothing_in_a_run_that_is_well",
    ),
    Guard(
        "checkpointing is on where it is asked for",
        "training/base.py",
        "if checkpointed:\n",
        "if False:\n",
        f"{MODULE_TEST}test_checkpointing_keeps_a_fraction_of_the_activations",
    ),
    Guard(
        "layers checkpoint in training mode, and bases load in the other",
        MODULE,
        "self.model.train()\n",
        "self.model.eval()\n",
        f"{MODULE_TEST}test_checkpointing_keeps_a_fraction_of_the_activations",
    ),
    Guard(
        "each rank loads onto its own device",
        MODULE,
        "device = self.trainer.strategy.root_device",
        'device = torch.device("cpu")',
        f"{MODULE_TEST}test_each_rank_loads_the_base_onto_its_own_device",
    ),
    Guard(
        "ranks have equally many batches",
        "data/batches/sampler.py",
        "return math.ceil(self.planner.batches_per_epoch / self.world_size)",
        "return len(range(self.rank, self.planner.batches_per_epoch, self.world_size))",
        "tests/unit/data/test_datamodule.py::test_ranks_share_all_rows_and_have_equally_many_batches",
    ),
    Guard(
        "the validation loss is that of all trained tokens",
        MODULE,
        "metric.update(loss, weight=batch.trained_tokens)",
        "metric.update(loss)",
        f"{MODULE_TEST}test_the_validation_loss_is_that_of_all_trained_tokens",
    ),
    Guard(
        "nothing is kept in prepare_data",
        "data/dialogue_data.py",
        "self._table(origin)\n",
        "self.kept = self._table(origin)\n",
        "tests/unit/data/test_datamodule.py::test_prepare_data_keeps_nothing_that_other_ranks_would_miss",
    ),
    Guard(
        "the largest batches are tried before the first step",
        "training/callbacks/memory_guard.py",
        "try_batch(trainer, pl_module, batch)\n",
        "pass\n",
        f"{GUARDS_TEST}test_out_of_memory_is_a_paragraph_before_the_first_step",
    ),
    Guard(
        "the trial of the largest batches has no side effects",
        "training/callbacks/memory_guard.py",
        'with torch.random.fork_rng([device] if device.type == "cuda" else []):',
        "if True:",
        f"{GUARDS_TEST}test_guards_change_nothing_in_a_run_that_is_well",
    ),
    Guard(
        "an out-of-memory error is explained",
        "training/callbacks/memory_guard.py",
        "exception.__cause__ = self.explain(trainer, pl_module)\n",
        "pass\n",
        f"{GUARDS_TEST}test_out_of_memory_is_a_paragraph_before_the_first_step",
    ),
    Guard(
        "the traceback of an out-of-memory error lets go of the batch",
        "training/callbacks/memory_guard.py",
        "traceback.clear_frames(exception.__traceback__)\n",
        "pass\n",
        f"{GUARDS_TEST}test_out_of_memory_does_not_keep_the_batch_alive",
    ),
    Guard(
        "frozen weights are in the compute precision",
        MODULE,
        "dtype = frozen_dtype(str(self.trainer.precision))",
        "dtype = torch.float32",
        f"{MODULE_TEST}test_adapters_are_float32_on_a_half_precision_base",
    ),
]
CHECKPOINTS = [
    Guard(
        "a checkpoint holds what is trained and not the base",
        MODULE,
        'checkpoint["state_dict"].items() if name in trained}',
        'checkpoint["state_dict"].items()}',
        f"{DEMO_TEST}test_checkpoint_is_small_and_the_adapter_is_plain_peft",
    ),
    Guard(
        "an adapter on the disk has PEFT's names",
        MODULE,
        'name.removeprefix("model.")',
        "name",
        f"{DEMO_TEST}test_checkpoint_is_small_and_the_adapter_is_plain_peft",
    ),
    Guard(
        "weights of another name or shape are refused",
        "runs/integrity.py",
        "if saved == shapes:",
        "if True:",
        f"{DEMO_TEST}test_checkpoint_of_another_shape_is_refused",
    ),
    Guard(
        "a checkpoint that was altered is refused by name",
        "runs/checkpoint_io.py",
        "    check_checksums(checkpoint)\n",
        "",
        "tests/faults/test_altered_checkpoint.py::test_it_is_refused_by_name[moment altered]",
    ),
    Guard(
        "a checkpoint of another base is refused",
        "training/callbacks/run_record.py",
        "            check_fingerprint(checkpoint, self.fingerprint)\n",
        "            pass\n",
        "tests/faults/test_disk.py::test_checkpoint_of_another_base",
    ),
    Guard(
        "the data go on where the optimizer stands",
        "data/datamodule.py",
        "position=lambda: trainer.global_step,",
        "position=None,",
        f"{RESUME_TEST}[mid-epoch-1-32-true-padded]",
    ),
    Guard(
        "random numbers depend on the place in the run alone",
        "cli/lightning_cli.py",
        "        callbacks.append(Randomness(int(settings.seed_everything)))\n",
        "",
        f"{RESUME_TEST}[mid-epoch-1-32-true-padded]",
    ),
    Guard(
        "a full disk is explained, and the older checkpoint stays",
        "runs/checkpoint_io.py",
        "except (OSError, RuntimeError, SafetensorError) as error:",
        "except ZeroDivisionError as error:",
        f"{GUARDS_TEST}test_a_full_disk_is_a_paragraph_and_the_older_checkpoint_stays",
    ),
    Guard(
        "a truncated checkpoint is skipped",
        "runs/integrity.py",
        "return None if found == recorded else",
        "return None if True else",
        f"{CHECKPOINT_TEST}test_the_newest_checkpoint_is_the_whole_one_of_the_highest_recorded_step",
    ),
    Guard(
        "a checkpoint without its marker is skipped",
        "runs/integrity.py",
        "    return fault_of_adapter(folder) or",
        "    if not (folder / MARKER).is_file():\n        return None\n    return fault_of_adapter(folder) or",
        f"{CHECKPOINT_TEST}test_the_newest_checkpoint_is_the_whole_one_of_the_highest_recorded_step",
    ),
    Guard(
        "the newest checkpoint is the one of the highest recorded step",
        "runs/integrity.py",
        "max(complete)[1]",
        "complete[-1][1]",
        f"{CHECKPOINT_TEST}test_the_newest_checkpoint_is_the_whole_one_of_the_highest_recorded_step",
    ),
    Guard(
        "a checkpoint is written under a temporary name",
        "runs/checkpoint_io.py",
        '        temporary, temporary_folder = _temporary(file), _temporary(file.with_suffix(""))\n',
        '        temporary, temporary_folder = file, _temporary(file.with_suffix(""))\n',
        f"{CHECKPOINT_TEST}test_a_save_that_dies_leaves_the_checkpoint_of_that_name",
    ),
    Guard(
        "an interrupted removal is completed",
        "runs/checkpoint_io.py",
        "            file.rename(_removed(file))\n",
        "            file.unlink()\n",
        f"{CHECKPOINT_TEST}test_a_removal_that_dies_is_finished_later",
    ),
    Guard(
        "a checkpoint with code is refused and not run",
        "runs/checkpoint_io.py",
        'map_location or "cpu", weights_only=True)',
        'map_location or "cpu", weights_only=False)',
        f"{CHECKPOINT_TEST}test_a_checkpoint_with_code_is_refused_and_not_run",
    ),
    Guard(
        "a signal to one rank saves on all, and stops all",
        "cli/lightning_cli.py",
        ", StopSignals(timeout)]",
        "]",
        "tests/faults/test_stop_signals.py::test_sigterm_to_one_of_two_ranks[in the first half of a step]",
    ),
    Guard(
        "the rate moves once an optimizer step",
        MODULE,
        '"interval": "step"',
        '"interval": "epoch"',
        f"{DEMO_TEST}test_schedule_ends_exactly_at_its_last_value",
    ),
    Guard(
        "the schedule is as long as the run, in optimizer steps",
        "training/optimizer.py",
        "workload.steps_per_epoch * epochs if epochs > 0",
        "workload.steps_per_epoch * trainer.accumulate_grad_batches * epochs if epochs > 0",
        f"{DEMO_TEST}test_schedule_ends_exactly_at_its_last_value",
    ),
]
FILES = [
    Guard(
        "ranks are compared before memory is asked for",
        "lora/adapter.py",
        "    check_ranks(folder, config, state)\n",
        "",
        "tests/adversary/test_foreign_adapters.py::test_impossible_rank_is_refused_before_memory_is_allocated",
    ),
    Guard(
        "layers are counted before they are built",
        "chatglm2/checkpoint.py",
        "> len(shapes):",
        "> 10**9:",
        "tests/adversary/test_foreign_adapters.py::test_millions_of_layers_are_refused_before_they_are_built",
    ),
    Guard(
        "written weights have the mode of the umask",
        "disk.py",
        "    file.chmod(mode)\n",
        "",
        "tests/unit/test_modes.py",
    ),
    Guard(
        "a checkpoint without a list of its contents is refused",
        "runs/checkpoint_io.py",
        "*(_KINDS.keys() & checkpoint.keys()), *_REQUIRED)",
        "*(_KINDS.keys() & checkpoint.keys()),)",
        "tests/adversary/test_foreign_checkpoints.py::test_checkpoint_without_a_list_of_contents_is_refused",
    ),
    Guard(
        "what Lightning cannot restore is said",
        "runs/checkpoint_io.py",
        "or not _raised_while_restoring(error)",
        "or True",
        "tests/adversary/test_foreign_checkpoints.py::test_foreign_checkpoint_is_refused[validate-callbacks of 5]",
    ),
    Guard(
        "a folder is recorded as an absolute path",
        "training/module.py",
        "attach(base, name_to_record(self.frozen_base.name))",
        "attach(base, self.frozen_base.name)",
        "tests/cli/test_base_elsewhere.py::test_relative_base_is_recorded_as_an_absolute_folder",
    ),
]
GUARDS = PRECISION + RANKS + CHECKPOINTS + FILES


def main(words: list[str]) -> int:
    """Try them.

    Args:
        words: a guard whose line has one of them is tried; none: all are.

    Returns:
        How many can be disabled without a test that fails.
    """
    chosen = [guard for guard in GUARDS if not words or any(word in str(guard) for word in words)]
    with copy_of_the_repository() as copy:
        import_libraries(copy)
        status, said = run(copy, *dict.fromkeys(guard.test for guard in chosen))
        assert status == 0, f"with all guards in place:\n{said}"
        return sum([not matters(copy, guard) for guard in chosen])


@contextmanager
def copy_of_the_repository() -> Iterator[Path]:
    """What the tests need of it, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="guards_matter-") as folder:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        yield Path(folder)


def import_libraries(copy: Path) -> None:
    """Import what takes seconds, once: runs are forked from here. Nothing of this package is imported yet."""
    os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1", HF_HOME=str(copy / "hub"))
    sys.path.insert(0, str(copy))
    for name in LIBRARIES:
        import_module(name)
    assert not any(name.split(".")[0] == "kyon_pl" for name in sys.modules)


def matters(copy: Path, guard: Guard) -> bool:
    """Whether its test fails without it; the copy is then as it was."""
    file = copy / "kyon_pl" / guard.file
    text = file.read_text(encoding="utf-8")
    assert text.count(guard.old) == 1, f"{guard}: this is there {text.count(guard.old)} times: {guard.old!r}"
    file.write_text(text.replace(guard.old, guard.new), encoding="utf-8")
    status, _ = run(copy, "-x", guard.test)
    file.write_text(text, encoding="utf-8")
    print(f"{'ok  ' if status == FAILED else f'NO ({status})'} {guard}", flush=True)
    return status == FAILED


def run(copy: Path, *words: str) -> tuple[int, str]:
    """Run tests of the copy in a child, the slow ones too.

    Returns:
        pytest's status, and what it said.
    """
    log = copy / "log"
    child = os.fork()
    if child == 0:
        os.chdir(copy)
        with log.open("wb") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        status = pytest.main(["-m", "not gpu", "-p", "no:cacheprovider", *words])
        sys.stdout.flush()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, log.read_text(encoding="utf-8", errors="replace")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
