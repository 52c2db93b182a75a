"""Outputs: what may be replaced, and that it is replaced whole or not at all."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kyon_pl.data.report import bad_rows_output, jsonl_writer
from kyon_pl.errors import KyonError, MachineError, SettingError
from kyon_pl.outputs import Output, check_outputs, output_file, resolve, rows_with, writing
from kyon_pl.preview.histogram import png_output, write_png
from kyon_pl.roles.build import output_of_rows, write_rows
from kyon_pl.roles.rows import COLUMNS

KEYS = ("row", "text")
OURS, THEIRS = '{"row": 1, "text": "a"}\n', '{"text": "a"}\n'


def output(path: Path) -> Output:
    return output_file("--list", path, rows_with(KEYS))


def contents(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/a.jsonl").write_text(OURS)
    (tmp_path / "theirs.jsonl").write_text(THEIRS)
    (tmp_path / "input.jsonl").write_text(OURS)
    (tmp_path / "link.jsonl").symlink_to("input.jsonl")
    (tmp_path / "link").symlink_to("rows", target_is_directory=True)
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "input.jsonl")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


REFUSED = {
    "the input": ("input.jsonl", "is read as data.source"),
    "a link to the input": ("link.jsonl", "is read as data.source"),
    "a hard link to the input": ("hard.jsonl", "is read as data.source"),
    "a way round to the input": ("rows/../input.jsonl", "is read as data.source"),
    "a new file in a folder that is read": ("rows/new.jsonl", "is read as data.folder"),
    "such a folder by a link": ("link/new.jsonl", "is read as data.folder"),
    "a new file that a glob includes": ("train_new.jsonl", "is read as data.glob"),
    "a file from elsewhere": ("theirs.jsonl", "exists and is from elsewhere"),
    "a folder": ("rows", "is read as data.folder"),
    "the current folder": (".", "is a folder"),
    "a pipe": ("pipe", "is no regular file"),
    "a device": ("/dev/null", "is no regular file"),
    "nothing": ("", "'' is no path"),
    "a NUL": ("a\0b", "is no path"),
    "too long a name": ("x" * 5000, "File name too long"),
    "an unknown user": ("~no-such-user/x.jsonl", "home directory"),
    "below a file": ("input.jsonl/x.jsonl", "Not a directory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    name, found = REFUSED[case]
    before = contents(folder)
    inputs = {"data.source": "input.jsonl", "data.folder": ["rows"], "data.glob": "train_*.jsonl", "data.no": None}
    with pytest.raises(SettingError, match=found):
        check_outputs([output_file("--list", name, rows_with(KEYS))], inputs)
    assert contents(folder) == before


def test_two_outputs_are_not_one_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a.jsonl")
    check_outputs([output(tmp_path / "a.jsonl"), output(tmp_path / "b.jsonl")], {})
    with pytest.raises(SettingError, match="is also written as --list"):
        check_outputs([output(tmp_path / "a.jsonl"), output(tmp_path / "link")], {})


@pytest.mark.parametrize("before", [None, "", OURS])
def test_replaced_whole_or_not_at_all(tmp_path: Path, before: str | None) -> None:
    """By the way of a link: the link stays one."""
    (tmp_path / "link.jsonl").symlink_to("new/a.jsonl")
    target = tmp_path / "new/a.jsonl"
    if before is not None:
        target.parent.mkdir()
        target.write_text(before)

    def stop() -> None:
        with writing(output(tmp_path / "link.jsonl")) as written:
            written.write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stop()
    assert contents(tmp_path).get("new/a.jsonl", b"") == (before or "").encode()
    with writing(output(tmp_path / "link.jsonl")) as written:
        written.write_text("whole")
        assert target.exists() == (before is not None)
    assert contents(tmp_path) == {"new/a.jsonl": b"whole", "link.jsonl": "new/a.jsonl"}


def test_one_writer(tmp_path: Path) -> None:
    with writing(output(tmp_path / "a.jsonl")) as written:
        written.write_text("first")
        with pytest.raises(MachineError, match=r"a\.jsonl: process \d+ on .* is writing it"):  # noqa: SIM117
            with writing(output(tmp_path / "a.jsonl")):
                pass
        assert written.read_text() == "first"
    assert contents(tmp_path) == {"a.jsonl": b"first"}


def test_a_file_that_comes_while_the_output_is_written_stays(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="from elsewhere"), writing(output(tmp_path / "a.jsonl")):
        (tmp_path / "a.jsonl").write_text(THEIRS)
    assert contents(tmp_path) == {"a.jsonl": THEIRS.encode()}


def test_a_place_that_cannot_be_written() -> None:
    with pytest.raises(MachineError, match=r"/proc/x\.jsonl cannot be written"), writing(output(Path("/proc/x.jsonl"))):
        pass


def test_an_input_that_cannot_be_read_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, writing(output(tmp_path / "a.jsonl")):
        Path("/nowhere/input").read_bytes()
    assert not isinstance(raised.value, KyonError)


def picture(folder: Path, size: int) -> None:
    lengths = np.arange(1, size + 1)
    write_png(png_output(str(folder / "a.png")), lengths, lengths, None)


def bad_rows(folder: Path, size: int) -> None:
    row = {"file": "", "line": 1, "left_out": True, "problem": "x" * 60, "odd": [], "target": ""}
    with jsonl_writer(bad_rows_output(str(folder / "a.jsonl"))) as write:
        for _ in range(size):
            write(row)


def rows(suffix: str) -> Callable[[Path, int], None]:
    def write(folder: Path, size: int) -> None:
        made = ({name: f"{name} {number**9}" for name in COLUMNS} for number in range(size))
        write_rows(output_of_rows(str(folder / f"a{suffix}")), made)

    return write


WRITERS = {"picture": picture, "bad rows": bad_rows, "jsonl": rows(".jsonl"), "parquet": rows(".parquet")}


@contextmanager
def full_disk(file_bytes: int = 4096) -> Iterator[None]:
    """No file can be longer: writing fails like on a full disk, when a buffer is flushed or a file is closed."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_ours_is_replaced_and_survives_a_full_disk(kind: str, tmp_path: Path) -> None:
    write = WRITERS[kind]
    write(tmp_path, 1)
    first = contents(tmp_path)
    write(tmp_path, 2)
    second = contents(tmp_path)
    assert len(second) == 1
    assert first != second
    for size in (40, 5000):
        with full_disk(), pytest.raises(MachineError, match=r"a\.\w+ cannot be written"):
            write(tmp_path, size)
        assert contents(tmp_path) == second
    (name,) = second
    (tmp_path / name).write_bytes(b"of the user")
    with pytest.raises(SettingError, match="from elsewhere"):
        write(tmp_path, 1)
    assert contents(tmp_path) == {name: b"of the user"}


def test_a_parquet_file_with_other_columns_is_not_ours(tmp_path: Path) -> None:
    WRITERS["parquet"](tmp_path, 1)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole.replace(b"dialogue", b"dialogues"[:7] + b"x"))
    with pytest.raises(SettingError, match="from elsewhere"):
        WRITERS["parquet"](tmp_path, 1)


def test_a_path_is_absolute_and_in_the_home_of_its_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert resolve("--x", "~/a/../b") == resolve("--x", "b") == tmp_path / "b"
    assert json.loads(OURS).keys() == set(KEYS)
