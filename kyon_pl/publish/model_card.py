"""The model card of a pushed adapter or merged model: base, licence, data, settings, metrics and use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from kyon_pl import __version__
from kyon_pl.evaluation.judged import card_section
from kyon_pl.files import read_json_object, read_text
from kyon_pl.runs.adapters import SETTINGS
from kyon_pl.runs.facts import RunFacts, read_run_facts
from kyon_pl.runs.integrity import CHECKPOINTS, EXPORT_RECORD

CURVE_ROWS = 12
CHATGLM2_6B = ("THUDM/chatglm2-6b", "zai-org/chatglm2-6b", "modelscope:ZhipuAI/chatglm2-6b")  # names of one repository
LICENSE_LINK = "https://huggingface.co/THUDM/chatglm2-6b/blob/main/MODEL_LICENSE"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_LORA = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")


def hub_id(name: str | None) -> str | None:
    """The name if it is an id on the Hub and not a folder of this machine, else None."""
    return name if name and _HUB_ID.fullmatch(name) and not Path(name).exists() else None


def model_card(folder: Path, repo_id: str, base: str | None) -> ModelCard:
    """The card of an adapter or a merged model.

    Args:
        folder: a PEFT folder, or the folder of a merged model.
        repo_id: the repository, `USER/NAME`.
        base: the base, a Hub id or a folder; None: unknown.

    Returns:
        Front matter that the Hub accepts, and text. It contains no local paths.

    Raises:
        CheckpointError: the run's `config.yaml` is not YAML.
    """
    facts = read_run_facts(folder)
    merged = is_merged(folder)
    kind = "A ChatGLM2 model with a LoRA adapter merged into it" if merged else "A LoRA adapter for ChatGLM2"
    if files := gguf_files(folder):
        kind += f", in GGUF for llama.cpp ({', '.join(file.name for file in files)})"
    parts = [
        f"# {repo_id.partition('/')[2]}",
        f"{kind}, fine-tuned on role-play dialogue with kyon_pl {__version__}.",
        *_base_and_licence(base, merged),
        *_data(facts),
        *_settings(folder, facts),
        *_metrics(facts),
        *(card_section(folder.parent.parent, folder.name) if folder.parent.name == CHECKPOINTS else []),
        *_use(folder, repo_id, base),
    ]
    header = _header(facts, repo_id, base, merged, bool(files)).to_yaml()
    return ModelCard(f"---\n{header}\n---\n\n" + "\n\n".join(parts) + "\n")


def gguf_files(folder: Path) -> list[Path]:
    """The files for llama.cpp in a folder: what `merge` or `convert-adapter` wrote, and what was quantized from it."""
    return sorted(folder.glob("*.gguf"))


def is_merged(folder: Path) -> bool:
    """Whether a folder holds a whole model, and not an adapter."""
    if (folder / SETTINGS).is_file():
        return False
    # merge records how weights are stored, and convert-adapter does not
    record = folder / EXPORT_RECORD
    return not gguf_files(folder) or not record.is_file() or "quantization" in read_json_object(record)


def _header(facts: RunFacts, repo_id: str, base: str | None, merged: bool, gguf: bool) -> ModelCardData:
    datasets = [source for source in facts.sources if hub_id(source)]
    values = {tag.removeprefix("val/"): value for tag, value in facts.at_step().items()}
    name = datasets[0] if datasets else "held-out rows of the training data"
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=datasets[0] if datasets else "private",
            dataset_name=name,
            dataset_split="validation",
            metric_type=metric,
            metric_value=round(values[metric], 4),
        )
        for metric in ("loss", "perplexity")
        if metric in values
    ]
    relation = "adapter" if not merged else "quantized" if gguf else "finetune"
    return ModelCardData(
        base_model=hub_id(base),
        base_model_relation=relation if hub_id(base) else None,
        datasets=datasets or None,
        eval_results=results or None,
        language=["zh"],
        library_name="gguf" if gguf else "transformers" if merged else "peft",
        model_name=repo_id.partition("/")[2],
        pipeline_tag="text-generation",
        tags=["chatglm2", "role-play", "kyon_pl", *([] if merged else ["lora"])],
        license="other" if base in CHATGLM2_6B else None,
        license_name="chatglm2-6b" if base in CHATGLM2_6B else None,
        license_link=LICENSE_LINK if base in CHATGLM2_6B else None,
    )


def _base_and_licence(base: str | None, merged: bool) -> list[str]:
    if base in CHATGLM2_6B:
        subject = "This model" if merged else "This adapter, which can only be used with those weights,"
        licence = (
            f"Its weights are under the [ChatGLM2-6B License]({LICENSE_LINK}), which forbids military and illegal use, "
            f"among others. {subject} is under the same terms."
        )
    else:
        licence = "The licence of the base also applies to this repository."
    named = f"[{base}](https://huggingface.co/{base})" if hub_id(base) else f"`{Path(base or 'not named').name}`"
    return ["## Base and licence", f"Base: {named}. {licence}"]


def _data(facts: RunFacts) -> list[str]:
    if not facts.sources:
        return ["## Data", "Not recorded."]
    named = (
        f"[{source}](https://huggingface.co/datasets/{source})" if hub_id(source) else f"`{Path(source).name}`"
        for source in facts.sources
    )
    terms = "Characters and lines may belong to others: read the licence of the data before you publish generated text."
    return ["## Data", f"{', '.join(named)}. {terms}"]


def _settings(folder: Path, facts: RunFacts) -> list[str]:
    lora = read_json_object(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    rows = [(f"lora.{key}", _value_text(lora[key])) for key in _LORA if lora.get(key)]
    rows += [(key, _value_text(value)) for key, value in facts.settings.items()]
    return ["## Settings", _table(("setting", "value"), rows) if rows else "Not recorded."]


def _value_text(value: object) -> str:
    return ", ".join(sorted(map(str, value))) if isinstance(value, list) else str(value)


def _metrics(facts: RunFacts) -> list[str]:
    values = facts.at_step()
    if not values:
        return ["## Metrics", "Not recorded."]
    after = f" after optimizer step {facts.step}" if facts.step is not None else ""
    metrics = _table(
        ("validation", "value"), [(tag.removeprefix("val/"), f"{value:.4f}") for tag, value in values.items()]
    )
    return ["## Metrics", f"On held-out rows{after}:", metrics, "The run:", _curve(facts)]


def _curve(facts: RunFacts) -> str:
    """Table of the losses at up to `CURVE_ROWS` of the validated steps, the first and the last included."""
    train, val = facts.curves.get("train/loss", []), facts.curves.get("val/loss", [])
    kept = sorted({round(i * (len(val) - 1) / (CURVE_ROWS - 1)) for i in range(CURVE_ROWS)}) if val else []
    rows = []
    for step, loss in (val[place] for place in kept):
        before = [value for at, value in train if at <= step]
        rows.append((str(step), f"{before[-1]:.4f}" if before else "", f"{loss:.4f}"))
    return _table(("step", "train/loss", "val/loss"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _use_adapter(repo_id: str, base: str) -> list[str]:
    return [
        "## Use",
        "With kyon_pl, chat with it or train it further:",
        f"""```bash
kyon-pl chat --adapter {repo_id}
kyon-pl fit --config configs/lora.yaml --model.adapter {repo_id}
```""",
        "With PEFT; kyon_pl builds the base, so no code from a repository is run:",
        _snippet(
            "from kyon_pl import ChatGLM2ForCausalLM, ChatGLMTokenizer",
            "from peft import PeftModel",
            "",
            f'tokenizer = ChatGLMTokenizer.from_pretrained("{base}")',
            f'base = ChatGLM2ForCausalLM.from_pretrained("{base}", dtype="auto", device_map="auto")',
            f'model = PeftModel.from_pretrained(base, "{repo_id}")',
        ),
        "With ChatHaruhi (2.0), which loads its adapter by id in `ChatGLM2GPT.py`: replace "
        f'`silk-road/Chat-Haruhi-Fusion_B` there with `{repo_id}`, and choose `llm="ChatGLM2GPT"`.',
        "The prompt is the row's unchanged `context`, from the character's description to the question. Prompt and "
        "answer are tokenized separately, and an answer ends with the end-of-sequence token.",
    ]


def _use(folder: Path, repo_id: str, base: str | None) -> list[str]:
    if files := gguf_files(folder):
        return _use_gguf(folder, repo_id, files[0].name)
    return _use_merged(folder, repo_id) if is_merged(folder) else _use_adapter(repo_id, hub_id(base) or "BASE")


def _use_gguf(folder: Path, repo_id: str, file: str) -> list[str]:
    """The sections of the README.md that merge wrote; for an adapter, the command of llama.cpp."""
    readme = folder / "README.md"
    parts = ["## Use", f"```console\n$ hf download {repo_id} --local-dir .\n```"]
    if not readme.is_file():
        return [*parts, f"```console\n$ llama-server -m BASE.gguf --lora {file} -c 4096\n```"]
    written = read_text(readme).partition("\n## ")[2].strip()
    return [*parts, "#" * 3 + " " + written.replace("\n## ", "\n### ")]


def _use_merged(folder: Path, repo_id: str) -> list[str]:
    config = read_json_object(folder / "config.json")
    if config.get("model_type") == "glm":
        package, model, tokenizer = "transformers", "AutoModelForCausalLM", "AutoTokenizer"
        introduction = "With transformers alone:"
    else:
        package, model, tokenizer = "kyon_pl", "ChatGLM2ForCausalLM", "ChatGLMTokenizer"
        introduction = "With kyon_pl, which accepts it wherever it accepts THUDM/chatglm2-6b, such as in `model.base`:"
    return [
        "## Use",
        introduction,
        _snippet(
            f"from {package} import {model}, {tokenizer}",
            "",
            f'tokenizer = {tokenizer}.from_pretrained("{repo_id}")',
            f'model = {model}.from_pretrained("{repo_id}", dtype="auto", device_map="auto")',
        ),
    ]


def _snippet(*lines: str) -> str:
    rest = (
        'inputs = tokenizer("你好", return_tensors="pt").to(model.device)',
        "reply = model.generate(**inputs, max_new_tokens=256)[0, inputs.input_ids.shape[1] :]",
        "print(tokenizer.decode(reply, skip_special_tokens=True))",
    )
    return "\n".join(("```python", *lines, *rest, "```"))
