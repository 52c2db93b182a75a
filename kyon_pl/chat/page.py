"""The web page: its labels, components and events."""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Any

import gradio as gr

from kyon_pl.chat.conversation import Turn, check_has_turns
from kyon_pl.chat.middleware import PLACE
from kyon_pl.chat.model import Sampling
from kyon_pl.chat.sessions import MAX_NAME_CHARACTERS, Sessions, SessionSettings, Turns
from kyon_pl.chat.shares import Place
from kyon_pl.errors import KyonError, SettingError
from kyon_pl.logs import replace_control_characters

# name of a label: English, Chinese; the browser's language chooses
LABELS = {
    "role": ("Role", "角色"),
    "asker": ("Your name in the story", "你在故事中的名字"),
    "adapter": ("Adapter", "适配器"),
    "compare": ("Also show the base model's reply", "同时显示原始模型的回复"),
    "tuned": ("Fine-tuned", "微调模型"),
    "base": ("Base model", "原始模型"),
    "message": ("Message", "消息"),
    "placeholder": ("Type a message", "输入消息"),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "retry": ("Retry", "重试"),
    "undo": ("Undo", "撤回"),
    "clear": ("Clear", "清空"),
    "export": ("Export", "导出"),
    "memories": ("Memories used for the last question", "本轮用到的记忆"),
    "parameters": ("Parameters", "生成参数"),
    "max_new_tokens": ("Maximum reply length, in tokens", "最大回复长度（token 数）"),
    "temperature": ("Temperature (0: greedy decoding)", "温度（0 为贪心解码）"),
    "top_p": ("Top p", "Top p"),
    "repetition_penalty": ("Repetition penalty", "重复惩罚"),
    "seed": ("Seed", "随机种子"),
}
ENGLISH, CHINESE = ({name: texts[i] for name, texts in LABELS.items()} for i in range(2))
i18n = gr.I18n(en=ENGLISH, zh=CHINESE, **{"zh-CN": CHINESE, "zh-TW": CHINESE})
theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])

IDLE_SECONDS = 3600  # an idle session is forgotten after this time
NO_ROLE = "—"
# of the sampling parameters; Gradio refuses every message while a value is outside, even an initial value
RANGES = {"temperature": (0, 2), "top_p": (0.05, 1), "repetition_penalty": (0.5, 2), "seed": (0, 2**31)}
_DOWNLOAD = """(row) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([row], {type: "application/jsonl"}));
  link.download = "conversation.jsonl";
  link.click();
  URL.revokeObjectURL(link.href);
}"""


def build_page(sessions: Sessions, initial: SessionSettings) -> Any:
    """Build the page.

    Args:
        sessions: answers the messages.
        initial: the settings of a new session.

    Returns:
        Gradio's Blocks, with their queue.
    """
    with gr.Blocks(title="kyon_pl", analytics_enabled=False) as page:
        turns = gr.State((), time_to_live=IDLE_SECONDS)
        reply_lock = gr.State(_ReplyLock())
        role, asker, adapter, compares = _session_inputs(sessions, initial)
        with gr.Row():
            with gr.Column(min_width=300):
                tuned = _chatbot("tuned")
            with gr.Column(min_width=300, visible=initial.compares) as base_column:
                base = _chatbot("base")
        with gr.Row():
            message = gr.Textbox(
                label=i18n("message"),
                placeholder=i18n("placeholder"),
                max_length=sessions.limits.message_characters,
                max_lines=6,
                scale=5,
                min_width=220,
                elem_id="message",
            )
            send = gr.Button(i18n("send"), variant="primary", min_width=80, elem_id="send")
        with gr.Row():
            stop, retry, undo, clear, export = (
                gr.Button(i18n(name), size="sm", min_width=70, elem_id=name)
                for name in ("stop", "retry", "undo", "clear", "export")
            )
        with gr.Accordion(i18n("memories"), open=False, visible=bool(sessions.roles), elem_id="memories_part"):
            memories = gr.Textbox(show_label=False, container=False, interactive=False, lines=3, elem_id="memories")
        row = gr.Textbox(visible=False)
        settings = [role, asker, adapter, compares, *_sampling_inputs(sessions, initial.sampling)]
        outputs = [turns, tuned, base, memories]
        handlers = _Handlers(sessions)
        one_by_one: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
        unqueued: dict[str, Any] = {"show_progress": "hidden", "queue": False}
        asked = gr.on(
            [message.submit, send.click],
            handlers.ask,
            [message, turns, reply_lock, *settings],
            [message, *outputs],
            **one_by_one,
        )
        retried = retry.click(handlers.retry, [turns, reply_lock, *settings], outputs, **one_by_one)
        running = [asked, retried]
        stop.click(None, cancels=running, api_visibility="private")
        # Undo and clear first cancel the reply and wait until it has ended, or a late piece of it would undo them.
        # The wait is queued, since the pieces pass through the queue in order.
        cancel: dict[str, Any] = {"fn": None, "cancels": running, "api_visibility": "private", "queue": False}
        wait: dict[str, Any] = {"fn": handlers.wait, "inputs": reply_lock, "api_visibility": "private"}
        undo.click(**cancel).then(**wait).then(handlers.undo, [turns, *settings], outputs, api_name="undo", **unqueued)
        # tuned.clear and base.clear are the bins in the corners of the chatbots
        gr.on([clear.click, role.change, tuned.clear, base.clear], **cancel).then(**wait).then(
            handlers.clear, None, outputs, api_name="clear", **unqueued
        )
        exported = export.click(handlers.export, [turns, *settings], row, show_progress="hidden")
        exported.success(None, row, None, js=_DOWNLOAD, api_visibility="private")
        compares.change(handlers.show_base, compares, base_column, api_visibility="private", **unqueued)
    # without api_open, a call of the API takes its place in the queue like the others
    return page.queue(max_size=sessions.limits.queue_size, default_concurrency_limit=4, api_open=False)


