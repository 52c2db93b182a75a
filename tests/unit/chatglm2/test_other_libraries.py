"""The pipeline of transformers and the SFTTrainer of TRL with our model; HF Trainer is in test_examples.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
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


@pytest.mark.slow
def test_sft_trainer(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    model = ChatGLM2ForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    rows = [{"prompt": QUESTION, "completion": "是阿砚呀。"}, {"prompt": "阿砚怕什么？", "completion": "怕打雷。"}] * 8
    settings = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=12, per_device_train_batch_size=4, learning_rate=2e-2, logging_steps=1,
        report_to="none", save_strategy="no", use_cpu=True, bf16=False, completion_only_loss=True,
    )  # fmt: skip
    lora = LoraConfig(target_modules=["query_key_value"], task_type="CAUSAL_LM")
    trainer = trl.SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=ChatGLMTokenizer.from_pretrained(BASE),
        peft_config=lora,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2, losses
    assert all(value.count_nonzero() for name, value in trainer.model.named_parameters() if "lora_B" in name)
