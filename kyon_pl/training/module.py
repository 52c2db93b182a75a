"""The LightningModule: ChatGLM2 in LoRA, trained with the model's own loss."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from peft import LoraConfig, PeftModel
from torchmetrics import MeanMetric
from typing_extensions import Self

from kyon_pl.batch import Batch, IdSource, PromptBatch, Workload
from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.chatglm2.attention import choose_attention
from kyon_pl.chatglm2.generation import generate_replies
from kyon_pl.errors import SettingError
from kyon_pl.lora import (
    Checkpointing,
    Quantization,
    attach_lora,
    check_combination,
    checkpointed_layers,
    frozen_dtype,
    load_adapter,
    quantizer,
    reference_lora,
    trainable_names,
    write_adapter,
)
from kyon_pl.lora.saved import check_supported, read_adapter
from kyon_pl.runs.adapters import find_adapter
from kyon_pl.runs.fingerprint import fingerprint_of_adapter
from kyon_pl.runs.integrity import check_state_to_train_on, check_trained_weights
from kyon_pl.training.base import NamedBase, checkpoint_layers, compile_layers, keep_from_ddp, shard_base
from kyon_pl.training.optimizer import LinearDecay, ScheduleCallable, build_optimizer

log = logging.getLogger(__name__)


class GeneratedReply(NamedTuple):
    """What the model said, as text.

    Attributes:
        text: without special tokens.
        stopped: the model ended it by itself, before the limit.
    """

    text: str
    stopped: bool


class Perplexity(MeanMetric):
    """The exponential of the mean loss a token.

    torchmetrics' own takes the logits of every position, which are never all there at once here.
    """

    def compute(self) -> torch.Tensor:
        """No dimensions, float32."""
        return super().compute().exp()


class ChatGLM2LoRA(LightningModule):
    """ChatGLM2 with its weights frozen in the compute precision and a float32 LoRA adapter that is trained.

    Args:
        base: Hub id or folder of a model in the published ChatGLM2 layout; or `demo`, the embedded one; or `random`:
            weights of the right shape and no meaning, for benchmarks and tests.
        revision: branch, tag or commit of `base` on the Hub.
        random_config: with `base: random`, a `config.json` or its folder that gives the shape; unset, the shape of 6B.
        lora: PEFT's own LoRA settings; unset, r=16, alpha=32, dropout 0.05 on `query_key_value`.
        adapter: a PEFT adapter to start from: its folder, a run folder, of which the best is taken, or a Hub id; its
            own settings then take the place of `lora`.
        shard_base: give each rank a share of every frozen layer, and gather a layer when its turn comes (FSDP2), for
            GPUs that cannot hold the base. It needs the strategy of configs/overlay/fsdp.yaml; one rank has it whole.
        quantization: how the frozen weights of the decoder layers are kept: `nf4`, 4 bits for a small GPU, or `fp8`, 8
            bits for a fast one (see `lora.frozen`); unset, in the compute precision.
        checkpointing: layers that keep only their input for the backward pass and compute the rest again, which takes
            a third more work and a fraction of the memory: `full` for all of them, `none`, or their number.
        compile: compile each decoder layer (torch.compile): a slower first step, and faster ones from then on.
        attention: `auto` takes the fastest that fits device, precision and batches, and says which and why at the
            start.
        loss_normalization: `tokens`: the loss of an optimizer step is the mean over its trained tokens, however they
            are cut into batches, accumulation and processes. `batch`: the mean of the micro-batches' means, as the
            original has it.
        optimizer: made from the trained parameters.
        schedule: made from the optimizer and the number of optimizer steps of the run; it moves once an optimizer step.
        max_new_tokens: the longest reply that `predict` generates, in tokens.
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
        checkpointing: Checkpointing = "full",
        compile: bool = False,
        attention: Literal["auto", "varlen", "sdpa", "eager"] = "auto",
        loss_normalization: Literal["tokens", "batch"] = "tokens",
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0),
        schedule: ScheduleCallable = LinearDecay,
        max_new_tokens: int = 256,
    ) -> None:
        super().__init__()
        if max_new_tokens < 1:
            raise SettingError("model.max_new_tokens", f"{max_new_tokens} is too low", "Set 1 or more.")
        self.base = base
        self.revision = revision
        self.random_config = random_config
        self.lora = lora or reference_lora()
        self.adapter = adapter
        self.shard_base = shard_base
        self.quantization = quantization
        self.checkpointing = checkpointing
        self.compiled = compile  # nn.Module has a method of the other name
        self.attention = attention
        self.loss_normalization = loss_normalization
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.max_new_tokens = max_new_tokens
        self.model: PeftModel | None = None
        self.tokenizer: ChatGLMTokenizer | None = None
        self.grad_norm: torch.Tensor | None = None
        self.learning_rate = 0.0
        self.val_loss, self.val_perplexity = MeanMetric(), Perplexity()
        self.test_loss, self.test_perplexity = MeanMetric(), Perplexity()
        # a checkpoint holds the trained weights only; on_load_checkpoint compares the names itself
        self.strict_loading = False

    @cached_property
    def _named_base(self) -> NamedBase:
        return NamedBase(self.base, self.revision, self.random_config)

    @property
    def base_config(self) -> ChatGLM2Config:
        """The shape of the base; from the Hub this fetches its config.json, one kilobyte."""
        return self._named_base.config

    @cached_property
    def adapter_folder(self) -> Path | None:
        """Of the adapter to start from; from the Hub it is downloaded."""
        return find_adapter(self.adapter) if self.adapter else None

    @property
    def lora_in_use(self) -> LoraConfig:
        """`lora`, or the settings of the adapter to start from; that from the Hub is downloaded."""
        return read_adapter(self.adapter_folder)[0] if self.adapter_folder else self.lora

    @property
    def sharded(self) -> bool:
        """Whether the base is shared out over ranks, so that they have to make all forward passes together."""
        return self.shard_base and self.trainer.world_size > 1

    def prepare_data(self) -> None:
        """Download adapter and base once a machine; what is wrong with the former is said before 12 GB are there.

        Raises:
            SettingError: a kind of LoRA that is refused (see `lora.family`).
            CheckpointError: an adapter that cannot be read, or is refused.
            MissingFileError: no such base or adapter.
        """
        if self.adapter_folder:
            read_adapter(self.adapter_folder)
        else:
            check_supported(self.lora)
        _ = self._named_base.folder  # which is there from then on

    def check_settings(self, precision: str, device: torch.device) -> None:
        """Refuse settings of the frozen layers that do not go together, or that cannot work on a device.

        Args:
            precision: `trainer.precision`.
            device: of this rank.

        Raises:
            SettingError: a precision or others that do not fit (`frozen_dtype`, `check_combination`,
                `checkpointed_layers`).
            MachineError: weights in a format that this machine cannot work with (`quantizer`).
        """
        # which reads the adapter's weights with them, and only a quantized base asks for it
        lora = self.lora_in_use if self.quantization else self.lora
        check_combination(self.quantization, lora, sharded=self.shard_base, compiled=self.compiled)
        checkpointed_layers(self.checkpointing, self.base_config.num_layers)
        quantizer(self.quantization, frozen_dtype(precision), device)

    def configure_model(self) -> None:
        """Load the base onto this rank's device, or its share of it, in the compute precision, and attach the adapter.

        Raises:
            SettingError: settings that do not fit (`check_settings`, `attach_lora`).
            MachineError: weights in a format that this machine cannot work with (`check_settings`).
            CheckpointError: base weights that do not fit the model.
            MissingFileError: no such base.
        """
        if self.model is not None:
            return
        device = self.trainer.strategy.root_device
        self.check_settings(str(self.trainer.precision), device)
        dtype = frozen_dtype(str(self.trainer.precision))
        started_s = time.monotonic()
        base = self._load_base(device, dtype)
        loading_s = time.monotonic() - started_s
        if self.adapter_folder:
            self.model = load_adapter(base, self.adapter_folder, self.base)
        else:
            self.model = attach_lora(base, self.lora, self.base)
        if self.sharded:
            shard_base(base, device)
            keep_from_ddp(self)
        checkpoint_layers(base, checkpointed_layers(self.checkpointing, self.base_config.num_layers))
        if self.compiled:
            compile_layers(base)
        # bases are loaded for evaluation, and Lightning leaves modes alone; layers checkpoint in training mode only
        self.model.train()
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        told = "LoRA: %s trained parameters, %.1f MB in float32; the base was loaded in %.1f s"
        log.info(told, f"{trained:,}", trained * 4 / 1e6, loading_s)

    def _load_base(self, device: torch.device, dtype: torch.dtype) -> ChatGLM2ForCausalLM:
        """Frozen and without LoRA; one that is to be shared out stays on the CPU. The tokenizer comes with it."""
        attention, reason = choose_attention(self.attention, device, dtype)
        log.info("attention: %s (%s)", attention, reason)
        where = f"{device}, sharded over {self.trainer.world_size} ranks" if self.sharded else str(device)
        log.info("base: %s in %s on %s", self.base, self.quantization or str(dtype).removeprefix("torch."), where)
        named = self._named_base
        self.tokenizer = named.tokenizer()
        if isinstance(data := self.trainer.datamodule, IdSource):  # type: ignore[attr-defined]
            data.check_ids(self.base_config.padded_vocab_size)
        base = named.load(
            dtype=dtype,
            device=torch.device("cpu") if self.sharded else device,
            attn_implementation=attention,
            quantize=quantizer(self.quantization, dtype, device),
        )
        base.is_loaded_in_4bit = self.quantization == "nf4"  # type: ignore[assignment]  # PEFT asks
        return base

    def cpu(self) -> Self:
        """Stay on the device; `to("cpu")` moves.

        Lightning calls this at the end of every run, and a base of 12 GB would go into host memory that a machine with
        one small GPU may not have, to be thrown away there.
        """
        return self

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The injected optimizer over the trained parameters, and the injected schedule over the whole run.

        Raises:
            SettingError: numbers that the optimizer cannot work with; a fused optimizer together with 16-mixed and
                gradient clipping, which Lightning cannot do.
        """
        assert self.model is not None
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        assert all(parameter.dtype == torch.float32 for parameter in parameters)
        optimizer = build_optimizer(self.make_optimizer, parameters)
        if self.trainer.precision == "16-mixed" and self.trainer.gradient_clip_val and optimizer.defaults.get("fused"):
            raise SettingError(
                where="model.optimizer.init_args.fused",
                found="a fused optimizer unscales 16-mixed gradients itself, and then they cannot be clipped before",
                fix="Remove `fused`, or set trainer.precision to bf16-mixed, or trainer.gradient_clip_val to null",
            )
        schedule = self.make_schedule(optimizer, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run.

        The data module knows them from its plan. Lightning's own estimate would start the loader's workers, before a
        resumed run's position is known.

        Raises:
            SettingError: neither epochs nor steps end it.
        """
        trainer = self.trainer
        workload = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(workload, Workload):
            return int(trainer.estimated_stepping_batches)
        epochs = trainer.max_epochs or -1
        by_epochs = workload.steps_per_epoch * epochs if epochs > 0 else math.inf
        by_steps = trainer.max_steps if trainer.max_steps > 0 else math.inf
        if math.isinf(by_epochs) and math.isinf(by_steps):
            fix = "Set one of them: the learning rate falls towards the end of the run."
            raise SettingError("trainer.max_epochs", "this run has no end, nor by trainer.max_steps", fix)
        return int(min(by_epochs, by_steps))

    def loss(self, batch: Batch, num_items_in_batch: float | None) -> torch.Tensor:
        """The model's own loss at the trained positions of a batch, float32, no dimensions."""
        assert self.model is not None
        if self.compiled and batch.cu_seqlens is not None:
            # packs have one shape, but for the number of their rows
            torch._dynamo.maybe_mark_dynamic(batch.cu_seqlens, 0)
        output = self.model(
            **batch.model_inputs(), use_cache=False, skip_logits=True, num_items_in_batch=num_items_in_batch
        )
        loss: torch.Tensor = output.loss
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The model's loss over this micro-batch, scaled so that accumulation and ranks sum to the mean over the
        step's tokens.

        Lightning divides by the number of accumulated micro-batches and averages gradients over ranks; dividing the
        sum by this share of the step's trained tokens makes both disappear.
        """
        if self.loss_normalization == "batch":
            return self.loss(batch, None)
        share = batch.step_trained_tokens / (self.trainer.world_size * self.trainer.accumulate_grad_batches)
        return self.loss(batch, share)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the rate and the gradient norm of the steps that are logged; the norm is that before clipping."""
        every_n_steps: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.trainer.global_step + 1) % every_n_steps == 0:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self.grad_norm = torch.nn.utils.get_total_norm(gradients)
            self.learning_rate = optimizer.param_groups[0]["lr"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add this batch to the mean over all trained tokens of all ranks, and to its exponential."""
        self._add("val", self.val_loss, self.val_perplexity, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As `validation_step`."""
        self._add("test", self.test_loss, self.test_perplexity, batch)

    def _add(self, stage: str, mean: MeanMetric, perplexity: Perplexity, batch: Batch) -> None:
        with torch.compiler.set_stance("force_eager"):  # padded batches come in many shapes
            loss = self.loss(batch, max(1, batch.trained_tokens))
        for name, metric in (("loss", mean), ("perplexity", perplexity)):
            metric.update(loss, weight=batch.trained_tokens)
            # Lightning computes and resets a metric that it is given, over all ranks
            in_fit = self.trainer.state.fn == "fit"  # then on_validation_epoch_end logs it
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, prog_bar=True, logger=not in_fit)

    def on_validation_epoch_end(self) -> None:
        """Log at the optimizer step that the training curves have; Lightning counts one less here."""
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            metrics = {"val/loss": self.val_loss, "val/perplexity": self.val_perplexity}
            values = {name: metric.compute().item() for name, metric in metrics.items()}
            for logger in self.loggers:
                logger.log_metrics(values, step=self.trainer.global_step)

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Greedy replies to a batch of prompts.

        Returns:
            One object a prompt: `row` (its number), `prompt`, `reply`, `reference` (the row's target) and `stopped`
            (it ended by itself and not at `max_new_tokens`).

        Raises:
            SettingError: no tokenizer, because the base is random.
        """
        if self.model is None or self.tokenizer is None:
            raise SettingError("model.base", "a random base has no tokenizer to read replies with", "Name a real base")
        replies = self.reply(batch, max_new_tokens=self.max_new_tokens)
        return [
            {"row": row, "prompt": prompt, "reply": reply.text, "reference": reference, "stopped": reply.stopped}
            for row, prompt, reference, reply in zip(
                batch.row_numbers, batch.prompts, batch.references, replies, strict=True
            )
        ]

    def reply(
        self,
        batch: PromptBatch,
        *,
        max_new_tokens: int,
        rows_per_batch: int = 16,
        on_batch: Callable[[int], object] = lambda prompts: None,
    ) -> list[GeneratedReply]:
        """Greedy replies to any number of prompts; the base has a tokenizer.

        Args:
            batch: the prompts.
            max_new_tokens: the longest reply, in tokens.
            rows_per_batch: prompts that are replied to at once.
            on_batch: told after these how many they were.
        """
        assert self.model is not None
        assert self.tokenizer is not None
        with torch.compiler.set_stance("force_eager"):  # each token would be a shape of its own
            replies = generate_replies(
                self.model,
                batch.input_ids,
                max_new_tokens=max_new_tokens,
                batch_size=rows_per_batch,
                sharded=self.sharded,
                on_batch=on_batch,
            )
        texts = [self.tokenizer.decode(reply.token_ids, skip_special_tokens=True) for reply in replies]
        return [GeneratedReply(str(text), reply.stopped) for text, reply in zip(texts, replies, strict=True)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained; the base is 12 GB that every user has already."""
        trained = trainable_names(self)
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare the checkpoint's trained weights with the model's, name by name; to train on, ask for all the rest.

        Raises:
            CheckpointError: a weight that one of them has and the other has not, or that has another shape; other
                state that is missing.
        """
        if self.trainer.state.fn == "fit":
            check_state_to_train_on(checkpoint)
        wanted = {name: tuple(value.shape) for name, value in self.named_parameters() if value.requires_grad}
        check_trained_weights(checkpoint["state_dict"], wanted)

    def fingerprint(self) -> dict[str, str]:
        """What tells base and first adapter from others; both are on this machine by now."""
        found = self._named_base.fingerprint()
        if self.adapter_folder:
            found |= fingerprint_of_adapter(self.adapter_folder)
        return found

    def write_adapter(self, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Write the adapter of a checkpoint's `state_dict` as a PEFT folder, with the tokenizer's files.

        Args:
            state: the trained tensors under this module's names.
            folder: where to.
        """
        assert self.model is not None
        write_adapter(self.model, {name.removeprefix("model."): value for name, value in state.items()}, folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
