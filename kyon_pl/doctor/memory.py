"""An estimate of the device memory that training needs, part by part.

Symbols in the formulas: R rows, T slots, N trained tokens of a micro-batch; L layers, C hidden size, F channels of the
feed-forward, V vocabulary; H heads of D channels; Q = H * D channels of the queries, K of the keys, P = Q + 2 * K of
the fused projection; r LoRA rank; h bytes of a number in the compute precision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from peft import LoraConfig

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.errors import SettingError
from kyon_pl.lora import Checkpointing, Quantization, checkpointed_layers, frozen_dtype

FLOAT32_BYTES = 4
# per weight: half a byte, one byte of scale per 64 weights, and 4 bytes per 256 scales
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
FP8_BYTES = 2  # two copies
# cuBLAS allocates one workspace of this size on Hopper (8 MiB elsewhere), and cuBLASLt another, from torch's allocator;
# see CUBLAS_WORKSPACE_CONFIG in torch's notes on CUDA semantics
WORKSPACE_BYTES = 2 * 32 * 2**20
# CUDA's context with torch's kernels, outside the allocator: 0.3 to 0.5 GiB, depending on GPU and driver
CONTEXT_BYTES = 2**29


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The size of a micro-batch on one device.

    Attributes:
        rows: R, 1 if packed.
        slots: T, tokens of the longest row, or of the pack.
        trained_tokens: N, over all rows.
        keys: K, tokens of all rows of a pack whose rows share beginnings, padding included; None: as many as slots.
    """

    rows: int
    slots: int
    trained_tokens: int
    keys: int | None = None

    @property
    def total(self) -> int:
        """R * T."""
        return self.rows * self.slots

    @property
    def total_keys(self) -> int:
        """Keys of all rows: R * T, or K."""
        return self.total if self.keys is None else self.keys

    @property
    def pairs(self) -> int:
        """Numbers of a mask that covers all queries and keys: R * T * T, or T * K."""
        return self.total * (self.slots if self.keys is None else self.keys)


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """The settings that the peak depends on.

    Attributes:
        precision: `trainer.precision`.
        lora: PEFT's settings; the extra memory of variants such as DoRA is not estimated.
        checkpointing: `model.checkpointing`.
        attention: the implementation that runs: `fa4`, `varlen`, `sdpa` or `eager`.
        packed: whether batches are packed.
        training: the training batch that needs the most memory.
        validation: the largest validation batch, padded; None: no validation.
        device_type: `cuda` or `cpu`.
        sharded_over: number of ranks that share the base (`model.shard_base`); 1: each rank has all of it.
        quantization: `model.quantization`.
        compiled: `model.compile`.
    """

    precision: str
    lora: LoraConfig
    checkpointing: Checkpointing
    attention: str
    packed: bool
    training: BatchShape
    validation: BatchShape | None
    device_type: str = "cuda"
    sharded_over: int = 1
    quantization: Quantization | None = None
    compiled: bool = False

    @property
    def compute_bytes(self) -> int:
        """h, bytes of a number in the compute precision."""
        return frozen_dtype(self.precision).itemsize

    @property
    def masked(self) -> bool:
        """Whether SDPA needs a mask to separate the rows of a pack."""
        return self.attention == "sdpa" and self.packed


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes per part, each at its own peak; the parts do not all exist at the same time.

    Attributes:
        frozen_weights: the base, or a rank's shard with the gathered layers, all the time.
        adapter: trained weights, gradients and Adam's state, all the time.
        workspace: cuBLAS, all the time.
        mask: the attention mask of a batch, during its forward and backward pass.
        saved: activations kept for the backward pass; of checkpointed layers, their inputs.
        recomputed: activations of one checkpointed layer during its backward pass; 0 without checkpointing.
        layer_gradients: the peak of the backward pass of one layer beyond its activations.
        head: logits at trained positions, their softmax and gradients; before any layer is recomputed.
        validation: a forward pass without gradients, beside the parts that exist all the time.
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
        """The parts that exist all the time: frozen_weights + adapter + workspace."""
        return self.frozen_weights + self.adapter + self.workspace

    @property
    def training(self) -> int:
        """The peak of a training step: resident + mask + saved + max(recomputed + layer_gradients, head)."""
        return self.resident + self.mask + self.saved + max(self.recomputed + self.layer_gradients, self.head)

    @property
    def peak(self) -> int:
        """The larger of training and resident + validation."""
        return max(self.training, self.resident + self.validation)


