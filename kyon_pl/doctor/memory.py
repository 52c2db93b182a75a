"""An estimate of the device memory that training needs, part by part."""

from __future__ import annotations

import re
from dataclasses import dataclass

from peft import LoraConfig

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.lora import Checkpointing, Quantization, checkpointed_layers, frozen_dtype


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The size of a micro-batch on one device.

    Attributes:
        rows: R, 1 if packed.
        slots: T, tokens of the longest row, or of the pack.
        trained_tokens: N of the whole micro-batch.
    """

    rows: int
    slots: int
    trained_tokens: int

    @property
    def total(self) -> int:
        """R * T."""
        return self.rows * self.slots


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """What the peak depends on, beside the shape of the model.

    Attributes:
        precision: `trainer.precision`.
        lora: PEFT's settings; variants of LoRA that compute more (DoRA, ...) are not counted.
        checkpointing: `model.checkpointing`.
        attention: `varlen`, `sdpa` or `eager`, as it will run.
        packed: whether several rows share a row of the batch.
        training: the training batch that needs the most.
        validation: the largest validation batch, padded; None: no validation.
        device_type: `cuda` or `cpu`.
        sharded_over: ranks that share out the base (`model.shard_base`); 1: each has all of it.
        quantization: `model.quantization`.
        compiled: `model.compile`.
    """

    precision: str
    lora: LoraConfig
    checkpointing: Checkpointing
    attention: str
    packed: bool
    training: Slots
    validation: Slots | None
    device_type: str = "cuda"
    sharded_over: int = 1
    quantization: Quantization | None = None
    compiled: bool = False

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number in the compute precision, h."""
        return frozen_dtype(self.precision).itemsize


FLOAT32_BYTES = 4
# half a byte, one for the scale of 64 weights, and 4 for that of 256 scales
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
FP8_BYTES = 2  # two copies


def lora_targets(config: ChatGLM2Config, lora: LoraConfig) -> list[tuple[int, int]]:
    """Input and output channels of the linear maps of one layer that LoRA wraps, chosen by name as PEFT does."""
    maps = _maps(config)
    chosen = lora.target_modules or ["query_key_value"]  # PEFT's default for this model type
    if chosen == "all-linear":
        return list(maps.values())
    if isinstance(chosen, str):
        prefix = "transformer.encoder.layers.0"
        return [size for name, size in maps.items() if re.fullmatch(chosen, f"{prefix}.{name}")]
    return [size for name, size in maps.items() if any(f".{name}".endswith(f".{target}") for target in chosen)]


def trained_parameters(config: ChatGLM2Config, lora: LoraConfig) -> int:
    """Weights of the adapter: L * r * (in + out) of each wrapped map."""
    return config.num_layers * sum(lora.r * (inputs + outputs) for inputs, outputs in lora_targets(config, lora))


