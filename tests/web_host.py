"""Shared by the tests of the web page: small adapters, roles, sessions, and a proxy that records requests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig

from kyon_pl.chat.loading import LocalModel, load_chat_model
from kyon_pl.chat.model import ChatReply, Sampling, StopReply
from kyon_pl.chat.role_play import RolePlay
from kyon_pl.chat.web.sessions import SessionLimits, Sessions
from kyon_pl.chatglm2.checkpoint import load_base
from kyon_pl.demo import BASE
from kyon_pl.lora import attach_lora, trainable_names, write_adapter
from kyon_pl.roles.contexts import ContextLimits
from kyon_pl.roles.role import read_role

HOSTILE = '<script>document.title = "run"</script> ![a](http://example.org/a.png) <img src="http://example.org/b.png">'


def write_small_adapter(folder: Path, seed: int) -> Path:
    """An adapter of the demo's base that changes its replies."""
    base = load_base(BASE, dtype=torch.float32, device=torch.device("cpu"), attn_implementation="sdpa")
    model = attach_lora(base, LoraConfig(r=4, target_modules=["query_key_value"]), "demo")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if ".lora_" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    trained = trainable_names(model)
    write_adapter(model, {name: value for name, value in model.state_dict().items() if name in trained}, folder)
    return folder


def write_role(folder: Path, name: str, greeting: str = "") -> Path:
    """A role with two memories."""
    (folder / name / "texts").mkdir(parents=True)
    (folder / name / "system_prompt.txt").write_text(f"You are {name}, who rows the ferry.", encoding="utf-8")
    for file, text in {"fog": "In fog the bell is rung twice.", "rope": f"{name} mends ropes on the quay."}.items():
        (folder / name / f"texts/{file}.txt").write_text(text, encoding="utf-8")
    if greeting:
        (folder / name / "greeting.txt").write_text(f"{greeting}\n", encoding="utf-8")
    return folder / name


def make_sessions(adapters: list[Path], roles: list[Path], limits: SessionLimits, max_tokens: int = 1024) -> Sessions:
    model = load_chat_model([*map(str, adapters)], "last", None, None, None)
    played = [RolePlay(read_role(role), "lexical", ContextLimits(), model.count_tokens) for role in roles]
    return Sessions(model, {role.role.name: role for role in played}, max_tokens, limits)


class ScriptedModel(LocalModel):
    """A model whose replies do not depend on the prompt."""

    def reply(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_text: Callable[[str], object] = lambda text: None,
        adapter: str | None = "",
    ) -> ChatReply:
        return self.say(on_text)

    def say(self, on_text: Callable[[str], object]) -> ChatReply:
        raise NotImplementedError


class HostileModel(ScriptedModel):
    """Replies with HTML that would be dangerous if it were run."""

    def say(self, on_text: Callable[[str], object]) -> ChatReply:
        on_text(HOSTILE)
        return ChatReply(HOSTILE, stopped=True)


class SamplingModel(LocalModel):
    """Replies with how it samples, and is done at once. The base says so."""

    def reply(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_text: Callable[[str], object] = lambda text: None,
        adapter: str | None = "",
    ) -> ChatReply:
        text = f"{'base: ' if adapter is None else ''}temperature {sampling.temperature}, seed {sampling.seed}"
        on_text(text)
        return ChatReply(text, stopped=True)


class CountingModel(ScriptedModel):
    """Counts for a minute or until it is stopped; the real model's replies end on their own.

    Attributes:
        was_stopped: set when a reply is stopped.
    """

    was_stopped: threading.Event

    def say(self, on_text: Callable[[str], object]) -> ChatReply:
        text = ""
        for number in range(1200):
            time.sleep(0.05)
            try:
                on_text(f"{number} ")
            except StopReply:
                self.was_stopped.set()
                return ChatReply(text, stopped=False)
            text += f"{number} "
        return ChatReply(text, stopped=True)


def with_counting_model(sessions: Sessions) -> tuple[Sessions, CountingModel]:
    """The same sessions with a model that counts."""
    model = CountingModel(**vars(sessions.model))
    model.was_stopped = threading.Event()
    return Sessions(model, sessions.roles, sessions.max_tokens, sessions.limits), model


def with_sampling_model(sessions: Sessions) -> Sessions:
    """The same sessions with a model that says how it samples."""
    return Sessions(SamplingModel(**vars(sessions.model)), sessions.roles, sessions.max_tokens, sessions.limits)


def with_hostile_model(sessions: Sessions) -> Sessions:
    """The same sessions with a model whose replies are hostile."""
    return Sessions(HostileModel(**vars(sessions.model)), sessions.roles, sessions.max_tokens, sessions.limits)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


class Recorder:
    """A proxy that records requests and answers none.

    Attributes:
        requests: the first line of each request, which would have left the machine.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(4096).decode(errors="replace").partition("\r\n")[0])

    def close(self) -> None:
        self._server.close()
