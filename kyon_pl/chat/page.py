"""The page in a browser: what it shows, and what its buttons do."""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Any

import gradio as gr

from kyon_pl.chat.conversation import Turn
from kyon_pl.chat.labels import CHINESE, ENGLISH
from kyon_pl.chat.role_play import harmless
from kyon_pl.chat.sessions import NAME_CHARACTERS, Host, Turns, Wishes
from kyon_pl.chat.speaker import Sampling
from kyon_pl.errors import KyonError, SettingError

IDLE_SECONDS = 3600  # a conversation that nobody goes on with is forgotten
MODEL = "model"  # what its events wait for, first come first served
NO_ROLE = "—"
words = gr.I18n(en=ENGLISH, zh=CHINESE, **{"zh-CN": CHINESE, "zh-TW": CHINESE})
theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
_DOWNLOAD = """(row) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([row], {type: "application/jsonl"}));
  link.download = "conversation.jsonl";
  link.click();
  URL.revokeObjectURL(link.href);
}"""


def build_page(host: Host, wishes: Wishes) -> Any:
    """Make the page.

    Args:
        host: holds the conversations.
        wishes: what is set when it opens.

    Returns:
        Gradio's Blocks, with their queue.
    """
    with gr.Blocks(title="kyon_pl", analytics_enabled=False) as page:
        turns = gr.State((), time_to_live=IDLE_SECONDS)
        replying = gr.State(_Replying())
        role, asker, adapter, compares = _choices(host, wishes)
        with gr.Row():
            with gr.Column(min_width=300):
                tuned = _replies("tuned")
            with gr.Column(min_width=300, visible=wishes.compares) as beside:
                base = _replies("base")
        with gr.Row():
            message = gr.Textbox(
                label=words("message"),
                placeholder=words("placeholder"),
                max_length=host.limits.message_characters,
                max_lines=6,
                scale=5,
                min_width=220,
                elem_id="message",
            )
            send = gr.Button(words("send"), variant="primary", min_width=80, elem_id="send")
        with gr.Row():
            stop, retry, undo, clear, export = (
                gr.Button(words(name), size="sm", min_width=70, elem_id=name)
                for name in ("stop", "retry", "undo", "clear", "export")
            )
        with gr.Accordion(words("memories"), open=False, visible=bool(host.roles), elem_id="memories_part"):
            memories = gr.Textbox(show_label=False, container=False, interactive=False, lines=3, elem_id="memories")
        numbers = _numbers(host, wishes.sampling)
        row = gr.Textbox(visible=False)
        settings = [role, asker, adapter, compares, *numbers]
        shown = [turns, tuned, base, memories]
        actions = _Actions(host)
        waits: dict[str, Any] = {"concurrency_id": MODEL, "concurrency_limit": 1, "show_progress": "hidden"}
        at_once: dict[str, Any] = {"show_progress": "hidden", "queue": False}
        asked = gr.on(
            [message.submit, send.click],
            actions.ask,
            [message, turns, replying, *settings],
            [message, *shown],
            **waits,
        )
        again = retry.click(actions.retry, [turns, replying, *settings], shown, **waits)
        running = [asked, again]
        stop.click(None, cancels=running, api_visibility="private")
        # first the end of what runs, or a piece of its reply could come after: the browser asks for it and goes on, so
        # it is waited for; in the queue, as the pieces come through it in their order
        ended: dict[str, Any] = {"fn": None, "cancels": running, "api_visibility": "private", "queue": False}
        waited: dict[str, Any] = {"fn": _Replying.wait, "inputs": replying, "api_visibility": "private"}
        undo.click(**ended).then(**waited).then(actions.undo, [turns, *settings], shown, api_name="undo", **at_once)
        # the last two are the bins in the conversations' corners
        gr.on([clear.click, role.change, tuned.clear, base.clear], **ended).then(**waited).then(
            actions.clear, None, shown, api_name="clear", **at_once
        )
        exported = export.click(actions.export, [turns, *settings], row, show_progress="hidden")
        exported.success(None, row, None, js=_DOWNLOAD, api_visibility="private")
        compares.change(lambda on: gr.Column(visible=on), compares, beside, api_visibility="private", **at_once)
    return page.queue(max_size=host.limits.waiting, default_concurrency_limit=4)


# what a visitor can set; beyond these Gradio refuses every message, its own starting values included
RANGES = {"temperature": (0, 2), "top_p": (0.05, 1), "repetition_penalty": (0.5, 2), "seed": (0, 2**31)}


class _Replying:
    """Held while a visitor's reply comes. A cancelled one has not ended when the browser has asked for its end."""

    def __init__(self) -> None:
        self.lock = Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Replying:
        return _Replying()  # Gradio makes each visitor's out of the first

    def wait(self) -> None:
        """Until no reply comes."""
        with self.lock:
            pass


