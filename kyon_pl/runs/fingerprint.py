"""What the result of a run depends on, as a flat dictionary of texts that two runs can be compared by, key by key."""

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
ACCUMULATE = "trainer.accumulate_grad_batches"
MICRO_BATCHES = "micro-batches an optimizer step"
SHOWN_KEYS = 5
SAMPLES, SAMPLE_BYTES = 256, 1 << 16

# settings of where a run takes place and what is seen of it; how many micro-batches a step has is compared instead
# of the devices that were asked for, and what the tokenizer made of the rows instead of the tokenizer
_WITHOUT_EFFECT = re.compile(
    r"config|ckpt_path|weights_only|auto_resume|allow_changed_settings|replies\..*|held_out(\..*)?"
    r"|trainer\.(accelerator|devices|num_nodes|strategy|logger|log_every_n_steps|enable_.*|default_root_dir|profiler|plugins"
    r"|num_sanity_val_steps|limit_test_batches|limit_predict_batches|inference_mode|use_distributed_sampler)(\..*)?"
    r"|data\.(workers|processes|cache_dir|bad_rows_file|test_source|test_split|predict_source|seed|tokenizer(_revision)?)"
    r"|model\.(max_new_tokens|shard_base|checkpointing)"
)


def fingerprint_of_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings that the result depends on, each as JSON.

    Args:
        settings: the resolved configuration, nested.
    """
    flat = {key: value for key, value in _flat(settings) if not _WITHOUT_EFFECT.fullmatch(key)}
    return {key: json.dumps(value, ensure_ascii=False, default=str) for key, value in flat.items()}


def fingerprint_of_base(folder: Path) -> dict[str, str]:
    """Config, tokenizer and weights by their hash.

    Args:
        folder: of a base; a snapshot of the Hub's cache tells its commit by its name.
    """
    weights = sorted({*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")})
    files = (folder / "config.json", folder / "tokenizer.model", *weights)
    found = {file.name: hash_of(file) for file in files if file.is_file()}
    if folder.parent.name == "snapshots":
        found["commit"] = folder.name
    return {f"base: {name}": text for name, text in found.items()}


def fingerprint_of_adapter(folder: Path) -> dict[str, str]:
    """The files of an adapter by their hash."""
    return {f"adapter: {name}": hash_of(folder / name) for name in ADAPTER_FILES if (folder / name).is_file()}


def hash_of(file: Path) -> str:
    """Size and SHA-256 of a file, shortened; of a large one samples all over it are hashed, since a base has 12 GB."""
    size = file.stat().st_size
    starts = range(0, size, max(SAMPLE_BYTES, size // SAMPLES))
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for start in starts:
            stream.seek(start)
            digest.update(stream.read(SAMPLE_BYTES))
    return f"{size:,} bytes, SHA-256 {digest.hexdigest()[:16]}"


def differences(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs, key by key, as `KEY was OLD and is NEW`."""
    return [
        f"{key} was {saved.get(key, 'not there')} and is {now.get(key, 'not there')}"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    ]


def check_fingerprint(checkpoint: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Refuse a checkpoint of a run that would have come to another result.

    Args:
        checkpoint: as it was loaded.
        now: the fingerprint of this run, or a part of it.

    Raises:
        CheckpointError: it has no fingerprint, or another one.
    """
    if FINGERPRINT not in checkpoint:
        fix = "Use a checkpoint that this version of kyon-pl fit has made"
        raise CheckpointError(f"checkpoint state {FINGERPRINT}", "it is missing in the checkpoint", fix)
    if changed := differences(checkpoint[FINGERPRINT], now):
        raise CheckpointError(
            where="--ckpt_path",
            found=f"the checkpoint was made with other settings: {shorten(changed)}",
            fix="Set them back; or add --allow_changed_settings true to go on with these; or leave --ckpt_path out for "
            "a new run",
        )


def shorten(lines: list[str]) -> str:
    """The first few of some lines, and how many more there are."""
    more = [f"and {len(lines) - SHOWN_KEYS} more"] if len(lines) > SHOWN_KEYS else []
    return "; ".join([*lines[:SHOWN_KEYS], *more])


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if key == "trainer.callbacks":
        # checkpoints come and go without changing what is trained; early stopping, for one, does not
        yield key, [callback for callback in value or [] if not str(callback["class_path"]).endswith("Checkpoint")]
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}".lstrip("."))
    else:
        yield key, value


def in_terms_of(saved: Mapping[str, str], now: Mapping[str, str], adapt: bool = True) -> dict[str, str]:
    """This run's fingerprint, with the accumulation of a saved run where that makes no difference.

    The result depends on how many micro-batches an optimizer step has over all devices. So accumulation may differ
    where devices times accumulation does not; and where only the number of devices is another, accumulation gives way.

    Args:
        saved: the fingerprint of the saved run.
        now: of this one.
        adapt: let accumulation give way.
    """
    if MICRO_BATCHES not in saved:
        return dict(now)
    same_step, same_accumulation = (saved[key] == now.get(key) for key in (MICRO_BATCHES, ACCUMULATE))
    kept = {key: saved[key] for key in (ACCUMULATE, MICRO_BATCHES)}
    return {**now, **kept} if same_step or (adapt and same_accumulation) else dict(now)
