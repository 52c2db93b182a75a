"""Written files and folders have the modes of the user's umask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapters_made import live_model, written_adapter

from kyon_pl.export.convert_adapter import convert_adapter
from kyon_pl.export.merge import merge
from kyon_pl.lora import trainable_names, write_adapter
from kyon_pl.runs.checkpoint_io import AdapterCheckpointIO


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_written_files_have_the_modes_of_the_umask(umask: int, tmp_path: Path) -> None:
    adapter = written_adapter("fused", tmp_path / "new/adapter")
    written_adapter("fused", adapter)  # over an adapter
    model = live_model("fused")
    trained = trainable_names(model)
    state = {name: value for name, value in model.state_dict().items() if name in trained}
    writer = AdapterCheckpointIO(lambda state, folder: write_adapter(model, state, folder), "data: {}\n")
    writer.save_checkpoint({"state_dict": state, "global_step": 1}, tmp_path / "new/checkpoints/step=1.ckpt")
    for form in ("chatglm", "glm"):
        merge(tmp_path / f"new/{form}", str(adapter), format=form)  # type: ignore[arg-type]
    convert_adapter(tmp_path / "new/converted", str(adapter))
    modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "new").rglob("*")}
    assert {path.suffix for path in modes} >= {".safetensors", ".json", ".ckpt", ".yaml", ".model", ""}
    wrong = {
        path.relative_to(tmp_path): oct(mode)
        for path, mode in modes.items()
        if mode != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert wrong == {}
