"""kyon_pl.hub against the local Hub: what arrives, what is tried again, and the text of each failure.

Every process costs half a second, so each takes several questions.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer, hub_environment

MODEL, GATED, PRIVATE, BOTH, DATA = "THUDM/chatglm2-6b", "org/gated", "org/private", "org/both", "silk-road/rows"
TOKEN = "hf_0123456789secret"
SHARD = "pytorch_model-00001-of-00001.bin"
SHARD_BYTES = bytes(range(256)) * 45_000  # 11.5 MB: huggingface_hub keeps what arrived in pieces of 10 MiB
ASK = """
import json, sys, traceback
from kyon_pl import hub
from kyon_pl.errors import KyonError

def load(repo, revision):
    from datasets import load_dataset
    return hub.from_hub(lambda: load_dataset(repo, revision=revision), repo, "dataset", revision).num_rows

def fetch(repo, revision):
    return str(hub.fetch_model(repo, revision, patterns=[*hub.MODEL_FILES, *hub.TOKENIZER_FILES]))

def explain(repo, revision):
    raise hub.explain_hub_error(ConnectionError(f"Couldn't reach '{repo}' on the Hub"), repo, "dataset", revision)

hub.RETRY_WAITS_SECONDS = (0.01, 0.01, 0.01)
ways = {"fetch": fetch, "load": load, "explain": explain, "config": lambda *at: str(hub.fetch_config(*at))}
for way, repo, revision in json.loads(sys.argv[1]):
    try:
        print(json.dumps(["ok", ways[way](repo, revision)]))
    except KyonError as error:
        traceback.print_exc()
        print(json.dumps([type(error).__name__, str(error)]))
