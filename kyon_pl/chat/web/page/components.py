"""The parts of the page: settings, panels and the message box."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, NamedTuple

import gradio as gr

from kyon_pl.chat.model import Sampling
from kyon_pl.chat.web.page.labels import PANEL_CHINESE, PANEL_ENGLISH, i18n
from kyon_pl.chat.web.saved import MAX_BYTES
from kyon_pl.chat.web.sessions import MAX_NAME_CHARACTERS, Sessions, SessionSettings
from kyon_pl.errors import SettingError
from kyon_pl.logs import replace_control_characters

# darker than the theme's greys, which have too little contrast to read
theme = gr.themes.Base(
    primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_title_text_color="*neutral_700",
    block_title_text_color_dark="*neutral_200",
    input_placeholder_color="*neutral_600",
    input_placeholder_color_dark="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_600",
)
NO_ROLE = "—"
# of the sampling parameters; Gradio refuses every message while a value is outside, even an initial value
RANGES = {"temperature": (0, 2), "top_p": (0.05, 1), "repetition_penalty": (0.5, 2), "seed": (0, 2**31)}
_SCRIPTS = ("parts.js", "storage.js", "panel.js", "page.js")  # each uses those before
# events of the panel: Gradio takes the names of an HTML component's own events from this text
_MOUNT = (
    'kyon.mount(element, trigger, props, watch); // "stop" "retry" "undo" "clear" "export" "again" "choose" "bring"'
)


class Settings(NamedTuple):
    """The inputs of the settings, in the order in which handlers get them.

    Attributes:
        role: dropdown of the roles.
        asker: the visitor's name.
        adapter: dropdown of the adapters.
        compares: whether the base model replies too.
        sampling: the sampling parameters.
    """

    role: Any
    asker: Any
    adapter: Any
    compares: Any
    sampling: tuple[Any, ...]

    def inputs(self) -> list[Any]:
        """All of them."""
        return [self.role, self.asker, self.adapter, self.compares, *self.sampling]


def style() -> str:
    """The page's own style sheet."""
    return (files(__package__) / "style.css").read_text(encoding="utf-8")


def head(sessions: Sessions) -> str:
    """HTML for the page's head: the script of the panels and what it has to know."""
    config = {
        "labels": [PANEL_ENGLISH, PANEL_CHINESE],
        "roles": [["", NO_ROLE], *([name, replace_control_characters(name)] for name in sessions.roles)],
        "bytes": MAX_BYTES,
        "characters": sessions.limits.message_characters,
    }
    text = json.dumps(config).replace("<", "\\u003c")  # a role's name cannot end the element
    scripts = ((files(__package__) / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    return "".join(
        [
            f'<script type="application/json" id="kyon-config">{text}</script>',
            *(f"<script>{s}</script>" for s in scripts),
        ]
    )


def settings_inputs(sessions: Sessions, initial: SessionSettings) -> Settings:
    """The column of settings.

    Args:
        sessions: have the roles and adapters.
        initial: what is set at first.

    Raises:
        SettingError: a sampling parameter is outside the page's range.
    """
    adapters = [*sessions.model.adapters]
    has_roles = bool(sessions.roles)
    role = gr.Dropdown(
        [(NO_ROLE, ""), *((replace_control_characters(name), name) for name in sessions.roles)],
        value=initial.role,
        label=i18n("role"),
        visible=has_roles,
        elem_id="role",
    )
    asker = gr.Textbox(
        initial.asker, label=i18n("asker"), max_length=MAX_NAME_CHARACTERS, visible=has_roles, elem_id="asker"
    )
    adapter = gr.Dropdown(
        [(replace_control_characters(name), name) for name in adapters],
        value=adapters[0] if adapters else None,
        label=i18n("adapter"),
        visible=len(adapters) > 1,
        elem_id="adapter",
    )
    compares = gr.Checkbox(initial.compares, label=i18n("compare"), visible=bool(adapters), elem_id="compare")
    return Settings(role, asker, adapter, compares, _sampling_inputs(sessions, initial.sampling))


def panel(name: str) -> Any:
    """A panel of messages, see panel.js. Its value is never part of the template, so it is never HTML."""
    return gr.HTML(
        [], html_template="<div></div>", js_on_load=_MOUNT, apply_default_css=False, elem_id=name, elem_classes="panel"
    )


def message_box(sessions: Sessions) -> tuple[Any, Any]:
    """The box for a message, and the button that sends it."""
    with gr.Row(elem_id="composer"):
        message = gr.Textbox(
            label=i18n("message"),
            container=False,
            placeholder=i18n("placeholder"),
            max_length=sessions.limits.message_characters,
            max_lines=6,
            scale=5,
            min_width=180,
            autofocus=True,
            elem_id="message",
        )
        send = gr.Button(i18n("send"), variant="primary", scale=0, min_width=88, elem_id="send")
    return message, send


def _sampling_inputs(sessions: Sessions, sampling: Sampling) -> tuple[Any, ...]:
    max_new_tokens = sessions.limits.max_new_tokens
    for name, (lowest, highest) in RANGES.items():
        if not lowest <= (value := getattr(sampling, name)) <= highest:
            raise SettingError(name, f"{value} is outside the page's range", f"Set {lowest} to {highest}.")
    helps = {"temperature": i18n("temperature_help")} if sessions.roles else {}
    with gr.Accordion(i18n("parameters"), open=False, elem_id="parameters"):
        tokens = min(sampling.max_new_tokens, max_new_tokens)
        return (
            gr.Slider(1, max_new_tokens, tokens, step=1, label=i18n("max_new_tokens")),
            *(
                gr.Slider(
                    *RANGES[name],
                    getattr(sampling, name),
                    step=0.05,
                    label=i18n(name),
                    info=helps.get(name),
                    elem_id=name,
                )
                for name in ("temperature", "top_p", "repetition_penalty")
            ),
            gr.Number(sampling.seed, precision=0, minimum=0, maximum=RANGES["seed"][1], label=i18n("seed")),
        )
