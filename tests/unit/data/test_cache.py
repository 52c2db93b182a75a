"""Damaged files of the cache are built again, and say so; a cache that cannot be written is one paragraph."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets.config
import pytest
from datasets import Dataset

from kyon_pl.cli import main
from kyon_pl.data.cache import cached, downloaded
from kyon_pl.data.dialogue_data import DialogueData
from kyon_pl.data.encoding.table import EncodedTable
from kyon_pl.errors import DataError, MachineError

ROWS = 40


def change(edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(edit(file.read_bytes())) and None


def flip(content: bytes) -> bytes:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    bit = random.Random(seed).randrange(8 * len(content))
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "x").touch()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": change(lambda content: content[: len(content) // 2]),
    "one byte less": change(lambda content: content[:-1]),
    "one byte more": change(lambda content: content + b"\0"),
    "empty": change(lambda content: b""),
    "zeroed": change(lambda content: bytes(len(content))),
    "garbled": change(lambda content: random.Random(1).randbytes(len(content))),
    "flipped bit": change(flip),
    "folder": folder_instead,
    "missing": Path.unlink,
}
FILES = {
    "rows": "generator/*/0.0.0/generator-train*.arrow",
    "encoded rows": "generator/*/0.0.0/cache-*.arrow",
    "information": "generator/*/0.0.0/dataset_info.json",
    "checksums of rows": "generator/*.json",
    "checksums of encoded rows": "generator/*/0.0.0/*[0-9a-f].json",  # not dataset_info.json
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of rows, and the cache that is made of it."""
    folder = tmp_path_factory.mktemp("inputs")
    rows = ({"input_ids": [*range(1, 5 + i % 7), i], "seq_len": 2} for i in range(ROWS))
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    load(folder, folder / "cache")
    return folder


def load(inputs: Path, cache: Path) -> EncodedTable:
    data = DialogueData(str(inputs / "rows.jsonl"), workers=0, processes=1, cache_dir=str(cache))
    data.load("fit", verbose=False)
    return data.rows["train"].table


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_built_again_and_said_once(
    damage: str, file: str, inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = load(inputs, inputs / "cache")
    shutil.copytree(inputs / "cache", tmp_path / "cache")
    [path] = (tmp_path / "cache").glob(FILES[file])
    DAMAGES[damage](path)
    with caplog.at_level(logging.WARNING):
        again = load(inputs, tmp_path / "cache")
    assert (again.encoded[:], again.rows.dataset[:]) == (whole.encoded[:], whole.rows.dataset[:])
    [said] = [record.getMessage() for record in caplog.records]
    assert "the cache is damaged and built again" in said
    if path.suffix == ".arrow":
        assert str(path) in said
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert load(inputs, tmp_path / "cache").crc32 == whole.crc32
    assert not caplog.records


def test_refused_rows_leave_no_cache_that_is_called_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "rows.json").write_text("[" + '{"input_ids": [1, 2], "seq_len": 1},' * 2000 + "broken]")
    for _ in "12":
        with pytest.raises(DataError, match="broken JSON"):
            DialogueData(str(tmp_path / "rows.json"), processes=1, cache_dir=str(tmp_path / "cache")).load("fit")
    assert "damaged" not in caplog.text
    assert not [*(tmp_path / "cache").rglob("*.arrow")]


def test_any_flipped_bit_of_what_is_trained_on_is_noticed(inputs: Path, tmp_path: Path) -> None:
    whole = load(inputs, inputs / "cache").encoded[:]
    shutil.copytree(inputs / "cache", tmp_path / "cache")
    for _ in range(10):
        [path] = (tmp_path / "cache").glob(FILES["encoded rows"])
        DAMAGES["flipped bit"](path)
        assert load(inputs, tmp_path / "cache").encoded[:] == whole


def one_column(folder: Path, built: list[int]) -> Callable[[], Dataset]:
    def build() -> Dataset:
        built.append(1)
        rows = Dataset.from_dict({"number": [*range(ROWS)]})
        return rows.map(lambda row: row, cache_file_name=str(folder / "cache-f1.arrow"))

    return build


