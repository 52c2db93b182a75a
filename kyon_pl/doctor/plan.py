"""The base, devices, work and needs of a run, computed from its settings without downloading or training anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from jsonargparse import Namespace
from peft import LoraConfig

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.chatglm2.configuration import read_config
from kyon_pl.chatglm2.files import weight_files
from kyon_pl.demo import BASE
from kyon_pl.disk import expand_home
from kyon_pl.doctor.choice import choose
from kyon_pl.doctor.device import Target, choose_target
from kyon_pl.doctor.machine import Machine, why_not_compiled, why_too_old
from kyon_pl.doctor.memory import (
    CONTEXT_BYTES,
    FLOAT32_BYTES,
    BatchShape,
    MemoryEstimate,
    MemorySettings,
    memory_estimate,
    needed_bytes,
    trained_parameters,
)
from kyon_pl.doctor.report import Finding, error_finding
from kyon_pl.doctor.run_settings import memory_settings
from kyon_pl.doctor.speed import Card
from kyon_pl.doctor.work import LONGEST_ROW, Schedule, TrainingTime, Work, count_work, estimate_time, estimate_work
from kyon_pl.errors import KyonError, MissingFileError
from kyon_pl.hub.download import MODEL_FILES, TOKENIZER_FILES
from kyon_pl.hub.modelscope import cached_from_modelscope, is_modelscope
from kyon_pl.lora import Checkpointing

# ids under which the model with the default configuration is published, in float16
PUBLISHED = ("THUDM/chatglm2-6b", "zai-org/chatglm2-6b", "modelscope:ZhipuAI/chatglm2-6b")
PUBLISHED_WEIGHT_BYTES = 2
TOKENIZER_BYTES = 2**20
# range and step of the search for the largest pack that fits, in tokens
LARGEST_PACK, PACK_STEP = 65_536, 512
STEP_CHECKPOINT, BEST_CHECKPOINT = "StepCheckpoint", "ModelCheckpoint"
CHECKPOINT_COUNTS = {STEP_CHECKPOINT: "keep", BEST_CHECKPOINT: "save_top_k"}


@dataclass(frozen=True)
class Base:
    """A base model.

    Attributes:
        name: `model.base`.
        folder: the folder with its files, complete or not; None: not on this machine, or random weights.
        config: its configuration; None: unknown.
        download_bytes: size of the missing files; None: unknown.
    """

    name: str
    folder: Path | None
    config: ChatGLM2Config | None
    download_bytes: int | None


def find_base(name: str, revision: str | None, random_config: str | None) -> Base:
    """Find a base in its folder or in the cache of the Hub or of ModelScope.

    Args:
        name: `model.base`.
        revision: `model.revision`.
        random_config: `model.random_config`.

    Raises:
        MissingFileError: a folder without `config.json` or weights, or a name that is neither a folder nor an id.
        SettingError: a configuration that is not implemented.
        CheckpointError: a `config.json` or an index of weights that cannot be read.
        MachineError: the client of ModelScope is needed and not installed.
    """
    if name == "random":
        config = read_config(Path(random_config)) if random_config else ChatGLM2Config()
        return Base(name, None, config, 0)
    folder = BASE if name == "demo" else expand_home(name)
    if not folder.is_dir():
        return _find_in_cache(name, revision)
    if not (folder / "config.json").is_file():
        raise MissingFileError(str(folder), "no config.json", "Give the folder of a ChatGLM2 base.")
    config = read_config(folder)
    weight_files(folder)
    return Base(name, folder, config, 0)


def _find_in_cache(name: str, revision: str | None) -> Base:
    published = ChatGLM2Config() if name in PUBLISHED else None
    folder = cached_from_modelscope(name, "model", revision) if is_modelscope(name) else _hub_snapshot(name, revision)
    if folder is None or not (folder / "config.json").is_file():
        return Base(name, None, published, _published_bytes(published) if published else None)
    config = read_config(folder)
    try:
        weight_files(folder)
    except MissingFileError:
        return Base(name, folder, config, max(1, _published_bytes(config) - sum(_cached_sizes(folder))))
    tokenizer = (folder / "tokenizer.model").is_file()
    return Base(name, folder, config, 0 if tokenizer else TOKENIZER_BYTES)


def _hub_snapshot(name: str, revision: str | None) -> Path | None:
    try:
        file = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError as error:
        found = "there is no such folder, and it is not the id of a repository either"
        fix = "Name a folder that exists, or an id such as THUDM/chatglm2-6b."
        raise MissingFileError(name, found, fix) from error
    return Path(file).parent if isinstance(file, str) else None  # or a record that there is no such file


def _published_bytes(config: ChatGLM2Config) -> int:
    return config.parameter_count * PUBLISHED_WEIGHT_BYTES + TOKENIZER_BYTES


def _cached_sizes(folder: Path) -> Iterator[int]:
    for file in {file for pattern in (*MODEL_FILES, *TOKENIZER_FILES) for file in folder.glob(pattern)}:
        yield os.stat(file).st_size  # noqa: PTH116 (of the link's target)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a base of known configuration needs.

    Attributes:
        config: the configuration.
        settings: the settings that the memory depends on.
        memory: the peak on one device.
        checkpoints_bytes: the most that the checkpoints of the run folder take.
        time: the training time; None: the amount of work is unknown, or the device is not here.
    """

    config: ChatGLM2Config
    settings: MemorySettings
    memory: MemoryEstimate
    checkpoints_bytes: int
    time: TrainingTime | None

    @property
    def device_bytes(self) -> int:
        """Memory that one device needs."""
        return needed_bytes(self.memory.peak, self.settings.device_type)

    def largest_pack(self, shortest: int, available_bytes: int, *, checkpointing: Checkpointing) -> int:
        """The most tokens of a packed batch that fit, a multiple of `PACK_STEP`; 0 if `shortest` does not fit."""
        share = self.settings.training.trained_tokens / self.settings.training.total
        for tokens in range(LARGEST_PACK, shortest - 1, -PACK_STEP):
            batch = BatchShape(rows=1, slots=tokens, trained_tokens=round(tokens * share))
            settings = replace(self.settings, checkpointing=checkpointing, packed=True, training=batch)
            if self._fits(settings, available_bytes):
                return tokens
        return 0

    def quantized_bytes(self) -> int:
        """Memory that one device needs with all layers checkpointed and their weights in nf4."""
        settings = replace(self.settings, checkpointing="full", quantization="nf4", sharded_over=1)
        return needed_bytes(memory_estimate(self.config, settings).peak, settings.device_type)

    def fewest_checkpointed(self, available_bytes: int) -> int | None:
        """The fewest checkpointed layers with which this batch fits; None if it never fits."""
        for layers in range(self.config.num_layers + 1):
            if self._fits(replace(self.settings, checkpointing=layers), available_bytes):
                return layers
        return None

    def _fits(self, settings: MemorySettings, available_bytes: int) -> bool:
        return needed_bytes(memory_estimate(self.config, settings).peak, settings.device_type) <= available_bytes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run as its settings describe it.

    Attributes:
        base: the base.
        target: the devices.
        work: rows, steps and batches.
        longest_row: the most tokens of a row; a packed batch is at least as long.
        problems: the errors that the run would raise for its base and rows.
        needs: memory, disk and time; None if the base's configuration is unknown.
        choice: what was chosen for the settings that are `auto`, and why, in lines.
    """

    base: Base
    target: Target
    work: Work
    longest_row: int
    problems: tuple[Finding, ...]
    needs: Needs | None
    choice: tuple[str, ...] = ()


def make_plan(settings: Namespace, machine: Machine, gpu_gib: float | None, card: Card | None = None) -> Plan:
    """Plan a run.

    Args:
        settings: the settings of fit.
        machine: this machine.
        gpu_gib: memory in GiB of a GPU of another machine to plan for; None: that of `card`, or plan for this machine.
        card: GPU of another machine to plan for; None: it is known by its memory alone, or plan for this machine.

    Raises:
        SettingError: a setting with an invalid value.
    """
    model, precision, problems = settings.model, str(settings.trainer.precision or "32-true"), list[Finding]()
    try:
        base = find_base(model.base, model.revision, model.random_config)
    except KyonError as error:
        problems.append(error_finding("base", error))
        base = Base(model.base, None, None, None)
    target = choose_target(settings.trainer, precision, base.config, machine, gpu_gib, card)
    choice = choose(settings, base.config or ChatGLM2Config(), _with_free_memory(target, machine), _why_eager(target))
    settings = settings.clone()
    for name, value in choice.values.items():
        settings[name] = value
    data, schedule = settings.data.as_dict(), _schedule(settings.trainer, target.devices)
    try:
        work = count_work(data, base.folder, schedule)
    except KyonError as error:
        problems.append(error_finding("rows", error))
        work = estimate_work(data, schedule)
    return Plan(
        base=base,
        target=target,
        work=work,
        longest_row=data["max_tokens"] or LONGEST_ROW,
        problems=tuple(problems),
        needs=_needs(base.config, settings, precision, target, work) if base.config else None,
        choice=choice.lines,
    )


def _with_free_memory(target: Target, machine: Machine) -> Target:
    """The target with the memory that a run would find free; this process has a CUDA context, as the run will."""
    if target.device_type == "cpu" or not target.is_local or not machine.gpus:
        return target
    free = min(min(gpu.free_bytes + CONTEXT_BYTES, gpu.memory_bytes) for gpu in machine.gpus)
    return replace(target, available_bytes=free)


def _why_eager(target: Target) -> str | None:
    """Why layers cannot be compiled on the devices; of another machine only the GPU is known."""
    if target.capability is None:
        return None
    return why_not_compiled(target.capability) if target.is_local else why_too_old(target.capability)


def _needs(config: ChatGLM2Config, settings: Namespace, precision: str, target: Target, work: Work) -> Needs:
    needed = memory_settings(settings, target, work.training, work.validation)
    checkpoints = _kept_checkpoints(settings.trainer) + 1  # an old one is deleted after the new one is complete
    return Needs(
        config=config,
        settings=needed,
        memory=memory_estimate(config, needed),
        checkpoints_bytes=checkpoints * checkpoint_bytes(config, needed.lora),
        time=estimate_time(config, needed, work, target),
    )


def checkpoint_bytes(config: ChatGLM2Config, lora: LoraConfig) -> int:
    """Size of one checkpoint: weights and Adam's two averages in float32, and the adapter folder with the weights."""
    return trained_parameters(config, lora) * FLOAT32_BYTES * (3 + 1)


def _schedule(trainer: Namespace, devices: int) -> Schedule:
    steps = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
    epochs = 1000 if trainer.max_epochs is None and steps is None else trainer.max_epochs  # Lightning's default
    epochs = epochs if epochs and epochs > 0 else None
    return Schedule(epochs, steps, trainer.accumulate_grad_batches, devices, trainer.limit_train_batches)


def _kept_checkpoints(trainer: Namespace) -> int:
    """Number of checkpoints at the end of the run; a callback that keeps all of them counts as one."""
    if trainer.enable_checkpointing is False:
        return 0
    counts, callbacks = {STEP_CHECKPOINT: 1}, trainer.callbacks or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        name, arguments = callback.class_path.rpartition(".")[2], callback.get("init_args") or {}
        if name in CHECKPOINT_COUNTS:
            counts[name] = max(1, int(arguments.get(CHECKPOINT_COUNTS[name], 1)))
    return sum(counts.values())
