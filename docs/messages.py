"""Writes kyon_pl/language/zh.po: every public message of the package, as the code has it, with its Chinese.

make docs

A message is a text or an f-string with words in it. All of them are read from the code, wherever they stand, so that a
reason that a function returns, or one that a table holds, needs no mark; what is no message is in `EXCEPTIONS`.
"""

from __future__ import annotations

import ast
import errno
import json
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from kyon_pl.cli.options import read_table
from kyon_pl.language import CATALOGUE, FIELD, read_catalogue
from kyon_pl.roles.importing.found import counted

PACKAGE = Path(__file__).parent.parent / "kyon_pl"

HEADER = "Language: zh_CN\nContent-Type: text/plain; charset=UTF-8\n"
PRINTF = re.compile(r"%[-+.\d]*[sdrfgex]")

# why a text is no message of the terminal -> file -> how such texts begin; without any: all texts of that file
EXCEPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "the demo's corpus": {
        "demo/*": (),
    },
    "help of the commands and their options, as options.json has it": {
        "cli/commands.py": (
            "train an adapter:", "loss and perplexity", "write the replies", "chat ", "make ", "upload ",
            "show rows", "report runs", "merge an", "convert an", "check ",
        ),
        "cli/arguments.py": ("a YAML of fit",),
        "cli/lightning_cli.py": ("micro-batches of", "replies to held-out", "resume ", "with --ckpt_path"),
        "cli/options.py": ("list of", "kyon-pl {0}: "),
        "cli/tools.py": ("print one", "a GPU of", "memory of a GPU", "a YAML file"),
        "chat/web/app.py": ("kyon-pl web",),
    },
    "files, which are written in English": {
        "publish/model_card.py": (),
        "publish/push_data.py": ("# ",),
        "publish/push*.py": ("{0}, with kyon-pl",),
        "export/gguf/merged.py": ("llama-", "```", "--temp", ", with the role", "# "),
        "export/gguf/chat_template.py": ("{", "\n", "'", "message", "TEMPLATE", "SYSTEM", "PARAMETER"),
        "evaluation/report_*.py": (),
        "evaluation/pictures.py": (),
        "evaluation/judged.py": (),
        "evaluation/report.py": ("kyon-pl report", "| run"),
        "evaluation/scores.py": (),
        "evaluation/held_out.py": (),
        "training/loggers.py": ("tokens a", "max tokens", "learning rate", "val/loss and", "1 ", "2 ", "3 "),
        "judge/results.py": (),
        "training/callbacks/run_output.py": ("rows a step", "tokens a step"),
        "roles/importing/command.py": ("You play",),
        "runs/prompt_format.py": ("# how",),
        "preview/histogram.py": ("trained tokens", "{0} per row", "axes"),
        "training/callbacks/held_out_replies.py": ("scores",),
    },
    "answers over HTTP, and the page, which has a Chinese of its own": {
        "chat/web/middleware.py": (),
        "chat/web/page/*": (),
        "chat/web/login.py": (),
        "judge/page.py": (),
        "chat/server/completions.py": ("Bearer",),
        "chat/server/answers.py": ("the answer did not end",),
        "judge/endpoint.py": ("Bearer",),
    },
    "rows as the model sees them": {
        "data/shown_rows.py": (),
    },
    "prompts and probes": {
        "chat/server/model.py": ("你好",),
        "judge/rubric.py": (),
        "chatglm2/glm.py": ("people of", "[gMASK]"),
        "chatglm2/tokenization.py": ("\n",),
        "data/prompt.py": (),
    },
    "patterns": {
        "roles/importing/chat_logs.py": ("(?", "\\["),
        "roles/importing/quotes.py": (),
        "roles/importing/speech_patterns.py": (),
        "evaluation/run_folder.py": ("(", "kyon-pl fit:"),
        "cli/run_start.py": ("# lightning", "{"),
        "chat/terminal/commands.py": ("bind ", "tab: "),
    },
    "texts of libraries that are looked for": {
        "cli/messages.py": (
            "Parser", "Does not", "Given", "Problem", "Expected", "[Oo]ption", ". Got", "File does", "Not a valid",
        ),
        "cli/allowed_code.py": ("Importing",),
        "cli/system_errors.py": (
            "failed to map", "Too many", "torch_", "DataLoader", "out of memory", "exited", "\\[Errno",
        ),
        "data/reading/json_files.py": ("Expecting",),
        "data/reading/tabular.py": ("field larger", "unexpected", "expected after", "new-line"),
        "training/callbacks/memory_guard.py": ("CUDA error", "can't"),
        "training/callbacks/ranks.py": ("Ranks?",),
        "logs.py": (
            "`", "the parser writes", ".*", "data.workers", "Lightning", "\\s*", "the new names", "the command line",
            "The number", "log_every", "Checkpoint", "a resumed", "[rank", "%(",
        ),
    },
    "errors for programmers, with their traceback": {
        "chatglm2/modeling.py": ("pass either", "cu_seqlens", "key_index"),
        "imports.py": ("module {0}",),
        "data/dialogue_data.py": ("call `plan",),
        "runs/checkpoint_io.py": ("{0} takes no",),
        "chatglm2/tokenization.py": ("the special tokens",),
    },
    "names, options, units and commands": {
        "data/reading/report.py": ("token and ids",),
        "cli/options.py": ("--help",),
        "cli/run_messages.py": ("kyon_pl", "Python"),
        "doctor/report.py": ("{0} GiB", "{0} MiB"),
        "export/convert_adapter.py": ("--to",),
        "export/merge.py": ("--adapter none", "--format gguf"),
        "roles/build.py": (" --", "memory_order f"),
        "roles/retrieval.py": ("retrieval {0}",),
        "runs/resume.py": ("--ckpt_path last",),
        "training/callbacks/ranks.py": ("CRC", "rank {0}"),
        "training/run_length.py": ("--",),
        "training/throughput.py": ("{0} TFLOP", "{0} GFLOP"),
        "data/reading/columns.py": ("kyon-pl",),
        "language/__init__.py": ("^msgid",),
        "doctor/speed.py": ("Tesla", "RTX", "H100"),
        "cli/tools.py": ("kyon-pl",),
        "judge/command.py": ("kyon-pl judge",),
        "judge/sides.py": ("--checkpoints_of {0}",),
    },
}  # fmt: skip

