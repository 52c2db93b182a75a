"""A server that answers what no Hub would: one paragraph that names it, and nothing written outside the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_asker import Asker
from hub_server import HubServer

NOT_A_HUB = "the server there is not a Hub"
NAME = "a" * 40
BODIES = [
    b"[1, 2]",
    b"{}",
    b"null",
    b'"text"',
    b'{"id": "org/name"}',
    b'{"id": 5, "sha": 7, "siblings": 5}',
    b'{"id": "org/name", "sha": null, "siblings": []}',
    b'{"id": "org/name", "sha": "%s", "siblings": [5]}' % NAME.encode(),
    b'{"id": "org/name", "sha": "%s", "siblings": {}, "lastModified": 5}' % NAME.encode(),
    b'{"id": "org/name", "sha": "%s", "cardData": [], "siblings": [{"rfilename": 5}]}' % NAME.encode(),
]
TREES = [b"{}", b"5", b"[5]", b'[{"type": "file"}]', b'[{"type": "file", "path": 5, "size": "x", "oid": []}]']
NAMES = ["../" * 8 + "outside", '"../outside"', "/outside", "..", ".", 'W/"../outside"', "a\\outside", "a%2e%2e/b", ""]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "train.jsonl").write_text('{"context": "c", "target": "t"}\n')
    return folder


def test_json_of_another_shape(folder: Path, tmp_path: Path) -> None:
    """Of the look-up of a repository, and of its list of files; a model and a data set."""
    count = len(BODIES) + len(TREES)
    models = {f"org/model{i}": folder for i in range(count)}
    datasets = {f"org/rows{i}": folder for i in range(count)}
    with HubServer(models, datasets) as hub:
        for i, body in enumerate([*BODIES, *TREES]):
            route = "" if i < len(BODIES) else "/tree"
            hub.answer(f"GET /api/models/org/model{i}{route}*", body=body)
            hub.answer(f"GET /api/datasets/org/rows{i}{route}*", body=body)
        questions = [("fetch", name, None) for name in models] + [("load", name, None) for name in datasets]
        answers = Asker(hub, tmp_path / "home")(*questions)
        host = hub.endpoint.removeprefix("http://")
    # 404: a commit of the right shape that is not there; EmptyDatasetError: datasets goes on without a commit
    others = ("this revision (404)", "EmptyDatasetError")
    for (_, name, _), (kind, text) in zip(questions, answers, strict=True):
        assert kind in ("SettingError", "MissingFileError"), (name, text)
        assert name in text
        assert host in text
        assert NOT_A_HUB in text or any(other in text for other in others), (name, text)
    assert sum(NOT_A_HUB in text for _, text in answers) >= 2 * count - 6


def test_names_that_lead_out_of_the_cache(folder: Path, tmp_path: Path) -> None:
    """huggingface_hub joins these headers to folders of its cache; `outside` would be written beside it, or above."""
    cases = [(header, name) for header in ("ETag", "X-Linked-Etag", "X-Repo-Commit") for name in NAMES]
    models = {f"org/model{i}": folder for i in range(len(cases))}
    datasets = {f"org/rows{i}": folder for i in range(len(cases))}
    home = tmp_path / "a/b/c/d/e/f/g/h/home"
    with HubServer(models | {"org/good": folder}, datasets) as hub:
        for i, (header, name) in enumerate(cases):
            hub.answer(f"HEAD /org/model{i}/*", headers={header: name})
            hub.answer(f"HEAD /datasets/org/rows{i}/*", headers={header: name})
        hub.answer("HEAD /org/good/*", headers={"ETag": 'W/"0123456789abcdef-5:x"'})
        questions = [("fetch", name, None) for name in models] + [("load", name, None) for name in datasets]
        *answers, good = Asker(hub, home)(*questions, ("fetch", "org/good", None))
        host = hub.endpoint.removeprefix("http://")
    assert good[0] == "ok", good
    for (header, _), (kind, text) in zip(cases * 2, answers, strict=True):
        assert kind == "SettingError", text
        assert text.startswith(f"{host}: {NOT_A_HUB}: its {header}, "), text
    assert not list(tmp_path.rglob("*outside*"))
    assert all(path.resolve().is_relative_to(home) for path in home.rglob("*"))


def test_a_commit_that_leads_out_of_the_cache(folder: Path, tmp_path: Path) -> None:
    """The commit in the body of the look-up."""
    with HubServer({"org/model": folder}, {"org/rows": folder}) as hub:
        body = json.dumps({"id": "org/model", "sha": "../" * 8 + "outside", "siblings": [{"rfilename": "config.json"}]})
        hub.answer("GET /api/*", body=body.encode())
        answers = Asker(hub, tmp_path / "a/b/c/home")(("fetch", "org/model", None), ("load", "org/rows", None))
    assert [kind for kind, _ in answers if kind == "ok"] == []
    assert not list(tmp_path.rglob("*outside*"))
