"""`kyon-pl web`: the web server of the chat page."""

from __future__ import annotations

import logging
import os
from typing import Any, Literal

from kyon_pl.chat.command import load_model
from kyon_pl.chat.model import Sampling, check_max_tokens, roles_of_run, sampling_for
from kyon_pl.chat.role_play import RolePlay
from kyon_pl.chat.web.passwords import PASSWORD, PasswordGuesses, is_password, read_password
from kyon_pl.chat.web.refusals import RefusalLog
from kyon_pl.chat.web.sessions import SessionLimits, Sessions, SessionSettings
from kyon_pl.chat.web.shares import QueueShares, is_loopback
from kyon_pl.errors import MachineError, SettingError
from kyon_pl.imports import need_package
from kyon_pl.roles.contexts import ContextLimits
from kyon_pl.roles.role import find_roles

log = logging.getLogger(__name__)

MAX_SESSIONS = 1000  # in memory; the least recently used are forgotten first


def web(
    adapter: str | list[str] | None = None,
    which: Literal["best", "last"] | None = None,
    base: str | None = None,
    revision: str | None = None,
    server: str | None = None,
    characters: str | list[str] | None = None,
    asker: str = "",
    retrieval: str | None = None,
    memory_number: int | None = None,
    memory_length: int | None = None,
    history_length: int | None = None,
    template: str | None = None,
    max_tokens: int = 2048,
    max_new_tokens: int = 256,
    temperature: float | None = None,
    top_p: float | None = None,
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
    """Chat with a fine-tuned model in the browser; prompts are built as by `chat`.

    By default, the page is served to this machine only. The password comes from the environment variable
    KYON_PL_WEB_PASSWORD, a file or the keyboard.

    Args:
        adapter: a PEFT folder, a run folder, a folder of runs, a checkpoint or a Hub id; or the folder of a merged
            model. By default, the newest run here. Pass several with '[one, another]' and switch on the page.
        which: the checkpoint to use of a run, best (by validation loss) or last; by default the best, or the last if
            nothing was validated.
        base: folder or Hub id of the base model; by default, the one that the adapter names.
        revision: branch, tag or commit of the base on the Hub.
        server: address of a running llama-server, or of another server of OpenAI's completions, that computes the
            replies, such as http://127.0.0.1:8080. Name the folder of its model with --adapter. A key is read from the
            environment variable KYON_PL_SERVER_KEY.
        characters: role folders, folders of role folders, or role files; demo for the roles of the demo. The first is
            selected when the page opens. By default, and without --adapter, the roles of the newest run's rows, if
            they are from build-data or the demo's; '[]' for none.
        asker: the name before questions to a role; each visitor can change it. By default, the most frequent one in
            the run's rows.
        retrieval: how memories are ranked, see build-data. By default, as in the run's rows, else auto.
        memory_number: maximum number of memories. By default, as in the run's rows, else 8.
        memory_length: total length of all memories, in the unit of the run's rows, else in tokens. By default, as in
            the run's rows, else 1000.
        history_length: total length of the turns before the question, in the same unit. By default, as in the run's
            rows, else 500.
        template: raw or chatglm2; by default, the one that the adapter was trained with.
        max_tokens: maximum length of prompt and reply together; memories and older turns are left out to fit.
        max_new_tokens: maximum length of a reply, in tokens, when the page opens.
        temperature: 0 is greedy decoding, the same reply every time; a role's reply is tried again with 0.8. By
            default 0.8 for a role, 0 without one.
        top_p: sample from the most likely tokens whose probabilities add up to this. By default 0.8 for a role, 1
            without one.
        repetition_penalty: above 1, tokens that already occurred become less likely.
        seed: seed of the sampling.
        compare: also show the reply of the base model when the page opens.
        host: address to listen on; 0.0.0.0 accepts other machines. On an address of this machine only, requests must
            name this machine in `Host`.
        port: port to listen on.
        password_file: a file with the password in its first line.
        ask_password: ask for the password at start.
        message_characters: maximum length of a message.
        turns_kept: number of turns that are kept of a conversation; older ones are forgotten.
        most_new_tokens: maximum length of a reply that a visitor can set, in tokens.
        queue_size: number of messages that can wait for a reply, a quarter of them from one visitor; more are refused.

    Raises:
        SettingError: a number out of range, an empty password, or what `chat` refuses.
        MissingFileError: no such adapter, base, role or password file.
        CheckpointError: files that cannot be read, or do not match.
        DataError: a role's file cannot be used.
        MachineError: gradio is not installed, the port is in use, or the server does not answer.
    """
    plain = Sampling(max_new_tokens, repetition_penalty=repetition_penalty, seed=seed)
    sampling_for(plain, temperature, top_p, plays_role=True)  # checks the numbers, before the model is loaded
    limits = SessionLimits(message_characters, turns_kept, most_new_tokens, queue_size)
    check_max_tokens(max_tokens, "most_new_tokens", most_new_tokens)
    if not 0 < port < 2**16:
        raise SettingError("port", f"{port} is not a port", "Choose one of 1024 to 65535")
    need_package("gradio", "web", where="kyon-pl web", does="makes the page")
    password = read_password(password_file, ask_password)
    names = [characters] if isinstance(characters, str) else characters or []
    context_limits = ContextLimits(memory_number, memory_length, history_length)
    found = find_roles(names, {}) if names else []
    model = load_model(adapter, which, base, revision, template, server, max_tokens)
    if characters is None and adapter is None and (recorded := roles_of_run(model)):
        found = find_roles(recorded, {})
        log.info("roles: those on whose rows the adapter was trained; --characters '[]' for none")
    sampling = sampling_for(plain, temperature, top_p, plays_role=bool(found))
    played = (RolePlay(role, retrieval, context_limits, model.count_tokens, model.roles) for role in found)
    roles = {play.role.name: play for play in played}
    initial = SessionSettings(
        next(iter(roles), ""), asker, compares=compare and bool(model.adapters), sampling=sampling
    )
    page = open_page(Sessions(model, roles, max_tokens, limits), initial, host, port, password)
    if not is_loopback(host) and password is None:
        log.warning("anyone who can reach %s can chat with the model: set a password with %s", host, PASSWORD)
    log.info("web: %s at %s; Ctrl-C ends it", model.base, page.local_url)
    page.block_thread()


def open_page(sessions: Sessions, initial: SessionSettings, host: str, port: int, password: str | None) -> Any:
    """Start the server in background threads.

    Args:
        sessions: answers the messages.
        initial: the settings of a new session.
        host: address to listen on.
        port: port to listen on.
        password: None: no login.

    Returns:
        Gradio's Blocks, with `local_url` and `close`.

    Raises:
        MachineError: the port is in use.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it on import and while it runs
    from starlette.middleware import Middleware

    from kyon_pl.chat.web.inputs import PageInputs
    from kyon_pl.chat.web.login import PasswordPage
    from kyon_pl.chat.web.middleware import PageGuard, SecurityHeaders
    from kyon_pl.chat.web.page.build import build_page
    from kyon_pl.chat.web.page.components import head, style, theme
    from kyon_pl.chat.web.page.labels import i18n
    from kyon_pl.chat.web.saved import MAX_BYTES

    page = build_page(sessions, initial)
    refusals = RefusalLog()
    guard = Middleware(
        PageGuard,
        host=host,
        message_characters=sessions.limits.message_characters,
        inputs=PageInputs(page.get_config_file()),
        shares=QueueShares(sessions.limits.queue_size),
        guesses=PasswordGuesses(),
        refusals=refusals,
        conversation_bytes=2 * MAX_BYTES,  # JSON in JSON
    )
    middleware = [Middleware(SecurityHeaders), guard, *([] if password is None else [Middleware(PasswordPage)])]
    try:
        page.launch(
            server_name=host,
            server_port=port,
            auth=None if password is None else lambda name, given: is_password(given, password),
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            max_file_size=1,  # byte: uploads are refused
            state_session_capacity=MAX_SESSIONS,
            app_kwargs={
                "middleware": middleware,
                "docs_url": None,
                "redoc_url": None,
                "openapi_url": None,
            },
            theme=theme,
            css=style(),
            head=head(sessions),
            i18n=i18n,
        )
    except OSError as error:
        raise MachineError(f"port {port}", str(error), "Choose another --port, or stop what uses this one") from error
    logging.getLogger("uvicorn.error").addFilter(refusals)
    return page