class _Actions:
    """What the buttons do. Each gets the components' values in their order."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def ask(self, message: str, turns: Turns, replying: _Replying, *settings: Any) -> Iterator[tuple[Any, ...]]:
        """Ask; the reply's first piece empties the message box, and what is typed from then on stays there."""
        wishes, box = self._wishes(settings), ""
        with replying.lock:
            for update in self._said(turns, message, wishes):
                yield (box, *update)
                box = gr.skip()

    def retry(self, turns: Turns, replying: _Replying, *settings: Any) -> Iterator[tuple[Any, ...]]:
        """Ask the last question again; where tokens are drawn, with another seed for each retry."""
        with _shown_errors():
            if not turns:
                raise SettingError("retry", "nothing has been said", "Ask something first")
        wishes = self._wishes(settings)
        sampling, retries = wishes.sampling, turns[-1].retries + 1
        wishes = replace(wishes, sampling=replace(sampling, seed=sampling.seed + retries))
        with replying.lock:
            for made, *rest in self._said(turns[:-1], turns[-1].typed, wishes):
                yield ((*made[:-1], replace(made[-1], retries=retries)), *rest)

    def undo(self, turns: Turns, *settings: Any) -> tuple[Any, ...]:
        """Forget the last turn."""
        return self._shown(turns[:-1], self._wishes(settings))

    def clear(self) -> tuple[Any, ...]:
        """Forget what was said."""
        return (), [], [], ""

    def export(self, turns: Turns, *settings: Any) -> str:
        """The conversation as one row of messages."""
        with _shown_errors():
            return self.host.export(turns, self._wishes(settings))

    def _said(self, turns: Turns, message: str, wishes: Wishes) -> Iterator[tuple[Any, ...]]:
        with _shown_errors():
            for made in self.host.ask(turns, message, wishes):
                yield made, _messages(made), _messages(made, of_base=True), gr.skip()
            yield self._shown(made, wishes)

    def _shown(self, turns: Turns, wishes: Wishes) -> tuple[Any, ...]:
        memories = enumerate(self.host.memories(turns, wishes), 1)
        text = "\n\n".join(f"{number}. {harmless(memory)}" for number, memory in memories)
        return turns, _messages(turns), _messages(turns, of_base=True), text

    def _wishes(self, settings: tuple[Any, ...]) -> Wishes:
        role, asker, adapter, compares, *numbers = settings
        tokens, temperature, top_p, penalty, seed = numbers
        with _shown_errors():
            if None in numbers:
                raise SettingError("parameters", "a number is missing", "Fill it in")
            sampling = Sampling(int(tokens), float(temperature), float(top_p), float(penalty), int(seed))
        return Wishes(role or "", asker or "", adapter or "", bool(compares), sampling)


@contextmanager
def _shown_errors() -> Iterator[None]:
    """What a visitor can mend is shown, as text: Gradio takes the words of an error for HTML."""
    try:
        yield
    except KyonError as error:
        raise gr.Error(_as_text(str(error)), print_exception=False) from None


def _choices(host: Host, wishes: Wishes) -> tuple[Any, ...]:
    adapters = [*host.speaker.adapters]
    with gr.Row():
        roles = [(NO_ROLE, ""), *((harmless(name), name) for name in host.roles)]
        role = gr.Dropdown(
            roles, value=wishes.role, label=words("role"), visible=bool(host.roles), min_width=140, elem_id="role"
        )
        asker = gr.Textbox(
            wishes.asker,
            label=words("asker"),
            max_length=NAME_CHARACTERS,
            visible=bool(host.roles),
            min_width=140,
            elem_id="asker",
        )
        several = len(adapters) > 1
        adapter = gr.Dropdown(
            [(harmless(name), name) for name in adapters],
            value=adapters[0] if adapters else None,
            label=words("adapter"),
            visible=several,
            min_width=140,
            elem_id="adapter",
        )
    compares = gr.Checkbox(wishes.compares, label=words("compare"), visible=bool(adapters), elem_id="compare")
    return role, asker, adapter, compares


def _numbers(host: Host, sampling: Sampling) -> list[Any]:
    most = host.limits.max_new_tokens
    for name, (least, greatest) in RANGES.items():
        if not least <= (value := getattr(sampling, name)) <= greatest:
            raise SettingError(name, f"{value} is off the page's range", f"Set {least} to {greatest}.")
    with gr.Accordion(words("parameters"), open=False, elem_id="parameters"), gr.Row():
        return [
            gr.Slider(1, most, min(sampling.max_new_tokens, most), step=1, label=words("max_new_tokens")),
            *(
                gr.Slider(*RANGES[name], getattr(sampling, name), step=0.05, label=words(name), elem_id=name)
                for name in ("temperature", "top_p", "repetition_penalty")
            ),
            gr.Number(sampling.seed, precision=0, minimum=0, maximum=RANGES["seed"][1], label=words("seed")),
        ]


def _replies(name: str) -> Any:
    """A conversation. Without Markdown, Gradio still takes a text for HTML: `_as_text` sees to that."""
    return gr.Chatbot(
        label=words(name),
        elem_id=name,
        height="44vh",
        render_markdown=False,
        sanitize_html=True,
        latex_delimiters=[],
        buttons=[],  # a copy would be of the HTML
        feedback_options=None,
    )


def _messages(turns: Turns, of_base: bool = False) -> list[dict[str, str]]:
    return [message for turn in turns for message in _of_turn(turn, of_base)]


def _of_turn(turn: Turn, of_base: bool) -> Iterator[dict[str, str]]:
    said = turn.base if of_base else turn.reply
    yield {"role": "user", "content": _as_text(turn.typed)}
    if said:
        yield {"role": "assistant", "content": _as_text(said.text) + ("" if said.stopped else " […]")}


def _as_text(text: str) -> str:
    """HTML that shows a text as it is."""
    return html.escape(harmless(text))
