"""Settings, data sources and curves of the run that an adapter comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kyon_pl.errors import CheckpointError
from kyon_pl.files import read_yaml_mapping, shorten
from kyon_pl.runs.curves import Curves, read_curves
from kyon_pl.runs.integrity import CHECKPOINTS, MARKER, read_marker

# settings for the model card; the others belong to Lightning or name paths of one machine
_SHOWN = (
    "seed_everything",
    "trainer.precision",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "model.optimizer.class_path",
    "model.optimizer.init_args.lr",
    "model.optimizer.init_args.weight_decay",
    "model.schedule.class_path",
    "model.schedule.init_args.warmup_steps",
    "model.schedule.init_args.warmup_share",
    "model.loss_normalization",
    "data.source_weights",
    "data.template",
    "data.train_turns",
    "data.max_tokens",
    "data.over_length",
    "data.append_eos",
    "data.label_boundary",
    "data.batching",
    "data.rows_per_cluster",
    "data.tokens_per_batch",
    "data.rows_per_batch",
)
_UNUSED = {"packed": ("data.rows_per_batch", "data.rows_per_cluster"), "shared": ("data.rows_per_batch",)}

_FIX = "Copy it again from the run folder"


@dataclass(frozen=True)
class RunFacts:
    """Facts about the run that an adapter comes from; empty for an adapter without a run.

    Attributes:
        step: optimizer step of the adapter; None if it is not recorded.
        settings: values by dotted name.
        sources: training data sources as in the settings.
        curves: see `Curves`.
    """

    step: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    curves: Curves = field(default_factory=dict)

    def at_step(self) -> dict[str, float]:
        """The validation metrics at the adapter's step, or at the last validation before it."""
        found = {}
        for tag, points in self.curves.items():
            until = [value for step, value in points if self.step is None or step <= self.step]
            if tag.startswith("val/") and until:
                found[tag] = until[-1]
        return found


def read_run_facts(folder: Path) -> RunFacts:
    """Read the facts from an adapter's folder, and from the run folder if the adapter is in one.

    Args:
        folder: folder of the adapter.

    Raises:
        CheckpointError: `config.yaml` or the marker cannot be read, or the data sources are no texts.
    """
    run = folder.parent.parent if folder.parent.name == CHECKPOINTS else None
    files = [place / "config.yaml" for place in (folder, run) if place and (place / "config.yaml").is_file()]
    config = read_yaml_mapping(files[0], _FIX) if files else {}
    step = read_marker(folder)["step"] if (folder / MARKER).is_file() else None
    return RunFacts(step, _settings(config), _sources(config, files), read_curves(run) if run else {})


def read_sources(folder: Path) -> tuple[str, ...]:
    """The training data sources in the settings of an adapter; empty if they are not recorded.

    Args:
        folder: folder of the adapter.

    Raises:
        CheckpointError: `config.yaml` cannot be read, or the sources are no texts.
    """
    file = folder / "config.yaml"
    return _sources(read_yaml_mapping(file, _FIX), [file]) if file.is_file() else ()


def _sources(config: Mapping[str, Any], files: Sequence[Path]) -> tuple[str, ...]:
    source = _value(config, "data.source") or []
    sources = [source] if isinstance(source, str) else source
    if not isinstance(sources, list) or not all(isinstance(one, str) for one in sources):
        raise CheckpointError(f"{files[0]}: data.source", f"{shorten(source)} is not a text or a list of texts", _FIX)
    return tuple(sources)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    unused = _UNUSED.get(_value(config, "data.batching"), ("data.tokens_per_batch", "data.rows_per_cluster"))
    if _value(config, "trainer.max_steps") == -1:
        unused = (*unused, "trainer.max_steps")
    if _value(config, "model.schedule.init_args.warmup_steps") is not None:
        unused = (*unused, "model.schedule.init_args.warmup_share")
    found = {key: _value(config, key) for key in _SHOWN if key not in unused}
    return {key: value for key, value in found.items() if value is not None}


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config
