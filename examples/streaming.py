"""Print a reply token by token, three ways: a streamer, an iterator in a thread, and the published `stream_chat`.

    python examples/streaming.py ADAPTER BASE

Arguments as in inference.py.
"""

from __future__ import annotations

import sys
from threading import Thread

from peft import PeftModel
from transformers import TextIteratorStreamer, TextStreamer

from kyon_pl import ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import BASE

QUESTION = "照看钟楼的是谁？"


def main() -> None:
    """Print three replies to the same question."""
    adapter, base = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else BASE
    tokenizer = ChatGLMTokenizer.from_pretrained(adapter)
    model = PeftModel.from_pretrained(ChatGLM2ForCausalLM.from_pretrained(base, dtype="auto"), adapter).eval()
    prompt = tokenizer(QUESTION, return_tensors="pt").to(model.device)
    settings = {"max_new_tokens": 32, "do_sample": False}

    model.generate(**prompt, **settings, streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True))

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    thread = Thread(target=model.generate, kwargs={**prompt, **settings, "streamer": streamer})
    thread.start()
    for text in streamer:
        print(text, end="", flush=True)
    thread.join()
    print()

    shown = ""
    for answer, _history in model.stream_chat(tokenizer, QUESTION, max_length=96, do_sample=False):
        print(answer[len(shown) :], end="", flush=True)
        shown = answer
    print()


if __name__ == "__main__":
    main()