class _ReplyLock:
    """Held while a reply is generated. Gradio cancels an event without waiting for its generator to end."""

    def __init__(self) -> None:
        self.lock = Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> _ReplyLock:
        return _ReplyLock()  # Gradio copies the initial state for each session


class _Handlers:
    """Event handlers. Their arguments are the request and the values of the input components, in order."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions

    def ask(
        self, request: gr.Request, message: str | None, turns: Turns, reply_lock: _ReplyLock, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Ask. Only the first update empties the message box, so that what is typed during the reply stays."""
        _leave_queue(request)
        settings, box = self._settings(values), ""
        with reply_lock.lock:
            for update in self._stream(turns, message or "", settings):
                yield (box, *update)
                box = gr.skip()

    def retry(
        self, request: gr.Request, turns: Turns, reply_lock: _ReplyLock, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Ask the last question again, with another seed for each retry."""
        _leave_queue(request)
        with _gradio_errors():
            check_has_turns("retry", turns)
        settings = self._settings(values)
        sampling, retries = settings.sampling, turns[-1].retries + 1
        settings = replace(settings, sampling=replace(sampling, seed=sampling.seed + retries))
        with reply_lock.lock:
            for new_turns, *rest in self._stream(turns[:-1], turns[-1].typed, settings):
                yield ((*new_turns[:-1], replace(new_turns[-1], retries=retries)), *rest)

    def wait(self, request: gr.Request, reply_lock: _ReplyLock) -> None:
        """Wait until no reply is generated."""
        _leave_queue(request)
        with reply_lock.lock:
            pass

    def undo(self, request: gr.Request, turns: Turns, *values: Any) -> tuple[Any, ...]:
        """Remove the last turn."""
        _leave_queue(request)
        return self._update(turns[:-1], self._settings(values))

    def clear(self, request: gr.Request) -> tuple[Any, ...]:
        """Remove all turns."""
        _leave_queue(request)
        return (), [], [], ""

    def export(self, request: gr.Request, turns: Turns, *values: Any) -> str:
        """The conversation as a training row."""
        _leave_queue(request)
        with _gradio_errors():
            return self.sessions.export(turns, self._settings(values))

    def show_base(self, request: gr.Request, on: bool | None) -> Any:
        """Show the base model's replies, or hide them."""
        _leave_queue(request)
        return gr.Column(visible=bool(on))

    def _stream(self, turns: Turns, message: str, settings: SessionSettings) -> Iterator[tuple[Any, ...]]:
        with _gradio_errors():
            for new_turns in self.sessions.ask(turns, message, settings):
                yield new_turns, _messages(new_turns), _messages(new_turns, of_base=True), gr.skip()
            yield self._update(new_turns, settings)

    def _update(self, turns: Turns, settings: SessionSettings) -> tuple[Any, ...]:
        memories = enumerate(self.sessions.memories(turns, settings), 1)
        text = "\n\n".join(f"{number}. {replace_control_characters(memory)}" for number, memory in memories)
        return turns, _messages(turns), _messages(turns, of_base=True), text

    def _settings(self, values: tuple[Any, ...]) -> SessionSettings:
        role, asker, adapter, compares, *numbers = values
        tokens, temperature, top_p, penalty, seed = numbers
        with _gradio_errors():
            if None in numbers:
                raise SettingError("parameters", "a number is missing", "Fill it in")
            sampling = Sampling(int(tokens), float(temperature), float(top_p), float(penalty), int(seed))
        return SessionSettings(role or "", asker or "", adapter or "", bool(compares), sampling)


def _leave_queue(request: gr.Request) -> None:
    """Release the visitor's place in the queue, see `kyon_pl.chat.middleware`."""
    place: Place = request.request.scope["state"][PLACE]
    place.leave()


@contextmanager
def _gradio_errors() -> Iterator[None]:
    """Shows a KyonError on the page."""
    try:
        yield
    except KyonError as error:
        raise gr.Error(_escape(str(error)), print_exception=False) from None


def _session_inputs(sessions: Sessions, initial: SessionSettings) -> tuple[Any, ...]:
    adapters = [*sessions.model.adapters]
    has_roles = bool(sessions.roles)
    with gr.Row():
        role = gr.Dropdown(
            [(NO_ROLE, ""), *((replace_control_characters(name), name) for name in sessions.roles)],
            value=initial.role,
            label=i18n("role"),
            visible=has_roles,
            min_width=140,
            elem_id="role",
        )
        asker = gr.Textbox(
            initial.asker,
            label=i18n("asker"),
            max_length=MAX_NAME_CHARACTERS,
            visible=has_roles,
            min_width=140,
            elem_id="asker",
        )
        adapter = gr.Dropdown(
            [(replace_control_characters(name), name) for name in adapters],
            value=adapters[0] if adapters else None,
            label=i18n("adapter"),
            visible=len(adapters) > 1,
            min_width=140,
            elem_id="adapter",
        )
    compares = gr.Checkbox(initial.compares, label=i18n("compare"), visible=bool(adapters), elem_id="compare")
    return role, asker, adapter, compares


def _sampling_inputs(sessions: Sessions, sampling: Sampling) -> list[Any]:
    max_new_tokens = sessions.limits.max_new_tokens
    for name, (lowest, highest) in RANGES.items():
        if not lowest <= (value := getattr(sampling, name)) <= highest:
            raise SettingError(name, f"{value} is outside the page's range", f"Set {lowest} to {highest}.")
    with gr.Accordion(i18n("parameters"), open=False, elem_id="parameters"), gr.Row():
        tokens = min(sampling.max_new_tokens, max_new_tokens)
        return [
            gr.Slider(1, max_new_tokens, tokens, step=1, label=i18n("max_new_tokens")),
            *(
                gr.Slider(*RANGES[name], getattr(sampling, name), step=0.05, label=i18n(name), elem_id=name)
                for name in ("temperature", "top_p", "repetition_penalty")
            ),
            gr.Number(sampling.seed, precision=0, minimum=0, maximum=RANGES["seed"][1], label=i18n("seed")),
        ]


def _chatbot(name: str) -> Any:
    """A chatbot that shows plain text. Without Markdown, Gradio still takes its messages for HTML, see `_escape`."""
    return gr.Chatbot(
        label=i18n(name),
        elem_id=name,
        height="44vh",
        render_markdown=False,
        sanitize_html=True,
        latex_delimiters=[],
        buttons=[],  # the copy button would copy HTML
        feedback_options=None,
    )


def _messages(turns: Turns, of_base: bool = False) -> list[dict[str, str]]:
    return [message for turn in turns for message in _turn_messages(turn, of_base)]


def _turn_messages(turn: Turn, of_base: bool) -> Iterator[dict[str, str]]:
    reply = turn.base if of_base else turn.reply
    yield {"role": "user", "content": _escape(turn.typed)}
    if reply:
        yield {"role": "assistant", "content": _escape(reply.text) + ("" if reply.stopped else " […]")}


def _escape(text: str) -> str:
    """HTML that shows a text literally: Gradio takes messages and errors for HTML."""
    return html.escape(replace_control_characters(text))