def memory_estimate(config: ChatGLM2Config, settings: MemorySettings) -> MemoryEstimate:
    """Estimate the peak of allocated memory, without CUDA's context and the allocator's fragmentation.

    Args:
        config: the configuration of the base.
        settings: the settings of the run.

    Raises:
        SettingError: a precision that does not keep trained weights in float32, or more checkpointed layers than the
            model has.
    """
    batch, layers = settings.training, config.num_layers
    saved_per_layer = layer_saved_bytes(config, settings)
    checkpointed = checkpointed_layers(settings.checkpointing, layers)
    inputs = checkpointed * batch.total * config.hidden_size * settings.compute_bytes
    if checkpointed == layers:
        not_computed, freed, in_last_layer = 0, inputs // layers, 0
    else:
        not_computed = unsaved_in_last_layer_bytes(config, settings)
        freed = saved_per_layer - not_computed
        in_last_layer = score_gradient_bytes(config, settings)
    return MemoryEstimate(
        frozen_weights=frozen_bytes(config, settings),
        adapter=adapter_bytes(config, settings),
        workspace=WORKSPACE_BYTES if settings.device_type == "cuda" else 0,
        mask=mask_bytes(settings),
        saved=inputs + (layers - checkpointed) * saved_per_layer - not_computed,
        recomputed=saved_per_layer if checkpointed else 0,
        # the last layer has little to compute, and what is kept for it is freed before the others have their peak
        layer_gradients=max(in_last_layer, layer_gradient_bytes(config, settings) - freed),
        head=head_bytes(config, settings),
        validation=validation_bytes(config, settings),
    )


def needed_bytes(allocated_bytes: int, device_type: str) -> int:
    """Memory that a device needs for this much allocated memory: on a GPU, CUDA's context is added."""
    return allocated_bytes + (CONTEXT_BYTES if device_type == "cuda" else 0)