_NUMBERS = (
    errno.EACCES, errno.EBUSY, errno.ECONNREFUSED, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.EIO, errno.EISDIR,
    errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOMEM, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS,
    errno.ETIMEDOUT,
)  # fmt: skip
# the most frequent reasons of the system, which are also shown in the middle of a sentence; of Python's json, csv and
# codecs; and of the parsers
REASONS = (
    *(text for reason in map(os.strerror, _NUMBERS) for text in (reason, reason[:1].lower() + reason[1:])),
    "Expecting value", "Expecting property name enclosed in double quotes", "Unterminated string starting at",
    "Invalid control character at", "Extra data", "Expecting ',' delimiter", "Expecting ':' delimiter",
    "Invalid \\escape", "invalid continuation byte", "invalid start byte", "unexpected end of data", "truncated data",
    "Expected a <class '{0}'>", "Expected a typing.Literal[{0}]", "Given value: {0}", "Got value: {0}",
    "argument {0}: expected one argument", "invalid choice: {0} (choose from {1})",
)  # fmt: skip
# messages of one word or of fields and names; kinds of bad rows, which are counted by what stands before their colon
OTHERS = (
    "interrupted", "options:", ":  ", "questions", "dialogues", "dropped", "saves", "tokens", "rows",
    "verdict", "counts", "  trained", "  padding", "  shared", "  skipped", "  dropped", "  shortened", ", of {0}",
    "     {0} and {1}", "it is {0}", "{0}, line {1}: {2}", "{0}, row {1}: {2}",
    "{0}, row {1}", "base: ", "nothing said in {0}", "no text in {0}", "no list in {0}",
    "nothing said", "no message", "no known role", "not a row", "roles out of turn in {0}",
    "no reply at the end of {0}", "no question in {0}", "no list of token ids in 'input_ids'",
    "'seq_len' leaves nothing to train", "no pair of texts in 'history'", "no list in 'history'",
    "{0} ({1})", *REASONS,
)  # fmt: skip
_STOP_WORDS = frozenset((
    "a", "an", "and", "as", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or", "than", "that", "the", "to",
    "with",
))  # fmt: skip


