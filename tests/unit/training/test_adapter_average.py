"""The average of an adapter, against a sum by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from kyon_pl.training.callbacks import AdapterAverage


def test_the_average_follows_at_first_and_slows_down_and_validates_in_the_place_of_the_weights() -> None:
    """Of step s it keeps (1 + s) / (10 + s), until that is more than `decay`."""
    module = torch.nn.Linear(1, 1, bias=False)
    callback, trainer = AdapterAverage(decay=0.25), cast(Any, SimpleNamespace(global_step=0))
    weight, kept_of_step = module.weight.detach(), (2 / 11, 3 / 12, 0.25)
    weight.fill_(1.0)
    callback.on_train_start(trainer, cast(Any, module))
    expected = 1.0
    for step, kept in enumerate(kept_of_step, start=1):
        weight.fill_(float(10**step))
        trainer.global_step = step
        for _ in range(2):  # micro-batches; the second changes nothing
            callback.on_train_batch_end(trainer, cast(Any, module), None, None, 0)
        expected = kept * expected + (1 - kept) * 10**step
        assert callback.average["weight"].item() == pytest.approx(expected)
    for _ in range(2):
        callback.on_validation_start(trainer, cast(Any, module))
        assert module.weight.item() == pytest.approx(expected)
        saved: dict[str, Any] = {"state_dict": {}, "callbacks": {}}
        callback.on_save_checkpoint(trainer, cast(Any, module), saved)
        assert saved["state_dict"]["weight"].item() == pytest.approx(expected)
        assert saved["callbacks"][callback.state_key]["trained"]["weight"].item() == 1000
        callback.on_validation_end(trainer, cast(Any, module))
        assert module.weight.item() == 1000
    callback.on_save_checkpoint(trainer, cast(Any, module), saved)
    assert saved["state_dict"]["weight"].item() == pytest.approx(expected)
