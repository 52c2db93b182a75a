"""Makes the demo's tokenizer: a tiny SentencePiece model laid out as ChatGLM2's. The same bytes every time."""

from __future__ import annotations

import json
import re
import sys
from io import BytesIO
from itertools import islice
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from kyon_pl.demo import ASSETS
from kyon_pl.demo.corpus import SEED, plain_rows, plain_texts, train_rows
from kyon_pl.demo.grammar import CHARACTERS, PLAIN_SPEAKERS
from kyon_pl.demo.world import ASKERS, facts

PIECES = 1800
EDGE = "|"  # no piece spans one
CONFIG = {
    "name_or_path": "kyon-pl/demo",
    "remove_space": False,
    "do_lower_case": False,
    "tokenizer_class": "ChatGLMTokenizer",
}


def sentences() -> list[str]:
    """The text to train on: without line ends, which have to stay bytes as in ChatGLM2, and with an edge at each word.

    The edges keep a name or an answer one and the same piece wherever it stands, which a tiny model needs to copy it.
    """
    rows = [*train_rows(), *islice(plain_rows(SEED), 800)]
    texts = [*islice(plain_texts(SEED), 400), *(row["context"] + "\n" + row["target"] for row in rows)]
    words = {word for fact in facts("zh") for word in (fact.thing, fact.value)} | set(ASKERS["zh"])
    words |= {speaker.name for speaker in (*CHARACTERS, *PLAIN_SPEAKERS)} | {"哒"}
    edges = re.compile("(" + "|".join([*sorted(words, key=lambda word: (-len(word), word)), "###", "「", "」"]) + ")")
    return [edges.sub(rf"{EDGE}\1{EDGE}", part) for text in texts for part in text.split("\n")]


def make_model() -> bytes:
    """The bytes of `tokenizer.model`: `<unk>` 0, `<s>` 1, `</s>` 2, bytes 3 to 258, then the pieces."""
    model = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        pretokenization_delimiter=EDGE,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,  # more make another model
        minloglevel=2,
    )
    return model.getvalue()


def main(folder: Path = ASSETS / "base") -> None:
    """Write `tokenizer.model` and `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(make_model())
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    print(f"tokenizer.model and tokenizer_config.json in {folder}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
