"""How prompts are written: kept exactly, and refused where it cannot be followed."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kyon_pl.errors import CheckpointError
from kyon_pl.runs.prompt_format import (
    PROMPT_FORMAT,
    PromptFormat,
    RoleFormat,
    read_prompt_format,
    read_role_formats,
    role_formats_file,
    role_formats_text,
)

ODD = "\n 你在扮演小棹：“撑船的”\t# no: comment\r\n- 🛶 \u2028é\u0301\x85 'it''s' {words}\n\n"
FORM = RoleFormat(
    ODD, "{asker}:「{words}」", "No", "fixed", "###", "auto", 8, 0, 500, "tokens", "likeness", "0, CRC 0", ""
)
FORM_OF_RUN = PromptFormat("chatglm2", "all", {"小棹": FORM, "007": replace(FORM, asker="1e3", location="/roles/007")})


def test_texts_come_back_as_they_were(tmp_path: Path) -> None:
    (tmp_path / PROMPT_FORMAT).write_text(FORM_OF_RUN.text(), encoding="utf-8")
    assert read_prompt_format(tmp_path) == FORM_OF_RUN
    assert "\n  小棹:\n" in FORM_OF_RUN.text()  # for people to read
    rows = tmp_path / "a.b.jsonl"
    role_formats_file(rows).write_text(role_formats_text(FORM_OF_RUN.roles), encoding="utf-8")
    assert read_role_formats([tmp_path / "other.jsonl", rows]) == FORM_OF_RUN.roles


def test_of_a_role_in_two_files_the_first_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, number in (("one", 8), ("same", 8), ("two", 4)):
        text = role_formats_text({"Bo": replace(FORM, memory_number=number)})
        role_formats_file(tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        found = read_role_formats(tmp_path / f"{name}.jsonl" for name in ("one", "same", "two"))
    assert found["Bo"].memory_number == 8
    (said,) = caplog.messages
    assert "two.prompt_format.yaml tells another form" in said


def test_earlier_adapters_have_their_template_in_the_config(tmp_path: Path) -> None:
    assert read_prompt_format(tmp_path) is None
    (tmp_path / "config.yaml").write_text("data: {train_turns: all}", encoding="utf-8")
    assert read_prompt_format(tmp_path) == PromptFormat("raw", "all")


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("separator", "|||", "separator: '|||' is not a value that is known here"),
        ("mode", "original2", "mode: 'original2' is not"),
        ("unit", "words", "unit: 'words' is not"),
        ("memory_order", "none", "memory_order: 'none' is not"),
        ("memory_length", -1, "memory_length: -1 is not"),
        ("memory_number", "8", "memory_number: '8' is not a whole number"),
        ("asker", None, "asker: None is not a text"),
        ("question", ..., "question: it is missing"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, key: str, value: object, found: str) -> None:
    form = {name: entry for name, entry in (vars(FORM) | {key: value}).items() if entry is not ...}
    (tmp_path / PROMPT_FORMAT).write_text(yaml.safe_dump({"template": "raw", "roles": {"Bo": form}}), encoding="utf-8")
    with pytest.raises(CheckpointError) as refused:
        read_prompt_format(tmp_path)
    assert f"prompt_format.yaml: Bo: {found}" in str(refused.value)


@pytest.mark.parametrize("turns", ["[last]", "{last: 1}", "often", "5"])
def test_turns_of_another_kind_are_refused(turns: str, tmp_path: Path) -> None:
    (tmp_path / "prompt_format.yaml").write_text(
        f"template: raw\ntrain_turns: {turns}\nroles: {{}}\n", encoding="utf-8"
    )
    with pytest.raises(CheckpointError, match="train_turns"):
        read_prompt_format(tmp_path)