"""


Question = tuple[str, str, "str | None"]


class Asker:
    """Asks `kyon_pl.hub` in a process of its own; nothing that it prints may hold the token."""

    def __init__(self, hub: HubServer, home: Path) -> None:
        self.hub, self.home, self.printed = hub, home, ""

    def __call__(self, *questions: Question, token: str | None = None, **env: str) -> list[list[str]]:
        environment = hub_environment(self.hub, self.home, token=token) | env
        command = [sys.executable, "-c", ASK, json.dumps(questions)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        self.printed = done.stdout + done.stderr
        assert TOKEN[3:] not in self.printed
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def hub(tmp_path: Path):
    model, both, data = tmp_path / "model", tmp_path / "both", tmp_path / "data"
    for folder in (model, both, data):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    (model / SHARD).write_bytes(SHARD_BYTES)
    (model / "modeling_chatglm.py").write_text("raise SystemExit('run')")
    (both / "model.safetensors").write_bytes(b"safe")
    (both / "pytorch_model.bin").write_bytes(b"pickled")
    (data / "config.json").unlink()
    (data / "train.jsonl").write_text('{"context": "c", "target": "t"}\n')
    models = {MODEL: model, GATED: model, PRIVATE: model, BOTH: both, "org/empty": data}
    datasets = {DATA: data, GATED: data, PRIVATE: data}
    with HubServer(models, datasets, token=TOKEN, private=(PRIVATE,), gated=(GATED,)) as server:
        yield server


@pytest.fixture
def ask(hub: HubServer, tmp_path: Path) -> Asker:
    return Asker(hub, tmp_path / "home")


def test_models_and_data_arrive(ask: Asker, hub: HubServer, tmp_path: Path) -> None:
    commit = hub.repositories["models", MODEL].commit
    questions = [("config", MODEL, None), ("fetch", MODEL, commit), ("fetch", BOTH, None), ("fetch", PRIVATE, None)]
    config, model, both, private = [Path(answer) for _, answer in ask(*questions, token=TOKEN)]
    assert config == model / "config.json"
    assert sorted(path.name for path in model.iterdir()) == ["config.json", SHARD]
    assert (private / SHARD).read_bytes() == (model / SHARD).read_bytes() == SHARD_BYTES
    assert sorted(path.name for path in both.iterdir()) == ["config.json", "model.safetensors"]

    local = tmp_path / "model"
    hub.log.clear()
    assert ask(("fetch", str(local), "v9"), ("fetch", MODEL, None)) == [["ok", str(local)], ["ok", str(model)]]
    assert "revision v9 is not looked at" in ask.printed
    assert not hub.asked("* */resolve/*")  # the second time nothing but the newest commit's id is asked for

    hub.fail("*", status=500, times=99)
    offline = ask(("fetch", MODEL, None), ("fetch", MODEL, "v1.0"), ("load", DATA, None), HF_HUB_OFFLINE="1")
    assert offline[0] == ["ok", str(model)]
    for kind, (name, text) in zip(("model", "dataset"), offline[1:], strict=True):
        assert name == "MissingFileError"
        assert text.startswith(f"{kind} ")
        assert "HF_HUB_OFFLINE forbids" in text
        assert "Run once with a network" in text


WHERE = {"fetch": "model", "load": "dataset"}
SAME = [
    (("fetch", "load"), "org/none", None, "MissingFileError", "there is no such {kind}, or it is private (404)"),
    (
        ("fetch", "load"),
        GATED,
        None,
        "SettingError",
        "Ask for access at {page}, then set HF_TOKEN, or run `hf",
    ),
    (("fetch",), MODEL, "v9", "MissingFileError", "revision v9, at {host}: the model is there, but not this revision"),
    (("load",), DATA, "v9", "MissingFileError", "revision v9, at {host}: the dataset is there, but not this revision"),
    (("fetch",), "org/empty", None, "MissingFileError", "at {host}: none of the wanted files is there (config.json, "),
    (("fetch",), "~nobody/../no such", None, "MissingFileError", "there is no such folder, and it is not the id"),
]


@pytest.mark.parametrize("token", [TOKEN, None])
def test_each_refusal_has_its_text(ask: Asker, hub: HubServer, token: str | None) -> None:
    cases = [(way, *case) for ways, *case in SAME for way in ways]
    if token is None:
        cases += [(way, PRIVATE, None, "MissingFileError", "or it is private (401)") for way in WHERE]
    answers = ask(*[(way, repo, revision) for way, repo, revision, *_ in cases], token=token)
    host = hub.endpoint.removeprefix("http://")
    for (way, repo, _, name, text), answer in zip(cases, answers, strict=True):
        page = f"{host}/{'datasets/' if way == 'load' else ''}{repo}"
        assert answer[0] == name, answer
        assert text.format(kind=WHERE[way], host=host, page=page) in answer[1]


def test_a_wrong_token_or_address_is_said_without_quoting_it(ask: Asker, hub: HubServer, tmp_path: Path) -> None:
    for answer in ask(("fetch", MODEL, None), ("load", DATA, None), token="hf_wrong"):
        assert answer[0] == "SettingError"
        assert "it refuses the token of this machine (401). Check the name, then set HF_TOKEN" in answer[1]
    [answer] = ask(("fetch", MODEL, None), token=f"“{TOKEN}”")
    assert answer[0] == "SettingError"
    assert "the token holds a character that no token has" in answer[1]
    [answer] = ask(("fetch", MODEL, None), HF_ENDPOINT="user:password@hf-mirror.com")
    assert answer[0] == "SettingError"
    assert answer[1].startswith("HF_ENDPOINT: the address does not begin with http:// or https://")
    assert "password" not in ask.printed
    [answer] = ask(("fetch", MODEL, None), HF_ENDPOINT="http://user:password@127.0.0.1:9")
    assert f"model {MODEL} at 127.0.0.1:9: not all of it is in the cache" in answer[1]


def test_what_is_neither_the_hub_nor_the_network(ask: Asker, hub: HubServer, tmp_path: Path) -> None:
    hub.fail("GET /api/*", status=200)  # an empty page, as of a proxy that answers for everyone
    (tmp_path / "file").touch()
    [page] = ask(("fetch", MODEL, None))
    [cache] = ask(("fetch", MODEL, None), HF_HOME=str(tmp_path / "file"))
    assert page[0] == "SettingError"
    assert "what answers there is not a Hub. Check HF_ENDPOINT and the proxy." in page[1]
    assert cache[0] == "MachineError"
    assert cache[1].startswith(str(tmp_path / "file"))
    assert "set HF_HOME to another folder" in cache[1]


def test_bad_weather_passes(ask: Asker, hub: HubServer) -> None:
    hub.fail(f"GET /api/models/{MODEL}/revision/*", status=503, times=2)
    hub.fail(f"GET /api/models/{MODEL}/revision/*", status=429, headers={"Retry-After": "1"})
    hub.cut("GET /large-files/*", after_bytes=11_000_000)
    hub.cut("GET /large-files/*", after_bytes=50_000, reset=True)
    hub.fail("GET /large-files/*", status=500)
    hub.fail("GET */train.jsonl", status=503)
    [_, folder], [name, rows] = ask(("fetch", MODEL, None), ("load", DATA, None))
    assert (Path(folder) / SHARD).read_bytes() == SHARD_BYTES
    assert (name, rows) == ("ok", {"train": 1})
    assert "model THUDM/chatglm2-6b: 503 Service Unavailable; trying again in 0.01 s" in ask.printed
    assert "429 Too Many Requests; trying again in 1 s" in ask.printed
    asked = [(request.range, request.status) for request in hub.asked("GET /large-files/*")]
    assert asked[:2] == [(None, 200), ("bytes=10485760-", 206)]  # cut politely: the client goes on where it was
    assert asked[-1][1] in (200, 206)
    assert 500 in [status for _, status in asked]


def test_bad_weather_that_stays_is_said(ask: Asker, hub: HubServer) -> None:
    hub.fail(f"GET /api/models/{MODEL}/*", status=503, times=99)
    [[name, text]] = ask(("fetch", MODEL, None))
    assert name == "MissingFileError"
    assert "the Hub does not give it out now (503 Service Unavailable). Try again later" in text
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
