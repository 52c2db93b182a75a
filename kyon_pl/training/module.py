"""The LightningModule: a frozen ChatGLM2 with a LoRA adapter, trained with the model's own loss."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from peft import LoraConfig, PeftModel
from torch import nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from typing_extensions import Self

from kyon_pl.batch import Batch, BatchSource, IdSource, PlannedSource, PromptBatch, Workload
from kyon_pl.chatglm2 import ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import name_to_record
from kyon_pl.errors import SettingError
from kyon_pl.lora import Checkpointing, Quantization, frozen_dtype, reference_lora, trained_parameters, write_adapter
from kyon_pl.runs.checkpoint_io import load_plain
from kyon_pl.runs.integrity import check_resumable_state, check_size, check_trained_weights
from kyon_pl.training.adapter import InitialAdapter
from kyon_pl.training.base import (
    AttentionChoice,
    FrozenBase,
    checkpoint_layers,
    compile_layers,
)
from kyon_pl.training.optimizer import (
    LinearDecay,
    ScheduleCallable,
    build_optimizer,
    check_clipping,
    scale_rates,
    total_steps,
)
from kyon_pl.training.recorded_settings import SETTINGS, check_precision_loaded, read_settings, settings_to_record
from kyon_pl.training.replies import generate_texts, prediction_rows
from kyon_pl.training.sharding import exclude_shards_from_ddp, shard_base, weight_owners
from kyon_pl.training.unsupported_callbacks import check_callbacks

log = logging.getLogger(__name__)

_WIDEST = 1_000_000  # hidden size


class Perplexity(MeanMetric):
    """The exponential of the mean loss per token. torchmetrics' own Perplexity needs the logits of all positions."""

    def compute(self) -> torch.Tensor:
        """A float32 scalar."""
        return super().compute().exp()


