"""Each kind of network fault, for a model and for a data set."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
from hub_asker import TOKEN, Asker
from hub_server import HubServer
from packaging.version import Version

HUB_1 = Version(version("huggingface_hub")) < Version("2")
CHUNK = 10 * 2**20  # huggingface_hub writes pieces of this size, and resumes after the last one
LARGE, SMALL = 11_500_000, 1_000
CUT = CHUNK + 9
WEIGHTS, ROWS = "model.safetensors", "train.jsonl"
IMPATIENT = {
    "HF_HUB_DOWNLOAD_TIMEOUT": "2",
    "HF_HUB_ETAG_TIMEOUT": "2",
}  # seconds; 1 fails if the machine is busy
LARGEST = {"models": WEIGHTS, "datasets": ROWS}
WAYS = {"models": "fetch", "datasets": "load"}


class Weather(NamedTuple):
    """A fault of the first requests that match a pattern; then the first byte and the status of each request."""

    inject: Callable[[HubServer, str], None]
    requests: list[tuple[int | None, int]]
    size: int = SMALL


BODIES = {
    "closed in the middle": Weather(
        lambda hub, body: hub.cut(body, after_bytes=CUT), [(None, 200), (CHUNK, 206)], LARGE
    ),
    "silent in the middle": Weather(
        lambda hub, body: hub.stall(body, after_bytes=CUT), [(None, 200), (CHUNK, 206)], LARGE
    ),
    # huggingface_hub 2.4 restarts a file after a reset
    "reset": Weather(lambda hub, body: hub.cut(body, after_bytes=CUT, reset=True), [(None, 200)] * 2, LARGE),
    "silent from the start": Weather(lambda hub, body: hub.stall(body, after_bytes=-1), [(None, 200)] * 2),
    "429": Weather(lambda hub, body: hub.fail(body, status=429), [(None, 429), (None, 200)]),
    "500": Weather(lambda hub, body: hub.fail(body, status=500), [(None, 500), (None, 200)]),
    "503": Weather(lambda hub, body: hub.fail(body, status=503), [(None, 503), (None, 200)]),
}
LOOK_UPS = {
    "commit silent": Weather(lambda hub, asked: hub.stall(asked, after_bytes=-1), [(None, 200)] * 2),
    "commit 429": Weather(lambda hub, asked: hub.fail(asked, status=429), [(None, 429), (None, 200)]),
    "commit 503": Weather(lambda hub, asked: hub.fail(asked, status=503), [(None, 503), (None, 200)]),
    "files silent": Weather(lambda hub, asked: hub.stall(asked, after_bytes=-1), [(None, 200)] * 2),
    "files 500": Weather(lambda hub, asked: hub.fail(asked, status=500), [(None, 500), (None, 200)]),
    "size silent": Weather(lambda hub, asked: hub.stall(asked, after_bytes=-1), [(None, 200)] * 2),
    "size 503": Weather(lambda hub, asked: hub.fail(asked, status=503), [(None, 503), (None, 200)]),
}
if HUB_1:  # it takes the file names from the response about the commit
    LOOK_UPS = {name: weather for name, weather in LOOK_UPS.items() if not name.startswith("files")}
CASES = {f"org/{name.replace(' ', '-')}": weather for name, weather in (BODIES | LOOK_UPS).items()}


def write(folder: Path, name: str, size: int) -> tuple[Path, Path]:
    """A model and a data set with a large file each."""
    model, data = folder / "model", folder / "data"
    for repository in (model, data):
        repository.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / WEIGHTS).write_bytes(name.encode().ljust(size, b"."))
    (data / "README.md").write_text("---\nlicense: mit\n---\n")
    (data / ROWS).write_text(json.dumps({"context": name.ljust(size, "."), "target": "t"}) + "\n")
    return model, data


def serve(folder: Path, sizes: dict[str, int]) -> HubServer:
    written = {name: write(folder / name, name, size) for name, size in sizes.items()}
    models, datasets = ({name: pair[i] for name, pair in written.items()} for i in range(2))
    return HubServer(models, datasets, token=TOKEN, gated=("org/gated",))


def body(hub: HubServer, kind: str, repo: str) -> str:
    """The request for the content of a repository's largest file."""
    file = hub.repositories[kind, repo].files[LARGEST[kind]]
    return f"GET /large-files/{file.sha256}" if file.sha256 else f"GET */{repo}/resolve/*/{file.path}"


def asked_for(hub: HubServer, kind: str, repo: str) -> str:
    """The request that the fault of a repository applies to."""
    look_ups = {
        "org/commit": f"GET /api/{kind}/{repo}/revision/*",
        "org/files": f"GET /api/{kind}/{repo}/tree/{hub.repositories[kind, repo].commit}",
        "org/size": f"HEAD */{repo}/resolve/*/{LARGEST[kind]}",
    }
    return look_ups.get(repo.partition("-")[0]) or body(hub, kind, repo)


