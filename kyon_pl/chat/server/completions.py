"""The requests to a server: llama.cpp's, or another one with OpenAI's completions that takes ids as the prompt."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

from kyon_pl.chat.model import Sampling
from kyon_pl.chat.server.answers import read_answer
from kyon_pl.chat.web.shares import is_loopback
from kyon_pl.errors import MachineError, SettingError
from kyon_pl.files import is_of_kind, shorten

KEY = "KYON_PL_SERVER_KEY"
_CONNECT_S, _SILENT_S = 10, 600  # a long prompt takes minutes on a small machine
_SEEDS = 2**32 - 1  # llama.cpp takes the largest 32-bit number for: draw a seed
_START = "Start it with: llama-server -m FILE.gguf -c 4096; or correct --server"


@dataclass(frozen=True)
class Piece:
    """A part of a streamed reply.

    Attributes:
        text: new text, of a server that sends no ids.
        token_ids: new ids.
        end: why the reply has ended, `stop` for the end-of-sequence token; None: it goes on.
    """

    text: str = ""
    token_ids: Sequence[int] = ()
    end: str | None = None


@dataclass
class CompletionServer:
    """The requests to a server, and checks of its answers.

    Attributes:
        url: without a path of the API.
        kind: whose API it has.
        model: its name of the model that it serves.
        context_tokens: length of its context; None: it does not say.
        adapters: numbers and scales of its adapters, by name.
    """

    url: str
    kind: Literal["llama.cpp", "openai"] = "openai"
    model: str = ""
    context_tokens: int | None = None
    adapters: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/").removesuffix("/v1")
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise SettingError("--server", f"{self.url!r} is no address: {error}", "Write http://HOST:PORT") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise SettingError("--server", f"{self.url!r} is no address", "Write http://HOST:PORT")
        self._client = httpx.Client(
            base_url=url,
            timeout=httpx.Timeout(_SILENT_S, connect=_CONNECT_S),
            headers={"Authorization": f"Bearer {os.environ[KEY]}"} if os.environ.get(KEY) else {},
            trust_env=not is_loopback(url.host),  # a proxy is for other machines
        )

    def connect(self) -> None:
        """Ask which server this is, and what it serves.

        Raises:
            MachineError: nothing answers there, or no server of completions.
            SettingError: it refuses the key, or serves several models.
        """
        props = self._get("/props", optional=True)
        models = self._get("/v1/models")
        names = [model.get("id") for model in _list_of_objects(models and models.get("data"))]
        if not names or not all(isinstance(name, str) for name in names):
            raise self._nonsense("the list of its models", models)
        if len(names) > 1:
            found = f"it serves several models: {', '.join(map(str, names))}"
            raise SettingError(self.url, found, "Start it with one model")
        self.model = str(names[0])
        if props is None:
            return
        self.kind = "llama.cpp"
        settings = props.get("default_generation_settings")
        tokens = settings.get("n_ctx") if isinstance(settings, dict) else None
        if not isinstance(tokens, int):
            raise self._nonsense("the length of its context", props)
        self.context_tokens = tokens
        listed = _content(self._request("GET", "/lora-adapters"))
        if isinstance(listed, str):
            raise self._nonsense("the list of its adapters", listed)
        self.adapters = _adapters(listed) if isinstance(listed, list) else {}

    def encode(self, text: str) -> list[int] | None:
        """The server's ids of a text; None if it does not tell them."""
        request = {"content": text, "add_special": False, "parse_special": False}  # llama.cpp's
        request |= {"model": self.model, "prompt": text, "add_special_tokens": False}  # vLLM's
        answer = self._get("/tokenize", optional=True, content=request)
        return None if answer is None else answer.get("tokens")

    def stream(self, prompt: list[int], sampling: Sampling, scales: Mapping[int, float]) -> Iterator[Piece]:
        """Yield a reply piece by piece. Closing the iterator ends the request, and llama.cpp stops computing.

        Args:
            prompt: token ids.
            sampling: how tokens are chosen.
            scales: of the server's adapters, by number.

        Raises:
            MachineError: the server fails, breaks off, or answers something else than a completion.
        """
        llama = self.kind == "llama.cpp"
        path = "/completion" if llama else "/v1/completions"
        content = self._llama_request(prompt, sampling, scales) if llama else self._openai_request(prompt, sampling)
        ended = False
        with self._answers(), self._client.stream("POST", path, json=content) as response:
            if not response.is_success:
                self._check_status(read_answer(response, time.monotonic() + _SILENT_S))
            for line in response.iter_lines():
                if line.startswith("data:") and (data := line.removeprefix("data:").strip()) != "[DONE]":
                    piece = self._piece(data)
                    ended = ended or piece.end is not None
                    yield piece
        if not ended:
            raise self._broken("it ended the reply in the middle")

    def _llama_request(self, prompt: list[int], sampling: Sampling, scales: Mapping[int, float]) -> dict[str, object]:
        return {
            "prompt": prompt,
            "n_predict": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": self.context_tokens,
            "samplers": ["penalties", "temperature", "top_p"],  # in the order of transformers
            "seed": sampling.seed % _SEEDS,
            "stream": True,
            "return_tokens": True,
            # llama.cpp reuses keys and values that were computed with another scale
            "cache_prompt": not scales,
            "lora": [{"id": number, "scale": scale} for number, scale in scales.items()],
        }

    def _openai_request(self, prompt: list[int], sampling: Sampling) -> dict[str, object]:
        penalty = {"repetition_penalty": sampling.repetition_penalty} if sampling.repetition_penalty != 1 else {}
        return {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed % _SEEDS,
            "stream": True,
            **penalty,
        }

    def _piece(self, data: str) -> Piece:
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise self._nonsense("a piece of a reply", data) from None
        if not isinstance(event, dict):
            raise self._nonsense("a piece of a reply", event)
        if "error" in event:
            raise MachineError(self.url, f"it fails: {_error_text(event)}", "Look at what the server prints")
        model = event.get("model")
        if isinstance(model, str) and model != self.model:
            found = f"it serves {shorten(model)} now, and served {shorten(self.model)} before"
            raise MachineError(self.url, found, "Start this chat again")
        piece = _llama_piece(event) if self.kind == "llama.cpp" else _openai_piece(event)
        if piece is None:
            raise self._nonsense("a piece of a reply", event)
        return piece

    def _get(
        self, path: str, optional: bool = False, content: Mapping[str, object] | None = None
    ) -> dict[str, Any] | None:
        """The JSON object that answers a request; None if there is no such path and it is optional."""
        response = self._request("POST" if content else "GET", path, content, optional)
        if optional and not response.is_success:
            return None
        answer = _content(response)
        if not isinstance(answer, dict):
            raise self._nonsense(path, answer)
        return answer

    def _request(
        self, method: str, path: str, content: Mapping[str, object] | None = None, optional: bool = False
    ) -> httpx.Response:
        until_s = time.monotonic() + _SILENT_S
        with self._answers(), self._client.stream(method, path, json=content) as stream:
            response = read_answer(stream, until_s)
        if not (optional and response.status_code in (404, 405, 501)):
            self._check_status(response)
        return response

    def _check_status(self, response: httpx.Response) -> None:
        status = response.status_code
        if status in (401, 403):
            raise SettingError(self.url, f"it refuses the key ({status})", f"Set the environment variable {KEY}")
        if not response.is_success:
            said = _error_text(_content(response))
            raise MachineError(self.url, f"it answers {status}: {said}", "Look at what the server prints")

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise MachineError(self.url, f"no server answers there ({error})", _START) from error
        except httpx.TimeoutException as error:
            raise self._broken(f"it gave no answer, or no whole one, within {_SILENT_S} seconds") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._broken(f"the connection broke ({str(error) or type(error).__name__})") from error

    def _broken(self, found: str) -> MachineError:
        return MachineError(self.url, found, "Start the server again, and repeat the question")

    def _nonsense(self, what: str, answer: object) -> MachineError:
        found = f"its answer is not {what}, but {shorten(answer)}"
        return MachineError(self.url, found, "Name a server of llama.cpp, or of OpenAI's completions")