def frozen_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """h per weight; with nf4 and fp8, `NF4_BYTES` and `FP8_BYTES` per weight of the layers' linear layers.

    Sharded: a rank's shard, and twice the largest gathered part, a layer or V * C. Twice, because the received weights
    are copied, and because the next layer is gathered while one computes.
    """
    parameters, embedding = config.parameter_count, config.padded_vocab_size * config.hidden_size
    if settings.quantization:
        quantized = config.num_layers * sum(inputs * outputs for inputs, outputs in _linear_layers(config).values())
        each = {"nf4": NF4_BYTES, "fp8": FP8_BYTES}[settings.quantization]
        return (parameters - quantized) * settings.compute_bytes + round(quantized * each)
    if settings.sharded_over > 1:
        layer = (parameters - 2 * embedding) // config.num_layers
        parameters = -(-parameters // settings.sharded_over) + 2 * max(layer, embedding)
    return parameters * settings.compute_bytes


def lora_targets(config: ChatGLM2Config, lora: LoraConfig) -> list[tuple[int, int]]:
    """Input and output channels of the linear layers per layer that LoRA wraps; names match as in PEFT.

    Raises:
        SettingError: `target_modules` is a text, and no regular expression.
    """
    linear = _linear_layers(config)
    targets = lora.target_modules or ["query_key_value"]  # PEFT's default for this model type
    if targets == "all-linear":
        return list(linear.values())
    if isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            found = f"{targets!r} is no regular expression: {error}"
            raise SettingError("model.lora.target_modules", found, "Give a list of names of layers instead") from None
        prefix = "transformer.encoder.layers.0"
        return [size for name, size in linear.items() if pattern.fullmatch(f"{prefix}.{name}")]
    return [size for name, size in linear.items() if any(f".{name}".endswith(f".{target}") for target in targets)]


def trained_parameters(config: ChatGLM2Config, lora: LoraConfig) -> int:
    """Number of weights of the adapter: L * r * (inputs + outputs), summed over the wrapped linear layers."""
    return config.num_layers * sum(lora.r * (inputs + outputs) for inputs, outputs in lora_targets(config, lora))


def adapter_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """4 * 4 + 2 per weight: weight, gradient and Adam's two averages in float32, and autocast's copy in half."""
    autocast = settings.compute_bytes if settings.compute_bytes < FLOAT32_BYTES else 0
    return trained_parameters(config, settings.lora) * (4 * FLOAT32_BYTES + autocast)


def mask_bytes(settings: MemorySettings) -> int:
    """T * T with SDPA on a packed batch (boolean), h * T * T with eager attention; T * K if beginnings are shared.

    Padded batches need no mask with SDPA: padding is on the right, where causal attention does not look.
    """
    pairs = settings.training.pairs // settings.training.rows
    if settings.attention == "eager":
        return settings.compute_bytes * pairs
    return pairs if settings.masked else 0


def layer_saved_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """What autograd saves of one layer for its backward pass, in bytes: R * T times the sum of

    - two norms: their input in float32 and one number per token, 2 * (4 * C + 4)
    - each LoRA layer of i inputs: the input of A and of B, h * (i + r), and with dropout its mask, i bytes (4 * i on a
      CPU, where the mask is a float)
    - rotation: cosine and sine, h * D, once for all R rows
    - attention: `attention_saved_bytes`
    - feed-forward: the two halves of the first projection and the activated gate, 3 * h * F

    Compiled, a norm saves its input in the compute precision, and the activated gate is recomputed. The frozen linear
    layers save nothing. The first layer saves slightly less, because its input needs no gradient.
    """
    first = _norm_bytes(config, settings) + _lora_bytes(_wrapped(config, settings, before_attention=True), settings)
    rotation = settings.training.slots * settings.compute_bytes * config.kv_channels
    per_token = first + _after_attention_bytes(config, settings)
    return settings.training.total * per_token + rotation + attention_saved_bytes(config, settings)


def unsaved_in_last_layer_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """What the last layer does not save, since it computes what follows its attention at the N labels only."""
    batch = settings.training
    return (batch.total - batch.trained_tokens) * _after_attention_bytes(config, settings)


def _after_attention_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """What a layer saves per token of the output projection, the second norm and the feed-forward."""
    wrapped = _wrapped(config, settings, before_attention=False)
    swiglu = (2 if settings.compiled else 3) * settings.compute_bytes * config.ffn_hidden_size
    return _norm_bytes(config, settings) + _lora_bytes(wrapped, settings) + swiglu


def _wrapped(config: ChatGLM2Config, settings: MemorySettings, *, before_attention: bool) -> list[tuple[int, int]]:
    fused = (config.hidden_size, _attention_channels(config)[1])
    return [one for one in lora_targets(config, settings.lora) if (one == fused) == before_attention]


def _norm_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    width = settings.compute_bytes if settings.compiled else FLOAT32_BYTES
    return width * config.hidden_size + FLOAT32_BYTES


def _lora_bytes(wrapped: list[tuple[int, int]], settings: MemorySettings) -> int:
    mask = 0 if not settings.lora.lora_dropout else 1 if settings.device_type == "cuda" else FLOAT32_BYTES
    return sum(settings.compute_bytes * (inputs + settings.lora.r) + mask * inputs for inputs, _ in wrapped)


def attention_saved_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """What autograd saves of the attention of one layer, in bytes.

    - flash (`varlen`, and `sdpa` without a mask): queries, keys and output, the fused projection, of which the values
      are a view, and one number per head: R * T * (h * (2 * Q + K + P) + 4 * H)
    - `sdpa` with a mask: keys and values repeated for every head, and the mask in the compute precision:
      R * T * (4 * h * Q + 4 * H) + h * R * T * T
    - `eager`: queries, and keys and values repeated for every head, R * T * 3 * h * Q; and the probabilities in float32
      and, under autocast, again in half: R * H * T * T * (4 + h)

    If beginnings are shared, keys and values are gathered to K tokens: flash saves them beside the fused projection,
    the others in place of those of T tokens.
    """
    queries, fused = _attention_channels(config)
    heads, h = config.num_attention_heads, settings.compute_bytes
    keys = (fused - queries) // 2
    batch = settings.training
    if settings.attention == "eager":
        repeated = (batch.total + 2 * batch.total_keys) * h * queries
        return repeated + heads * batch.pairs * _probability_bytes(h)
    if settings.masked:
        repeated = (2 * batch.total + 2 * batch.total_keys) * h * queries
        return repeated + batch.total * FLOAT32_BYTES * heads + h * batch.pairs
    if batch.keys is not None:
        return batch.total * (2 * h * queries + FLOAT32_BYTES * heads) + batch.keys * 2 * h * keys
    return batch.total * (h * (2 * queries + keys + fused) + FLOAT32_BYTES * heads)


def layer_gradient_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """Peak of the backward pass of one layer beyond its saved activations: R * T times

    - the residual's gradient, h * C, and in the feed-forward the gradients of the product and its two factors,
      3 * h * F
    - or, if LoRA wraps the layer of F inputs under autocast, four gradients of its input: from the base and from A in
      half, and before and after the dropout in float32, (2 * h + 8) * F
    - or, with `eager`, probabilities, their gradient and that of the scores in float32, H * T * 12, after the other
      activations of attention and feed-forward have been freed
    - with fp8, in addition to any of these, the gradient of the first projection in 8 bits, 2 * F
    """
    ffn, h, batch = config.ffn_hidden_size, settings.compute_bytes, settings.training
    most = 3 * h * ffn
    if h < FLOAT32_BYTES and (ffn, config.hidden_size) in lora_targets(config, settings.lora):
        most = (2 * h + 2 * FLOAT32_BYTES) * ffn
    if settings.attention == "eager":
        most = max(most, _score_gradient_bytes_per_token(config, settings) - 3 * h * ffn)
    in_fp8 = 2 * ffn if settings.quantization == "fp8" else 0
    return batch.total * (h * config.hidden_size + most + in_fp8)


def score_gradient_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """With `eager`, what the attention of the last layer needs in its backward pass: as in `layer_gradient_bytes`."""
    if settings.attention != "eager":
        return 0
    per_token = settings.compute_bytes * config.hidden_size + _score_gradient_bytes_per_token(config, settings)
    return settings.training.total * per_token


def _score_gradient_bytes_per_token(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """Probabilities, their gradient and that of the scores in float32, beyond the probabilities that are saved."""
    each = 3 * FLOAT32_BYTES - _probability_bytes(settings.compute_bytes)
    keys = settings.training.keys or settings.training.slots
    return config.num_attention_heads * keys * each


def head_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """Log-softmax and the gradients of it and of the logits in float32, 12 * N * V; the last norm's, N * 4 * C."""
    batch = settings.training
    logits = 3 * FLOAT32_BYTES * batch.trained_tokens * config.padded_vocab_size
    return logits + batch.trained_tokens * FLOAT32_BYTES * (config.hidden_size + 1)


def validation_bytes(config: ChatGLM2Config, settings: MemorySettings) -> int:
    """A forward pass without gradients, in bytes: the larger of

    - a layer in its feed-forward, R * T * h * (4 * C + 4 * F): its input, the attention's output, their sum and its
      norm; the two halves of the first projection, the activated gate and the product
    - the head: logits in the compute precision and in float32, and their log-softmax, (h + 8) * N * V
    """
    if settings.validation is None:
        return 0
    h, batch = settings.compute_bytes, settings.validation
    layer = batch.total * h * 4 * (config.hidden_size + config.ffn_hidden_size)
    return max(layer, (h + 2 * FLOAT32_BYTES) * batch.trained_tokens * config.padded_vocab_size)


def _linear_layers(config: ChatGLM2Config) -> dict[str, tuple[int, int]]:
    """Input and output channels of the linear layers of a layer, by name."""
    queries, fused = _attention_channels(config)
    return {
        "self_attention.query_key_value": (config.hidden_size, fused),
        "self_attention.dense": (queries, config.hidden_size),
        "mlp.dense_h_to_4h": (config.hidden_size, 2 * config.ffn_hidden_size),
        "mlp.dense_4h_to_h": (config.ffn_hidden_size, config.hidden_size),
    }


def _attention_channels(config: ChatGLM2Config) -> tuple[int, int]:
    """Q and P."""
    queries = config.num_attention_heads * config.kv_channels
    return queries, queries + 2 * config.multi_query_group_num * config.kv_channels


def _probability_bytes(h: int) -> int:
    return FLOAT32_BYTES + h if h < FLOAT32_BYTES else FLOAT32_BYTES
