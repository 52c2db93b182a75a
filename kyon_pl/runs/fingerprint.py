"""Fingerprints: everything that the result of a run depends on, as a flat dictionary to compare runs by."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kyon_pl.errors import CheckpointError
from kyon_pl.hub.download import ADAPTER_FILES

FINGERPRINT = "fingerprint"
TOKENS_PER_BATCH = "data.tokens_per_batch"
TOKENS_PER_STEP = "data.tokens_per_step"
ACCUMULATE = "trainer.accumulate_grad_batches"
DEVICE = "kind of device"
MICRO_BATCHES = "micro-batches an optimizer step"
SHOWN_KEYS = 5
SAMPLES, SAMPLE_BYTES = 256, 1 << 16

_WARMUP = "model.schedule.init_args.warmup"
# settings of where a run takes place and what it logs. Instead of the number of devices, the micro-batches per
# optimizer step are compared; instead of the tokenizer and the form of the rows, the encoded rows
_WITHOUT_EFFECT = re.compile(
    r"config|ckpt_path|weights_only|auto_resume|allow_changed_settings|replies\..*|held_out(\..*)?"
    r"|trainer\.(accelerator|devices|num_nodes|strategy|logger|log_every_n_steps|enable_.*|default_root_dir|profiler|plugins"
    r"|num_sanity_val_steps|limit_test_batches|limit_predict_batches|inference_mode|use_distributed_sampler)(\..*)?"
    r"|data\.(workers|processes|cache_dir|bad_rows_file|test_source|test_split|predict_source|seed|form|tokenizer(_revision)?)"
    r"|model\.(max_new_tokens|shard_base|checkpointing)"
)


def fingerprint_of_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings that the result depends on, each as JSON, by dotted name.

    Args:
        settings: the resolved configuration, nested.
    """
    flat = {key: value for key, value in _flat(settings) if not _WITHOUT_EFFECT.fullmatch(key)}
    if flat.get(f"{_WARMUP}_steps") is not None:  # the share has no effect, and runs of earlier versions have none
        flat.pop(f"{_WARMUP}_share", None)
    if flat.get("model.lr_for_hidden_size") is None:
        flat.pop("model.lr_for_hidden_size", None)
    if flat.get("data.batching") != "shared":
        flat.pop("data.rows_per_cluster", None)
    flat.pop("data.rows_per_step", None)  # accumulation and devices are compared
    # how a planned step is cut has no effect; its accumulation says for which one intervals in micro-batches were given
    flat.pop(TOKENS_PER_BATCH if plans_steps(settings) else TOKENS_PER_STEP, None)
    return {key: json.dumps(value, ensure_ascii=False, default=str) for key, value in flat.items()}


def plans_steps(settings: Mapping[str, Any]) -> bool:
    """Whether the rows of an optimizer step are independent of batch size, accumulation and devices.

    Args:
        settings: the resolved configuration, nested.
    """
    data = settings.get("data", {})
    return data.get("batching") in ("packed", "shared") and data.get("tokens_per_step") is not None


def fingerprint_of_base(folder: Path) -> dict[str, str]:
    """Hashes of a base's configuration, tokenizer and weights.

    Args:
        folder: folder of the base. For a snapshot of the Hub's cache, the commit is included.
    """
    weights = sorted({*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")})
    files = (folder / "config.json", folder / "tokenizer.model", *weights)
    found = {file.name: hash_of(file) for file in files if file.is_file()}
    if folder.parent.name == "snapshots":
        found["commit"] = folder.name
    return {f"base: {name}": text for name, text in found.items()}


def fingerprint_of_adapter(folder: Path) -> dict[str, str]:
    """Hashes of an adapter's files."""
    return {f"adapter: {name}": hash_of(folder / name) for name in ADAPTER_FILES if (folder / name).is_file()}


def hash_of(file: Path) -> str:
    """Size and shortened SHA-256 of a file; of a large file (a base has 12 GB), evenly spread samples are hashed."""
    size = file.stat().st_size
    starts = range(0, size, max(SAMPLE_BYTES, size // SAMPLES))
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for start in starts:
            stream.seek(start)
            digest.update(stream.read(SAMPLE_BYTES))
    return f"{size:,} bytes, SHA-256 {digest.hexdigest()[:16]}"


def differences(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The keys that differ, as `KEY: OLD → NEW`."""
    return [
        f"{key}: {saved.get(key, 'unset')} → {now.get(key, 'unset')}"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    ]


def check_fingerprint(checkpoint: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Check that a checkpoint was made with the settings, base and data of this run.

    Args:
        checkpoint: the loaded checkpoint.
        now: the fingerprint of this run, or a part of it.

    Raises:
        CheckpointError: the checkpoint has no fingerprint, or a different one.
    """
    if FINGERPRINT not in checkpoint:
        fix = "Use a checkpoint made by this version of kyon-pl fit"
        raise CheckpointError(f"checkpoint state {FINGERPRINT}", "it is missing in the checkpoint", fix)
    if changed := differences(checkpoint[FINGERPRINT], now):
        raise CheckpointError(
            where="--ckpt_path",
            found=f"the checkpoint was made with other settings: {shorten(changed)}",
            fix="Restore them; or add --allow_changed_settings true to continue with the new ones; or leave out "
            "--ckpt_path to start a new run",
        )


def shorten(lines: list[str]) -> str:
    """Join the first few lines, and append the number of the others."""
    more = [f"and {len(lines) - SHOWN_KEYS} more"] if len(lines) > SHOWN_KEYS else []
    return "; ".join([*lines[:SHOWN_KEYS], *more])


def keep_accumulation(saved: Mapping[str, str], now: Mapping[str, str], adapt: bool = True) -> dict[str, str]:
    """This run's fingerprint, with the accumulation of a saved run if the result does not depend on the difference.

    The result depends on the number of micro-batches per optimizer step over all devices. So the accumulation may
    differ while devices times accumulation is equal. If only the number of devices differs, the accumulation can be
    adapted to it. Where `data.tokens_per_step` fixes the step, the accumulation may always differ.

    Args:
        saved: fingerprint of the saved run.
        now: fingerprint of this run.
        adapt: whether the accumulation will be adapted to the number of devices.
    """
    if TOKENS_PER_STEP in saved and TOKENS_PER_STEP in now:
        return {**now, ACCUMULATE: saved[ACCUMULATE]}
    if MICRO_BATCHES not in saved:
        return dict(now)
    same_step, same_accumulation = (saved[key] == now.get(key) for key in (MICRO_BATCHES, ACCUMULATE))
    accumulation = {key: saved[key] for key in (ACCUMULATE, MICRO_BATCHES)}
    return {**now, **accumulation} if same_step or (adapt and same_accumulation) else dict(now)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if key == "trainer.callbacks":
        # checkpoint callbacks do not change the result; others, such as early stopping, do
        yield key, [callback for callback in value or [] if not str(callback["class_path"]).endswith("Checkpoint")]
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}".lstrip("."))
    else:
        yield key, value
