"""ChatGLM2's tokenizer on SentencePiece. It gives the published ids and text for any string without remote code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AddedToken
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend
from transformers.utils.generic import PaddingStrategy, TensorType

from kyon_pl.errors import CheckpointError, DataError, SettingError
from kyon_pl.files import explained, read_json_object, read_text
from kyon_pl.vocabulary.pieces import CONTROL_TOKENS, SPECIAL_TOKENS, read_pieces

# The published `build_prompt`: rounds numbered from 1, separated by an empty line, without a system role.
CHAT_TEMPLATE = r"""
{%- set count = namespace(round=0) -%}
{%- for message in messages -%}
{%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}
{{- raise_exception('ChatGLM2 has no other roles than user and assistant, in turn, the user first') -}}
{%- elif message['role'] == 'user' -%}
{%- set count.round = count.round + 1 -%}
{{- ('' if loop.first else '\n\n') ~ '[Round ' ~ count.round ~ ']\n\n问：' ~ message['content'] -}}
{%- else -%}
{{- '\n\n答：' ~ message['content'] -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\n\n答：' -}}{%- endif -%}
""".strip()


class ChatGLMTokenizer(SentencePieceBackend):
    """SentencePiece BPE with five special tokens that are never parsed from text.

    Encoding prepends `[gMASK] sop`. Decoding drops special ids and the ids of the padded embedding, independently of
    `skip_special_tokens`. Both as published (`tokenization_chatglm.py` of THUDM/chatglm2-6b).

    Args:
        vocab_file: path of `tokenizer.model`.
        padding_side: `left` for generation; the training collator pads on the right itself.
        chat_template: in Jinja; the published `build_prompt` if None.
        **kwargs: other keys of `tokenizer_config.json`. `auto_map`, which names remote code, is dropped.

    Raises:
        CheckpointError: `tokenizer.model` is missing, not a SentencePiece model, or of another layout; or the settings
            ask for tokens that ChatGLM2 does not have, as ChatGLM3's do.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 (transformers' type)
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str | None = None,
        padding_side: str = "left",
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        where = str(kwargs.get("name_or_path") or vocab_file)
        pieces = int(read_pieces(vocab_file, where).get_piece_size())
        _check_special_tokens(where, kwargs, chat_template)
        self._special_ids = {token: pieces + index for index, token in enumerate(SPECIAL_TOKENS)}
        kwargs.pop("auto_map", None)
        kwargs |= {
            "unk_token": "<unk>",
            "pad_token": "<unk>",
            "eos_token": "</s>",
            "bos_token": None,  # the published tokenizer does not use <s>
            "extra_special_tokens": list(SPECIAL_TOKENS),
            # with their ids, because transformers would assign ids in another order
            "added_tokens_decoder": {i: AddedToken(token, special=True) for token, i in self._special_ids.items()},
            "legacy": True,  # keeps the dummy prefix
        }
        super().__init__(  # type: ignore[no-untyped-call]
            vocab_file=vocab_file,
            padding_side=padding_side,
            chat_template=CHAT_TEMPLATE if chat_template is None else chat_template,
            **kwargs,
        )
        if {token: self.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS} != self._special_ids:
            raise AssertionError(f"the special tokens should be {self._special_ids}, not {self.added_tokens_decoder}")

    @property
    def vocab_size(self) -> int:
        """Number of pieces and special tokens, as published: 64,794 for 6B."""
        return int(self.sp_model.get_piece_size()) + len(SPECIAL_TOKENS)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `tokenizer.model`, which determines the ids of any text."""
        return hashlib.sha256(self.sp_model.serialized_model_proto()).hexdigest()

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Refuse tokens that ChatGLM2 does not have: no text would be encoded to them, as none is to special tokens.

        Args:
            new_tokens: only tokens of the vocabulary.
            special_tokens: no effect.

        Returns:
            0, the number of new tokens.

        Raises:
            SettingError: a token is not in the vocabulary.
        """
        tokens = [new_tokens] if isinstance(new_tokens, str | AddedToken) else new_tokens
        known = {*SPECIAL_TOKENS, "<unk>", "<s>", "</s>"}
        for token in map(str, tokens):
            if token not in known and not self.sp_model.piece_to_id(token):
                found = (
                    f"{token!r} is not in ChatGLM2's vocabulary, which is fixed: text is never split at added tokens"
                )
                fix = "Write it as text: it is encoded in several pieces, whose meaning can be trained"
                raise SettingError("tokenizer.add_tokens", found, fix)
        return 0

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """Split a text into pieces. Special tokens are not parsed.

        Raises:
            DataError: the text holds a lone surrogate, which UTF-8 cannot encode.
        """
        try:
            return list(self.sp_model.encode(text, out_type=str))
        except (RuntimeError, TypeError, UnicodeEncodeError):  # depends on SentencePiece's version
            found = f"a lone surrogate in {text!r:.80}"
            raise DataError("text to encode", found, "Save the source again as UTF-8.") from None

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        """Ids of the pieces, in one call to SentencePiece: twice as fast as transformers' loop."""
        ids = self.sp_model.piece_to_id(tokens)
        unknown = ids == 0 if isinstance(ids, int) else 0 in ids
        return super().convert_tokens_to_ids(tokens) if unknown else ids

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Build `[gMASK] sop A`, or `[gMASK] sop A B </s>` for a pair."""
        prefix = [self._special_ids["[gMASK]"], self._special_ids["sop"]]
        if token_ids_1 is None:
            return prefix + token_ids_0
        return [*prefix, *token_ids_0, *token_ids_1, self.eos_token_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Return 1 for each special id and 0 for other ids."""
        if not already_has_special_tokens:
            token_ids_0 = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        special_ids = set(self.all_special_ids)
        return [int(i in special_ids) for i in token_ids_0]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces to text. Special tokens are dropped."""
        # an empty piece in their place, as published: a special token still separates bytes of a character
        return str(self.sp_model.decode_pieces(["" if token in _DROPPED else token for token in tokens]))

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]] | list[list[dict[str, str]]],
        tools: list[dict[Any, Any] | Callable[..., Any]] | None = None,
        documents: list[dict[str, str]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        sanitize_control_tokens: bool = False,  # no effect: no text is parsed as a special token
        padding: bool | str | PaddingStrategy = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | TensorType | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Apply the chat template as transformers does, then prepend `[gMASK] sop`, which a template cannot produce."""
        text = super().apply_chat_template(
            conversation,
            tools=tools,
            documents=documents,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tokenize=False,
            return_assistant_tokens_mask=return_assistant_tokens_mask,  # not supported there
            **kwargs,
        )
        if not tokenize:
            return text
        encoded = self(
            text,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
            **(tokenizer_kwargs or {}),
        )
        return encoded if return_dict else encoded["input_ids"]

    def _convert_id_to_token(self, index: int) -> str:
        return str(self.sp_model.id_to_piece(index)) if 0 <= index < self.sp_model.get_piece_size() else ""


_SAME_TOKENIZER = "Copy or download the tokenizer's files again."
_DROPPED = frozenset({*CONTROL_TOKENS, *SPECIAL_TOKENS})


def _check_special_tokens(where: str, settings: Mapping[str, Any], chat_template: str | None) -> None:
    """Refuse ChatGLM3's role tokens.

    Its `tokenizer.model` has ChatGLM2's layout, but the role tokens of its template would be encoded as plain text.
    """
    tokens = [*settings.get("additional_special_tokens", ()), *settings.get("extra_special_tokens", ())]
    unknown = sorted({str(token) for token in tokens} - set(SPECIAL_TOKENS))
    if unknown or "<|" in (chat_template or ""):
        key = f"additional_special_tokens {', '.join(unknown)}" if unknown else "a chat_template with <|role|> tokens"
        fix = "Use ChatGLM2's tokenizer; or, for plain text without roles, remove both keys in a copy of the folder."
        raise CheckpointError(f"{where}: tokenizer_config.json", f"{key}, which ChatGLM2 does not have", fix)


def read_tokenizer(folder: Path) -> ChatGLMTokenizer:
    """Read the tokenizer of a folder.

    Raises:
        CheckpointError: as for `ChatGLMTokenizer`; or one of its JSON files is invalid.
    """
    check_tokenizer_files(folder)
    with explained("transformers", f"tokenizer of {folder}", _SAME_TOKENIZER):
        tokenizer: ChatGLMTokenizer = ChatGLMTokenizer.from_pretrained(folder)
        tokenizer.decode(tokenizer("a", truncation=True)["input_ids"])  # some settings are wrong only now
    return tokenizer


def check_tokenizer_files(folder: Path) -> None:
    """Check that the JSON files and the chat template of a tokenizer can be read.

    Raises:
        CheckpointError: one of them cannot.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            read_json_object(folder / name)
    templates = [folder / "chat_template.jinja", *(folder / "additional_chat_templates").glob("*.jinja")]
    for file in templates:
        if file.exists():
            read_text(file)