def test_one_of_several_readers_builds_and_the_others_wait(tmp_path: Path) -> None:
    built: list[int] = []
    read: list[Dataset] = []
    build = one_column(tmp_path, built)
    cached(tmp_path, "f1", build)
    (tmp_path / "cache-f1.arrow").write_bytes(b"")
    threads = [threading.Thread(target=lambda: read.append(cached(tmp_path, "f1", build))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 2
    assert [data["number"][:] for data in read] == [[*range(ROWS)]] * 4


def test_damaged_download_is_removed_and_only_that(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, other = tmp_path / "owner___name/0.0.0", tmp_path / "owner___other"
    folder.mkdir(parents=True)
    other.mkdir()
    built: list[int] = []
    build = one_column(folder, built)

    def fetch() -> Dataset:
        folder.mkdir(exist_ok=True)
        return Dataset.from_file(str(folder / "cache-f1.arrow")) if (folder / "cache-f1.arrow").exists() else build()

    for _ in range(2):
        downloaded(tmp_path, "f1", fetch)
    assert len(built) == 1
    DAMAGES["flipped bit"](folder / "cache-f1.arrow")
    assert downloaded(tmp_path, "f1", fetch)["number"][:] == [*range(ROWS)]
    assert len(built) == 2
    assert other.is_dir()
    assert str(folder) in caplog.text
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (tmp_path / "f1.json").write_text(json.dumps({f"../{outside.name}/x": [1, 1]}))
    downloaded(tmp_path, "f1", fetch)
    assert outside.is_dir()


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Folders that cannot be written by root either."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    folders = {"under a file": tmp_path / "file/x", "file": tmp_path / "file", "loop": tmp_path / "loop/x"}
    mounted = []
    for kind, option in (("read-only", "ro"), ("full", "size=4k,nr_inodes=1")):
        folder = tmp_path / kind
        folder.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", folder], capture_output=True).returncode == 0:
            mounted.append(folder)
            folders[kind] = folder / "datasets"
    yield folders
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("command", ["fit", "preview", "doctor"])
def test_default_cache_that_cannot_be_written_is_one_paragraph(
    command: str,
    unwritable: dict[str, Path],
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, folder in [*unwritable.items()][-1 if command == "fit" else 0 :]:  # fit loads the base first
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        with pytest.raises(SystemExit) as stopped:
            main([command, "--config", "demo"])
        printed, said = capsys.readouterr()
        text = " ".join((printed if command == "doctor" else said).split())
        assert stopped.value.code == (1 if command == "doctor" else 2), kind
        for part in (str(folder), "data.cache_dir", "HF_DATASETS_CACHE"):
            assert part in text, (kind, text)
        assert "stopped at step" not in text
        assert "last checkpoint" not in text
        if command == "doctor":
            assert f"disk for rows {folder} cannot be written" in text
    if command == "preview":
        main([command, "--config", "demo", "--data.cache_dir", str(tmp_path / "cache")])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES])
@pytest.mark.parametrize("place", ["rows", "encoded rows"])
def test_error_of_writing_the_cache_is_not_blamed_on_the_rows(
    place: str, number: int, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "cache/generator/file.arrow"))

    if place == "rows":
        monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.finalize", fail)
    else:
        load(inputs, tmp_path / "cache")
        [path] = (tmp_path / "cache").glob(FILES["encoded rows"])
        path.unlink()
        monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.finalize", fail)
    with pytest.raises(MachineError, match=os.strerror(number)) as stopped:
        load(inputs, tmp_path / "cache")
    assert "data.cache_dir" in str(stopped.value)
    assert str(tmp_path / "cache") in str(stopped.value)


def test_whole_cache_is_read_where_nothing_can_be_written(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs / "cache", tmp_path / "cache")
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path / "cache"]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a tmpfs")
    try:
        shutil.copytree(inputs / "cache", tmp_path / "cache", dirs_exist_ok=True)
        subprocess.run([*mount[:4], "remount,ro", *mount[5:]], check=True)
        assert load(inputs, tmp_path / "cache").crc32 == load(inputs, inputs / "cache").crc32
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "cache"], check=True)