def literals(file: Path) -> Iterator[str]:
    """The texts and f-strings of a file, without docstrings and what is logged for debugging; fields as `{0}`."""
    skipped: set[ast.AST] = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "log.debug":
            skipped |= set(ast.walk(node))
        elif isinstance(node, ast.JoinedStr):
            for part in node.values:
                skipped |= {part} if isinstance(part, ast.Constant) else set(_walk_format(part))
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and node not in skipped:
            yield template(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield node.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "counted":
            noun = ast.literal_eval(node.args[1])
            yield from (counted(number, noun).replace(str(number), "{0}") for number in (1, 2))


def _walk_format(field: ast.expr) -> Iterator[ast.AST]:
    assert isinstance(field, ast.FormattedValue)
    return ast.walk(field.format_spec) if field.format_spec else iter(())


def template(node: ast.JoinedStr) -> str:
    """An f-string with numbered fields: "{0} is not a share"."""
    number, pieces = 0, []
    for part in node.values:
        if isinstance(part, ast.Constant):
            pieces.append(str(part.value))
        else:
            pieces.append(f"{{{number}}}")
            number += 1
    return "".join(pieces)


def has_words(text: str) -> bool:
    """Whether a text says something beside its fields: more than one word, and not only "of", "in" and the like."""
    words = re.findall(r"[A-Za-z]{2,}", FIELD.sub(" ", text))
    return " " in text.strip() and any(word.lower() not in _STOP_WORDS for word in words)


def exception_for(name: str, text: str) -> tuple[str, str] | None:
    """The exception that a text of a file falls under: the file, and how the text begins ("" for a whole file)."""
    for files in EXCEPTIONS.values():
        for pattern, starts in files.items():
            if fnmatch(name, pattern):
                found = next((start for start in starts or ("",) if text.startswith(start)), None)
                if found is not None:
                    return pattern, found
    return None


def options_help() -> Iterator[str]:
    """What options.json says of commands, settings and options."""
    table = read_table()
    for command in table["commands"].values():
        yield command["summary"]
    options = [option for command in table["commands"].values() for option in command["options"]]
    yield from (option["meaning"] for option in table["settings"] + options if option["meaning"])


def messages() -> dict[str, str]:
    """Every public message without a full stop at its end, and the first file that has it, in the order of files."""
    found: dict[str, str] = {}
    used = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        for text in literals(file):
            if has_words(text):
                if entry := exception_for(name, text):
                    used.add(entry)
                else:
                    found.setdefault(text if PRINTF.search(text) else text.removesuffix("."), name)
    for text in OTHERS:
        found.setdefault(text, "the system")
    for text in options_help():
        found.setdefault(text.removesuffix("."), "cli/options.json")
    listed = [(file, starts or ("",)) for files in EXCEPTIONS.values() for file, starts in files.items()]
    stale = {(file, start) for file, starts in listed for start in starts} - used
    assert not stale, f"no text falls under these exceptions any more: {sorted(stale)}"
    return found


def catalogue(public: dict[str, str], translations: dict[str, str]) -> str:
    """The text of the catalogue: gettext's format, each text in one line.

    Args:
        public: from `messages`.
        translations: of messages; those of messages that are gone are left out.
    """
    head = ["# Written by `make docs` from the code; the translations (msgstr) are written by hand.", 'msgid ""']
    head += [f"msgstr {_quoted(HEADER)}", ""]
    lines = []
    for text, name in public.items():
        kind = ["#, python-format"] if PRINTF.search(text) else []
        lines += [f"#: {name}", *kind, f"msgid {_quoted(text)}", f"msgstr {_quoted(translations.get(text, ''))}", ""]
    return "\n".join([*head, *lines])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def main() -> None:
    """Write the catalogue, and name the messages without Chinese."""
    known = read_catalogue(CATALOGUE) if CATALOGUE.exists() else {}
    public = messages()
    CATALOGUE.write_text(catalogue(public, known), encoding="utf-8")
    missing = [text for text in public if text not in known]
    print(f"wrote {CATALOGUE}, {len(public)} messages", *(f"no Chinese for: {text}" for text in missing), sep="\n")


if __name__ == "__main__":
    main()
