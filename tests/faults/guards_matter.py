"""Every guard matters: each is disabled in a copy of the package, and the test that is named beside it must then fail.

`python tests/faults/guards_matter.py` does so for all, `python tests/faults/guards_matter.py fused scaler` for those
whose line has one of the words. In the slow suite it is `test_guards_matter.py`.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import time
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
TRIES = 3  # a guard against a race is not missed each time
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
HANGUP_TEST = "tests/cli/test_disturbed_run.py::test_a_hangup_saves_and_the_same_command_goes_on"
GUARDS_TEST = "tests/unit/training/test_guards.py::"
LIGHTNING_TEST = "tests/unit/training/test_lightning_life.py::"
MODULE_TEST = "tests/unit/training/test_module.py::"
CLI_TEST = "tests/cli/test_errors.py::test_error_is_one_clear_paragraph"
DEMO_TEST = "tests/cli/test_demo.py::"
CHECKPOINT_TEST = "tests/unit/runs/test_whole_checkpoints.py::"
OUTPUTS_TEST = "tests/unit/test_outputs.py::"
TWO_RUNS_TEST = (
    "tests/faults/test_two_runs.py::test_the_second_is_refused_while_the_first_lives_and_goes_on_when_it_is_killed"
)
RESUME_TEST = "tests/faults/test_kill_and_resume.py::test_kill_and_resume"
MIDDLEWARE_TEST = "tests/unit/chat/test_middleware.py::"
REPORT_TEST = "tests/unit/evaluation/test_report_parts.py::"
TERMINAL_TEST = "tests/unit/chat/test_terminal.py::"
ASKED_TEST = "tests/cli/test_asked_as_trained.py::"
VISITORS_TEST = "tests/cli/test_web_visitors.py::"
READING = "data/reading/"
READERS_TEST = "tests/unit/data/test_readers.py::"
FORMS_TEST = "tests/unit/data/test_forms.py::"

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
        "a plan that is no longer true stops the run",
        MODULE,
        "if isinstance(source, PlannedSource):",
        "if False:",
        f"{LIGHTNING_TEST}test_a_change_after_the_plan_stops_the_run_at_its_first_step",
    ),
    Guard(
        "a schedule whose run has another length stops the run",
        MODULE,
        "(steps := total_steps(trainer)) != self.steps_planned:",
        "(steps := self.steps_planned) is None:",
        f"{LIGHTNING_TEST}test_a_change_after_the_plan_stops_the_run_at_its_first_step",
    ),
    Guard(
        "callbacks that cannot work are refused",
        MODULE,
        "check_callbacks(self.trainer.callbacks)",
        "list(self.trainer.callbacks)",
        f"{LIGHTNING_TEST}test_callbacks_that_cannot_work_are_refused_by_name",
    ),
    Guard(
        "no checkpoint holds a copy of the base",
        MODULE,
        "check_size(checkpoint, sum(",
        "print(sum(",
        f"{LIGHTNING_TEST}test_a_checkpoint_that_is_too_large_is_not_written",
    ),
    Guard(
        "no checkpoint holds what would never be read",
        "runs/checkpoint_io.py",
        "        check_readable(checkpoint, temporary_file)\n",
        "",
        "tests/unit/runs/test_whole_checkpoints.py::test_objects_that_would_never_be_read_are_not_written",
    ),
    Guard(
        "a base that was loaded for another precision is refused",
        MODULE,
        "check_precision_loaded(str(self.precision_loaded), precision)",
        "pass",
        f"{LIGHTNING_TEST}test_an_averaged_adapter_is_small_and_plain_peft_loads_it",
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
        "a stopped run leaves no signal handler",
        "training/callbacks/stop_signals.py",
        "            if handler is not None:  # None: it is not Python's\n",
        "            if False:\n",
        HANGUP_TEST,
    ),
    Guard(
        "a stopped run leaves no open progress bar",
        "training/callbacks/step_metrics.py",
        "                bar.close()\n",
        "                pass\n",
        HANGUP_TEST,
    ),
    Guard(
        "a format of a newer version is refused",
        "runs/integrity.py",
        "    if version > FORMAT_VERSION:\n",
        "    if False:\n",
        "tests/legacy/test_legacy.py::test_what_a_newer_version_wrote_is_refused",
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
        "if step < warmup:",
        "if False:",
        "tests/unit/training/test_schedule.py",
    ),
    Guard(
        "a short run reaches the rate that is set",
        "training/optimizer.py",
        ", max(0, total_steps - 1))",
        ", total_steps)",
        "tests/unit/training/test_schedule.py::test_a_warmup_share_leaves_a_step_at_the_full_rate",
    ),
    Guard(
        "the warm-up share of runs with warm-up steps is no difference",
        "runs/fingerprint.py",
        'flat.pop(f"{_WARMUP}_share", None)',
        "pass",
        "tests/unit/runs/test_fingerprint.py::test_a_warmup_share_without_effect_is_no_difference",
    ),
    Guard(
        "runs that cannot learn are said",
        "training/run_length.py",
        "if steps < MIN_STEPS:",
        "if False:",
        "tests/unit/training/test_run_length.py",
    ),
    Guard(
        "the last step is on the curves",
        "training/callbacks/step_metrics.py",
        " or step == self.last_step",
        "",
        "tests/cli/test_character.py::test_a_run_that_is_shorter_than_its_settings",
    ),
    Guard(
        "other rows are not validated on the demo's",
        "cli/arguments.py",
        "    settings.data.validation_source = None\n",
        "",
        "tests/cli/test_character.py::test_a_run_that_is_shorter_than_its_settings",
    ),
    Guard(
        "chat opens the last checkpoint where nothing was validated",
        "runs/adapters.py",
        "(which is None and _best_states(newest))",
        "which is None",
        "tests/unit/runs/test_adapters.py::test_without_a_best_one_the_last_is_opened_and_said",
    ),
    Guard(
        "a checksum of a PNG is checked",
        "roles/importing/png.py",
        "if zlib.crc32(kind + content) !=",
        'if b"" and zlib.crc32(kind + content) !=',
        "tests/unit/roles/test_importing.py::test_what_cannot_be_imported_is_refused_in_words[crc.png]",
    ),
    Guard(
        "a text of a PNG is not inflated without end",
        "roles/importing/png.py",
        "if inflater.unconsumed_tail:",
        "if False:",
        "tests/unit/roles/test_importing.py::test_what_cannot_be_imported_is_refused_in_words[bomb.png]",
    ),
    Guard(
        "a card is not nested too deeply",
        "roles/importing/cards.py",
        "if fault := fault_of_values(value):",
        "if fault := None:",
        "tests/unit/roles/test_importing.py::test_what_cannot_be_imported_is_refused_in_words[deep card.json]",
    ),
    Guard(
        "a picture is no text to import",
        "roles/importing/recognize.py",
        "if head.startswith(magic)), None",
        "if False), None",
        "tests/unit/roles/test_importing.py::test_what_cannot_be_imported_is_refused_in_words[picture.txt]",
    ),
    Guard(
        "who the character is, is not guessed",
        "roles/importing/selection.py",
        "([*counts] if len(counts) == 1 else [])",
        "[*counts][:1]",
        "tests/unit/roles/test_importing.py::test_what_cannot_be_imported_is_refused_in_words[whose.txt]",
    ),
    Guard(
        "a changed file of a role is not replaced",
        "roles/importing/write.py",
        "return digest is not None and _digest(file.read_bytes()) == digest",
        "return True",
        "tests/unit/roles/test_importing.py::test_nothing_from_elsewhere_is_replaced",
    ),
    Guard(
        "a file from elsewhere is not made a part of a role",
        "roles/importing/write.py",
        "if name not in {*files, *kept, *recorded}",
        "if False",
        "tests/unit/roles/test_importing.py::test_nothing_from_elsewhere_is_replaced",
    ),
    Guard(
        "a speaker whose name starts like the character's is another",
        "roles/importing/selection.py",
        "and speaker.startswith(tuple(who))",
        "and False",
        "tests/unit/roles/test_importing.py::test_a_name_that_starts_like_the_characters_is_not_the_character",
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
        "device = self.device if trainer is None else trainer.strategy.root_device",
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
        "                try_batch(trainer, module, batch)\n",
        "                pass\n",
        f"{GUARDS_TEST}test_out_of_memory_is_a_paragraph_before_the_first_step",
    ),
    Guard(
        "all layers are checkpointed where the estimate was too low",
        "training/callbacks/memory_guard.py",
        "self.checkpoint_all is None or module",
        "True or module",
        f"{GUARDS_TEST}test_an_estimate_that_was_too_low_is_made_up_for_once",
    ),
    Guard(
        "a resumed run keeps the numbers that were chosen for it",
        "cli/auto.py",
        "not recorded.finished and _can_keep(settings, recorded, target)",
        "False",
        "tests/cli/test_auto.py::test_a_resumed_run_keeps_its_numbers",
    ),
    Guard(
        "a rank reads its share of a base that ranks share",
        "training/sharding.py",
        "tensor[mesh.get_local_rank() * rows :][:rows]",
        "tensor.clone()[mesh.get_local_rank() * rows :][:rows]",
        "tests/unit/training/test_sharding.py::test_a_rank_reads_its_share_of_the_files",
    ),
    Guard(
        "the rows of a step do not depend on the size of a batch",
        "data/batches/plan.py",
        "self._plan_packs(epoch).joined(self.packs_per_batch)",
        "replace(self, tokens_per_pack=None)._plan_packs(epoch)",
        "tests/unit/data/test_batching.py::test_the_rows_of_a_step_do_not_depend_on_how_it_is_cut",
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
        "dtype = frozen_dtype(precision)",
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
        f"{RESUME_TEST}[mid-epoch-1-32-true-packed]",
    ),
    Guard(
        "random numbers depend on the place in the run alone",
        "cli/lightning_cli.py",
        "        callbacks.append(Randomness(int(settings.seed_everything)))\n",
        "",
        f"{RESUME_TEST}[mid-epoch-1-32-true-packed]",
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
        '        temporary_file, temporary_folder = temporary(file), temporary(file.with_suffix(""))\n',
        '        temporary_file, temporary_folder = file, temporary(file.with_suffix(""))\n',
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
CACHE_TEST = "tests/unit/data/test_cache.py::test_"
CACHE = [
    Guard(
        "a cache that differs from its checksums is built again",
        "data/cache.py",
        "if _crc32(file) == crc else",
        "if True else",
        f"{CACHE_TEST}any_flipped_bit_of_what_is_trained_on_is_noticed",
    ),
    Guard(
        "one process builds a damaged cache, others wait",
        "data/cache.py",
        "                if fault:  # no",
        "                if True:  # no",
        f"{CACHE_TEST}one_of_several_readers_builds_and_the_others_wait",
    ),
    Guard(
        "no folder outside the cache is removed",
        "data/cache.py",
        " and root.resolve() in folder.parents:",
        ":",
        f"{CACHE_TEST}damaged_download_is_removed_and_only_that",
    ),
    Guard(
        "a cache that cannot be written is explained",
        "data/cache.py",
        "        raise cache_error(folder, error) from None",
        "        raise",
        f"{CACHE_TEST}default_cache_that_cannot_be_written_is_one_paragraph[preview]",
    ),
    Guard(
        "a full disk under the cache is not blamed on the rows",
        "data/reading/sources.py",
        "        if written or cause.errno in _FULL_OR_READ_ONLY:",
        "        if written and cause.errno in ():",
        f"{CACHE_TEST}error_of_writing_the_cache_is_not_blamed_on_the_rows[rows-{errno.ENOSPC}]",
    ),
    Guard(
        "push sends nothing else that lies in the folder",
        "publish/push.py",
        "if name in ours and name != CARD]",
        "if name != CARD]",
        "tests/cli/test_push.py::test_files_that_happen_to_lie_there_are_named_and_not_sent",
    ),
]
OUTPUTS = [
    Guard(
        "an output is no input",
        "outputs.py",
        "            if any(_reads(",
        "            if False and any(_reads(",
        f"{OUTPUTS_TEST}test_refused[a new file in a folder that is read]",
    ),
    Guard(
        "an output is no other output",
        "outputs.py",
        "if _same(output.path, other.path):",
        "if False:",
        f"{OUTPUTS_TEST}test_two_outputs_are_not_one_file",
    ),
    Guard(
        "a file from elsewhere is not replaced",
        "outputs.py",
        "    if not ours:\n",
        "    if False:\n",
        f"{OUTPUTS_TEST}test_refused[a file from elsewhere]",
    ),
    Guard(
        "a file is replaced whole",
        "outputs.py",
        "    written = temporary(output.path)\n",
        "    written = output.path\n",
        f"{OUTPUTS_TEST}test_replaced_whole_or_not_at_all",
    ),
    Guard(
        "the outputs of fit are checked before anything is written",
        "cli/lightning_cli.py",
        "        check_outputs(outputs_of(self.command, settings), inputs_of(settings))\n",
        "",
        "tests/cli/test_output_options.py::test_an_output_is_no_input[fit-data.bad_rows_file]",
    ),
    Guard(
        "a run in a folder that exists replaces no config from elsewhere",
        "cli/run_start.py",
        "            check_outputs(run_files(folder), inputs_of(self.settings))\n",
        "",
        "tests/cli/test_output_options.py::test_a_run_without_a_folder_of_its_own_keeps_the_config_it_was_given",
    ),
    Guard(
        "a checkpoint replaces no folder from elsewhere",
        "runs/checkpoint_io.py",
        "        check_ours(folder, temporary_folder)\n",
        "",
        f"{CHECKPOINT_TEST}test_a_folder_from_elsewhere_is_not_replaced",
    ),
    Guard(
        "the same run is not started beside itself",
        "cli/run_start.py",
        "            refuse_running(runs, self.own_settings())\n",
        "            pass\n",
        "tests/faults/test_two_runs.py::test_the_second_is_refused_before_the_first_has_a_record",
    ),
    Guard(
        "a new run holds its folder",
        "cli/run_start.py",
        "        self.held.enter_context(lock)\n        self._log_into(new)\n",
        "        lock.release()\n        self._log_into(new)\n",
        TWO_RUNS_TEST,
    ),
    Guard(
        "a resumed run holds its folder",
        "cli/run_start.py",
        "                locked_run.enter_context(lock_run(start.folder, settings))\n",
        "",
        TWO_RUNS_TEST,
    ),
    Guard(
        "a lock does not outlive its process in a loader worker",
        "locks.py",
        "os.register_at_fork(after_in_child=_close_in_child)\n",
        "",
        "tests/unit/test_locks.py::test_another_process_is_named_until_it_is_killed",
    ),
    Guard(
        "a lock file that was removed is no lock",
        "locks.py",
        " and _is_at(file, handle):",
        ":",
        "tests/unit/test_locks.py::test_a_file_that_its_holder_removed_after_it_was_opened_is_no_lock",
    ),
    Guard(
        "one writer for a merged model",
        "export/staging.py",
        '        with locked(output, "--output"):\n',
        "        if True:\n",
        "tests/unit/export/test_merging.py::test_the_staging_folder_is_renamed_or_removed",
    ),
]
GGUF_TEST = "tests/unit/export/test_gguf.py::"
ROUNDING_TEST = "tests/unit/export/test_gguf_rounding.py::"
GGUF = [
    Guard(
        "no word becomes a special token in llama.cpp",
        "export/gguf/vocabulary.py",
        "kind != TokenType.NORMAL and is_reachable(token, ids)",
        "False",
        f"{GGUF_TEST}test_without_the_changed_spelling_words_become_special",
    ),
    Guard(
        "the keys of a GGUF are read again",
        "export/gguf/merged.py",
        "    check_contents(file, writer)\n",
        "",
        f"{GGUF_TEST}test_a_file_that_is_not_what_was_meant_is_refused",
    ),
    Guard(
        "the numbers of a GGUF are compared with what was merged",
        "export/gguf/file.py",
        "        check_rounding(name, stored, numbers, info.kind)\n",
        "",
        f"{GGUF_TEST}test_a_file_that_is_not_what_was_meant_is_refused",
    ),
    Guard(
        "a number of a GGUF is wrong by no more than rounding",
        "export/gguf/rounding.py",
        "<= rounding_bound(wanted, kind))",
        "<= 3 * rounding_bound(wanted, kind))",
        f"{ROUNDING_TEST}test_a_number_that_is_off_by_one_is_refused",
    ),
    Guard(
        "the tensors of a GGUF are read again",
        "export/gguf/file.py",
        "if _digest(tensor.data) != written.digests[tensor.name]:",
        "if False:",
        f"{ROUNDING_TEST}test_a_file_that_was_damaged_is_refused",
    ),
    Guard(
        "merged weights are compared with base and adapter",
        "export/formats.py",
        "if not difference <= TOLERANCES[dtype]:  # also if it is NaN",
        "if False:",
        "tests/unit/export/test_merging.py",
    ),
]
SERVER_TEST = "tests/cli/test_chat_server.py::test_what_is_no_server_of_this_model_is_said"
SERVER = [
    Guard(
        "a server with another vocabulary is refused",
        "chat/server/model.py",
        'elif ids != tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]:',
        "elif False:",
        SERVER_TEST,
    ),
    Guard(
        "a reply that the server breaks off is no reply",
        "chat/server/completions.py",
        "        if not ended:\n",
        "        if False:\n",
        SERVER_TEST,
    ),
    Guard(
        "a server that serves another model now is named",
        "chat/server/completions.py",
        "if isinstance(model, str) and model != self.model:",
        "if False:",
        SERVER_TEST,
    ),
]
CHAT = [
    Guard(
        "questions are written as in the rows of the run",
        "chat/role_play.py",
        "        if self.form:\n            return write_question",
        "        if False:\n            return write_question",
        f"{ASKED_TEST}test_chat_asks_what_build_data_writes[memories]",
    ),
    Guard(
        "predict takes the template of the run",
        "cli/lightning_cli.py",
        "            data.encoding = used\n",
        "",
        f"{ASKED_TEST}test_predict_asks_as_the_run_was_trained",
    ),
    Guard(
        "a pushed form of prompts has no paths of this machine",
        "publish/push.py",
        "prompts.without_locations()",
        "prompts",
        "tests/cli/test_push.py::test_pushed_files_and_card_work",
    ),
    Guard(
        "a form of prompts that is not known is refused",
        "runs/prompt_format.py",
        "if found[key] not in _CHOICES.get(key, (found[key],)) or (is_number and found[key] < 0):",
        "if False:",
        "tests/unit/runs/test_prompt_format.py::test_what_cannot_be_followed_is_refused",
    ),
    Guard(
        "a request of the page that says it is long is not read",
        "chat/web/middleware.py",
        'if int(headers.get("content-length", "0")) > longest:',
        "if False:",
        f"{MIDDLEWARE_TEST}test_a_body_is_read_no_further_than_a_message_can_be",
    ),
    Guard(
        "a request of the page is read no further than a message can be",
        "chat/web/middleware.py",
        "if len(body) > longest:",
        "if False:",
        f"{MIDDLEWARE_TEST}test_a_body_is_read_no_further_than_a_message_can_be",
    ),
    Guard(
        "only a whole conversation can be longer than a message",
        "chat/web/middleware.py",
        "if len(body) > self._message_bytes and not call.holds_conversation:",
        "if False:",
        f"{MIDDLEWARE_TEST}test_only_a_whole_conversation_can_be_longer_than_a_message",
    ),
    Guard(
        "another name of this machine is refused by the page",
        "chat/web/middleware.py",
        "if is_loopback(listening) and not is_loopback(_hostname(host)):",
        "if False:",
        f"{MIDDLEWARE_TEST}test_other_sites_cannot_talk_to_a_local_page",
    ),
    Guard(
        "a page of another site is refused by the page",
        "chat/web/middleware.py",
        "if origin is not None and",
        "if False and",
        f"{MIDDLEWARE_TEST}test_other_sites_cannot_talk_to_a_local_page",
    ),
    Guard(
        "routes that the page does not need are refused: GET",
        "chat/web/middleware.py",
        "if path not in GET_PATHS and",
        "if False and",
        f"{MIDDLEWARE_TEST}test_only_the_routes_of_the_page_are_there",
    ),
    Guard(
        "routes that the page does not need are refused: POST",
        "chat/web/middleware.py",
        "or not (is_call or path in POST_PATHS):",
        "and False:",
        f"{MIDDLEWARE_TEST}test_only_the_routes_of_the_page_are_there",
    ),
    Guard(
        "values that a component cannot have are refused",
        "chat/web/inputs.py",
        "if check is None or not check(value, props):",
        "if check is None:",
        f"{MIDDLEWARE_TEST}test_a_forged_value_does_not_reach_gradio",
    ),
    Guard(
        "functions that the page does not have are refused",
        "chat/web/inputs.py",
        "self._inputs.get(number) if type(number) is int else None",
        "self._inputs.get(0)",
        f"{MIDDLEWARE_TEST}test_a_forged_value_does_not_reach_gradio",
    ),
    Guard(
        "only checked values reach Gradio",
        "chat/web/inputs.py",
        '_json_bytes({"data": checked, "fn_index": number, "session_hash": session})',
        "body",
        f"{MIDDLEWARE_TEST}test_only_checked_values_are_passed_on",
    ),
    Guard(
        "a session has a share of the queue",
        "chat/web/shares.py",
        "if max(of_session, of_address) >= self.places:",
        "if of_address >= self.places:",
        f"{MIDDLEWARE_TEST}test_one_session_has_a_quarter_of_the_queue",
    ),
    Guard(
        "an address has a share of the queue",
        "chat/web/shares.py",
        "if max(of_session, of_address) >= self.places:",
        "if of_session >= self.places:",
        f"{MIDDLEWARE_TEST}test_one_address_has_a_quarter_under_many_names",
    ),
    Guard(
        "a stream that was refused releases no place",
        "chat/web/middleware.py",
        "if path == DATA and answer.status == 200:",
        "if path == DATA:",
        f"{MIDDLEWARE_TEST}test_a_place_is_released_once_and_by_its_visitor_alone",
    ),
    Guard(
        "wrong passwords have to wait",
        "chat/web/passwords.py",
        "if passed < wait:",
        "if False:",
        f"{MIDDLEWARE_TEST}test_wrong_passwords_have_to_wait_longer_each_time",
    ),
    Guard(
        "guesses of many addresses are forgotten",
        "chat/web/passwords.py",
        "if len(self._guesses) > MAX_ADDRESSES:",
        "if False:",
        f"{MIDDLEWARE_TEST}test_guesses_of_many_addresses_are_forgotten",
    ),
    Guard(
        "refusals are one line a minute",
        "chat/web/refusals.py",
        "if self._clock() < self._next:",
        "if False:",
        f"{MIDDLEWARE_TEST}test_refusals_are_one_line_a_minute",
    ),
    Guard(
        "a failed request is no traceback on the host",
        "chat/web/app.py",
        '    logging.getLogger("uvicorn.error").addFilter(refusals)\n',
        "",
        f"{VISITORS_TEST}test_forged_requests_leave_no_traceback_on_the_host[100]",
    ),
    Guard(
        "a seed that torch cannot take is refused",
        "chat/model.py",
        '("seed", self.seed in SEEDS,',
        '("seed", True,',
        f"{TERMINAL_TEST}test_every_accepted_seed_can_be_used",
    ),
    Guard(
        "a failed reply keeps the conversation",
        "chat/terminal/terminal.py",
        "except MemoryError:",
        "except ZeroDivisionError:",
        f"{TERMINAL_TEST}test_a_failure_keeps_the_conversation",
    ),
    Guard(
        "what a model or a row says is text in the report",
        "evaluation/report_html.py",
        "return html.escape(shown)",
        "return shown",
        f"{REPORT_TEST}test_the_page_loads_nothing_and_text_of_the_run_stays_text",
    ),
    Guard(
        "a command that could be two is not guessed",
        "chat/terminal/commands.py",
        "if len(begun) == 1:",
        "if begun:",
        f"{TERMINAL_TEST}test_a_beginning_is_enough_if_only_one_command_has_it",
    ),
    Guard(
        "an unusable history does not end the chat",
        "chat/terminal/history.py",
        "except (OSError, RuntimeError) as error:",
        "except ZeroDivisionError as error:",
        f"{TERMINAL_TEST}test_a_history_that_cannot_be_kept_is_one_line",
    ),
    Guard(
        "bytes that are no text do not end the chat",
        "chat/terminal/terminal.py",
        'sys.stdin.reconfigure(errors="replace")',
        "pass",
        f"{TERMINAL_TEST}test_bytes_that_are_no_text_are_replaced",
    ),
    Guard(
        "standard input is read no further than a question can be",
        "chat/command.py",
        "sys.stdin.read(MAX_QUESTION_CHARACTERS + 2)",
        "sys.stdin.read()",
        f"{TERMINAL_TEST}test_a_line_is_not_read_to_its_end",
    ),
    Guard(
        "a question has a maximum length",
        "chat/conversation.py",
        "if len(text) > MAX_QUESTION_CHARACTERS:",
        "if False:",
        f"{TERMINAL_TEST}test_what_an_option_cannot_ask",
    ),
]
CODE_TEST = "tests/cli/test_no_code.py::"
MODELSCOPE_TEST = "tests/unit/hub/test_modelscope.py::"
ANSWERS_TEST = "tests/unit/hub/test_hub_answers.py::"
SETTINGS_TEST = "tests/cli/test_bad_settings.py::"
HOSTILE = [
    Guard(
        "half a config.yaml is that of a run which is starting",
        "cli/auto.py",
        "        refuse_if_running(run.folder)\n",
        "",
        "tests/cli/test_auto.py::test_a_config_that_another_process_is_writing",
    ),
    Guard(
        "of generation settings only known ones are read",
        "chatglm2/checkpoint.py",
        "return GenerationConfig(**settings)",
        "return GenerationConfig.from_pretrained(folder)",
        "tests/unit/chatglm2/test_checkpoint.py::test_of_generation_settings_only_known_ones_are_read",
    ),
    Guard(
        "flash-attn-4 is compared with torch's before a run relies on it",
        "training/base.py",
        "        if difference:\n            problem",
        "        if False:\n            problem",
        "tests/unit/training/test_attention_check.py::test_the_run_falls_back_aloud",
    ),
    Guard(
        "a setting names no code of another package",
        "cli/lightning_cli.py",
        "    restrict_imports(allowed)\n",
        "",
        f"{CODE_TEST}test_a_name_without_class_path",
    ),
    Guard(
        "a setting names no function",
        "cli/lightning_cli.py",
        "        check_classes(given)\n",
        "",
        f"{CODE_TEST}test_what_is_called_later",
    ),
    Guard(
        "preview and doctor refuse such a config too",
        "cli/arguments.py",
        "            check_origins(name, settings[name], allowed)\n",
        "",
        f"{CODE_TEST}test_every_command",
    ),
    Guard(
        "a Hub's header names no file outside the cache",
        "hub/download.py",
        '    hooks["response"].append(_check_names)\n',
        '    hooks["response"].append(len)\n',
        f"{ANSWERS_TEST}test_names_that_lead_out_of_the_cache",
    ),
    Guard(
        "what answers in other JSON is not a Hub",
        "hub/download.py",
        "            if not raised_by_client(error):\n",
        "            if True:\n",
        f"{ANSWERS_TEST}test_json_of_another_shape",
    ),
    Guard(
        "a list of files of ModelScope names no file outside the cache",
        "hub/modelscope.py",
        "        _check_paths(name, [file.path for file in wanted])\n",
        "",
        f"{MODELSCOPE_TEST}test_the_message_of_each_error",
    ),
    Guard(
        "the login that ModelScope's client pickles is not read",
        "hub/modelscope.py",
        "HubApi(HubConfig(token=token))",
        "HubApi(HubConfig())",
        f"{MODELSCOPE_TEST}test_a_private_repository",
    ),
    Guard(
        "a config that contains itself is refused",
        "cli/settings.py",
        "    if counts.get(id(node)) == 0:\n",
        "    if False:\n",
        f"{SETTINGS_TEST}test_config_files[itself]",
    ),
    Guard(
        "a text that no setting can hold is refused",
        "cli/commands.py",
        "    check_option_values(words)\n",
        "",
        f"{SETTINGS_TEST}test_texts_of_options",
    ),
]
OUTPUT_TEST = "tests/unit/cli/test_output.py::"
DISTURBED_TEST = "tests/cli/test_disturbed_run.py::"
STREAMS_TEST = "tests/cli/test_streams.py::"
STREAMS = [
    Guard(
        "an output that is not required may fail",
        "cli/streams.py",
        "            return size\n",
        "            raise\n",
        f"{OUTPUT_TEST}test_an_output_that_is_not_required_may_fail",
    ),
    Guard(
        "the failure of a required output names it",
        "cli/streams.py",
        "raise OSError(error.errno, error.strerror, STDOUT) from None",
        "raise",
        f"{OUTPUT_TEST}test_the_failure_of_a_required_output_names_it",
    ),
    Guard(
        "shared memory is not taken for a disk",
        "cli/system_errors.py",
        "if not error.filename and _is_of_workers(error):",
        "if False:",
        f"{OUTPUT_TEST}test_what_a_machine_does_is_one_paragraph",
    ),
    Guard(
        "curves may end",
        "training/callbacks/optional_curves.py",
        "        except OSError as error:\n",
        "        except ZeroDivisionError as error:\n",
        f"{DISTURBED_TEST}test_a_run_without_curves_and_log_says_so_once_and_goes_on",
    ),
    Guard(
        "run.log may fail",
        "logs.py",
        "        elif not self.failed:\n",
        "        else:\n",
        f"{DISTURBED_TEST}test_a_run_without_curves_and_log_says_so_once_and_goes_on",
    ),
    Guard(
        "a batch without room in shared memory is no run that waits forever",
        "data/batches/collate.py",
        "return batch if get_worker_info() is None else batch.share_memory()",
        "return batch",
        "tests/unit/data/test_collate.py::test_only_a_loader_worker_moves_a_batch_into_shared_memory",
    ),
    Guard(
        "an error of Lightning's teardown hides no other",
        "cli/system_errors.py",
        "    if isinstance(first, Exception) and _is_of_the_end(error, first):",
        "    if False:",
        f"{OUTPUT_TEST}test_an_error_of_the_teardown_hides_no_other",
    ),
    Guard(
        "what is buffered is written before the command ends",
        "cli/commands.py",
        "            sys.stdout.flush()\n",
        "            pass\n",
        f"{STREAMS_TEST}test_the_other_end_of_the_output",
    ),
    Guard(
        "what is still buffered may be lost after an error",
        "cli/commands.py",
        "    require_stdout(False)  # what",
        "    # what",
        f"{STREAMS_TEST}test_the_other_end_of_the_output",
    ),
    Guard(
        "a closed terminal does not interrupt the saving that Ctrl-C has asked for",
        "training/callbacks/stop_signals.py",
        "if self.received and number in REPEATED:",
        "if False:",
        "tests/unit/training/test_signals_of_a_run.py",
    ),
    Guard(
        "loader workers end with a killed parent",
        "data/batches/loader.py",
        "os.getppid() != parent or",
        "False or",
        "tests/unit/data/test_workers.py::test_busy_workers_end_when_their_parent_is_killed",
    ),
    Guard(
        "nohup is respected",
        "training/callbacks/stop_signals.py",
        "ignored = (signal.SIG_IGN, None)",
        "ignored = (None,)",
        f"{DISTURBED_TEST}test_a_signal_that_is_ignored_stays_so",
    ),
    Guard(
        "a line of the log has no control characters",
        "logs.py",
        'return replace_control_characters(super().format(record)).replace("\\n", "↵")',
        "return super().format(record)",
        f"{STREAMS_TEST}test_a_line_of_the_log_is_one_line_without_control_characters",
    ),
]
CLASSES_TEST = "tests/cli/test_bad_settings.py::test_what_classes_say_of_their_arguments"
BAD_INPUT_TEST = "tests/cli/test_bad_input.py::test_bad_input_is_one_clear_paragraph"
SETTINGS = [
    Guard(
        "what a class says of its arguments in a run is explained",
        "cli/messages.py",
        "    if raised := _raised_by_class(frames):",
        "    if raised := None:",
        f"{CLASSES_TEST}[a schedule that looks at the start]",
    ),
    Guard(
        "what an optimizer calls back is not blamed on its arguments",
        "cli/messages.py",
        "if calls_back and frame is not frames[-1]:",
        "if False:",
        "tests/cli/test_bad_settings.py::test_other_errors_are_not_blamed_on_arguments",
    ),
    Guard(
        "a shard has a name",
        "chatglm2/files.py",
        "isinstance(name, str) and name and Path",
        "isinstance(name, str) and Path",
        f"{BAD_INPUT_TEST}[model: index with an empty name]",
    ),
    Guard(
        "null is no number",
        "data/dialogue_data.py",
        "if value is None:",
        "if False:",
        "tests/cli/test_bad_input.py::test_other_commands_refuse_a_value",
    ),
    Guard(
        "an empty name is no best checkpoint",
        "cli/run_start.py",
        "        if settings.ckpt_path is not None:",
        "        if settings.ckpt_path:",
        f"{BAD_INPUT_TEST}[setting: no name of a checkpoint]",
    ),
]

READING_ROWS = [
    Guard(
        "folder names are no patterns",
        f"{READING}folders.py",
        'f"[{found[0]}]"',
        "found[0]",
        f"{READERS_TEST}test_folders_of_any_name_are_read",
    ),
    Guard(
        "the splits of a README are not trained on",
        f"{READING}folders.py",
        'config.get("data_files") or get_data_patterns(base)',
        "get_data_patterns(base)",
        f"{READERS_TEST}test_the_configurations_of_a_readme_are_chosen_as_on_the_hub",
    ),
    Guard(
        "the files of saved data are in order, without its state",
        f"{READING}folders.py",
        "and not _is_saved_state(file)",
        "",
        f"{READERS_TEST}test_saved_data_sets_are_read_in_order",
    ),
    Guard(
        "a long cell is one bad row",
        f"{READING}tabular.py",
        "csv.field_size_limit(max(_CELL_CHARACTERS, csv.field_size_limit()))",
        "pass",
        f"{READERS_TEST}test_a_cell_has_the_limit_of_a_line",
    ),
    Guard(
        "only bytes of common Chinese are GB18030",
        f"{READING}text_files.py",
        "and _is_chinese(sample)",
        "",
        f"{READERS_TEST}test_other_encodings_are_not_taken_for_chinese",
    ),
    Guard(
        "unused columns of Parquet cannot break the rows",
        f"{READING}columnar.py",
        "if is_needed is None or is_needed(name)",
        "",
        f"{READERS_TEST}test_only_the_needed_columns_of_parquet_and_arrow_are_read",
    ),
    Guard(
        "a JSON value can be cut by the end of a piece",
        f"{READING}json_files.py",
        "if not cut_off or not self._read():",
        "if True:",
        f"{READERS_TEST}test_values_longer_than_a_piece_are_read",
    ),
    Guard(
        "columns that are not read are named",
        f"{READING}checks.py",
        "if name not in read and value is not None:",
        "if False:",
        f"{FORMS_TEST}test_columns_that_were_named_are_read_and_the_others_are_named",
    ),
    Guard(
        "turns of one speaker are joined",
        f"{READING}forms.py",
        'if messages and messages[-1]["role"] == role:',
        "if False:",
        f"{FORMS_TEST}test_the_same_conversation_is_the_same_row_in_every_form",
    ),
    Guard(
        "a greeting is not trained",
        "data/prompt.py",
        "elif not rounds:",
        "elif False:",
        "tests/unit/data/test_conversations.py::test_a_greeting_is_context_is_never_trained_and_goes_first",
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
        "    entry(checkpoint, CHECKSUMS, _KINDS[CHECKSUMS], ",
        "    checkpoint.setdefault(CHECKSUMS, checksums(checkpoint))\n    print(",
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
GUARDS = (
    PRECISION
    + RANKS
    + CHECKPOINTS
    + CACHE
    + FILES
    + OUTPUTS
    + GGUF
    + SERVER
    + CHAT
    + HOSTILE
    + STREAMS
    + SETTINGS
    + READING_ROWS
)


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
        of_files = {guard.test.split("::")[0]: guard.test for guard in chosen}  # the suite itself runs all of them
        status, said = run(copy, *of_files.values())
        assert status == 0, f"with all guards in place:\n{said}"
        found = {guard: matters(copy, guard) for guard in chosen}
    wrong = [guard for guard, status in found.items() if status != FAILED]
    for guard in wrong:  # once more, behind the others: a log of CI keeps its end
        print(f"NO ({found[guard]}) {guard}")
    return len(wrong)


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


def matters(copy: Path, guard: Guard) -> int:
    """Disable it, and run its test; the copy is then as it was.

    Returns:
        pytest's status: `FAILED` if the guard matters.
    """
    file = copy / "kyon_pl" / guard.file
    text = file.read_text(encoding="utf-8")
    assert text.count(guard.old) == 1, f"{guard}: this is there {text.count(guard.old)} times: {guard.old!r}"
    file.write_text(text.replace(guard.old, guard.new), encoding="utf-8")
    start_s = time.monotonic()
    for _ in range(TRIES):
        status, _ = run(copy, "-x", guard.test)
        if status == FAILED:
            break
    file.write_text(text, encoding="utf-8")
    took_s = time.monotonic() - start_s
    print(f"{'ok  ' if status == FAILED else f'NO ({status})'} {took_s:4.0f} s  {guard}", flush=True)
    return status


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
