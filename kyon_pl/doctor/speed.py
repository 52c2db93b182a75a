"""The speed of training 6B: what was measured on an H100, and estimates from it for other settings and GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from kyon_pl.lora import Quantization

GIB = 2**30
MEASURED_TOKENS = 8192  # per batch
Kind = tuple[bool, Quantization | None]
"""Whether the layers are compiled, and their quantization."""

# Tokens per second without padding on one H100 80GB, bf16-mixed, packs of 8,192 tokens, varlen attention, with no layer
# and with all layers checkpointed. Source: benchmarks/results/2026-11-24-nvidia-h100-80gb.md (eager), and
# 2026-11-24-nvidia-h100-80gb-speed.md (compiled); nf4 without checkpointing: 2026-11-25-nvidia-h100-80gb-speed.md
MEASURED: dict[Kind, tuple[int, int]] = {
    (False, None): (16_365, 12_074),
    (True, None): (21_920, 14_965),
    (True, "nf4"): (21_136, 14_565),
    (True, "fp8"): (31_820, 22_280),
}
# Seconds per batch that do not depend on its tokens: mostly the time in which the host starts kernels. From 2,048 and
# 8,192 tokens (eager, 7,492 and 12,074 tokens/s), and from 4,096 and 8,192 (compiled, 19,950 and 20,886 tokens/s)
EAGER_BATCH_S, COMPILED_BATCH_S = 0.138, 0.018
# 16-mixed against bf16-mixed: 21,006 and 21,920 tokens/s, compiled, nothing checkpointed; same source
FLOAT16_SHARE = 0.958
# compiling the layers delays the first step: 42 s after the start with an empty cache, and 26 to 33 s without compiling
COMPILE_S = 30


@dataclass(frozen=True)
class Card:
    """A GPU by its name.

    Attributes:
        part_of_name: what torch's name of the device contains.
        memory_bytes: total memory as torch reports it.
        flop_per_s: dense matrix products in half precision with float32 sums, as NVIDIA publishes them.
        capability: compute capability.
    """

    part_of_name: str
    memory_bytes: int
    flop_per_s: float
    capability: tuple[int, int]


# Source of the rates: NVIDIA's data sheets of T4, A100, H100 and H200; the GA102 and the Ada architecture white papers
CARDS = {
    "t4": Card("Tesla T4", int(14.6 * GIB), 65e12, (7, 5)),
    "3090": Card("RTX 3090", int(23.6 * GIB), 71e12, (8, 6)),
    "4090": Card("RTX 4090", int(23.5 * GIB), 165.2e12, (8, 9)),
    "a100-40": Card("A100", int(39.4 * GIB), 312e12, (8, 0)),
    "a100-80": Card("A100", int(79.2 * GIB), 312e12, (8, 0)),
    "h100": Card("H100 80GB HBM3", int(79.1 * GIB), 989e12, (9, 0)),
    "h200": Card("H200", int(139.8 * GIB), 989e12, (9, 0)),
}
MEASURED_CARD, ASSUMED_CARD = CARDS["h100"], CARDS["a100-40"]


def card_of(device_name: str) -> Card | None:
    """The card that torch's name of a device belongs to; None: it is not in the table."""
    return next((card for card in CARDS.values() if card.part_of_name in device_name), None)


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """What the speed depends on.

    Attributes:
        precision: `trainer.precision`.
        tokens: slots of a batch.
        checkpointed_share: share of the layers that are checkpointed, 0 to 1.
        compiled: `model.compile`.
        quantization: `model.quantization`.
    """

    precision: str
    tokens: int
    checkpointed_share: float
    compiled: bool
    quantization: Quantization | None


def tokens_per_s(settings: SpeedSettings, card: Card | None) -> float:
    """Estimate the tokens per second of one device.

    A batch takes the host's time plus the device's, which grows with its tokens, is linear in the checkpointed layers
    (18 of 28: 16,883 tokens/s, and 16,843 measured) and inversely proportional to the rate of matrix products.

    Args:
        settings: of the run.
        card: the device; None: one with the rate of `ASSUMED_CARD`.
    """
    none, full = _measured(settings.compiled, settings.quantization)
    batch_s = MEASURED_TOKENS * (1 / none + settings.checkpointed_share * (1 / full - 1 / none))
    host_s = COMPILED_BATCH_S if settings.compiled else EAGER_BATCH_S
    device_s = (batch_s - host_s) / MEASURED_TOKENS * settings.tokens
    slower = MEASURED_CARD.flop_per_s / (card or ASSUMED_CARD).flop_per_s
    speed = settings.tokens / (host_s + device_s * slower)
    return speed * FLOAT16_SHARE if settings.precision == "16-mixed" else speed


def _measured(compiled: bool, quantization: Quantization | None) -> tuple[float, float]:
    """Eager layers with quantized weights were not measured: they lose or gain as much as compiled ones."""
    if (compiled, quantization) in MEASURED:
        return MEASURED[compiled, quantization]
    eager, plain, quantized = (MEASURED[kind] for kind in ((False, None), (True, None), (True, quantization)))
    none, full = (a * c / b for a, b, c in zip(eager, plain, quantized, strict=True))
    return none, full


def speed_source(settings: SpeedSettings, card: Card | None) -> str:
    """Where the estimate of `tokens_per_s` is from, as text."""
    if card is None:
        return "assuming an A100's rate, as this GPU is not in the table of doctor/speed.py"
    measured = settings.tokens == MEASURED_TOKENS and settings.checkpointed_share in (0, 1)
    if measured and card is MEASURED_CARD and (settings.compiled, settings.quantization) in MEASURED:
        return "measured on an H100" if settings.precision == "bf16-mixed" else "from measurements on an H100"
    if card.flop_per_s == MEASURED_CARD.flop_per_s:
        return "from measurements on an H100"
    return "from measurements on an H100, scaled by published rates of matrix products"
