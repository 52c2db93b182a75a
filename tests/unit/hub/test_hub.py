"""kyon_pl.hub.download against a local Hub: downloads, retries, and the message of each error.

A process takes half a second to start, so each makes several downloads.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_asker import TOKEN, Asker
from hub_server import HubServer

MODEL, GATED, PRIVATE, BOTH, DATA = "THUDM/chatglm2-6b", "org/gated", "org/private", "org/both", "silk-road/rows"
ADAPTER, ADAPTER_FILES = "org/adapter", ["adapter_config.json", "adapter_model.safetensors"]
SHARD = "pytorch_model-00001-of-00001.bin"
SHARD_BYTES = bytes(range(256)) * 400


@pytest.fixture
def hub(tmp_path: Path):
    model, both, data, adapter = (tmp_path / name for name in ("model", "both", "data", "adapter"))
    for folder in (model, both, data, adapter):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    for name in (*ADAPTER_FILES, "optimizer.pt", "README.md"):
        (adapter / name).write_text(name)
    (model / SHARD).write_bytes(SHARD_BYTES)
    (model / "modeling_chatglm.py").write_text("raise SystemExit('run')")
    (both / "model.safetensors").write_bytes(b"safe")
    (both / "pytorch_model.bin").write_bytes(b"pickled")
    (data / "config.json").unlink()
    (data / "train.jsonl").write_text('{"context": "c", "target": "t"}\n')
    models = {MODEL: model, GATED: model, PRIVATE: model, BOTH: both, ADAPTER: adapter, "org/empty": data}
    datasets = {DATA: data, GATED: data, PRIVATE: data}
    with HubServer(models, datasets, token=TOKEN, private=(PRIVATE,), gated=(GATED,)) as server:
        yield server


@pytest.fixture
def ask(hub: HubServer, tmp_path: Path) -> Asker:
    return Asker(hub, tmp_path / "home")


def test_models_and_data_are_downloaded(ask: Asker, hub: HubServer, tmp_path: Path) -> None:
    commit = hub.repositories["models", MODEL].commit
    questions = [("config", MODEL, None), ("fetch", MODEL, commit), ("fetch", BOTH, None), ("fetch", PRIVATE, None)]
    questions += [("adapter", ADAPTER, "v1.0"), ("load", PRIVATE, None)]
    answers = [answer for _, answer in ask(*questions, token=TOKEN)]
    config, model, both, private, adapter = map(Path, answers[:5])
    assert config == model / "config.json"
    assert sorted(path.name for path in model.iterdir()) == ["config.json", SHARD]
    assert (private / SHARD).read_bytes() == (model / SHARD).read_bytes() == SHARD_BYTES
    assert sorted(path.name for path in both.iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in adapter.iterdir()) == ADAPTER_FILES
    assert (
        ask.printed.count(f"model {MODEL} at {hub.endpoint.removeprefix('http://')}: downloading what is not yet") == 1
    )

    local = tmp_path / "model"
    hub.log.clear()
    assert ask(("fetch", str(local), "v9"), ("fetch", MODEL, None)) == [["ok", str(local)], ["ok", str(model)]]
    assert "downloading" not in ask.printed
    assert "revision v9 is ignored" in ask.printed
    assert not hub.asked("* */resolve/*")  # only the newest commit's id is requested again

    hub.fail("*", status=500, times=99)
    cached, missing = (
        [("fetch", MODEL, None), ("load", PRIVATE, None)],
        [("fetch", MODEL, "v1.0"), ("load", DATA, None)],
    )
    offline = ask(*cached, *missing, HF_HUB_OFFLINE="1")
    assert offline[:2] == [["ok", str(model)], ["ok", 1]]
    assert "downloading" not in ask.printed
    for kind, (name, text) in zip(("model", "dataset"), offline[2:], strict=True):
        assert name == "MissingFileError"
        assert text.startswith(f"{kind} ")
        assert "HF_HUB_OFFLINE forbids a download" in text
        assert "Run once with a network" in text


WHERE = {"fetch": "model", "load": "dataset", "adapter": "model"}
SAME = [
    (("load",), "org/none", None, "MissingFileError", "there is no such {kind}, or it is private (404)"),
    (
        ("fetch", "load"),
        GATED,
        None,
        "SettingError",
        "Ask for access at {host}/{path}, or at huggingface.co/{path} if that is a mirror, then set HF_TOKEN",
    ),
    (("fetch",), MODEL, "v9", "MissingFileError", "revision v9, at {host}: the model is there, but not this revision"),
    (("load",), DATA, "v9", "MissingFileError", "revision v9, at {host}: the dataset is there, but not this revision"),
    (("fetch", "adapter"), "org/none", None, "MissingFileError", "there is no such {kind}, or it is private (404)"),
    (
        ("adapter",),
        MODEL,
        None,
        "MissingFileError",
        "none of the wanted files is there (adapter_config.json, adapter_model",
    ),
    (("fetch",), "org/empty", None, "MissingFileError", "at {host}: none of the wanted files is there (config.json, "),
    (("fetch",), "~nobody/../no such", None, "MissingFileError", "there is no such folder, and it is not the id"),
]


@pytest.mark.parametrize("token", [TOKEN, None])
def test_the_message_of_each_error(ask: Asker, hub: HubServer, token: str | None) -> None:
    cases = [(way, *case) for ways, *case in SAME for way in ways]
    if token is None:
        cases += [(way, PRIVATE, None, "MissingFileError", "or it is private (401)") for way in ("fetch", "load")]
    answers = ask(*[(way, repo, revision) for way, repo, revision, *_ in cases], token=token)
    host = hub.endpoint.removeprefix("http://")
    for (way, repo, _, name, text), answer in zip(cases, answers, strict=True):
        path = f"{'datasets/' if way == 'load' else ''}{repo}"
        assert answer[0] == name, answer
        assert text.format(kind=WHERE[way], host=host, path=path) in answer[1]


def test_a_wrong_token_or_address_is_not_quoted(ask: Asker, hub: HubServer, tmp_path: Path) -> None:
    for answer in ask(("fetch", MODEL, None), ("load", DATA, None), token="hf_wrong"):
        assert answer[0] == "SettingError"
        assert "it refuses the token of this machine (401). Check the name, then set HF_TOKEN" in answer[1]
    [answer] = ask(("fetch", MODEL, None), token=f"“{TOKEN}”")
    assert answer[0] == "SettingError"
    assert "the token holds an invalid character" in answer[1]
    [answer] = ask(("fetch", MODEL, None), HF_ENDPOINT="user:password@hf-mirror.com")
    assert answer[0] == "SettingError"
    assert answer[1].startswith("HF_ENDPOINT: the address does not begin with http:// or https://")
    assert "password" not in ask.printed
    [answer] = ask(("fetch", MODEL, None), HF_ENDPOINT="http://user:password@127.0.0.1:9")
    assert f"model {MODEL} at 127.0.0.1:9: not all of it is in the cache" in answer[1]


def test_errors_of_a_proxy_and_of_the_disk(ask: Asker, hub: HubServer, tmp_path: Path) -> None:
    hub.fail("GET /api/*", status=200)  # an empty page, as from a proxy
    (tmp_path / "file").touch()
    [page] = ask(("fetch", MODEL, None))
    [cache] = ask(("fetch", MODEL, None), HF_HOME=str(tmp_path / "file"))
    assert page[0] == "SettingError"
    assert "the server there is not a Hub. Check HF_ENDPOINT and the proxy." in page[1]
    assert cache[0] == "MachineError"
    assert cache[1].startswith(str(tmp_path / "file"))
    assert "set HF_HOME to another folder" in cache[1]


def test_retries_wait_as_the_hub_asks(ask: Asker, hub: HubServer) -> None:
    hub.fail(f"GET /api/models/{MODEL}/revision/*", status=503, times=2)
    hub.fail(f"GET /api/models/{MODEL}/revision/*", status=429, headers={"Retry-After": "1"})
    hub.fail("GET /large-files/*", status=500)
    [[_, folder]] = ask(("fetch", MODEL, None))
    assert (Path(folder) / SHARD).read_bytes() == SHARD_BYTES
    assert "model THUDM/chatglm2-6b: 503 Service Unavailable; trying again in 0.01 s" in ask.printed
    assert "429 Too Many Requests; trying again in 1 s" in ask.printed
    assert [request.status for request in hub.asked("GET /large-files/*")] == [500, 200]


def test_the_message_after_the_last_retry(ask: Asker, hub: HubServer) -> None:
    hub.fail(f"GET /api/models/{MODEL}/*", status=503, times=99)
    [[name, text]] = ask(("fetch", MODEL, None))
    assert name == "MissingFileError"
    assert "the Hub cannot serve it now (503 Service Unavailable). Try again later" in text
    assert len(hub.asked(f"GET /api/models/{MODEL}/revision/main")) == 4

    ask(("fetch", BOTH, None))
    hub.__exit__()
    (cached, _), (name, text), (data_name, data_text) = ask(
        ("fetch", BOTH, None), ("fetch", MODEL, None), ("explain", DATA, None)
    )
    assert cached == "ok"
    assert name == data_name == "MissingFileError"
    for said in (text, data_text):
        assert "the Hub is out of reach (ConnectError: [Errno 111] Connection refused)" in said
        assert "set HF_ENDPOINT to a mirror" in said
