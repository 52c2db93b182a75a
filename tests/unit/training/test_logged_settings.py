"""What loggers get as hyperparameters."""

from __future__ import annotations

import json

from kyon_pl.training.loggers import all_settings


def test_what_is_set_is_logged_by_the_names_of_the_command_line() -> None:
    settings = {
        "model.base": "demo",
        "model.lora.init_args.r": 16,
        "data.sources": ["绵卷", "灯草"],
        "data.test_source": None,
        "data.shuffle": False,
        "trainer.callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}],
        "seed_everything": 1,
    }
    assert all_settings({key: json.dumps(value) for key, value in settings.items()}) == {
        "model.base": "demo",
        "model.lora.r": 16,
        "data.sources": '["绵卷", "灯草"]',
    }