def _content(response: httpx.Response) -> Any:
    """The JSON of an answer, or its text if it is none."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return response.text


def _adapters(listed: list[Any]) -> dict[str, tuple[int, float]]:
    """Numbers and scales by the names of the files; an adapter that is off has the scale 1 when it is used."""
    found: dict[str, tuple[int, float]] = {}
    for one in _list_of_objects(listed):
        number, path, scale = one.get("id"), one.get("path"), one.get("scale")
        if isinstance(number, int) and isinstance(path, str) and is_of_kind(scale, float):
            name = Path(path).stem
            found[name if name not in found else f"{name}-{number}"] = number, float(scale or 1)
    return found


def _list_of_objects(listed: object) -> list[dict[str, Any]]:
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _error_text(answer: object) -> str:
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return shorten(error.get("message", error) if isinstance(error, dict) else error)


def _llama_piece(event: Mapping[str, Any]) -> Piece | None:
    """A piece of llama.cpp's `/completion`; None if it is none."""
    tokens = event.get("tokens")
    if not isinstance(tokens, list) or not all(is_of_kind(token, int) for token in tokens):
        return None
    ended = {"eos": "stop"}.get(event.get("stop_type", ""), "length") if event.get("stop") is True else None
    return Piece(token_ids=tokens, end=ended)


def _openai_piece(event: Mapping[str, Any]) -> Piece | None:
    """A piece of OpenAI's `/v1/completions`; None if it is none."""
    choices = event.get("choices")
    if choices == []:  # how many tokens were used
        return Piece()
    choice = choices[0] if isinstance(choices, list) else None
    if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
        return None
    end = choice.get("finish_reason")
    return Piece(text=choice["text"], end=end if isinstance(end, str) else None)
