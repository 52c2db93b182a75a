"""`kyon-pl web`: the server of the chat page, its checks and its response headers."""

from __future__ import annotations

import getpass
import hmac
import logging
import os
from pathlib import Path
from typing import Any, Literal

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kyon_pl.chat.labels import LOGIN
from kyon_pl.chat.loading import load_speaker
from kyon_pl.chat.role_play import RolePlay
from kyon_pl.chat.sessions import Host, Limits, Wishes
from kyon_pl.chat.speaker import Sampling, check_room
from kyon_pl.errors import MachineError, MissingFileError, SettingError
from kyon_pl.imports import need_package
from kyon_pl.roles.contexts import Room
from kyon_pl.roles.role import find_roles


class Headers:
    """Adds a Content-Security-Policy, and keeps the page's address to itself.

    Args:
        app: whose answers these are.
        policy: the Content-Security-Policy.
    """

    def __init__(self, app: ASGIApp, policy: str) -> None:
        self.app = app
        self.policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = self.policy
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


log = logging.getLogger(__name__)

PASSWORD = "KYON_PL_WEB_PASSWORD"
LOCAL = ("127.0.0.1", "localhost", "::1")
SESSIONS = 1000  # conversations in memory; those that waited longest go first
# nothing from elsewhere is loaded, whatever a page is made to show
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)


def web(
    adapter: str | list[str] | None = None,
    which: Literal["best", "last"] = "best",
    base: str | None = None,
    revision: str | None = None,
    characters: str | list[str] | None = None,
    asker: str = "",
    retrieval: str = "auto",
    memory_number: int | None = None,
    memory_length: int | None = None,
    history_length: int | None = None,
    template: str | None = None,
    max_tokens: int = 2048,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    compare: bool = False,
    host: str = "127.0.0.1",
    port: int = 7860,
    password_file: str | None = None,
    ask_password: bool = False,
    message_characters: int = 4000,
    turns_kept: int = 40,
    most_new_tokens: int = 512,
    queue_size: int = 32,
) -> None:
    """Talk to a tuned model on a page in the browser; questions are asked as `chat` asks them.

    The page is for this machine alone, unless --host says otherwise. A password comes from the environment variable
    KYON_PL_WEB_PASSWORD, from a file, or from the keyboard.

    Args:
        adapter: a PEFT folder, a run folder, a folder of runs, a checkpoint, or a Hub id; or the folder of a merged
            model; unset, the newest run here. Of several, '[one, another]', a picker chooses.
        which: of a run, the best checkpoint by validation loss, or the last.
        base: a folder or Hub id; unset, the one that the adapter names.
        revision: branch, tag or commit of the base on the Hub.
        characters: role folders, folders of role folders, or role files; demo: the demo's. The first is played when the
            page opens.
        asker: whose name stands before questions to a role; each visitor can write another.
        retrieval: how a question finds memories, as for build-data.
        memory_number: the most memories, as for build-data; give what the role's rows were built with.
        memory_length: of all memories, in tokens, likewise.
        history_length: of the turns before the question, likewise.
        template: raw or chatglm2; unset, the one that the adapter was trained with.
        max_tokens: the longest prompt with its reply; memories and turns go first where it is too long.
        max_new_tokens: the longest reply, in tokens, when the page opens.
        temperature: 0: always the likeliest token; 0.8 is livelier.
        top_p: draw from the likeliest tokens that make up this much probability.
        repetition_penalty: over 1, tokens that were there become less likely.
        seed: of the draws.
        compare: let the base reply too when the page opens.
        host: the address to listen at; 0.0.0.0 lets other machines in.
        port: to listen at.
        password_file: its first line is the password.
        ask_password: ask for the password now.
        message_characters: the longest message.
        turns_kept: of a conversation; older ones are forgotten.
        most_new_tokens: the longest reply that a visitor can set.
        queue_size: messages that wait, while one is answered; more are refused.

    Raises:
        SettingError: an impossible number, an empty password, or what `chat` refuses.
        MissingFileError: no such adapter, base, role or password file.
        CheckpointError: files that cannot be read, or do not fit together.
        DataError: a role's file cannot be used.
        MachineError: gradio is not installed, or the port is taken.
    """
    sampling = Sampling(max_new_tokens, temperature, top_p, repetition_penalty, seed)
    limits = Limits(message_characters, turns_kept, most_new_tokens, queue_size)
    check_room(max_tokens, "most_new_tokens", most_new_tokens)
    if not 0 < port < 2**16:
        raise SettingError("port", f"{port} is no port", "Choose one of 1024 to 65535")
    need_package("gradio", "web", where="kyon-pl web", does="makes the page")
    password = read_password(password_file, ask_password)
    named = [characters] if isinstance(characters, str) else characters or []
    room = Room(memory_number, memory_length, history_length)
    roles = find_roles(named, {}) if named else []
    speaker = load_speaker(adapter, which, base, revision, template)
    playing = {role.name: RolePlay(role, retrieval, room, speaker.count_tokens) for role in roles}
    wishes = Wishes(next(iter(playing), ""), asker, compares=compare and speaker.tuned, sampling=sampling)
    page = open_page(Host(speaker, playing, max_tokens, limits), wishes, host, port, password)
    if host not in LOCAL and password is None:
        log.warning("whoever reaches %s can talk to the model: %s sets a password", host, PASSWORD)
    log.info("web: %s at %s; Ctrl-C ends it", speaker.base, page.local_url)
    page.block_thread()


def open_page(talk: Host, wishes: Wishes, host: str, port: int, password: str | None) -> Any:
    """Start the server, in threads of its own.

    Args:
        talk: holds the conversations.
        wishes: what is set when the page opens.
        host: the address to listen at.
        port: to listen at.
        password: None: nobody is asked for one.

    Returns:
        Gradio's Blocks, which say `local_url` and can be closed.

    Raises:
        MachineError: the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import, and while it runs
    from starlette.middleware import Middleware

    from kyon_pl.chat.page import build_page, theme, words
    from kyon_pl.chat.web import Headers

    page = build_page(talk, wishes)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            auth=None if password is None else lambda name, given: _same(given, password),
            auth_message=LOGIN,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            max_file_size=1,  # byte: nothing is sent here as a file
            state_session_capacity=SESSIONS,
            app_kwargs={"middleware": [Middleware(Headers, policy=POLICY)], "docs_url": None, "redoc_url": None},
            theme=theme,
            i18n=words,
        )
    except OSError as error:
        raise MachineError(f"port {port}", str(error), "Give another --port, or end what uses this one") from error
    return page


def read_password(file: str | None, ask: bool) -> str | None:
    """The password of the page; the environment's, if neither a file nor the keyboard is named.

    Raises:
        MissingFileError: there is no such file.
        SettingError: it is empty, or the file cannot be read.
    """
    if ask:
        password: str | None = getpass.getpass("password of the page: ")
    elif file:
        path = Path(file).expanduser()
        if not path.is_file():
            raise MissingFileError(str(path), "there is no such file", "Write the password into it, in one line")
        try:
            password = (path.read_text(encoding="utf-8").splitlines() or [""])[0]
        except (OSError, UnicodeDecodeError) as error:
            found = f"it cannot be read ({type(error).__name__})"
            raise SettingError(str(path), found, "Write the password into it, in one line of UTF-8") from error
    else:
        password = os.environ.get(PASSWORD)
    if password is not None and not password.strip():
        raise SettingError("password", "it is empty", f"Give one; without {PASSWORD} and options the page has none")
    return password


def _same(given: str, password: str) -> bool:
    return hmac.compare_digest(given.encode(), password.encode())
