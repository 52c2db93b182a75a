"""The files that one row passes through from its source to the loss, as the last line of the output, in JSON.

    PYTHONPATH=DIR python benchmarks/house_row.py

Trains one optimizer step of the demo on a CPU, without workers, validation and a cache of earlier runs. A file of
kyon_pl counts if one of its functions is called

- in the data module's prepare_data, setup or train_dataloader,
- while the data loader makes a batch, or
- in the training step, which contains the model's forward and ends with the loss.

What the data module reports on its rows and checks of settings are part of its setup, and count. Loading the base,
the optimizer, callbacks and the command line do not count, nor do functions that are called while a module is imported.
All modules are found through `kyon_pl.DialogueDataModule` and `kyon_pl.ChatGLM2LoRA`, wherever they are defined.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

import kyon_pl


class Tracer:
    """A profile function that collects the files of functions that are called inside some others.

    Args:
        windows: the functions inside which is collected; they are included.
    """

    def __init__(self, windows: list[Any]) -> None:
        self.windows = frozenset(inspect.unwrap(window).__code__ for window in windows)
        self.uncalled = {*self.windows}
        self.files: set[str] = set()
        self._open_windows = 0
        self._open_imports = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """See `sys.setprofile`; a call ends with `return` where it raises, too."""
        if event not in ("call", "return"):
            return
        code, change = frame.f_code, 1 if event == "call" else -1
        self._open_windows += change * (code in self.windows)
        self._open_imports += change * (code.co_name == "<module>")
        is_function = code.co_flags & inspect.CO_OPTIMIZED  # neither a module nor the body of a class
        if event == "call" and self._open_windows and not self._open_imports and is_function:
            self.uncalled.discard(code)
            self.files.add(code.co_filename)


def main() -> None:
    """Train, and print.

    Raises:
        RuntimeError: a function that is traced was not called, so files are missing.
    """
    data_module, module = kyon_pl.DialogueDataModule, kyon_pl.ChatGLM2LoRA
    makes_batches = type(iter(DataLoader([0])))  # type: ignore[arg-type]
    windows = [data_module.prepare_data, data_module.setup, data_module.train_dataloader, module.training_step]
    tracer = Tracer([*windows, DataLoader.__iter__, makes_batches.__next__])
    with tempfile.TemporaryDirectory() as folder:
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(max_steps=1, accelerator="cpu", devices=1, limit_val_batches=0, **quiet)
        model = module(base="demo")
        data = data_module(source="demo", tokenizer="demo", workers=0, processes=1, cache_dir=folder)
        sys.setprofile(tracer)
        try:
            trainer.fit(model, data)
        finally:
            sys.setprofile(None)
    if tracer.uncalled:
        raise RuntimeError(f"not called: {', '.join(sorted(code.co_name for code in tracer.uncalled))}")
    package = Path(str(kyon_pl.__file__)).resolve().parent
    files = {Path(name).resolve() for name in tracer.files}
    print(json.dumps(sorted(str(file) for file in files if file.is_relative_to(package))))


if __name__ == "__main__":
    main()
