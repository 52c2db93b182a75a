"""One base, several characters: switch adapters, use one for each row of a batch, and mix them.

    python examples/several_adapters.py ADAPTER ANOTHER

Both adapters are of the embedded demo; for another base, change BASE.
"""

from __future__ import annotations

import sys

import torch
from peft import PeftModel

from kyon_pl import ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import BASE

QUESTION = "照看钟楼的是谁？"


def main() -> None:
    """Print replies of each adapter, of both in one batch, and of their mixture."""
    folders = dict(zip(("one", "another"), sys.argv[1:3], strict=True))
    tokenizer = ChatGLMTokenizer.from_pretrained(BASE)
    base = ChatGLM2ForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folders["one"], adapter_name="one").eval()
    model.load_adapter(folders["another"], "another")
    prompt = tokenizer([QUESTION, QUESTION], return_tensors="pt")

    def replies(rows: int, **settings: list[str]) -> list[str]:
        inputs = {key: value[:rows] for key, value in prompt.items()}
        ids = model.generate(**inputs, max_new_tokens=32, do_sample=False, **settings)
        texts: list[str] = tokenizer.batch_decode(ids[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        return texts

    for name in folders:
        model.set_adapter(name)
        print(f"{name}: {replies(1)[0]}")
    for name, text in zip(folders, replies(2, adapter_names=list(folders)), strict=True):
        print(f"{name} in a batch: {text}")
    model.add_weighted_adapter(list(folders), [0.5, 0.5], "both", combination_type="cat")
    model.set_adapter("both")
    print(f"both: {replies(1)[0]}")


if __name__ == "__main__":
    main()
