"""The tables of a report: facts, metrics, data, times, settings and warnings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from kyon_pl.evaluation.held_out import Code
from kyon_pl.evaluation.parts import Facts, Folded, Heading, Paragraph, Part, Quote, Table
from kyon_pl.evaluation.report_messages import Words, moment, span
from kyon_pl.evaluation.report_words import short_state
from kyon_pl.evaluation.run_folder import RunFolder

NO_VALUE = "–"
_HIDDEN_SETTINGS = (
    *("config", "ckpt_path", "replies.", "trainer.logger", "trainer.callbacks", "trainer.default_root_dir"),
    *("trainer.enable_", "trainer.inference_mode", "trainer.use_distributed_sampler", "trainer.reload_"),
    *("model.lora.loftq_config", "model.lora.megatron", "model.lora.qalora_group", "model.lora.runtime_config"),
)
_RATES = ("tokens_per_s", "trained_tokens_per_s", "rows_per_s", "peak_gpu_memory_gib")
# lines of run.log that are shown as tables
_ROWS = re.compile(r"data: (train|validation|test): ([\d,]+) rows, ([\d,]+) tokens, (.+) of them trained")
_NO_OVERLAP = re.compile(r"data: none of the ([\d,]+) validation (questions|dialogues) is trained on")
_TRAINED = re.compile(r"trained to step \d+: (\d+) steps in (.+)")
_ESTIMATE = re.compile(r"estimate: .*, about (.+?) \(")
_DURATION = re.compile(r"(?:(\d+) h )?(?:(\d+) min)?(?:(\d+) s)?")


def facts(runs: Sequence[RunFolder], words: Words) -> Part:
    """What a reader looks for first."""
    rows = [list(_facts(run, words)) for run in runs]
    if len(runs) == 1:
        return Facts([row for row in rows[0] if row[1] != NO_VALUE])
    head = [words["run"], *(name for name, _ in rows[0])]
    return Table(head, [[run.name, *(value for _, value in row)] for run, row in zip(runs, rows, strict=True)])


def _facts(run: RunFolder, words: Words) -> Iterator[tuple[str, str]]:
    lines = run.last_start()
    yield words["state"], short_state(run, words)
    yield words["started"], moment(words, lines[0].time) if lines else NO_VALUE
    yield words["took"], span(words, (lines[-1].time - lines[0].time).total_seconds()) if lines else NO_VALUE
    yield words["loss_change"], _change(run, "loss")
    yield words["chrf_change"], _change(run, "replies/chrf")


def metrics(runs: Sequence[RunFolder], words: Words) -> Iterator[Part]:
    """The validation metrics, and those of a test if the folder has one."""
    yield Heading(words["metrics"])
    names = metric_names(runs, words)
    if not names:
        yield Paragraph(words["no_metrics"])
    elif len(runs) == 1:
        if not runs[0].scored:
            yield Paragraph(words["metrics_until"].format(step=runs[0].last_step))
        head = [words["metric"], words["base"], words["tuned"], words["change"], words["name"]]
        yield Table(head, [[_meaning(name, words), *_values(runs[0], name), Code(name)] for name in names])
    else:
        head = [words["metric"], *(f"{run.name}: {words['base']} → {words['tuned']}" for run in runs), words["name"]]
        rows = [[_meaning(name, words), *(_change(run, name) for run in runs), Code(name)] for name in names]
        yield Table(head, rows)


def metric_names(runs: Sequence[RunFolder], words: Words) -> list[str]:
    """Names of the metrics in the order of their meanings, without `val/`; those of the base are shown beside them."""
    tags = {tag.removeprefix("val/") for run in runs for tag in run.curves if tag.startswith(("val/", "test/"))}
    places = {key: place for place, key in enumerate(words)}

    def place(tag: str) -> tuple[bool, int, str]:
        return tag.startswith("test/"), places.get(f"metric_{tag.rpartition('/')[2]}", len(places)), tag

    return sorted((tag for tag in tags if "base_replies/" not in tag), key=place)


def _meaning(name: str, words: Words) -> str:
    return words.get(f"metric_{name.rpartition('/')[2]}", name)


def number(value: float | None) -> str:
    """Four significant digits."""
    return NO_VALUE if value is None else f"{value:.4g}"


def _values(run: RunFolder, name: str) -> list[str]:
    base, tuned = run.base_and_tuned(name)
    change = NO_VALUE if base is None or tuned is None else f"{tuned - base or 0:+.4g}"
    return [number(base), number(tuned), change]


def _change(run: RunFolder, name: str) -> str:
    base, tuned = run.base_and_tuned(name)
    return number(tuned) if base is None else f"{number(base)} → {number(tuned)}"


def data(run: RunFolder, words: Words, of_run: str) -> Iterator[Part]:
    """What the run read: its rows as a table, and other lines about them as they are."""
    texts = [line.text for line in run.last_start() if line.text.startswith("data: ")]
    rows = [match for text in texts if (match := _ROWS.fullmatch(text))]
    clean = [match for text in texts if (match := _NO_OVERLAP.fullmatch(text))]
    others = [text for text in texts if not _ROWS.fullmatch(text) and not _NO_OVERLAP.fullmatch(text)]
    if texts:
        yield Heading(words["data"] + of_run)
    if rows:
        head = [words["part"], words["rows"], words["tokens"], words["trained_tokens"]]
        yield Table(head, [[words[f"part_{match[1]}"], *match.groups()[1:]] for match in rows])
    for match in clean:
        yield Paragraph(words["no_overlap"].format(count=match[1], what=words[match[2]]))
    if others:
        yield Paragraph(words["from_log"])
        yield Quote("\n".join(others))


def times(run: RunFolder, words: Words, of_run: str) -> Iterator[Part]:
    """How long the run took, and how fast it was."""
    rows = list(_times(run, words))
    if rows:
        yield Heading(words["times"] + of_run)
        yield Table([words["measure"], words["value"]], rows)


def _times(run: RunFolder, words: Words) -> Iterator[list[str]]:
    lines = run.last_start()
    if lines:
        yield [words["time_whole"], span(words, (lines[-1].time - lines[0].time).total_seconds())]
    for line in lines:
        if match := _TRAINED.fullmatch(line.text):
            yield [words["time_training"], words["steps_in"].format(steps=match[1], time=_duration(match[2], words))]
        elif match := _ESTIMATE.match(line.text):
            yield [words["time_estimate"], _duration(match[1], words)]
    for name in _RATES:
        if points := run.curves.get(f"train/{name}"):
            yield [words[f"rate_{name}"], number(sum(value for _, value in points) / len(points))]


def _duration(text: str, words: Words) -> str:
    """A duration of run.log in the language of the report; as it is if it has another form."""
    match = _DURATION.fullmatch(text)
    if not match:
        return text
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return span(words, hours * 3600 + minutes * 60 + seconds)


def settings(runs: Sequence[RunFolder], words: Words) -> Iterator[Part]:
    """The settings of one run that are not empty, or the settings in which several runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if not key.startswith(_HIDDEN_SETTINGS))
    rows = [[Code(key), *(_setting_text(run.settings.get(key)) for run in runs)] for key in keys]
    if len(runs) == 1:
        shown = [row for row in rows if row[1] not in (NO_VALUE, "false", "[]", "{}")]
        if shown:
            yield Heading(words["settings"])
            yield Folded(words["settings_all"], Table([words["setting"], words["value"]], shown))
        return
    yield Heading(words["settings_that_differ"])
    different = [row for row in rows if len(set(row[1:])) > 1]
    head = [words["setting"], *(run.name for run in runs)]
    yield Table(head, different) if different else Paragraph(words["none"])


def _setting_text(value: Any) -> str:
    if value in (None, ""):
        return NO_VALUE
    return Code(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def warnings(run: RunFolder, words: Words, of_run: str) -> Iterator[Part]:
    """The warnings and errors of the run, as they are."""
    lines = [f"{line.level}: {line.text}" for line in run.last_start() if line.level != "INFO"]
    if lines:
        yield Heading(words["warnings"] + of_run)
        yield Paragraph(words["from_log"])
        yield Quote("\n".join(lines))
