"""Out of memory: in the first minute rather than in the third hour, and in words."""

from __future__ import annotations

import logging
import math
import traceback

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kyon_pl.batch import Batch, BatchSource
from kyon_pl.errors import KyonError, MachineError
from kyon_pl.training.module import ChatGLM2LoRA

log = logging.getLogger(__name__)

GIB = 2**30
# more than a CUDA context of this process's own
OTHERS_BYTES = 2 * GIB
# out-of-memory that torch raises as a plain RuntimeError: of its CPU allocator, of CUDA below it, of cuBLAS
TEXTS = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class MemoryGuard(Callback):
    """Tries the batches that need the most memory before the first step, and explains an out-of-memory error.

    The trial is a forward and a backward pass that changes nothing: no gradient is kept, no weight moves, and the
    random numbers of the run are those without it.
    """

    def __init__(self) -> None:
        self.at = "the base is loaded"
        self.weights_bytes = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try the largest batches."""
        source, device = trainer.datamodule, trainer.strategy.root_device  # type: ignore[attr-defined]
        if not isinstance(source, BatchSource) or not isinstance(pl_module, ChatGLM2LoRA):
            return
        self.weights_bytes = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        epochs = math.ceil(pl_module.total_steps / source.steps_per_epoch) if source.steps_per_epoch else 0
        batches = source.largest_batches(epochs) if epochs else []
        for batch in batches:
            self.at = f"the longest batches are tried, {size(batch)}"
            try_batch(trainer, pl_module, batch)
        if batches and device.type == "cuda":
            peak, whole = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
            log.info("longest batch: %s; %.1f of %.1f GiB at its peak", size(batches[0]), peak / GIB, whole / GIB)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Remember what comes, in numbers: a batch kept here would keep its memory."""
        self.at = f"optimizer step {trainer.global_step + 1}, {size(batch)}"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give an out-of-memory error its explanation as `__cause__`, and let go of what its frames hold."""
        if is_out_of_memory(exception):
            traceback.clear_frames(exception.__traceback__)
            exception.__cause__ = self.explain(trainer, pl_module)

    def explain(self, trainer: Trainer, module: LightningModule) -> MachineError:
        """Where memory ran out, what holds it, and what to lower to what."""
        where = self.at if trainer.training else f"{trainer.state.stage}"
        found, fix = f"the memory of {trainer.strategy.root_device} is not enough", lighter(trainer, module)
        if trainer.strategy.root_device.type == "cuda":
            free, whole = torch.cuda.mem_get_info(trainer.strategy.root_device)
            found += f" ({whole / GIB:.1f} GiB, of which the weights take {self.weights_bytes / GIB:.1f})"
            others = whole - free - torch.cuda.memory_reserved(trainer.strategy.root_device)
            if others > OTHERS_BYTES:
                found += f", and other processes hold {others / GIB:.1f} GiB of it (nvidia-smi names them)"
        return MachineError(where, found, fix)


def lighter(trainer: Trainer, module: LightningModule) -> str:
    """What to set to need less memory, in words."""
    source = trainer.datamodule  # type: ignore[attr-defined]
    if not trainer.training:
        return "Set data.validation_rows_per_batch to half of what it is"
    if isinstance(module, ChatGLM2LoRA) and module.checkpointing != "full":
        return "Set model.checkpointing to full: a third more work, a fraction of the memory"
    if isinstance(source, BatchSource):
        return f"Lower {source.smaller_batch_settings(trainer.accumulate_grad_batches)}"
    return "Use smaller batches, or a larger GPU"


def try_batch(trainer: Trainer, module: ChatGLM2LoRA, batch: Batch) -> None:
    """One forward and backward pass over a batch that leaves no trace."""
    device = trainer.strategy.root_device
    batch = trainer.strategy.batch_to_device(batch, device)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # autograd.grad does not touch `.grad`, and so does not wake DDP either
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        with trainer.precision_plugin.train_step_context():
            loss = module.loss(batch, max(1, batch.trained_tokens))
        torch.autograd.grad(loss, trained)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in one of the ways in which torch and Python do."""
    if isinstance(error, KyonError):
        return False
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or (isinstance(error, RuntimeError) and any(text in str(error) for text in TEXTS))


def size(batch: Batch) -> str:
    """What a batch asks memory for, in words."""
    rows, slots = batch.input_ids.shape
    shape = f"{slots:,} tokens" if rows == 1 else f"{rows} rows of up to {slots:,} tokens"
    return f"a batch of {shape}, {batch.trained_tokens:,} of them trained"
