"""Train a LoRA adapter with transformers' Trainer instead of Lightning: rows of `context` and `target` in, PEFT out.

    python examples/hf_trainer.py --base THUDM/chatglm2-6b --rows rows.jsonl --learning_rate 1e-4

Without arguments it trains on the embedded demo, on a CPU.
"""

from __future__ import annotations

import argparse

from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from kyon_pl import ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import ASSETS, BASE


def main() -> None:
    """Train and write the adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=str(BASE), help="Hub id or folder of a ChatGLM2")
    parser.add_argument("--rows", default=str(ASSETS / "train.jsonl"), help="JSONL with context and target")
    parser.add_argument("--learning_rate", type=float, default=5e-3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", default="adapter", help="folder for the adapter")
    args = parser.parse_args()
    tokenizer = ChatGLMTokenizer.from_pretrained(args.base)
    model = ChatGLM2ForCausalLM.from_pretrained(args.base, dtype="float32")
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=["query_key_value"]))

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        """Only the reply and its end are trained: -100 elsewhere."""
        prompt = tokenizer(row["context"])["input_ids"]
        reply = [*tokenizer(row["target"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        return {"input_ids": prompt + reply, "labels": [-100] * len(prompt) + reply}

    rows = load_dataset("json", data_files=args.rows, split="train")
    settings = TrainingArguments(
        output_dir="runs",
        max_steps=args.steps,
        per_device_train_batch_size=4,
        learning_rate=args.learning_rate,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
    )
    rows = rows.map(encode, remove_columns=rows.column_names)
    Trainer(model, settings, DataCollatorForSeq2Seq(tokenizer), rows).train()
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    print(f"adapter: {args.output}")


if __name__ == "__main__":
    main()
