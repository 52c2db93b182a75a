"""The page: its parts, and which handler each event calls."""

from __future__ import annotations

from typing import Any

import gradio as gr

from kyon_pl.chat.web.inputs import CONVERSATION
from kyon_pl.chat.web.page.components import message_box, panel, settings_inputs
from kyon_pl.chat.web.page.handlers import Handlers, ReplyLock
from kyon_pl.chat.web.sessions import Sessions, SessionSettings

IDLE_SECONDS = 24 * 3600  # an idle session is forgotten after this time, and a page that is still open is out of step
_END: dict[str, Any] = {"fn": None, "js": "() => kyon.end()", "api_visibility": "private"}


def build_page(sessions: Sessions, initial: SessionSettings) -> Any:
    """Build the page.

    Args:
        sessions: answers the messages.
        initial: the settings of a new session.

    Returns:
        Gradio's Blocks, with their queue.

    Raises:
        SettingError: a sampling parameter is outside the page's range.
    """
    with gr.Blocks(title="kyon_pl", analytics_enabled=False, fill_width=True) as page:
        turns = gr.State((), time_to_live=IDLE_SECONDS)
        reply_lock = gr.State(ReplyLock())
        with gr.Row(elem_id="page"):
            with gr.Column(elem_id="settings", scale=0, min_width=260):
                settings = settings_inputs(sessions, initial)
            with gr.Column(elem_id="main", scale=5):
                with gr.Row(elem_id="panels"):
                    with gr.Column(min_width=260):
                        tuned = panel("tuned")
                    with gr.Column(min_width=260, visible=initial.compares) as base_column:
                        base = panel("base")
                message, send = message_box(sessions)
        # not shown: values for programs, and between the browser and the server
        memories, row, action = (gr.Textbox(visible=False) for _ in range(3))
        saved = gr.Textbox(visible=False, elem_id=CONVERSATION)
        inputs, outputs = settings.inputs(), [turns, tuned, base, memories]
        handlers = Handlers(sessions)
        one_by_one: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
        unqueued: dict[str, Any] = {"show_progress": "hidden", "queue": False}
        private: dict[str, Any] = {"api_visibility": "private"}
        asked = gr.on(
            [message.submit, send.click],
            handlers.ask,
            [message, turns, reply_lock, *inputs],
            [message, *outputs],
            js="(...values) => kyon.begin(...values)",
            **one_by_one,
        )
        retried = tuned.retry(
            handlers.retry,
            [turns, reply_lock, *inputs],
            outputs,
            js="(...values) => kyon.begin(...values)",
            **one_by_one,
        )
        asked_again = tuned.again(
            handlers.again,
            [action, turns, reply_lock, *inputs],
            outputs,
            js="(...values) => kyon.beginChosen(...values)",
            **one_by_one,
            **private,
        )
        running = [asked, retried, asked_again]
        for event in running:
            event.then(**_END)
            event.failure(**_END)  # Gradio's `then` follows no error
        tuned.stop(None, cancels=running, **private)
        # Undo and clear first cancel the reply and wait until it has ended, or a late piece of it would undo them.
        # The wait is queued, since the pieces pass through the queue in order.
        cancel: dict[str, Any] = {"fn": None, "cancels": running, "queue": False, **private}
        wait: dict[str, Any] = {"fn": handlers.wait, "inputs": reply_lock, "show_progress": "hidden", **private}
        tuned.undo(**cancel).then(**wait).then(handlers.undo, [turns, *inputs], outputs, api_name="undo", **unqueued)
        tuned.clear(**cancel).then(**wait).then(handlers.clear, settings.role, outputs, api_name="clear", **unqueued)
        tuned.choose(
            handlers.choose,
            [action, turns, *inputs],
            outputs,
            js="(...values) => kyon.chosen(...values)",
            **unqueued,
            **private,
        )
        tuned.bring(  # queued, since Gradio shows no error of what is not
            handlers.bring,
            [saved, *inputs],
            outputs,
            js="(...values) => kyon.chosen(...values)",
            show_progress="hidden",
            **private,
        )
        opening: dict[str, Any] = {
            "fn": handlers.open,
            "inputs": [saved, *inputs],
            "outputs": [settings.role, *outputs],
            **unqueued,
            **private,
        }
        opened = (
            page.load(js="(...values) => kyon.reopen(...values)", **opening),
            settings.role.input(**cancel).then(**wait).then(js="(...values) => kyon.switchTo(...values)", **opening),
        )
        for event in opened:
            event.then(None, settings.role, None, js="(role) => kyon.opened(role)", **private)
        exported = tuned.export(handlers.export, [turns, *inputs], row, show_progress="hidden")
        exported.success(None, row, None, js="(row) => kyon.download(row)", **private)
        settings.compares.change(handlers.show_base, settings.compares, base_column, **unqueued, **private)
    # without api_open, a call of the API takes its place in the queue like the others
    return page.queue(max_size=sessions.limits.queue_size, default_concurrency_limit=4, api_open=False)
