"""The pipeline of transformers with our model and tokenizer; its Trainer is in test_examples.py."""

from __future__ import annotations

import torch
from transformers import pipeline

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import BASE

QUESTION = "照看钟楼的是谁？"


def test_pipeline_with_a_text_and_with_messages() -> None:
    model = ChatGLM2ForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    tokenizer = ChatGLMTokenizer.from_pretrained(BASE)
    chat = pipeline("text-generation", model=model, tokenizer=tokenizer)
    settings = {"max_new_tokens": 24, "do_sample": False}
    (text,) = chat(QUESTION, return_full_text=False, **settings)
    prompt = tokenizer(QUESTION, return_tensors="pt")
    ids = model.generate(**prompt, **settings)[0, prompt["input_ids"].shape[1] :]
    assert text["generated_text"] == tokenizer.decode(ids, skip_special_tokens=True) != ""

    (answer,) = chat([{"role": "user", "content": QUESTION}], **settings)
    said = answer["generated_text"][-1]
    assert said["role"] == "assistant"
    longest = len(tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], return_dict=False)) + 64
    assert model.chat(tokenizer, QUESTION, do_sample=False, max_length=longest)[0].startswith(said["content"].strip())
