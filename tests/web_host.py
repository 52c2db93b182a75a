"""What the tests of the page share: small adapters, roles, a host, and a proxy that writes down who asks for what."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig

from kyon_pl.chat.loading import load_speaker
from kyon_pl.chat.role_play import RolePlay
from kyon_pl.chat.sessions import Host, Limits
from kyon_pl.chat.speaker import Said, Sampling, Speaker, StopReply
from kyon_pl.chatglm2.checkpoint import load_base
from kyon_pl.demo import BASE
from kyon_pl.lora import attach_lora, trainable_names, write_adapter
from kyon_pl.roles.contexts import Room
from kyon_pl.roles.role import read_role

HOSTILE = '<script>document.title = "run"</script> ![a](http://example.org/a.png) <img src="http://example.org/b.png">'


def write_small_adapter(folder: Path, seed: int) -> Path:
    """An adapter on the demo's base that changes what it says."""
    base = load_base(BASE, dtype=torch.float32, device=torch.device("cpu"), attn_implementation="sdpa")
    model = attach_lora(base, LoraConfig(r=4, target_modules=["query_key_value"]), "demo")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if ".lora_" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    trained = trainable_names(model)
    write_adapter(model, {name: value for name, value in model.state_dict().items() if name in trained}, folder)
    return folder


def write_role(folder: Path, name: str) -> Path:
    """A role with two memories."""
    (folder / name / "texts").mkdir(parents=True)
    (folder / name / "system_prompt.txt").write_text(f"You are {name}, who rows the ferry.", encoding="utf-8")
    for file, text in {"fog": "In fog the bell is rung twice.", "rope": f"{name} mends ropes on the quay."}.items():
        (folder / name / f"texts/{file}.txt").write_text(text, encoding="utf-8")
    return folder / name


def make_host(adapters: list[Path], roles: list[Path], limits: Limits, max_tokens: int = 1024) -> Host:
    speaker = load_speaker([*map(str, adapters)], "last", None, None, None)
    playing = [RolePlay(read_role(role), "lexical", Room(), speaker.count_tokens) for role in roles]
    return Host(speaker, {role.role.name: role for role in playing}, max_tokens, limits)


class Actor(Speaker):
    """Says what it will, whatever it is asked."""

    def reply(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_text: Callable[[str], object] = lambda text: None,
        adapter: str | None = "",
    ) -> Said:
        return self.say(on_text)

    def say(self, on_text: Callable[[str], object]) -> Said:
        raise NotImplementedError


class Parrot(Actor):
    """Says what would be dangerous if it were run."""

    def say(self, on_text: Callable[[str], object]) -> Said:
        on_text(HOSTILE)
        return Said(HOSTILE, stopped=True)


class Counter(Actor):
    """Counts for a minute, or until it is stopped: the model's own replies end when they will.

    Attributes:
        was_stopped: set once it was.
    """

    was_stopped: threading.Event

    def say(self, on_text: Callable[[str], object]) -> Said:
        said = ""
        for number in range(1200):
            time.sleep(0.05)
            try:
                on_text(f"{number} ")
            except StopReply:
                self.was_stopped.set()
                return Said(said, stopped=False)
            said += f"{number} "
        return Said(said, stopped=True)


def counting(host: Host) -> tuple[Host, Counter]:
    """The same host with a speaker that counts."""
    counter = Counter(**vars(host.speaker))
    counter.was_stopped = threading.Event()
    return with_speaker(host, counter), counter


def parrot(host: Host) -> Host:
    """The same host with a speaker whose replies are hostile."""
    return with_speaker(host, Parrot(**vars(host.speaker)))


def with_speaker(host: Host, speaker: Speaker) -> Host:
    """The same host with another speaker."""
    return Host(speaker, host.roles, host.max_tokens, host.limits)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


class Recorder:
    """A proxy that answers nobody.

    Attributes:
        asked: the first line of each request that came: everything that would have left the machine.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
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
                self.asked.append(connection.recv(4096).decode(errors="replace").partition("\r\n")[0])

    def close(self) -> None:
        self._server.close()
