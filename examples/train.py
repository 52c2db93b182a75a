"""Fine-tune ChatGLM2 with LoRA under a plain `lightning.Trainer`: rows in, a PEFT adapter out.

Without arguments it trains the embedded demo on a CPU, in less than a minute. With your own rows (JSONL, JSON, CSV or
Parquet with the columns `context` and `target`) and a GPU:

    python examples/train.py --base THUDM/chatglm2-6b --rows rows.jsonl --learning_rate 1e-4
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from peft import LoraConfig, PeftModel

from kyon_pl import ChatGLM2ForCausalLM, ChatGLM2LoRA, ChatGLMTokenizer, DialogueDataModule
from kyon_pl.training import LinearDecay
from kyon_pl.training.callbacks import AdapterGuard, FiniteGuard

# a row's context: system prompt, memories, turns and the question, joined by ###
CONTEXT = "你在扮演绵卷，汀罗镇的云羊信使，说话软软的，总是很开心。###照看钟楼的是阿砚。###南枝:「钟楼里是谁在忙呀？」"


class PrintLoss(Callback):
    """Prints the validation loss: the mean over all trained tokens of the validation rows."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the value after each validation."""
        print(f"step {trainer.global_step}: val/loss {trainer.callback_metrics['val/loss']:.4f}", flush=True)


def main() -> None:
    """Train, write the adapter, load it with PEFT and print a reply."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="demo", help="Hub id or folder of a ChatGLM2; default: the demo")
    parser.add_argument("--rows", default="demo", help="file, folder or Hub id of the rows; default: the demo")
    parser.add_argument("--learning_rate", type=float, default=5e-3, help="peak rate; a tiny model takes larger steps")
    parser.add_argument("--output", default="adapter", help="folder for the adapter")
    args = parser.parse_args()
    seed_everything(2023)
    # rows -> prompts -> token ids -> packed batches of up to 1,024 tokens, planned over ranks
    data = DialogueDataModule(args.rows, tokenizer=args.base, max_tokens=512, tokens_per_batch=1024, workers=0)
    # the base is frozen; only the LoRA matrices on the attention's projections are trained
    module = ChatGLM2LoRA(
        base=args.base,
        lora=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=["query_key_value"]),
        optimizer=partial(torch.optim.AdamW, lr=args.learning_rate, weight_decay=0.0),
        schedule=partial(LinearDecay, warmup_steps=5),
    )
    trainer = Trainer(
        max_epochs=1,
        val_check_interval=0.5,
        accumulate_grad_batches=2,
        precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        gradient_clip_val=1.0,
        num_sanity_val_steps=-1,  # validate before the first step
        use_distributed_sampler=False,  # the data module plans the batches of every rank
        callbacks=[FiniteGuard(), AdapterGuard(), PrintLoss()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, datamodule=data)

    if trainer.is_global_zero:
        module.save_adapter(args.output)
        print(f"adapter: {args.output}")
        # transformers and PEFT load it without Lightning
        base = ChatGLM2ForCausalLM.from_pretrained(module.frozen_base.folder, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, args.output).eval()
        tokenizer = ChatGLMTokenizer.from_pretrained(args.output)
        prompt = tokenizer(CONTEXT, return_tensors="pt")
        ids = model.generate(**prompt, max_new_tokens=64, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        print("reply:", tokenizer.decode(ids, skip_special_tokens=True))


if __name__ == "__main__":
    main()
