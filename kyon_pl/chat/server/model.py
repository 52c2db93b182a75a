"""The model of a chat behind a server, and how it is connected to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kyon_pl.chat.model import ChatModel, ChatReply, Sampling, StopReply, TextStreamer, choose_format
from kyon_pl.chat.server.completions import CompletionServer
from kyon_pl.disk import expand_home
from kyon_pl.errors import CheckpointError, MissingFileError, SettingError
from kyon_pl.files import shorten
from kyon_pl.vocabulary.pieces import PieceTokenizer

log = logging.getLogger(__name__)

PROBE_TEXT = "你好，世界！ people of philosophy\n\t0123456789"


@dataclass(kw_only=True)
class ServerModel(ChatModel):
    """A model behind a server.

    Attributes:
        server: computes.
    """

    server: CompletionServer

    def reply(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_text: Callable[[str], object] = lambda text: None,
        adapter: str | None = "",
    ) -> ChatReply:
        """As in `ChatModel`."""
        streamer = TextStreamer(self.tokenizer, on_text)
        text, end = "", None
        try:
            for piece in self.server.stream(prompt, sampling, self._scales(adapter)):
                streamer.put_all(piece.token_ids)
                text += piece.text
                streamer.emit(text.removeprefix(" "))  # SentencePiece's dummy prefix
                end = piece.end or end
            streamer.end()
        except (KeyboardInterrupt, StopReply):
            return ChatReply(streamer.text, stopped=False, interrupted=True)
        return ChatReply(streamer.text, stopped=end == "stop")

    def _scales(self, adapter: str | None) -> dict[int, float]:
        """Scales by number: that of one adapter, and 0 for the others."""
        chosen = adapter or (self.adapters[0] if self.adapters and adapter is not None else None)
        return {number: scale if name == chosen else 0.0 for name, (number, scale) in self.server.adapters.items()}


def load_server_model(
    url: str, adapters: str | Sequence[str] | None, template: str | None, max_tokens: int
) -> ServerModel:
    """Connect to a server, and read how prompts to its model are worded and encoded.

    Args:
        url: of the server.
        adapters: the folder of the model or adapter: of `merge --format gguf`, of `convert-adapter --to gguf`, or of a
            checkpoint of the run; only `tokenizer.model` and the record of the training are read.
        template: None: the template of the training.
        max_tokens: maximum length of prompt and reply together.

    Raises:
        SettingError: no address, no folder, a context that is too short, or another template than the training's.
        MissingFileError: the folder has no tokenizer.
        MachineError: the server does not answer, or answers something else.
        CheckpointError: the server has another vocabulary, or files cannot be read.
    """
    if not isinstance(adapters, str):
        fix = "Name one folder with --adapter: that of merge --format gguf, or the adapter's"
        raise SettingError("--server", "how its prompts are worded is in the folder of the model", fix)
    folder = expand_home(adapters)
    file = folder / "tokenizer.model"
    if not file.is_file():
        fix = "Name the folder of merge --format gguf, or a checkpoint's folder such as checkpoints/step=153"
        raise MissingFileError(str(folder), "no tokenizer.model", fix)
    form, tokenizer, server = choose_format(folder, template), PieceTokenizer(file), CompletionServer(url)
    server.connect()
    if server.context_tokens is not None and server.context_tokens < max_tokens:
        found = f"{max_tokens}, and the server's context has {server.context_tokens} tokens"
        raise SettingError("max_tokens", found, f"Start the server with -c {max_tokens}, or lower --max_tokens")
    _check_vocabulary(server, tokenizer)
    return ServerModel(
        tokenizer,
        f"{server.model} at {server.url}",
        form.template,
        form.train_turns,
        tuple(server.adapters),
        roles=form.roles,
        server=server,
    )


def _check_vocabulary(server: CompletionServer, tokenizer: PieceTokenizer) -> None:
    ids = server.encode(PROBE_TEXT)
    if ids is None:
        log.warning("%s does not tell how it encodes text: whether it serves this model was not checked", server.url)
    elif ids != tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]:
        found = f"{shorten(server.model)} encodes text in another way than this model's tokenizer.model"
        raise CheckpointError(server.url, found, "Start the server with the GGUF of this model")
