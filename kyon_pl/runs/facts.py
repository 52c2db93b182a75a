"""Settings, data sources and curves of the run that an adapter comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kyon_pl.errors import CheckpointError
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
    "model.loss_normalization",
    "data.source_weights",
    "data.template",
    "data.train_turns",
    "data.max_tokens",
    "data.over_length",
    "data.append_eos",
    "data.label_boundary",
    "data.batching",
    "data.tokens_per_batch",
    "data.rows_per_batch",
)


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
        CheckpointError: `config.yaml` is not YAML.
    """
    run = folder.parent.parent if folder.parent.name == CHECKPOINTS else None
    files = [place / "config.yaml" for place in (folder, run) if place and (place / "config.yaml").is_file()]
    config = _read_yaml(files[0]) if files else {}
    step = int(read_marker(folder)["step"]) if (folder / MARKER).is_file() else None
    source = _value(config, "data.source") or ()
    sources = tuple(str(one) for one in ([source] if isinstance(source, str) else source))
    return RunFacts(step, _settings(config), sources, read_curves(run) if run else {})


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    unused = "data.rows_per_batch" if _value(config, "data.batching") == "packed" else "data.tokens_per_batch"
    unused_end = "trainer.max_steps" if _value(config, "trainer.max_steps") == -1 else ""
    found = {key: _value(config, key) for key in _SHOWN if key not in (unused, unused_end)}
    return {key: value for key, value in found.items() if value is not None}


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(str(file), f"not YAML: {reason}", "Copy it again from the run folder") from error
    return config if isinstance(config, dict) else {}
