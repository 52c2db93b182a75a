"""A model behind OpenAI's chat completions that judges: its requests, repeated where that can help."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from kyon_pl.chat.server.answers import read_answer
from kyon_pl.chat.web.shares import is_loopback
from kyon_pl.errors import MachineError, SettingError
from kyon_pl.files import shorten

log = logging.getLogger(__name__)

KEY = "KYON_PL_JUDGE_KEY"
PATH = "/chat/completions"
_CONNECT_S, _LONGEST_WAIT_S = 10, 60
_ATTEMPTS = 6
_BUSY = (408, 409, 425, 429)
_MOST_TOKENS = 2048  # of an answer; models that think need more than a verdict
_SETTLED = ("temperature", "max_tokens")  # some models refuse them


class NoAnswer(Exception):  # noqa: N818 (not a fault of the user)
    """The endpoint gave no answer, although the request was repeated."""


@dataclass
class Endpoint:
    """Sends chat completions to a model.

    Attributes:
        url: of the API, with or without `/v1` and `/chat/completions`.
        model: its name there.
        timeout_s: longest wait for a whole answer, in seconds.
        wait_s: before the first repetition, in seconds; each further one waits twice as long, 60 at most.

    Raises:
        SettingError: no address, or a key that no header can carry.
    """

    url: str
    model: str
    timeout_s: float = 120.0
    wait_s: float = 1.0
    _omitted: set[str] = field(default_factory=set)
    _answered: bool = False

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/").removesuffix(PATH)
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise _no_address(f"it is no address: {error}") from None
        is_host = url.host and "%" not in url.host and (url.port or 1) < 2**16
        if url.scheme not in ("http", "https") or not is_host:
            raise _no_address(f"{shorten(self.url)} is no address")
        if url.userinfo:
            raise _no_address("it contains a password")
        if url.query or url.fragment:
            raise _no_address(f"{shorten(self.url)} has parameters")
        self.url += "" if url.path.strip("/") else "/v1"
        self._key = os.environ.get(KEY, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise SettingError(f"${KEY}", "it has characters that no key has", "Copy the key again")
        self._client = httpx.Client(
            timeout=httpx.Timeout(self.timeout_s, connect=min(_CONNECT_S, self.timeout_s)),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            trust_env=not is_loopback(url.host),  # a proxy is for other machines
        )

    def ask(self, messages: list[dict[str, str]]) -> str:
        """The text that answers some messages, a refusal included; or what came in place of one.

        Busy servers, broken connections and timeouts are asked again, with growing waits.

        Args:
            messages: as OpenAI's API takes them.

        Raises:
            NoAnswer: it stayed busy, silent or broken.
            MachineError: nothing listens there, from the first request on.
            SettingError: it refuses the key, the model or the request.
        """
        wait, why = self.wait_s, ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                log.warning("the judge %s: asking again in %.3g s", why, wait)
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT_S)
            try:
                response = self._post(messages)
            except httpx.TimeoutException:
                why = f"gave no whole answer within {self.timeout_s:g} s"
                continue
            except (httpx.HTTPError, httpx.StreamError) as error:
                why = f"cannot be reached ({self._without_key(str(error)) or type(error).__name__})"
                if isinstance(error, httpx.ConnectError) and not self._answered:
                    raise unreachable(self, why) from error
                continue
            self._answered = True
            if response.is_success:
                return self._without_key(_text(response))
            said = self._without_key(_error_text(response))
            if response.status_code not in _BUSY and response.status_code < 500:
                why = self._leave_out(response.status_code, said)
                continue
            why = f"answers {response.status_code} ({said})"
            wait = max(wait, min(_seconds(response.headers.get("retry-after")), _LONGEST_WAIT_S))
        raise NoAnswer(why)

    def _post(self, messages: list[dict[str, str]]) -> httpx.Response:
        settings = {"temperature": 0, "max_tokens": _MOST_TOKENS}
        kept = {name: value for name, value in settings.items() if name not in self._omitted}
        request = {"model": self.model, "messages": messages, **kept}
        until_s = time.monotonic() + self.timeout_s
        with self._client.stream("POST", self.url + PATH, json=request) as response:
            return read_answer(response, until_s)

    def _leave_out(self, status: int, said: str) -> str:
        """Leave out a setting that the model refuses, so that it can be asked again; and say so.

        Raises:
            SettingError: something else is refused.
        """
        if status in (401, 403):
            raise SettingError(
                self.url, f"it refuses the key ({status}: {said})", f"Set the environment variable {KEY}"
            )
        refused = next((name for name in _SETTLED if status in (400, 422) and name in said), None)
        if refused is None or refused in self._omitted:
            fix = "Correct --endpoint and --endpoint_model"
            raise SettingError(self.url, f"it answers {status} to {shorten(self.model)}: {said}", fix)
        self._omitted.add(refused)
        return f"takes no {refused}"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "…") if self._key else text


def unreachable(endpoint: Endpoint, why: str) -> MachineError:
    """The error for an endpoint that has given no answer several times in a row."""
    return MachineError(endpoint.url, f"the judge {why}", "Start the command again later: what was answered is kept")


def _no_address(found: str) -> SettingError:
    return SettingError("--endpoint", found, f"Write http://HOST:PORT/v1; a key comes from ${KEY}")


def _text(response: httpx.Response) -> str:
    """The text of a completion; of anything else its beginning."""
    try:
        message: Any = response.json()["choices"][0]["message"]
        text = message.get("content") or message.get("refusal") or ""
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return shorten(response.text)
    return text if isinstance(text, str) else shorten(text)


def _error_text(response: httpx.Response) -> str:
    try:
        content = response.json()
    except (ValueError, RecursionError):
        content = response.text
    error = content.get("error", content) if isinstance(content, dict) else content
    return shorten(error.get("message", error) if isinstance(error, dict) else error)


def _seconds(text: str | None) -> float:
    """The seconds of a `Retry-After`; 0 for a date or none."""
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0
