"""A callback that finds out before the first step whether memory suffices, and explains out-of-memory errors."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kyon_pl.batch import Batch, BatchSource
from kyon_pl.errors import KyonError, MachineError
from kyon_pl.training.module import ChatGLM2LoRA
from kyon_pl.training.optimizer import total_steps

log = logging.getLogger(__name__)

GIB = 2**30
# more than this process's own CUDA context takes
OTHER_PROCESSES_BYTES = 2 * GIB
# out-of-memory errors that torch raises as RuntimeError: from the CPU allocator, CUDA and cuBLAS
MESSAGES = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class MemoryGuard(Callback):
    """Tries the batches that need the most memory before the first step, and explains out-of-memory errors.

    The trial is a forward and a backward pass without side effects: it keeps no gradients, changes no weights and
    leaves the random state as it was. Where the estimate that chose the checkpointed layers was too low, all layers
    are checkpointed, with a warning, and the trial is repeated once; this changes no result.

    Args:
        checkpoint_all: called when all layers have been checkpointed, to record it; None: the number of checkpointed
            layers was not chosen by an estimate, and stays as it is.
    """

    def __init__(self, checkpoint_all: Callable[[], None] | None = None) -> None:
        self.checkpoint_all = checkpoint_all
        self.moment = "the base is loaded"
        self.weights_bytes = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try the largest batches."""
        source, device = trainer.datamodule, trainer.strategy.root_device  # type: ignore[attr-defined]
        if not isinstance(source, BatchSource) or not isinstance(pl_module, ChatGLM2LoRA):
            return
        self.weights_bytes = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        epochs = math.ceil(total_steps(trainer) / source.steps_per_epoch) if source.steps_per_epoch else 0
        batches = source.largest_batches(epochs) if epochs else []
        self._try_batches(trainer, pl_module, batches)
        if batches and device.type == "cuda":
            peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
            size = describe_size(batches[0])
            log.info("largest batch: %s; peak memory %.1f of %.1f GiB", size, peak / GIB, total / GIB)

    def _try_batches(self, trainer: Trainer, module: ChatGLM2LoRA, batches: list[Batch]) -> None:
        try:
            for batch in batches:
                self.moment = f"trying the largest batches, {describe_size(batch)}"
                try_batch(trainer, module, batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self.checkpoint_all is None or module.checkpointing == "full":
                raise
            traceback.clear_frames(error.__traceback__)
        else:
            return
        self._step_down(trainer, module, batches)

    def _step_down(self, trainer: Trainer, module: ChatGLM2LoRA, batches: list[Batch]) -> None:
        assert self.checkpoint_all is not None
        log.warning("%s: the memory is not enough, so that all layers are checkpointed now", self.moment)
        module.checkpoint_all_layers()
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)
        self.checkpoint_all()
        self._try_batches(trainer, module, batches)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Store the size of the batch; storing the batch would keep its memory."""
        self.moment = f"optimizer step {trainer.global_step + 1}, {describe_size(batch)}"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Set the explanation of an out-of-memory error as its `__cause__`, and release what its frames hold."""
        if is_out_of_memory(exception):
            traceback.clear_frames(exception.__traceback__)
            exception.__cause__ = self.explain(trainer, pl_module)

    def explain(self, trainer: Trainer, module: LightningModule) -> MachineError:
        """The error that says where memory ran out, what holds it, and which setting to lower."""
        device = trainer.strategy.root_device
        where = self.moment if trainer.training else f"{trainer.state.stage}"
        found = f"the memory of {device} is not enough"
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            found += f" ({total / GIB:.1f} GiB, of which the weights take {self.weights_bytes / GIB:.1f})"
            others = total - free - torch.cuda.memory_reserved(device)
            if others > OTHER_PROCESSES_BYTES:
                found += f", and other processes hold {others / GIB:.1f} GiB of it (see nvidia-smi)"
        return MachineError(where, found, settings_to_lower(trainer, module))


def settings_to_lower(trainer: Trainer, module: LightningModule) -> str:
    """A sentence with the settings that reduce memory."""
    source = trainer.datamodule  # type: ignore[attr-defined]
    if not trainer.training:
        return "Halve data.validation_rows_per_batch"
    if isinstance(module, ChatGLM2LoRA) and module.checkpointing != "full":
        return "Set model.checkpointing to full: a third more compute, a fraction of the memory"
    if isinstance(source, BatchSource):
        return f"Lower {source.smaller_batch_settings(trainer.accumulate_grad_batches)}"
    return "Use smaller batches, or a larger GPU"


def try_batch(trainer: Trainer, module: ChatGLM2LoRA, batch: Batch) -> None:
    """Make one forward and backward pass without side effects."""
    device = trainer.strategy.root_device
    batch = trainer.strategy.batch_to_device(batch, device)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # autograd.grad does not write `.grad`, so DDP's hooks do not run either
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        with trainer.precision_plugin.train_step_context():
            loss = module.loss(batch, max(1, batch.trained_tokens))
        torch.autograd.grad(loss, trained)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python means that memory ran out."""
    if isinstance(error, KyonError):
        return False
    typed = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return typed or (isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES))


def describe_size(batch: Batch) -> str:
    """The size of a batch, such as `a batch of 2,048 tokens for rows of 3,100, 900 of them trained`."""
    rows, tokens = batch.input_ids.shape
    shape = f"{tokens:,} tokens" if rows == 1 else f"{rows} rows of up to {tokens:,} tokens"
    if batch.computed_tokens < batch.tokens:
        shape += f" for rows of {batch.tokens:,}"
    return f"a batch of {shape}, {batch.trained_tokens:,} of them trained"
