"""Every public method of Lightning's Trainer and of its Tuner works with the classes, or is refused by name.

`docs/library.md` has the table, which these tests hold to what they find.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.tuner import Tuner

from kyon_pl import ChatGLM2LoRA, DialogueDataModule
from kyon_pl.errors import SettingError

PAGE = Path(__file__).parents[3] / "docs/library.md"
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


class Life:
    """A trained module, its trainer and its data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = DialogueDataModule(
            "demo", tokenizer="demo", max_tokens=256, tokens_per_batch=512, workers=0, processes=1
        )
        self.module = ChatGLM2LoRA(base="demo", checkpointing="none", max_new_tokens=2)
        limits = {f"limit_{name}_batches": 1 for name in ("val", "test", "predict")}
        self.trainer = Trainer(max_steps=1, enable_model_summary=False, **QUIET | limits)  # type: ignore[arg-type]
        self.trainer.fit(self.module, datamodule=self.data)

    def fit(self) -> None:
        assert self.trainer.global_step == 1

    def validate(self) -> None:
        (values,) = self.trainer.validate(self.module, datamodule=self.data, verbose=False)
        assert values["val/loss"] > 0

    def test(self) -> None:
        (values,) = self.trainer.test(self.module, datamodule=self.data, verbose=False)
        assert values["test/loss"] > 0

    def predict(self) -> None:
        batches: Any = self.trainer.predict(self.module, datamodule=self.data)
        assert all(row["prompt"] and isinstance(row["reply"], str) for rows in batches for row in rows)

    def save_checkpoint(self) -> None:
        self.trainer.save_checkpoint(self.folder / "x.ckpt")
        assert ChatGLM2LoRA.load_from_checkpoint(self.folder / "x.ckpt").frozen_base.name == "demo"

    def init_module(self) -> None:
        with self.trainer.init_module(empty_init=True):
            made = ChatGLM2LoRA(base="demo")
        assert Trainer(**QUIET, limit_val_batches=1).validate(made, datamodule=self.data, verbose=False)  # type: ignore[arg-type]

    def print(self) -> None:
        self.trainer.print("printed")


def tune(method: Callable[..., object]) -> Callable[[Life], object]:
    """A method of a new Tuner, with the module and the data."""
    return lambda life: method(Tuner(Trainer(max_steps=1, **QUIET)), ChatGLM2LoRA(base="demo"), datamodule=life.data)  # type: ignore[arg-type]


METHODS: dict[str, Callable[[Life], object]] = {
    **{f"Trainer.{name}": method for name, method in vars(Life).items() if not name.startswith("_")},
    **{f"Tuner.{name}": tune(getattr(Tuner, name)) for name in ("lr_find", "scale_batch_size")},
}


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    return Life(tmp_path_factory.mktemp("life"))


def test_the_list_of_methods_is_lightning_s() -> None:
    found = {
        f"{kind.__name__}.{name}"
        for kind in (Trainer, Tuner)
        for name, _ in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }
    assert METHODS.keys() == found


@pytest.mark.parametrize("name", METHODS)
def test_method(life: Life, name: str) -> None:
    try:
        METHODS[name](life)
        found = "works"
    except SettingError as error:
        found = f"refused: {error.found.partition(': ')[2]}. {error.fix}"
    assert f"| `{name}` | {found} |" in PAGE.read_text(encoding="utf-8").splitlines()
