"""A checkpoint in which something was altered or is missing is not trained on from, and the something is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from compare import load
from mutations import MUTATIONS
from runs import ForkServers, Way, only_run, write_inputs

WAY = Way()
IN_EVERY_RUN = ("scheduler altered", "data position removed", "lora_B removed")
# a scaler's state is there in 16-mixed only, which needs a GPU
CASES = [
    pytest.param(name, marks=[] if name in IN_EVERY_RUN else pytest.mark.slow)
    for name in MUTATIONS
    if "scaler" not in name
]


@pytest.fixture(scope="module")
def killed_run(servers: ForkServers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder."""
    folder = tmp_path_factory.mktemp("killed") / "inputs"
    write_inputs(folder, WAY)
    statuses, said = servers.fit(folder, WAY, f"late on_train_batch_end {WAY.batches_per_epoch + 2}")
    assert statuses == [-9], said[-3000:]
    return folder


def mark(file: Path) -> None:
    """Make a changed checkpoint look whole, so that what is in it is looked at."""
    marker = file.with_suffix("") / "COMPLETE"
    record = json.loads(marker.read_text())
    record["checkpoint"] = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    marker.write_text(json.dumps(record))


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_by_name(name: str, killed_run: Path, servers: ForkServers, tmp_path: Path) -> None:
    newest = only_run(killed_run) / f"checkpoints/step={WAY.steps_per_epoch + 1}.ckpt"
    whole = newest.read_bytes()
    checkpoint = load(newest)
    MUTATIONS[name].change(checkpoint)
    torch.save(checkpoint, newest)
    mark(newest)
    try:
        statuses, said = servers.fit(killed_run, WAY)
    finally:
        newest.write_bytes(whole)
        mark(newest)
    assert statuses == [2], said[-3000:]
    paragraph = said.strip().splitlines()[-1]
    assert paragraph.startswith("kyon-pl fit: ")
    assert MUTATIONS[name].named in paragraph
