"""Reply with a trained adapter, by PEFT and transformers alone.

    python examples/inference.py ADAPTER BASE

ADAPTER is the folder that training wrote; BASE a Hub id or folder, the embedded demo if left out.
"""

from __future__ import annotations

import sys

from peft import PeftModel

from kyon_pl import ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import BASE

# system prompt, memories, turns and the question, joined by ###
CONTEXT = "你在扮演绵卷，汀罗镇的云羊信使，说话软软的，总是很开心。###照看钟楼的是阿砚。###南枝:「钟楼里是谁在忙呀？」"


def main() -> None:
    """Print a reply with the adapter, without it, and with the adapter merged into the base."""
    adapter, base = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else BASE
    tokenizer = ChatGLMTokenizer.from_pretrained(adapter)
    model = PeftModel.from_pretrained(ChatGLM2ForCausalLM.from_pretrained(base, dtype="auto"), adapter).eval()
    prompt = tokenizer(CONTEXT, return_tensors="pt")

    def reply(model: PeftModel | ChatGLM2ForCausalLM) -> str:
        ids = model.generate(**prompt.to(model.device), max_new_tokens=64, do_sample=False)
        return str(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))

    print("adapter:", reply(model))
    with model.disable_adapter():
        print("base:", reply(model))
    print("merged:", reply(model.merge_and_unload()))


if __name__ == "__main__":
    main()
