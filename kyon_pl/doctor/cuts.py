"""The ways to cut an optimizer step into micro-batches."""

from __future__ import annotations

from typing import NamedTuple

from jsonargparse import Namespace

from kyon_pl.data.batches.plan import PACKED, pack_of_step
from kyon_pl.errors import SettingError
from kyon_pl.runs.fingerprint import ACCUMULATE, TOKENS_PER_BATCH

CHECKPOINTING, COMPILE = "model.checkpointing", "model.compile"
AUTO_SETTINGS = (TOKENS_PER_BATCH, ACCUMULATE, CHECKPOINTING, COMPILE)
# larger ones were not measured; from here on the host's part of the time of a batch is below 5 %
LARGEST_BATCH = 8192


class Cut(NamedTuple):
    """One way to cut an optimizer step.

    Attributes:
        tokens_per_batch: `data.tokens_per_batch`; None if rows are not packed.
        accumulate: `trainer.accumulate_grad_batches`.
    """

    tokens_per_batch: int | None
    accumulate: int


def auto_settings(settings: Namespace) -> list[str]:
    """The names of the settings that are `auto`.

    Args:
        settings: of fit.
    """
    return [name for name in AUTO_SETTINGS if settings[name] == "auto"]


def step_cuts(settings: Namespace, devices: int) -> list[Cut]:
    """All cuts that the settings leave open, the smallest batches first.

    Args:
        settings: of fit.
        devices: number of devices, over all nodes.

    Raises:
        SettingError: there is none.
    """
    data, packed = settings.data, settings.data.batching in PACKED
    step = data.tokens_per_step if packed else data.rows_per_step
    if step is None:
        return [_without_step(settings, packed)]
    cluster = data.rows_per_cluster if data.batching == "shared" else 1
    pack = pack_of_step(step, data.max_tokens or step, cluster) if packed else data.rows_per_batch
    if step % pack:
        fix = f"Set a divisor of data.rows_per_step, {step}."
        raise SettingError("data.rows_per_batch", f"{pack} does not divide an optimizer step of {step} rows", fix)
    if step // pack % devices:
        raise _uneven("tokens" if packed else "rows", step, pack, devices)
    each = step // pack // devices
    joined = [count for count in range(1, each + 1) if each % count == 0] if packed else [1]
    cuts = [Cut(count * pack if packed else None, each // count) for count in joined]
    open_cuts = [cut for cut in cuts if settings[ACCUMULATE] in ("auto", cut.accumulate)]
    if not open_cuts:
        raise _not_possible(settings, ACCUMULATE, [cut.accumulate for cut in cuts])
    if packed and data.tokens_per_batch != "auto":
        open_cuts = [cut for cut in open_cuts if cut.tokens_per_batch == data.tokens_per_batch]
        if not open_cuts:
            raise _not_possible(settings, TOKENS_PER_BATCH, [cut.tokens_per_batch for cut in cuts])
    return [cut for cut in open_cuts if (cut.tokens_per_batch or 0) <= max(LARGEST_BATCH, pack)] or open_cuts


def _without_step(settings: Namespace, packed: bool) -> Cut:
    data, accumulate = settings.data, settings[ACCUMULATE]
    if accumulate == "auto":
        name = "data.tokens_per_step" if packed else "data.rows_per_step"
        raise SettingError(ACCUMULATE, f"auto, and {name}, which it divides, is not set", f"Set a number, or {name}.")
    if not packed:
        return Cut(None, accumulate)
    return Cut(data.max_tokens if data.tokens_per_batch == "auto" else data.tokens_per_batch, accumulate)


def _uneven(what: str, step: int, pack: int, devices: int) -> SettingError:
    parts = step // pack
    numbers = ", ".join(str(count) for count in range(1, parts + 1) if parts % count == 0)
    found = f"{devices} devices cannot share an optimizer step of {step:,} {what} evenly, which has {parts} parts"
    size = pack * devices
    fix = f"Use one of these numbers of devices: {numbers}; or set data.{what}_per_step to a multiple of {size}"
    return SettingError("trainer.devices", found, fix)


def _not_possible(settings: Namespace, name: str, values: list[int | None] | list[int]) -> SettingError:
    found = f"{settings[name]} does not divide an optimizer step of data.tokens_per_step evenly"
    return SettingError(name, found, f"Set auto, or one of {', '.join(map(str, values))}.")
