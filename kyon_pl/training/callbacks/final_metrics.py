"""The settings of a run beside what came out: TensorBoard's HPARAMS."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

CALLBACKS = "trainer.callbacks"  # a list, which no table has a cell for


class FinalMetrics(Callback):
    """Logs, at the end of training, the settings and the metrics of the last validation, as `final/val/...`.

    Args:
        settings: each as JSON, by its dotted name; asked for at the end.
    """

    def __init__(self, settings: Callable[[], Mapping[str, str]]) -> None:
        self.settings = settings
        self.metrics: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The metrics: a run that is gone on with behind its last validation does not validate again."""
        return {"metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them from a checkpoint."""
        self.metrics = state_dict["metrics"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what came out; checkpoints are saved after this."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            values = trainer.callback_metrics.items()
            self.metrics |= {f"final/{name}": value.item() for name, value in values if name.startswith("val/")}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log; no name is one of a curve, which would get a point twice.

        Not before all is saved: a run that is killed on its way there ends a second time.
        """
        settings = told(self.settings())
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and self.metrics:
                logger.log_hyperparams(settings, self.metrics, step=trainer.global_step)


def told(settings: Mapping[str, str]) -> dict[str, Any]:
    """Those of model, data and trainer that say something, as numbers and words, under the names that one types."""
    own = {key: json.loads(text) for key, text in settings.items() if key.startswith(("model.", "data.", "trainer."))}
    return {
        key.replace(".init_args", ""): value
        if isinstance(value, int | float | str)
        else json.dumps(value, ensure_ascii=False)
        for key, value in own.items()
        if value not in (None, [], {}, "") and value is not False and key != CALLBACKS
    }
