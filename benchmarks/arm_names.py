"""What an arm is, and how its name says it.

    NAME[@LENGTH][+key=value ...][:GIB]

| NAME | what is trained |
|---|---|
| `bf16-none`, `fp16-full`, `fp8-14`, ... | `kyon-pl fit`, 8,192 tokens a step: weights, checkpointing |
| `bare`, `bare-fp16-full`, ... | the same model and batches without Lightning; `bare` alone is `bare-bf16-none` |
| `row-2048-nf4-full`, ... | the same as `nf4-full` with one row of 2,048 tokens a step |
| `tree-bf16-none`, `tree-lora`, ... | the same, with rows that begin alike as the published ones do |
| `lora`, `lora-sdpa`, `qlora` | `kyon-pl fit` as its configurations are shipped, validation included |
| `hf-grouped-16-full`, `hf-random-8-none`, ... | HF Trainer, PEFT and `GlmForCausalLM`: order, batch, checkpointing |
| `original`, `original-4`, ... | the original script: fp16, checkpointing, padded batches of 8, or as many |

`@LENGTH`: every row has that many tokens. `+key=value`: a further option of `kyon-pl fit`. `:GIB`: a cap of the
allocator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rows import RowShape

CONFIGS = Path(__file__).parents[1] / "configs"
TOKENS_PER_BATCH = 8192
PRECISIONS = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp8": "bf16-mixed", "nf4": "bf16-mixed"}
SHIPPED = {
    "lora": ["--config", str(CONFIGS / "lora.yaml")],
    "lora-sdpa": ["--config", str(CONFIGS / "lora.yaml"), "--model.attention", "sdpa"],
    "qlora": ["--config", str(CONFIGS / "lora.yaml"), "--config", str(CONFIGS / "overlay/qlora.yaml")],
}
TINY_SHAPE = {
    "num_layers": 4,
    "padded_vocab_size": 1024,
    "hidden_size": 256,
    "ffn_hidden_size": 688,
    "kv_channels": 32,
    "num_attention_heads": 8,
    "multi_query_group_num": 2,
    "seq_length": 1024,
    "model_type": "chatglm",
}
TINY_SHRINK = 16  # tokens of a row and of a batch, of the 6B's

DEFAULT_ARMS = [
    "bare", "original", "hf-grouped-16-full", "hf-grouped-4-none",
    "bf16-none", "bf16-full", "bf16-14", "fp16-none", "fp16-full",
    "fp8-none", "fp8-full", "nf4-none", "nf4-full",
    "lora:14", "lora-sdpa:14", "qlora:7",
    "row-2048-fp16-full", "row-2048-nf4-full", "row-32768-fp16-full",
    *(f"bf16-full@{tokens}" for tokens in (512, 1024, 2048, 4096, 8192, 16384, 32768)),
]  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One thing to measure.

    Attributes:
        name: as it was asked for.
        kind: `ours`, `bare`, `hf` or `original`.
        weights: `bf16`, `fp16`, `fp8` or `nf4`.
        checkpointing: `none`, `full` or a number of layers.
        shipped: which of `SHIPPED`; None: the settings are this arm's.
        tokens_per_batch: of a packed batch.
        rows_per_batch: of a padded batch.
        grouped: rows of like length share a padded batch.
        exact_tokens: of each row; None: the committed lengths.
        tree: rows begin alike, as in the committed tree.
        options: further ones of `kyon-pl fit`, `key=value`.
        cap_gib: of the allocator; None: none.
    """

    name: str
    kind: str
    weights: str = "bf16"
    checkpointing: str = "none"
    shipped: str | None = None
    tokens_per_batch: int = TOKENS_PER_BATCH
    rows_per_batch: int = 8
    grouped: bool = False
    exact_tokens: int | None = None
    tree: bool = False
    options: tuple[str, ...] = ()
    cap_gib: float | None = None

    @property
    def precision(self) -> str:
        """Lightning's name of it, on a GPU."""
        return PRECISIONS[self.weights]

    @property
    def quantization(self) -> str | None:
        """What `model.quantization` is set to."""
        return self.weights if self.weights in ("fp8", "nf4") else None

    def rows(self, steps: int, tiny: bool) -> RowShape:
        """Enough rows that the steps are of one epoch."""
        if self.exact_tokens:
            rows = (steps + 2) * self.tokens_per_batch // self.exact_tokens
            exact = self.exact_tokens
            return RowShape(max(rows, steps + 2), exact, exact, vocabulary=_vocabulary(tiny))
        if tiny:
            return RowShape(40 * steps, 2048 // TINY_SHRINK, shrink=TINY_SHRINK, vocabulary=_vocabulary(tiny))
        return RowShape(max(1500, 40 * steps), tree=self.tree)


def _vocabulary(tiny: bool) -> int:
    return TINY_SHAPE["padded_vocab_size"] if tiny else RowShape.vocabulary  # type: ignore[return-value]


def parse_arm(word: str, tiny: bool = False) -> Arm:
    """The arm of a name.

    Args:
        word: see the module.
        tiny: batches and rows for the tiny shape.

    Raises:
        ValueError: no arm has such a name.
    """
    rest, _, cap = word.rpartition(":")
    if not rest or not re.fullmatch(r"\d+(\.\d+)?", cap):
        rest, cap = word, ""
    rest, *options = rest.split("+")
    name, _, length = rest.partition("@")
    batch = TOKENS_PER_BATCH // TINY_SHRINK if tiny else TOKENS_PER_BATCH
    fields: dict[str, object] = {"options": tuple(options), "cap_gib": float(cap) if cap else None}
    fields["tokens_per_batch"] = batch
    if length:
        fields |= {"exact_tokens": int(length), "tokens_per_batch": max(batch, int(length))}
    if name.startswith("tree-"):
        name, fields["tree"] = name.removeprefix("tree-"), True
    if name in SHIPPED:
        return Arm(word, "ours", shipped=name, **fields)  # type: ignore[arg-type]
    if match := re.fullmatch(r"original(?:-(\d+))?", name):
        fields |= {"weights": "fp16", "checkpointing": "full", "rows_per_batch": int(match[1] or 8)}
        return Arm(word, "original", **fields)  # type: ignore[arg-type]
    if match := re.fullmatch(r"hf-(grouped|random)-(\d+)-(full|none)", name):
        fields |= {"grouped": match[1] == "grouped", "rows_per_batch": int(match[2]), "checkpointing": match[3]}
        return Arm(word, "hf", **fields)  # type: ignore[arg-type]
    name = "bare-bf16-none" if name == "bare" else name
    if match := re.fullmatch(r"(?:(bare)-|row-(\d+)-)?(bf16|fp16|fp8|nf4)-(none|full|\d+)", name):
        fields |= {"weights": match[3], "checkpointing": match[4]}
        if match[2]:
            fields |= {"exact_tokens": int(match[2]), "tokens_per_batch": int(match[2])}
        return Arm(word, match[1] or "ours", **fields)  # type: ignore[arg-type]
    raise ValueError(f"there is no arm {word!r}; {__file__} says how they are called")
