"""kyon_pl.hub.modelscope: its real client against a local ModelScope."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from limits import HANG_S
from modelscope_server import LARGE_BYTES, ModelScopeServer

from kyon_pl.data.reading.sources import SourceSettings, load_rows
from kyon_pl.errors import KyonError, MachineError, MissingFileError, SettingError
from kyon_pl.hub.download import MODEL_FILES, TOKENIZER_FILES, fetch_model

BASE, PRIVATE, DATA = "modelscope:ZhipuAI/chatglm2-6b", "modelscope:org/private", "modelscope:org/rows"
SHARD = "pytorch_model-00001-of-00001.bin"
CHUNK_BYTES = 2**20  # of the client
SHARD_BYTES = bytes(range(256)) * (3 * CHUNK_BYTES // 256)
WANTED = [*MODEL_FILES, *TOKENIZER_FILES]
ROW = '{"context": "c", "target": "t"}\n'


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScopeServer]:
    model, data = tmp_path / "model", tmp_path / "data"
    (data / "more").mkdir(parents=True)
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "modeling_chatglm.py").write_text("raise SystemExit('run')")
    (model / SHARD).write_bytes(SHARD_BYTES)
    (data / "train.jsonl").write_text(ROW * 3)
    (data / "test.jsonl").write_text(ROW)
    (data / "picture.png").write_bytes(b"no data")
    models, datasets = {"ZhipuAI/chatglm2-6b": model, "org/private": model}, {"org/rows": data, "org/private": data}
    with ModelScopeServer(models, datasets, private=("org/private",)) as server:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.endpoint)
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("MODELSCOPE_DOWNLOAD_INTRA_CLOUD", "false")  # asks the cloud for its region
        monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
        yield server


def fetch(name: str = BASE, revision: str | None = None) -> Path:
    return fetch_model(name, revision, patterns=WANTED)


def refused(name: str = BASE, revision: str | None = None) -> KyonError:
    with pytest.raises(KyonError) as error:
        fetch(name, revision)
    assert "\n" not in str(error.value)
    return error.value


def test_a_base_is_downloaded_once(server: ModelScopeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", SHARD]
    assert (folder / SHARD).read_bytes() == SHARD_BYTES
    server.log.clear()
    assert fetch() == folder
    assert all("/repo/files" in request for request in server.log)
    (tmp_path / "model/config.json").write_text("[]")  # of the same size
    assert (fetch() / "config.json").read_text() == "[]"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.log.clear()
    assert fetch() == folder
    assert isinstance(missing := refused("modelscope:org/other"), MissingFileError)
    assert "is not in the cache, and HF_HUB_OFFLINE forbids a download. Run once with a network" in str(missing)
    assert server.log == []


def test_rows_of_a_data_set(server: ModelScopeServer) -> None:
    rows = load_rows(SourceSettings(DATA))
    assert [Path(file).name for file in rows.files] == ["train.jsonl"]
    assert len(rows.dataset) == 3
    assert not any("picture" in request for request in server.log)
    assert len(load_rows(SourceSettings([DATA, "demo"], split="test")).dataset) == 1 + 92


def test_an_interrupted_download_is_resumed(server: ModelScopeServer) -> None:
    server.cut(SHARD, after_bytes=LARGE_BYTES)
    assert (fetch() / SHARD).read_bytes() == SHARD_BYTES
    assert any(request.endswith(f"bytes={LARGE_BYTES}-") for request in server.log)


def test_a_killed_download_is_resumed(server: ModelScopeServer, tmp_path: Path) -> None:
    server.stall(SHARD, after_bytes=2 * CHUNK_BYTES)
    call = f"from kyon_pl.hub.download import fetch_model; fetch_model({BASE!r}, None, patterns={WANTED!r})"
    with subprocess.Popen([sys.executable, "-c", call], env=os.environ) as process:
        assert server.stalled.wait(HANG_S)
        while not any(part.stat().st_size for part in tmp_path.rglob(f"{SHARD}.incomplete")):
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    server.log.clear()
    assert (fetch() / SHARD).read_bytes() == SHARD_BYTES
    (resumed,) = [request for request in server.log if request.startswith("GET /storage/")]
    assert int(resumed.rpartition("bytes=")[2].rstrip("-")) > 0


def test_a_private_repository(server: ModelScopeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "or it is private (404). Check the name; if it is private, set MODELSCOPE_API_TOKEN."
    assert isinstance(missing := refused(PRIVATE), MissingFileError)
    assert text in str(missing)
    login = tmp_path / "home/credentials/cookies"
    login.parent.mkdir(parents=True, exist_ok=True)
    login.write_bytes(f"cos\nmkdir\n(S'{tmp_path}/run'\ntR.".encode())  # a pickle that makes a folder
    assert text in str(refused(PRIVATE))
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-wrong")
    assert isinstance(denied := refused(PRIVATE), SettingError)
    assert "refuses the token (401)" in str(denied)
    assert "ms-wrong" not in str(denied)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", f"“{server.token}”")
    assert "the token holds an invalid character" in str(refused(PRIVATE))
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", server.token)
    assert (fetch(PRIVATE) / "config.json").is_file()


def test_the_message_of_each_error(server: ModelScopeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    host = server.endpoint.removeprefix("http://")
    for name, revision, kind, text in (
        ("modelscope:org/none", None, MissingFileError, f"there is no such model with a revision master at {host}"),
        (BASE, "v9", MissingFileError, f"there is no such model with a revision v9 at {host}"),
        ("modelscope:chatglm2-6b", None, SettingError, "it is no id of ModelScope. Write modelscope:OWNER/NAME."),
    ):
        error = refused(name, revision)
        assert isinstance(error, kind)
        assert text in str(error)
    for path in ("../../x.safetensors", "/etc/x.safetensors"):
        server.extra_paths = [path]
        assert f"the server names a file outside of the repository: {path!r}" in str(refused())
    for page in (b"<html>hello</html>", b'["a", "list"]'):
        server.page = page
        assert f"{host} is not ModelScope. Check MODELSCOPE_ENDPOINT and the proxy." in str(refused())


def test_a_server_that_is_down(monkeypatch: pytest.MonkeyPatch, server: ModelScopeServer) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://user:password@127.0.0.1:9")
    down = refused()
    assert "127.0.0.1:9 cannot serve it now (ConnectionRefusedError: [Errno 111] Connection refused)" in str(down)
    assert "Check the network and MODELSCOPE_ENDPOINT. Try again" in str(down)
    assert "password" not in str(down)


def test_a_cache_that_cannot_be_written(
    server: ModelScopeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "file"))
    assert isinstance(error := refused(), MachineError)
    assert "set MODELSCOPE_CACHE to another folder" in str(error)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kyon_pl.imports.find_spec", lambda package: None)
    assert isinstance(error := refused(), MachineError)
    assert "Install it with: pip install 'kyon-pl[modelscope]'" in str(error)