@pytest.mark.slow
def test_transient_faults(tmp_path: Path) -> None:
    parts = [(kind, list(CASES)[i::2]) for kind in WAYS for i in range(2)]
    with serve(tmp_path, {repo: weather.size for repo, weather in CASES.items()}) as hub:
        patterns = {(kind, repo): asked_for(hub, kind, repo) for kind in WAYS for repo in CASES}
        for (_, repo), pattern in patterns.items():
            CASES[repo].inject(hub, pattern)

        def ask(part: tuple[str, list[str]]) -> list[list[str]]:
            kind, repos = part
            home = tmp_path / f"home {parts.index(part)}"
            return Asker(hub, home)(*((WAYS[kind], repo, None) for repo in repos), **IMPATIENT)

        with ThreadPoolExecutor(len(parts)) as pool:  # most of the time is waiting
            answers = list(pool.map(ask, parts))
    for (kind, repos), answered in zip(parts, answers, strict=True):
        for repo, (status, result) in zip(repos, answered, strict=True):
            assert status == "ok", (kind, repo, result)
            if kind == "models":
                assert (Path(result) / WEIGHTS).read_bytes() == (tmp_path / repo / "model" / WEIGHTS).read_bytes()
            # 302: the look-up of a large file is redirected
            asked = [(one.range, {302: 200}.get(one.status, one.status)) for one in hub.asked(patterns[kind, repo])]
            expected = [(start and f"bytes={start}-", status) for start, status in CASES[repo].requests]
            assert asked == expected, (kind, repo)


def test_a_hub_without_responses_and_a_denied_repository(tmp_path: Path) -> None:
    with serve(tmp_path, {"org/mute": SMALL, "org/forbidden": SMALL}) as hub:
        ask = Asker(hub, tmp_path / "home")
        ask.waits = ()
        hub.stall("* /api/models/org/mute*", after_bytes=-1, times=99)
        hub.fail("* *org/forbidden*", status=403, times=99)
        mute, *forbidden = ask(
            ("fetch", "org/mute", None),
            *((way, "org/forbidden", None) for way in WAYS.values()),
            token=TOKEN,
            **IMPATIENT,
        )
    assert mute[0] == "MissingFileError"
    assert "the Hub is out of reach (ReadTimeout: timed out). Set HF_HUB_ETAG_TIMEOUT above 2 (seconds)" in mute[1]
    for name, text in forbidden:
        assert name == "SettingError", text
        assert "it refuses the token of this machine (403). Check the name, then set HF_TOKEN" in text


def test_a_slow_download_shows_progress(tmp_path: Path) -> None:
    with serve(tmp_path, {"org/slow": LARGE}) as hub:
        hub.bytes_per_second = 12e6
        ask = Asker(hub, tmp_path / "home")
        (model, _), (data, _) = ask.on_a_terminal(("fetch", "org/slow", None), ("load", "org/slow", None))
    assert (model, data) == ("ok", "ok")
    assert f"model org/slow at {hub.endpoint.removeprefix('http://')}: downloading what is not yet in" in ask.printed
    assert ("11.5M" if HUB_1 else "| 10.5MB / 11.5MB") in ask.printed  # of the model: the sum of its files
    assert "train.jsonl:  91%" in ask.printed


@pytest.mark.parametrize("kind", WAYS)
def test_a_killed_download_is_resumed(tmp_path: Path, kind: str) -> None:
    with serve(tmp_path, {"org/killed": SMALL}) as hub:
        ask, question = Asker(hub, tmp_path / "home"), (WAYS[kind], "org/killed", None)
        hub.stall(body(hub, kind, "org/killed"), after_bytes=9)
        with ask.start(question) as process:
            while not (hub.asked(body(hub, kind, "org/killed")) and hub.asked("GET */resolve/*/[cR][oE]*")):
                assert process.poll() is None
                time.sleep(0.02)
            time.sleep(0.2)  # the small file is written
            process.kill()
        hub.log.clear()
        assert ask(question)[0][0] == "ok"
        assert [(r.range, r.status) for r in hub.asked(body(hub, kind, "org/killed"))] == [(None, 200)]
        assert not hub.asked("GET */resolve/*/config.json")
        assert not hub.asked("GET */resolve/*/README.md")


@pytest.mark.slow  # huggingface_hub retries the look-up of a file for 23 seconds
def test_no_network_with_and_without_a_cache(tmp_path: Path) -> None:
    with serve(tmp_path, {"org/cached": SMALL, "org/new": SMALL}) as hub:
        ask = Asker(hub, tmp_path / "home")
        ask.waits = ()
        ask(*((way, "org/cached", None) for way in WAYS.values()))
    cached = ask(*((way, "org/cached", None) for way in WAYS.values()))
    assert [name for name, _ in cached] == ["ok", "ok"]
    for name, text in ask(*((way, "org/new", None) for way in WAYS.values())):
        assert name == "MissingFileError"
        assert "and the Hub is out of reach (ConnectError: [Errno 111] Connection refused). Check the network" in text


@pytest.mark.slow  # the same, with two seconds for each retry
def test_a_hub_without_responses_for_data(tmp_path: Path) -> None:
    with serve(tmp_path, {"org/mute": SMALL}) as hub:
        ask = Asker(hub, tmp_path / "home")
        ask.waits = ()
        hub.stall("*", after_bytes=-1, times=99)
        [(name, text)] = ask(("load", "org/mute", None), **IMPATIENT)
    assert name == "MissingFileError"
    assert "the Hub is out of reach (ReadTimeout: " in text