class ChatGLM2LoRA(LightningModule):
    """ChatGLM2 with frozen weights in the compute precision and a trained float32 LoRA adapter.

    Args:
        base: Hub id or folder of a model in the published ChatGLM2 layout; `modelscope:OWNER/NAME` for one on
            ModelScope; `demo`, the embedded model; or `random`, random weights for benchmarks and tests.
        revision: branch, tag or commit of `base` on the Hub or ModelScope.
        random_config: with `base: random`, a `config.json` or its folder; unset, the shape of 6B.
        lora: PEFT's LoRA settings; unset, r=16, alpha=32, dropout 0.05 on `query_key_value`.
        adapter: a PEFT adapter to continue from: its folder, a run folder (its best adapter is used) or a Hub id. Its
            own settings replace `lora`.
        shard_base: shard the frozen layers over ranks and gather each layer when it computes (FSDP2), for GPUs that
            cannot hold the whole base. Requires the strategy of configs/overlay/fsdp.yaml; no effect with one rank.
        quantization: format of the decoder layers' frozen weights: `nf4`, 4 bits, for small GPUs, or `fp8`, 8 bits,
            for speed (see `lora.frozen`); unset, the compute precision.
        checkpointing: activation checkpointing: `full` for all layers, `none`, or a number of layers. It costs a third
            more compute and reduces memory to a fraction. `auto`: `kyon-pl fit` checkpoints as few layers as fit this
            machine; elsewhere all.
        compile: compile each decoder layer with torch.compile: a slower first step, faster steps afterwards. `auto`:
            `kyon-pl fit` compiles if that saves time in this run; elsewhere not.
        attention: attention implementation; `auto` chooses the fastest one for device, precision and batches, and logs
            the choice. `fa4`: flash-attn-4, after a comparison with torch's on a first batch; `varlen`: torch's
            flash attention; `sdpa`; `eager`.
        loss_normalization: `tokens`: the loss of an optimizer step is the mean over its trained tokens, independent of
            batch size, accumulation and number of processes. `batch`: the mean of the micro-batches' means, as in the
            original.
        optimizer: makes the optimizer from the trained parameters.
        lr_for_hidden_size: hidden size of the base for which the learning rate was chosen, such as 4096 for 6B. Another
            base gets the rate times (this / its hidden size) ** 0.78. unset: the rate is not scaled.
        schedule: makes the schedule from the optimizer and the number of optimizer steps of the run; it is stepped
            after each optimizer step.
        max_new_tokens: maximum length of a reply in `predict`, in tokens.

    Raises:
        SettingError: `max_new_tokens` is lower than 1, or `lr_for_hidden_size` is no hidden size.
    """

    def __init__(
        self,
        base: str = "THUDM/chatglm2-6b",
        revision: str | None = None,
        random_config: str | None = None,
        lora: LoraConfig | None = None,
        adapter: str | None = None,
        shard_base: bool = False,
        quantization: Quantization | None = None,
        checkpointing: Checkpointing | Literal["auto"] = "full",
        compile: bool | Literal["auto"] = False,
        attention: AttentionChoice = "auto",
        loss_normalization: Literal["tokens", "batch"] = "tokens",
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0),
        lr_for_hidden_size: int | None = None,
        schedule: ScheduleCallable = LinearDecay,
        max_new_tokens: int = 256,
    ) -> None:
        super().__init__()
        if max_new_tokens < 1:
            raise SettingError("model.max_new_tokens", f"{max_new_tokens} is too low", "Set 1 or more.")
        if lr_for_hidden_size is not None and not 1 <= lr_for_hidden_size <= _WIDEST:
            found = f"{lr_for_hidden_size} is no hidden size"
            raise SettingError("model.lr_for_hidden_size", found, "Set 4096, or null.")
        self.precision_loaded: str | None = None  # of the Trainer that configure_model loaded the base for
        self.steps_planned: int | None = None
        self.frozen_base = FrozenBase(
            base,
            revision,
            random_config,
            shard_base,
            quantization,
            "full" if checkpointing == "auto" else checkpointing,
            False if compile == "auto" else compile,
            attention,
        )
        self.checkpointing = self.frozen_base.checkpointing
        self.initial_adapter = InitialAdapter(lora or reference_lora(), adapter)
        self.loss_normalization = loss_normalization
        self.optimizer_settings = optimizer
        self.lr_for_hidden_size = lr_for_hidden_size
        self.make_schedule = schedule
        self.max_new_tokens = max_new_tokens
        self.model: PeftModel | None = None
        self.tokenizer: ChatGLMTokenizer | None = None
        self.val_loss, self.val_perplexity = MeanMetric(), Perplexity()
        self.test_loss, self.test_perplexity = MeanMetric(), Perplexity()
        # checkpoints hold the trained weights only; on_load_checkpoint compares the names
        self.strict_loading = False

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # of files only, without hparams_file
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str | None = None,
        *,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **settings: Any,
    ) -> Self:
        """Load the module of a checkpoint: its base, by the name that is recorded, and the trained adapter.

        Optimizer and schedule are not recorded; pass them to train the module further.

        Args:
            checkpoint_path: file that `kyon-pl fit` or a Trainer has saved.
            map_location: device of the module; None: the CPU.
            strict: no effect: names and shapes of weights are always compared.
            weights_only: no effect: pickled objects are never read.
            **settings: arguments of the class to use instead of the recorded ones, such as `base`.

        Raises:
            CheckpointError: the file cannot be read, has no settings, or does not fit the base.
            KyonError: see `configure_model`.
        """
        checkpoint = load_plain(checkpoint_path, map_location)
        recorded, precision = read_settings(checkpoint, str(checkpoint_path))
        module = cls(**recorded | settings)
        module.to(map_location or "cpu")
        module.precision_loaded = precision
        module.configure_model()
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=False)
        return module

    def configure_callbacks(self) -> list[Callback]:
        """Refuse callbacks that cannot work with a frozen base and planned batches, before anything is loaded.

        Raises:
            SettingError: it names the callback, the reason and what to use instead.
        """
        check_callbacks(self.trainer.callbacks)  # type: ignore[attr-defined]
        return []

    def prepare_data(self) -> None:
        """Check the adapter's settings and download base and adapter, once per machine.

        Raises:
            SettingError: a kind of LoRA that is not supported (see `lora.saved`).
            CheckpointError: the adapter cannot be read, or is of a kind that is not supported.
            MissingFileError: there is no such base or adapter.
        """
        self.initial_adapter.check()
        _ = self.frozen_base.folder

    def configure_model(self) -> None:
        """Load the base onto the device of this rank, in the compute precision, and attach the adapter.

        Without a Trainer, the device is that of the module.

        Raises:
            SettingError: settings that contradict each other, LoRA settings that fit no layer, or a base that was
                loaded for another precision.
            MachineError: the device does not support the quantization format.
            CheckpointError: weights that do not fit the model.
            MissingFileError: there is no such base.
        """
        trainer = self._trainer
        precision = self.precision_loaded or "32-true" if trainer is None else str(trainer.precision)
        if self.model is not None:
            self._check_ids()
            check_precision_loaded(str(self.precision_loaded), precision)
            return
        device = self.device if trainer is None else trainer.strategy.root_device
        dtype = frozen_dtype(precision)
        self.frozen_base.check(self.initial_adapter, precision, device)
        self.tokenizer = self.frozen_base.tokenizer()  # before the ids, whose error would not name its file
        self._check_ids()
        started_s = time.monotonic()
        ranks = self.trainer.world_size if self.sharded else 1
        base = self.frozen_base.load(dtype, device, ranks=ranks, batches=self._largest_batches)
        self.precision_loaded = precision
        owners = weight_owners(base) if self.sharded else {}
        self.model = self.initial_adapter.attach(base, name_to_record(self.frozen_base.name))
        if self.sharded:
            shard_base(base, owners, self.frozen_base.weights(dtype, device), device)
            exclude_shards_from_ddp(self)
        loading_s = time.monotonic() - started_s
        checkpoint_layers(base, self.frozen_base.checkpointed_layers)
        if self.frozen_base.compiled:
            compile_layers(base)
        # Lightning keeps the mode of modules, and the base was loaded in evaluation mode
        self.model.train()
        trained = sum(parameter.numel() for parameter in trained_parameters(self).values())
        message = "LoRA: %s trained parameters, %.1f MB in float32; the base was loaded in %.1f s"
        log.info(message, f"{trained:,}", trained * 4 / 1e6, loading_s)

    def _check_ids(self) -> None:
        if self._trainer is not None and isinstance(data := self._trainer.datamodule, IdSource):  # type: ignore[attr-defined]
            data.check_ids(self.frozen_base.config.padded_vocab_size)

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Make the optimizer over parameters, with its learning rates scaled to the base.

        Raises:
            SettingError: a setting is out of range or not finite.
        """
        optimizer = build_optimizer(self.optimizer_settings, list(parameters))
        return scale_rates(optimizer, self.frozen_base.config.hidden_size, self.lr_for_hidden_size)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Make the optimizer over the trained parameters, and the schedule over the whole run.

        Raises:
            SettingError: optimizer settings that are out of range or not finite, or a fused optimizer together with
                16-mixed and gradient clipping.
        """
        parameters = list(trained_parameters(self).values())
        assert all(parameter.dtype == torch.float32 for parameter in parameters)
        optimizer = self.make_optimizer(parameters)
        check_clipping(optimizer, self.trainer)
        steps = total_steps(self.trainer)
        self.steps_planned = steps
        schedule = self.make_schedule(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def loss(self, batch: Batch, num_items_in_batch: float | None) -> torch.Tensor:
        """The model's loss at the trained positions of a batch.

        Args:
            batch: one micro-batch.
            num_items_in_batch: divisor of the summed loss; None: the batch's number of trained tokens.

        Returns:
            A float32 scalar.
        """
        assert self.model is not None
        if self.frozen_base.compiled and batch.cu_seqlens is not None:
            # packed batches have one shape, except for their numbers of rows and of labels, and of keys if rows share
            sizes_vary = (batch.cu_seqlens, batch.cu_seqlens_k, batch.key_index, batch.trained_positions)
            for tensor in sizes_vary:
                if tensor is not None:
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
        inputs = batch.model_inputs()
        output = self.model(**inputs, use_cache=False, skip_logits=True, num_items_in_batch=num_items_in_batch)
        loss: torch.Tensor = output.loss
        return loss

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Check that the plan of the batches and the length of the schedule are still true.

        Raises:
            SettingError: it names what has changed since, by a callback or by code.
        """
        trainer = self.trainer
        data = trainer.datamodule  # type: ignore[attr-defined]
        source = trainer.train_dataloader if data is None else data
        if isinstance(source, PlannedSource):
            source.check_plan(
                world_size=trainer.world_size,
                accumulate_grad_batches=trainer.accumulate_grad_batches,
                batches_per_epoch=trainer.num_training_batches,
            )
        if isinstance(source, Workload) and (steps := total_steps(trainer)) != self.steps_planned:
            found = f"{self.steps_planned} optimizer steps when the schedule was made, and {steps} now"
            fix = "Set trainer.max_epochs and trainer.max_steps before the run starts"
            raise SettingError("length of the run", found, fix)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The loss of a micro-batch, scaled so that an optimizer step sees the mean over all of its trained tokens.

        Lightning divides the loss by the number of accumulated micro-batches, and DDP averages gradients over ranks.
        The divisor is the step's number of trained tokens divided by both, which cancels them.
        """
        if self.loss_normalization == "batch":
            return self.loss(batch, None)
        micro_batches = self.trainer.world_size * self.trainer.accumulate_grad_batches
        return self.loss(batch, batch.step_trained_tokens / micro_batches)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update `val/loss`, the mean over the trained tokens of all ranks, and `val/perplexity`."""
        self._update_metrics("val", self.val_loss, self.val_perplexity, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of fit at the optimizer step of the training curves; Lightning would use one less."""
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            metrics = {"val/loss": self.val_loss, "val/perplexity": self.val_perplexity}
            values = {name: metric.compute().item() for name, metric in metrics.items()}
            for logger in self.loggers:
                logger.log_metrics(values, step=self.trainer.global_step)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update `test/loss` and `test/perplexity`, as `validation_step` does."""
        self._update_metrics("test", self.test_loss, self.test_perplexity, batch)

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Generate a greedy reply to each prompt.

        Returns:
            One dictionary per prompt: `row` (row number), `prompt`, `reply`, `reference` (the row's target) and
            `stopped` (whether the reply ended before `max_new_tokens`).

        Raises:
            SettingError: the base has no tokenizer, because it is random.
        """
        if self.model is None or self.tokenizer is None:
            raise SettingError("model.base", "a random base has no tokenizer to decode replies", "Set a real base.")
        replies = generate_texts(
            self.model, self.tokenizer, batch, max_new_tokens=self.max_new_tokens, sharded=self.sharded
        )
        return prediction_rows(batch, replies)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained weights only, and record the settings for `load_from_checkpoint`.

        Raises:
            TrainingError: other parts of the checkpoint are far larger than what is trained.
        """
        assert self.model is not None
        trained = trained_parameters(self)
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}
        check_size(checkpoint, sum(value.numel() * value.element_size() for value in trained.values()))
        checkpoint[SETTINGS] = {
            **settings_to_record(self.frozen_base, self.model),
            "loss_normalization": self.loss_normalization,
            "max_new_tokens": self.max_new_tokens,
            "precision": self.precision_loaded,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the trained weights fit this model and, in fit, that the training state is complete.

        Raises:
            CheckpointError: a weight is missing, unexpected or of another shape, or training state is missing.
        """
        if self._trainer is not None and self._trainer.state.fn == "fit":
            check_resumable_state(checkpoint)
        shapes = {name: tuple(value.shape) for name, value in trained_parameters(self).items()}
        check_trained_weights(checkpoint["state_dict"], shapes)

    def cpu(self) -> Self:
        """Stay on the device; use `to("cpu")` to move the module.

        Lightning calls `cpu` at the end of every run. It would copy a base of 12 GB into host memory, which a machine
        with one small GPU may not have.
        """
        return self

    def checkpoint_all_layers(self) -> None:
        """Checkpoint all layers from now on, after `configure_model`; results stay the same."""
        assert self.model is not None
        base = self.model.get_base_model()
        assert isinstance(base, ChatGLM2ForCausalLM)
        checkpoint_layers(base, self.frozen_base.config.num_layers)
        self.checkpointing = "full"

    @property
    def sharded(self) -> bool:
        """Whether the base is sharded, so that all ranks must make equally many forward passes."""
        return self.frozen_base.sharded and self._trainer is not None and self._trainer.world_size > 1

    def save_adapter(self, folder: str | Path) -> None:
        """Write the trained adapter as a PEFT folder that `PeftModel.from_pretrained` loads.

        The tokenizer's files are written too. Call it on one rank, during or after `fit`.

        Args:
            folder: created if it does not exist.
        """
        self.write_adapter(trained_parameters(self), Path(folder))

    def write_adapter(self, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Write the adapter in a checkpoint's `state_dict` as `save_adapter` does.

        Args:
            state: the trained tensors by their names in this module.
            folder: created if it does not exist.
        """
        assert self.model is not None
        write_adapter(self.model, {name.removeprefix("model."): value for name, value in state.items()}, folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def _largest_batches(self) -> list[Batch]:
        """The largest batches of the first epoch of `fit`; none in other commands, and without a trainer."""
        if self._trainer is None or self._trainer.state.fn != "fit":
            return []
        data = self._trainer.datamodule  # type: ignore[attr-defined]
        return data.largest_batches(1) if isinstance(data, BatchSource) else []

    def _update_metrics(self, stage: str, mean: MeanMetric, perplexity: Perplexity, batch: Batch) -> None:
        with torch.compiler.set_stance("force_eager"):  # padded batches have many shapes
            loss = self.loss(batch, max(1, batch.trained_tokens))
        for name, metric in (("loss", mean), ("perplexity", perplexity)):
            metric.update(loss, weight=batch.trained_tokens)
            # Lightning computes and resets the metric over all ranks; in fit, on_validation_epoch_end logs it
            in_fit = self.trainer.state.fn == "fit"
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, prog_bar=True, logger=not in_fit)