def frozen_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """h a weight; in nf4 and fp8 NF4_BYTES and FP8_BYTES a weight of the layers' linear maps.

    Sharded: a rank's share, and twice the largest part that is gathered, a layer or V * C. Twice,
    because what has been received is copied to its place, and because the next layer comes while one computes.
    """
    whole, table = config.parameter_count, config.padded_vocab_size * config.hidden_size
    if settings.quantization:
        quantized = config.num_layers * sum(inputs * outputs for inputs, outputs in _maps(config).values())
        each = {"nf4": NF4_BYTES, "fp8": FP8_BYTES}[settings.quantization]
        return (whole - quantized) * settings.compute_bytes + round(quantized * each)
    if settings.sharded_over > 1:
        layer = (whole - 2 * table) // config.num_layers
        whole = -(-whole // settings.sharded_over) + 2 * max(layer, table)
    return whole * settings.compute_bytes


def adapter_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """A weight, its gradient and Adam's two averages in float32, and autocast's copy in half: (4 * 4 + 2) a weight."""
    autocast = settings.compute_bytes if settings.compute_bytes < FLOAT32_BYTES else 0
    return trained_parameters(config, settings.lora) * (4 * FLOAT32_BYTES + autocast)


def mask_bytes(settings: MemorySettings) -> int:
    """One byte for each pair of a pack's tokens, T * T, where SDPA keeps its rows apart. Eager has numbers: h * T * T.

    Padded batches need none with SDPA: their pads stand where causal attention never looks.
    """
    pairs = settings.training.slots**2
    if settings.attention == "eager":
        return settings.compute_bytes * pairs
    return pairs if _masked(settings) else 0


def layer_saved_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """What autograd keeps of one layer for its backward pass, in bytes: R * T times the sum of

    - two norms: their input in float32 and one number a token, 2 * (4 * C + 4)
    - each LoRA map of i inputs: what goes into A and what comes out, h * (i + r), and with dropout its mask, i bytes
      (on a CPU 4 * i: it keeps the mask as numbers)
    - rotation: cosine and sine, h * D, once for all R rows
    - attention: `attention_saved_bytes`
    - feed-forward: gate and what it gates, and the activated gate, 3 * h * F

    Compiled, a norm keeps its input in the compute precision, and the activated gate is computed again.

    The frozen maps keep nothing but their weights. The first layer keeps a little less, since its input asks for no
    gradient.
    """
    _, _, gated = _channels(config)
    h = settings.compute_bytes
    norms = 2 * ((h if settings.compiled else FLOAT32_BYTES) * config.hidden_size + FLOAT32_BYTES)
    mask = 0 if not settings.lora.lora_dropout else 1 if settings.device_type == "cuda" else FLOAT32_BYTES
    wrapped = lora_targets(config, settings.lora)
    lora = sum(h * (inputs + settings.lora.r) + mask * inputs for inputs, _ in wrapped)
    rotation = settings.training.slots * h * config.kv_channels
    swiglu = (2 if settings.compiled else 3) * h * gated
    return settings.training.total * (norms + lora + swiglu) + rotation + attention_saved_bytes(config, settings)


def attention_saved_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """What the attention of one layer keeps, in bytes.

    - flash (`varlen`, and `sdpa` without a mask): queries, keys and output, the fused projection that the values are a
      part of, and one number a head: R * T * (h * (2 * Q + K + P) + 4 * H)
    - `sdpa` with a mask: keys and values repeated for every head, and the mask as numbers:
      R * T * (4 * h * Q + 4 * H) + h * R * T * T
    - `eager`: queries, keys and values likewise, R * T * 3 * h * Q, and the probabilities in float32 and, under
      autocast, again in half: R * H * T * T * (4 + h)
    """
    queries, fused, _ = _channels(config)
    heads, h = config.num_attention_heads, settings.compute_bytes
    keys = (fused - queries) // 2
    batch = settings.training
    pairs = batch.total * batch.slots
    if settings.attention == "eager":
        return batch.total * 3 * h * queries + heads * pairs * _probability_bytes(h)
    if _masked(settings):
        return batch.total * (4 * h * queries + FLOAT32_BYTES * heads) + h * pairs
    return batch.total * (h * (2 * queries + keys + fused) + FLOAT32_BYTES * heads)


def layer_gradient_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """The most that the backward pass of a layer holds at once beside what was kept: R * T times

    - the residual's gradient, h * C, and in the feed-forward that of the product and of its two factors, 3 * h * F
    - or, where LoRA wraps the map of F inputs under autocast, four of them: by the base and by A in half, and in
      float32 before and after the dropout, (2 * h + 8) * F
    - or, with `eager`, probabilities, their gradient and the scores' in float32, H * T * 12, when the other things
      that attention and feed-forward kept of them are gone again
    - with fp8 beside any of these, the gradient of gate and what it gates a second time, a byte a number, 2 * F
    """
    _, _, gated = _channels(config)
    h, batch = settings.compute_bytes, settings.training
    most = 3 * h * gated
    if h < FLOAT32_BYTES and (gated, config.hidden_size) in lora_targets(config, settings.lora):
        most = (2 * h + 2 * FLOAT32_BYTES) * gated
    if settings.attention == "eager":
        scores = config.num_attention_heads * batch.slots * (3 * FLOAT32_BYTES - _probability_bytes(h))
        most = max(most, scores - 3 * h * gated)
    in_fp8 = 2 * gated if settings.quantization == "fp8" else 0
    return batch.total * (h * config.hidden_size + most + in_fp8)


def head_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """Log-softmax, its gradient and the logits' in float32, 12 * N * V, and what the last norm keeps, R * T * 4 * C."""
    batch = settings.training
    logits = 3 * FLOAT32_BYTES * batch.trained_tokens * config.padded_vocab_size
    return logits + batch.total * FLOAT32_BYTES * (config.hidden_size + 1)


def validation_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """A forward pass without gradients, in bytes: the larger one of

    - a layer in its feed-forward, R * T * h * (4 * C + 4 * F): its input, the attention's output, their sum and its
      norm; gate and what it gates, the activated gate and the product
    - the head: logits in the compute precision and in float32, and their log-softmax, (h + 8) * N * V
    """
    if settings.validation is None:
        return 0
    _, _, gated = _channels(config)
    h, batch = settings.compute_bytes, settings.validation
    layer = batch.total * h * 4 * (config.hidden_size + gated)
    return max(layer, (h + 2 * FLOAT32_BYTES) * batch.trained_tokens * config.padded_vocab_size)


def _maps(config: ChatGLM2Config) -> dict[str, tuple[int, int]]:
    """Input and output channels of the linear maps of a layer."""
    queries, fused, gated = _channels(config)
    return {
        "self_attention.query_key_value": (config.hidden_size, fused),
        "self_attention.dense": (queries, config.hidden_size),
        "mlp.dense_h_to_4h": (config.hidden_size, 2 * gated),
        "mlp.dense_4h_to_h": (gated, config.hidden_size),
    }


def _masked(settings: MemorySettings) -> bool:
    return settings.attention == "sdpa" and settings.packed


def _probability_bytes(h: int) -> int:
    return FLOAT32_BYTES + h if h < FLOAT32_BYTES else FLOAT32_BYTES


def _channels(config: ChatGLM2Config) -> tuple[int, int, int]:
    """Q, P and F."""
    queries = config.num_attention_heads * config.kv_channels
    keys = config.multi_query_group_num * config.kv_channels
    return queries, queries + 2 * keys, config.ffn_hidden_size


# cuBLAS takes one workspace of this size on Hopper (8 MiB elsewhere), and cuBLASLt another, out of torch's allocator;
# see CUBLAS_WORKSPACE_CONFIG in torch's notes on CUDA semantics
WORKSPACE_BYTES = 2 * 32 * 2**20
# CUDA's context with torch's kernels, which no allocator counts: 0.3 to 0.5 GiB, by GPU and driver
CONTEXT_BYTES = 2**29


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes by what holds them. Each is as large as where it is largest; they are not all there at one time.

    Attributes:
        frozen_weights: the base, or a rank's share with what is gathered of it, all the time.
        adapter: trained weights with gradients and Adam's state, all the time.
        workspace: of cuBLAS, all the time.
        mask: the attention mask of a batch, from its beginning to its end.
        saved: what the layers keep for the backward pass; those that are checkpointed, their inputs.
        recomputed: what one layer keeps while it is computed again; 0 where none is.
        layer_gradients: the most that the backward pass of one layer holds beside what was kept.
        head: logits at trained positions, their softmax and its gradients; then no layer is computed again.
        validation: a forward pass without gradients, beside weights and adapter only.
    """

    frozen_weights: int
    adapter: int
    workspace: int
    mask: int
    saved: int
    recomputed: int
    layer_gradients: int
    head: int
    validation: int

    @property
    def resident(self) -> int:
        """What is there all the time: frozen_weights + adapter + workspace."""
        return self.frozen_weights + self.adapter + self.workspace

    @property
    def training(self) -> int:
        """The peak of a training step: resident + mask + saved + max(recomputed + layer_gradients, head)."""
        return self.resident + self.mask + self.saved + max(self.recomputed + self.layer_gradients, self.head)

    @property
    def peak(self) -> int:
        """The larger one of training and of resident + validation."""
        return max(self.training, self.resident + self.validation)


def memory_estimate(config: ChatGLM2Config, settings: MemorySettings) -> MemoryEstimate:
    """Add up the peak of allocated memory, without CUDA's own context and without what the allocator leaves unused.

    Args:
        config: the shape of the base.
        settings: the run.

    Raises:
        SettingError: a precision that does not keep trained weights in float32; a number of checkpointed layers that
            the model does not have.
    """
    batch, layers = settings.training, config.num_layers
    kept_by_a_layer = layer_saved_bytes(config, settings)
    checkpointed = checkpointed_layers(settings.checkpointing, layers)
    inputs = checkpointed * batch.total * config.hidden_size * settings.compute_bytes
    return MemoryEstimate(
        frozen_weights=frozen_bytes(config, settings),
        adapter=adapter_bytes(config, settings),
        workspace=WORKSPACE_BYTES if settings.device_type == "cuda" else 0,
        mask=mask_bytes(settings),
        saved=inputs + (layers - checkpointed) * kept_by_a_layer,
        recomputed=kept_by_a_layer if checkpointed else 0,
        layer_gradients=layer_gradient_bytes(config, settings),
        head=head_bytes(config, settings),
        validation=validation_bytes(config, settings),
    )


def needed_bytes(allocated_bytes: int, device_type: str) -> int:
    """What a device has to have for that much allocated memory: a GPU keeps CUDA's context beside it."""
    return allocated_bytes + (CONTEXT_BYTES if device_type == "cuda" else 0)
