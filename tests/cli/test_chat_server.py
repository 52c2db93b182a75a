"""`kyon-pl chat --server`: a real llama.cpp computes, and the rest is as on this machine, without torch."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from gguf_exports import exported
from imported import imported_by
from llama_cpp import LlamaServer
from serving import serve, stop

from kyon_pl.chat.conversation import Conversation
from kyon_pl.chat.loading import load_chat_model
from kyon_pl.chat.model import ChatModel, Sampling
from kyon_pl.chat.role_play import RolePlay
from kyon_pl.chat.server.model import PROBE_TEXT, ServerModel, load_server_model
from kyon_pl.chat.web.sessions import SessionLimits, Sessions, SessionSettings
from kyon_pl.cli import main
from kyon_pl.demo import ASSETS
from kyon_pl.errors import MachineError
from kyon_pl.export.convert_adapter import convert_adapter
from kyon_pl.export.merge import merge
from kyon_pl.roles.contexts import ContextLimits
from kyon_pl.roles.role import role_to_play
from kyon_pl.vocabulary.pieces import PieceTokenizer

TRAINED = Path(__file__).parents[1] / "legacy/37c419d/finished/step=60"
SAMPLING = Sampling(max_new_tokens=40)
QUESTION = "南枝:「钟楼里是谁在忙呀？」"
HEAVY = ("torch", "transformers", "datasets", "lightning", "peft", "scipy", "sklearn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged model, as it is taken to another machine."""
    output = tmp_path_factory.mktemp("merged") / "bo"
    merge(output, str(TRAINED), format="gguf", quantization="f32")
    return output


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LlamaServer]:
    with LlamaServer(exported(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def local() -> ChatModel:
    return load_chat_model(str(TRAINED), None, None, None, None)


def remote(server: LlamaServer, folder: Path) -> ServerModel:
    return load_server_model(server.url, str(folder), None, 2048)


def conversation(model: ChatModel, max_tokens: int = 2048) -> Conversation:
    role = RolePlay(role_to_play("demo"), "auto", ContextLimits(), model.count_tokens)
    return Conversation(model, max_tokens, role, asker="南枝")


def test_twenty_turns_are_those_of_this_machine(server: LlamaServer, folder: Path, local: ChatModel) -> None:
    """The same ids, memories and replies; the room is small, so that older turns are left out."""
    questions = [json.loads(line)["context"].split("###")[-1] for line in demo_lines()[:20]]
    ours, theirs = conversation(local, 400), conversation(remote(server, folder), 400)
    lengths = set()
    for question in questions:
        prompt = ours.prompt_ids(ours.question(question), SAMPLING.max_new_tokens)
        assert theirs.prompt_ids(theirs.question(question), SAMPLING.max_new_tokens) == prompt
        assert theirs.ask(question, SAMPLING) == ours.ask(question, SAMPLING)
        assert theirs.memories() == ours.memories() != ()
        lengths.add(len(prompt))
    assert max(lengths) > 300


def demo_lines() -> list[str]:
    return (ASSETS / "validation.jsonl").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("kind", ["llama.cpp", "openai"])
def test_it_streams_and_can_be_interrupted(kind: Any, server: LlamaServer, folder: Path, local: ChatModel) -> None:
    model = remote(server, folder)
    model.server.kind = kind
    pieces: list[str] = []
    talk = conversation(model)
    reply = talk.ask(QUESTION, SAMPLING, pieces.append)
    assert reply == conversation(local).ask(QUESTION, SAMPLING)
    assert "".join(pieces) == reply.text
    assert len(pieces) > 5

    def interrupt(piece: str) -> None:
        raise KeyboardInterrupt

    shorter = talk.ask(QUESTION, SAMPLING, interrupt)
    assert not shorter.stopped
    assert len(talk.turns) == 2
    talk.turns.clear()
    assert talk.ask(QUESTION, SAMPLING) == reply  # the server has not noticed


def test_repetition_penalty_is_that_of_this_machine(server: LlamaServer, folder: Path, local: ChatModel) -> None:
    sampling = Sampling(24, repetition_penalty=1.5)
    found, plain = (conversation(remote(server, folder)).ask(QUESTION, one) for one in (sampling, SAMPLING))
    assert found == conversation(local).ask(QUESTION, sampling) != plain


def test_the_page_asks_the_server_too(server: LlamaServer, folder: Path, local: ChatModel) -> None:
    replies = []
    for model in (remote(server, folder), local):
        role = RolePlay(role_to_play("demo"), "auto", ContextLimits(), model.count_tokens)
        sessions = Sessions(model, {"bo": role}, 1024, SessionLimits())
        *_, turns = sessions.ask((), QUESTION, SessionSettings("bo", sampling=SAMPLING))
        replies.append(turns)
    assert replies[0] == replies[1]


def test_nothing_heavy_is_imported(server: LlamaServer, folder: Path) -> None:
    words = ["chat", "--server", server.url, "--adapter", str(folder), "--character", "demo", "-p", "x"]
    assert imported_by([*words, "--max_new_tokens", "2"], *HEAVY) == []


@pytest.mark.slow
def test_the_first_word_comes_soon(server: LlamaServer, folder: Path) -> None:
    """Processor time of the whole program, so that a busy machine does not count."""
    words = ["chat", "--server", server.url, "--adapter", str(folder), "--character", "demo", "-p", "x"]
    command = [sys.executable, "-m", "kyon_pl", *words, "--max_new_tokens", "1"]
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1.5, seconds


def test_the_adapter_of_the_server_is_switched_off_for_the_base(
    tmp_path: Path, folder: Path, local: ChatModel, capsys: pytest.CaptureFixture[str]
) -> None:
    merge(tmp_path / "base", "none", format="gguf", quantization="f32", base="demo")
    convert_adapter(tmp_path / "bo", str(TRAINED), to="gguf")
    with LlamaServer(exported(tmp_path / "base"), loras=[tmp_path / "bo/bo.gguf"]) as server:
        model = load_server_model(server.url, str(tmp_path / "bo"), None, 2048)
        assert model.adapters == ("bo",)
        ours, theirs = conversation(local), conversation(model)
        for _ in range(2):
            assert theirs.ask(QUESTION, SAMPLING) == ours.ask(QUESTION, SAMPLING)
            assert theirs.compare(SAMPLING) == ours.compare(SAMPLING) != ours.turns[-1].reply


def test_a_server_that_dies_in_the_middle_is_named(folder: Path) -> None:
    with LlamaServer(exported(folder)) as server:
        talk = conversation(remote(server, folder))
        pieces: list[str] = []

        def kill(piece: str) -> None:
            pieces.append(piece)
            if len(pieces) == 1:
                server.process.kill()
                server.process.wait()

        talk.role, longest = None, Sampling(max_new_tokens=1500, repetition_penalty=0.5)
        with pytest.raises(MachineError, match=r"the connection broke.*Start the server again"):
            talk.ask(QUESTION, longest, kill)
        assert pieces
        assert not talk.turns
        with pytest.raises(MachineError, match=r"no server answers there.*llama-server -m"):
            talk.ask(QUESTION, longest)


Answer = tuple[int, bytes]
PROPS = {"default_generation_settings": {"n_ctx": 4096}}
MODELS = {"data": [{"id": "bo.gguf"}]}


class Pretender(BaseHTTPRequestHandler):
    """Answers each path with what the test says."""

    answers: dict[str, Answer]

    def log_message(self, *arguments: object) -> None: ...

    def do_GET(self) -> None:
        status, body = self.answers.get(self.path, (404, b"{}"))
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 (BaseHTTPRequestHandler's name)


@pytest.fixture
def pretend() -> Iterator[Callable[[dict[str, Answer]], str]]:
    """Starts a server with these answers, and returns its address."""
    servers = []

    def start(answers: dict[str, Answer]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Pretender,), {"answers": answers}))
        servers.append(server)
        return serve(server)

    yield start
    for server in servers:
        stop(server)


def good(folder: Path) -> dict[str, Answer]:
    ids = PieceTokenizer(folder / "tokenizer.model")(PROBE_TEXT, add_special_tokens=False)["input_ids"]
    answers = {"/props": PROPS, "/v1/models": MODELS, "/lora-adapters": [], "/tokenize": {"tokens": ids}}
    return {path: (200, json.dumps(answer).encode()) for path, answer in answers.items()}


def events(*said: object) -> Answer:
    return 200, b"".join(
        b"data: " + (one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n\n" for one in said
    )


PIECE = {"tokens": [500], "stop": False}
CASES: dict[str, tuple[dict[str, Answer], str]] = {
    "a web site": ({"/props": (200, b"<html>"), "/v1/models": (200, b"<html>")}, "is not /props, but '<html>'"),
    "no API": ({"/props": (404, b""), "/v1/models": (404, b"no such page")}, "it answers 404: 'no such page'"),
    "no models": ({"/v1/models": (200, b'{"data": 7}')}, "is not the list of its models"),
    "two models": ({"/v1/models": (200, b'{"data": [{"id": "a"}, {"id": "b"}]}')}, "serves several models: a, b"),
    "a key": ({"/props": (401, b"{}")}, "KYON_PL_SERVER_KEY"),
    "still loading": ({"/props": (503, b'{"error": {"message": "Loading model"}}')}, "it answers 503: 'Loading model'"),
    "no list of adapters": ({"/lora-adapters": (200, b"<html>")}, "is not the list of its adapters, but '<html>'"),
    "a short context": ({"/props": (200, b'{"default_generation_settings": {"n_ctx": 512}}')}, "-c 2048"),
    "another vocabulary": ({"/tokenize": (200, b'{"tokens": [1, 2]}')}, "encodes text in another way"),
    "no JSON": ({"/completion": events(b"{")}, "is not a piece of a reply, but '{'"),
    "no piece": ({"/completion": events({"tokens": ["a"]})}, "is not a piece of a reply"),
    "a list": ({"/completion": events([])}, "is not a piece of a reply, but []"),
    "nothing": ({"/completion": (200, b"")}, "it ended the reply in the middle"),
    "no end": ({"/completion": events(PIECE)}, "it ended the reply in the middle"),
    "a failure": ({"/completion": events(PIECE, {"error": {"message": "GPU lost"}})}, "it fails: 'GPU lost'"),
    "a refusal": ({"/completion": (400, b'{"error": {"message": "too many"}}')}, "it answers 400: 'too many'"),
    "another model": ({"/completion": events(PIECE, PIECE | {"model": "eve.gguf"})}, "serves 'eve.gguf' now"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_server_of_this_model_is_said(
    case: str, folder: Path, pretend: Callable[[dict[str, Answer]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    answers, said = CASES[case]
    url = pretend(good(folder) | answers)
    with pytest.raises(SystemExit) as stopped:
        main(["chat", "--server", url, "--adapter", str(folder), "-p", "x"])
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"kyon-pl chat: {url}") or said == "-c 2048"
    assert said in last, last


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--server", "http://127.0.0.1:9"], "how its prompts are worded is in the folder of the model"),
        (["--server", "http://127.0.0.1:9", "--adapter", "{folder}"], "no server answers there"),
        (["--server", "127.0.0.1:9", "--adapter", "{folder}"], "is no address"),
        (["--server", "http://", "--adapter", "{folder}"], "is no address"),
        (["--server", "http://127.0.0.1:9", "--adapter", "{folder}/none"], "no tokenizer.model"),
        (["--server", "http://127.0.0.1:9", "--adapter", "{folder}", "--base", "demo"], "--base: the server has"),
    ],
)
@pytest.mark.parametrize("command", ["chat", "web"])
def test_what_is_refused(
    command: str, words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(folder=folder) for word in words]
    with pytest.raises(SystemExit) as stopped:
        main([command, *words, *(["-p", "x"] if command == "chat" else [])])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
