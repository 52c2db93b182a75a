"""The local Hub of the tests works with the real clients."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pandas
import pytest
from hub_protocol import TAG
from hub_server import HubServer, hub_environment
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import RemoteEntryNotFoundError

MODEL, JSONL, PARQUET = "THUDM/chatglm2-6b", "silk-road/Chat_Suzumiya_Fusion", "silk-road/Parquet"
ROWS = [{"context": f"春日：{i}", "target": "「好」"} for i in range(5)]


@pytest.fixture
def hub(tmp_path: Path):
    model, jsonl, parquet = tmp_path / "model", tmp_path / "jsonl", tmp_path / "parquet" / "data"
    for folder in (model / "sub", jsonl, parquet):
        folder.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "pytorch_model.bin").write_bytes(bytes(range(256)) * 400)
    (model / "sub" / "note.txt").write_text("hello world\n")
    (jsonl / "train.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    pandas.DataFrame(ROWS).to_parquet(parquet / "train-00000-of-00001.parquet")
    datasets = {JSONL: jsonl, PARQUET: parquet.parent}
    with HubServer(models={MODEL: model}, datasets=datasets, token="hf_right") as server:
        yield server


def test_a_snapshot_is_downloaded_once(hub: HubServer, tmp_path: Path) -> None:
    at = {"endpoint": hub.endpoint, "cache_dir": tmp_path / "cache", "token": "hf_right"}
    folder = Path(snapshot_download(MODEL, revision=TAG, **at))
    commit = hub.repositories["models", MODEL].commit
    assert folder.name == commit
    assert (folder / "pytorch_model.bin").read_bytes() == bytes(range(256)) * 400
    # the id of git: `printf 'hello world\n' | git hash-object --stdin`
    assert (folder / "sub" / "note.txt").resolve().name == "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"
    assert {request.authorized for request in hub.asked("* /large-files/*")} == {False}

    hub.log.clear()
    for revision in (TAG, "main", commit, None):
        assert Path(snapshot_download(MODEL, revision=revision, **at)) == folder
    assert not hub.asked("GET */resolve/*")
    assert not hub.asked("GET /large-files/*")


def test_a_new_commit_downloads_changed_files(hub: HubServer, tmp_path: Path) -> None:
    at = {"endpoint": hub.endpoint, "cache_dir": tmp_path / "cache"}
    old = Path(snapshot_download(MODEL, **at))
    (tmp_path / "model" / "config.json").write_text('{"new": 1}')
    assert hub.publish("models", MODEL, tmp_path / "model") != old.name
    hub.log.clear()
    new = Path(snapshot_download(MODEL, **at))
    assert (new / "config.json").read_text() == '{"new": 1}'
    assert [request.path for request in hub.asked("GET */resolve/*")] == [f"/{MODEL}/resolve/{new.name}/config.json"]
    assert not hub.asked("GET /large-files/*")


def test_a_missing_file_is_cached(hub: HubServer, tmp_path: Path) -> None:
    at = {"endpoint": hub.endpoint, "cache_dir": tmp_path / "cache"}
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(MODEL, "generation_config.json", **at)
    assert [path.name for path in (tmp_path / "cache").rglob(".no_exist/*/*")] == ["generation_config.json"]
    api = HfApi(endpoint=hub.endpoint)
    assert [ref.name for ref in api.list_repo_refs(MODEL).branches] == ["main"]
    assert [info.path for info in api.get_paths_info(MODEL, ["sub", "config.json", "none"])] == ["sub", "config.json"]


def test_datasets_loads_by_id(hub: HubServer, tmp_path: Path) -> None:
    script = (
        "import json, sys; from datasets import load_dataset\n"
        "for repo in sys.argv[1:]: print(json.dumps(load_dataset(repo, split='train').to_list()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, JSONL, PARQUET],
        env=hub_environment(hub, tmp_path / "home"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == [ROWS, ROWS]


def test_faults_happen_as_often_as_set(hub: HubServer) -> None:
    url = f"{hub.endpoint}/{MODEL}/resolve/main/sub/note.txt"
    hub.fail("GET */note.txt", status=429, times=2, headers={"Retry-After": "7"})
    for _ in range(2):
        with pytest.raises(HTTPError) as raised:
            urlopen(url)
        assert (raised.value.code, raised.value.headers["Retry-After"]) == (429, "7")
    assert urlopen(url).read() == b"hello world\n"
    with urlopen(Request(url, headers={"Range": "bytes=6-"})) as rest:
        assert (rest.status, rest.headers["Content-Range"], rest.read()) == (206, "bytes 6-11/12", b"world\n")
    assert [request.status for request in hub.log] == [429, 429, 200, 206]

    hub.bytes_per_second = 40.0
    start = time.monotonic()
    assert urlopen(url).read() == b"hello world\n"
    assert time.monotonic() - start > 0.25  # a lower bound: a busy machine only takes longer
