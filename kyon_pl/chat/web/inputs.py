"""Checks the values that a browser sends against the components of the page, before Gradio gets them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kyon_pl.errors import SettingError

_HASH = re.compile(r"[0-9A-Za-z_-]{1,64}")
_RELOAD = "Reload the page"
CONVERSATION = "conversation"  # elem_id of the text that holds a whole conversation


class Cancel(NamedTuple):
    """A checked request to cancel an event.

    Attributes:
        session: session hash of the page.
        event_id: of the event.
        body: the request's JSON, with the checked values and nothing else.
    """

    session: str
    event_id: str
    body: bytes


class Call(NamedTuple):
    """A checked call of a function of the page.

    Attributes:
        session: session hash of the page.
        body: the request's JSON, with the checked values and nothing else.
        holds_conversation: whether one of the values is a whole conversation, and can be longer than a message.
    """

    session: str
    body: bytes
    holds_conversation: bool


class PageInputs:
    """The functions of a page, and the values that each takes.

    Args:
        config: Gradio's description of the page, as the browser gets it: `Blocks.get_config_file()`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        components = {component["id"]: component for component in config["components"]}
        functions = [function for function in config["dependencies"] if function["backend_fn"]]
        self._inputs = {function["id"]: [components[number] for number in function["inputs"]] for function in functions}
        self._numbers = {function["api_name"]: function["id"] for function in functions}

    def check_call(self, body: bytes, name: str = "") -> Call:
        """Check a request to call a function.

        Args:
            body: JSON with `data`, `session_hash` and `fn_index`.
            name: the function, where the request has no `fn_index`.

        Raises:
            SettingError: no such function, or a value that its component cannot have.
        """
        request = _json_object(body)
        number = request.get("fn_index")
        number = self._numbers.get(name) if number is None else number
        inputs = self._inputs.get(number) if type(number) is int else None
        if inputs is None:
            raise SettingError("fn_index", "there is no such function", _RELOAD)
        values = request.get("data")
        if not isinstance(values, list) or len(values) != len(inputs):
            raise SettingError("data", f"it must be a list of {len(inputs)} values", _RELOAD)
        checked = [_check_value(value, component) for value, component in zip(values, inputs, strict=True)]
        session = _hash(request, "session_hash")
        holds_conversation = any(component["props"].get("elem_id") == CONVERSATION for component in inputs)
        body = _json_bytes({"data": checked, "fn_index": number, "session_hash": session})
        return Call(session, body, holds_conversation)


def check_cancel(body: bytes) -> Cancel:
    """Check a request to cancel an event.

    Args:
        body: JSON with `session_hash`, `fn_index` and `event_id`.

    Raises:
        SettingError: one of them is missing or has the wrong type.
    """
    request = _json_object(body)
    session, event_id, number = _hash(request, "session_hash"), _hash(request, "event_id"), request.get("fn_index")
    if type(number) is not int:
        raise SettingError("fn_index", "it is no number", _RELOAD)
    return Cancel(session, event_id, _json_bytes({"session_hash": session, "fn_index": number, "event_id": event_id}))


def check_reset(body: bytes) -> bytes:
    """Check a request that follows a cancelled event.

    Args:
        body: JSON with `event_id`.

    Returns:
        JSON with the checked id.

    Raises:
        SettingError: it is missing or has the wrong type.
    """
    return _json_bytes({"event_id": _hash(_json_object(body), "event_id")})


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise SettingError("request", "it is no JSON object", _RELOAD)
    return request


def _json_bytes(request: dict[str, Any]) -> bytes:
    try:
        return json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise SettingError("data", "a text has half a character", "Remove it") from None


def _hash(request: Mapping[str, Any], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise SettingError(name, "it is missing or malformed", _RELOAD)
    return value


def _check_value(value: Any, component: Mapping[str, Any]) -> Any:
    kind, props = component["type"], component["props"]
    if kind == "state":
        return None  # the server has the session's value
    check = _CHECKS.get(kind)
    if check is None or not check(value, props):
        raise SettingError(kind, "its value has the wrong type, or is not in its range or list", _RELOAD)
    return value


def _is_number(value: Any, props: Mapping[str, Any]) -> bool:
    return type(value) in (int, float) and props["minimum"] <= value <= props["maximum"]


_CHECKS: dict[str, Callable[[Any, Mapping[str, Any]], bool]] = {
    "textbox": lambda value, props: value is None or isinstance(value, str),
    "checkbox": lambda value, props: value is None or isinstance(value, bool),
    "dropdown": lambda value, props: value is None or value in [choice for _, choice in props["choices"]],
    "slider": _is_number,
    "number": lambda value, props: value is None or _is_number(value, props),
}
