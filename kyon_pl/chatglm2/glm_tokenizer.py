# mypy: allow-untyped-calls
"""ChatGLM2's tokenizer as a `tokenizer.json`, for programs that know transformers and not kyon_pl.

The same ids as SentencePiece gives, from the `tokenizers` library: its BPE, and one merge for each way in which two
pieces make a third, in the order of the third's score, which is the order in which SentencePiece joins them.

What differs from `ChatGLMTokenizer`, because transformers' own class decides it: special tokens are shown by `decode`
unless `skip_special_tokens=True`, and `apply_chat_template` leaves `[gMASK] sop` out of the ids that it makes, since it
encodes without special tokens. So take its text (`tokenize=False`) and encode that.
"""

from __future__ import annotations

from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from kyon_pl.chatglm2.tokenization import SPECIAL_TOKENS, ChatGLMTokenizer, read_tokenizer
from kyon_pl.errors import CheckpointError

CONTROL_TOKENS = ("<unk>", "<s>", "</s>")
SPACE = "▁"  # what a space is in a piece

# spaces and their like, bytes, runs, scripts, and every special token spelt in text
PROBE_TEXTS = (
    "",
    " a  b ",
    "你好，世界\n\t答：",
    "people of philosophy " + " ".join((*CONTROL_TOKENS, *SPECIAL_TOKENS, "<0x0A>")),
    "[gMASK]sop</s>[Round 1]\n\n问：",
    "a" * 33 + "哈" * 17 + "=" * 21 + " " * 19 + "0123456789",
    "\U0001f600\u200d\u0301\ue000▁\u3000ひらがな한국어",
)


def glm_tokenizer(tokenizer: ChatGLMTokenizer) -> PreTrainedTokenizerFast:
    """The same tokenizer for `AutoTokenizer` of plain transformers; no text can spell its special tokens.

    Raises:
        CheckpointError: it gives other ids or another text than `tokenizer` for one of `PROBE_TEXTS`.
    """
    made = PreTrainedTokenizerFast(
        tokenizer_object=_backend(tokenizer.sp_model),
        unk_token="<unk>",
        pad_token="<unk>",
        eos_token="</s>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        split_special_tokens=True,  # special tokens in a text are text
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=tokenizer.chat_template,
    )
    check_equal(made, tokenizer, where="tokenizer.json")
    return made


def check_equal(made: PreTrainedTokenizerFast, tokenizer: ChatGLMTokenizer, where: str) -> None:
    """Compare two tokenizers on `PROBE_TEXTS`: ids with and without the prefix, and the text that comes back.

    Raises:
        CheckpointError: they differ.
    """
    for text in PROBE_TEXTS:
        ids = tokenizer.encode(text)
        same = made.encode(text) == ids and made.encode(text, add_special_tokens=False) == ids[2:]
        if not (same and made.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)):
            fix = "Use the tokenizer.model of ChatGLM2-6B, or --format chatglm, which keeps the file as it is."
            raise CheckpointError(where, f"another encoding of {text!r:.60} than tokenizer.model has", fix)


def save_glm_tokenizer(base: Path, folder: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.

    Args:
        base: the folder with `tokenizer.model`.
        folder: where to.

    Raises:
        CheckpointError: as `ChatGLMTokenizer` and `glm_tokenizer` raise it.
    """
    glm_tokenizer(read_tokenizer(base)).save_pretrained(str(folder))


def _backend(pieces: SentencePieceProcessor) -> Tokenizer:
    count = pieces.get_piece_size()
    vocab = {pieces.id_to_piece(i): i for i in range(count)}
    backend = Tokenizer(BPE(vocab=vocab, merges=_merges(pieces), unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = [*CONTROL_TOKENS, *SPECIAL_TOKENS]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    used = ("[gMASK]", "sop", "</s>")
    backend.post_processor = processors.TemplateProcessing(
        single="[gMASK] sop $A",
        pair="[gMASK] sop $A $B </s>",
        special_tokens=[(token, backend.token_to_id(token)) for token in used],
    )
    return backend


def _merges(pieces: SentencePieceProcessor) -> list[tuple[str, str]]:
    """Every two pieces that make a third. Bytes and control pieces take no part: no text spells them."""
    scores = {
        pieces.id_to_piece(i): pieces.get_score(i)
        for i in range(pieces.get_piece_size())
        if not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i) or pieces.is_unused(i))
    }
    found = [
        (-score, cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, _, left, right in sorted(found)]
