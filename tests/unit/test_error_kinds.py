from __future__ import annotations

import pickle

import pytest

from kyon_pl.errors import (
    CheckpointError,
    DataError,
    KyonError,
    MachineError,
    MissingFileError,
    SettingError,
    TrainingError,
)

KINDS = {
    SettingError: ValueError,
    DataError: ValueError,
    MissingFileError: FileNotFoundError,
    CheckpointError: RuntimeError,
    MachineError: RuntimeError,
    TrainingError: RuntimeError,
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_what_callers_expect_and_cross_processes(kind: type[KyonError]) -> None:
    error = pickle.loads(pickle.dumps(kind("rows.jsonl line 3", "no target", "Add one")))
    assert isinstance(error, KINDS[kind])
    assert isinstance(error, KyonError)
    assert str(error) == "rows.jsonl line 3: no target. Add one."
