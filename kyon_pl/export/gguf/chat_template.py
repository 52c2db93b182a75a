"""The chat templates of a GGUF: Jinja for llama.cpp, Go for Ollama.

They write what `kyon_pl.data.prompt.render` writes, so that llama.cpp's ids of a conversation are those of training. In
llama.cpp a reply begins with a blank, SentencePiece's dummy prefix, which an earlier reply in a prompt does not have.
"""

from __future__ import annotations

import json

from kyon_pl.errors import SettingError, no_such_choice
from kyon_pl.export.gguf.vocabulary import PREFIX
from kyon_pl.runs.prompt_format import PromptFormat

# `rest` has the messages behind the system prompt, and `loop.first or system` is whether nothing stands before one
_HEAD = r"""
{%- set system, rest = SYSTEM, messages -%}
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set system, rest = messages[0]['content'], messages[1:] -%}
{%- endif -%}
{%- set count = namespace(round=0) -%}
{{- 'PREFIX' ~ system -}}
{%- for message in rest -%}
{%- set between = 'SEPARATOR' if system or not loop.first else '' -%}
{%- if message['role'] == 'user' -%}
{%- set count.round = count.round + 1 -%}
{{- between ~ QUESTION -}}
{%- elif message['role'] != 'assistant' -%}
{{- raise_exception('after the system prompt, only user and assistant speak') -}}
{%- elif not count.round -%}
{{- between ~ message['content'] | trim -}}
{%- else -%}
{{- REPLY -}}
{%- endif -%}
{%- endfor -%}
""".strip().replace("\n", "")
_SEPARATORS = {"raw": "###", "chatglm2": r"\n\n"}
_QUESTIONS = {
    "raw": "message['content']",
    "chatglm2": r"'[Round ' ~ count.round ~ ']\n\n问：' ~ message['content'] ~ '\n\n答：'",
}
_REPLIES = {
    ("raw", "last"): "'###' ~ message['content'] | trim",
    ("chatglm2", "last"): "message['content'] | trim",
    # each reply was encoded by itself, and ended
    ("raw", "all"): "' ' ~ (message['content'] | trim) ~ '</s>'",
    ("chatglm2", "all"): "' ' ~ (message['content'] | trim) ~ '</s>'",
}
_GO = {
    "raw": "{{ range $i, $m := .Messages }}{{ if $i }}###{{ end }}{{ $m.Content }}{{ end }}",
    # Go's templates cannot add: the rounds are the length of a text that grows
    "chatglm2": (
        '{{ $rounds := "" }}{{ range $i, $m := .Messages }}{{ if eq $m.Role "user" }}{{ $rounds = print $rounds "." }}'
        "{{ if $i }}\n\n{{ end }}[Round {{ len $rounds }}]\n\n问：{{ $m.Content }}\n\n答："
        "{{ else }}{{ $m.Content }}{{ end }}{{ end }}"
    ),
}


def jinja_template(form: PromptFormat, system: str) -> str:
    """The value of `tokenizer.chat_template`.

    Args:
        form: how the prompts of the training were worded.
        system: the system prompt of conversations without one; can be empty.

    Raises:
        SettingError: the template does not exist.
    """
    _check_template(form)
    template = _HEAD.replace("SEPARATOR", _SEPARATORS[form.template]).replace("PREFIX", PREFIX)
    template = template.replace("QUESTION", _QUESTIONS[form.template])
    template = template.replace("REPLY", _REPLIES[form.template, form.train_turns])
    return template.replace("SYSTEM", json.dumps(system, ensure_ascii=False))


def modelfile(file: str, form: PromptFormat, system: str, context_tokens: int, sampling: dict[str, float]) -> str:
    """Ollama's Modelfile. A conversation with `train_turns: all` is worded as with `last`.

    Args:
        file: name of the GGUF beside it.
        form: as for `jinja_template`.
        system: as for `jinja_template`.
        context_tokens: length of the context.
        sampling: parameters by Ollama's names.

    Raises:
        SettingError: the template does not exist, or the system prompt has three double quotes in a row, which end it.
    """
    _check_template(form)
    if '"""' in system:
        raise SettingError("--system", 'it has """, which would end it in a Modelfile', "Write other quotation marks")
    lines = [f"FROM ./{file}", f'TEMPLATE """{PREFIX}{_GO[form.template]}"""']
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f"PARAMETER {key} {value}" for key, value in {"num_ctx": context_tokens, **sampling}.items()]
    return "\n".join(lines) + "\n"


def _check_template(form: PromptFormat) -> None:
    if form.template not in _QUESTIONS:
        raise no_such_choice("data.template", form.template, _QUESTIONS)
