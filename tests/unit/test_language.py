"""Every public message has its Chinese, and what a command prints is found in the catalogue."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from limits import HANG_S

from kyon_pl.errors import KyonError, SettingError
from kyon_pl.language import CATALOGUE, FIELD, VARIABLE, language, localized, padded, read_catalogue
from kyon_pl.logs import OneLine, OneLocalizedLine

ROOT = Path(__file__).parents[2]
CHINESE = read_catalogue(CATALOGUE)


@pytest.fixture(scope="module")
def messages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("messages", ROOT / "docs/messages.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def in_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "zh")


def filled(message: str) -> str:
    return FIELD.sub(lambda field: f"<{field[1]}>", message)


def test_every_message_has_its_chinese(messages: ModuleType) -> None:
    public = messages.messages()
    new, gone = public.keys() - CHINESE.keys(), CHINESE.keys() - public.keys()
    assert not new, f"without Chinese; run make docs, and write it into {CATALOGUE}: {sorted(new)}"
    assert not gone, f"no messages any more; run make docs: {sorted(gone)}"
    assert messages.catalogue(public, CHINESE) == CATALOGUE.read_text(encoding="utf-8"), "run make docs"
    assert len(public) > 1000


def test_a_message_that_the_code_changes_is_named(messages: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        '"""Docs, of no interest."""\n'
        "log.debug('for developers only: %s', 1)\n"
        'found = f\'{share:.2f} is {"no" if odd else "a good share"}\'\n'
        "pattern, fix = 'data.share', ('Set a share ' f'below {limit}')\n",
        encoding="utf-8",
    )
    found = [text for text in messages.literals(file) if messages.has_words(text)]
    assert sorted(found) == ["Set a share below {0}", "a good share"]


def test_chinese_has_the_fields_of_its_message(messages: ModuleType) -> None:
    for message, chinese in CHINESE.items():
        assert sorted(re.findall(r"\{\w+\}", message)) == sorted(re.findall(r"\{\w+\}", chinese)), message
        assert messages.PRINTF.findall(message) == messages.PRINTF.findall(chinese), message
        assert re.search(r"[\u3001\u4e00-\u9fff\uff00-\uffef]", chinese), message
        assert not chinese.endswith("。"), message


@pytest.mark.usefixtures("in_chinese")
def test_every_message_is_found_with_any_values() -> None:
    """None is taken for another one, whose fields would hold a part of it."""
    plain = [message for message in CHINESE if "%" not in message]
    assert [localized(filled(message)) for message in plain] == [filled(CHINESE[message]) for message in plain]


@pytest.mark.usefixtures("in_chinese")
def test_values_that_are_messages_are_translated() -> None:
    error = SettingError("a.jsonl, line 2: empty 'target'; b.csv, row 7", "it is empty", "Use 1 or more.")
    assert localized(error) == "a.jsonl，第 2 行：'target' 为空；b.csv，第 7 条：内容为空。设为 1 或更大。"
    assert localized("bad rows: 1 × empty 'target', 2 × broken JSON") == "无效数据：1 × 'target' 为空，2 × JSON 有错误"
    assert localized("runs: Permission denied") == "runs：没有权限"
    assert localized("a text of nobody, with: marks; and. More.") == "a text of nobody, with: marks; and. More."
    assert localized("there is no 'it is empty'") == "没有 'it is empty'"
    assert localized("(removed: it is empty)") == "（已删除：it is empty）"  # it was typed


@pytest.mark.usefixtures("in_chinese")
def test_a_text_that_goes_on_and_on_is_shown() -> None:
    assert localized("; ".join(["it is empty"] * 100)).startswith("内容为空；内容为空；")
    assert localized("x is empty, and: " * 1000) == "x is empty, and: " * 1000


@pytest.mark.usefixtures("in_chinese")
def test_run_log_stays_english() -> None:
    record = logging.LogRecord("kyon_pl", logging.INFO, "", 0, "adapter: %s, the last of the run%s", ("a", ""), None)
    assert OneLocalizedLine("%(message)s").format(record) == "适配器：a，该次训练的最后一个"
    assert OneLine("%(message)s").format(record) == "adapter: a, the last of the run"
    reply = logging.LogRecord("kyon_pl", logging.INFO, "", 0, "  tuned %s", ("Correct the file.",), None)
    assert OneLocalizedLine("%(message)s").format(reply) == "  微调  Correct the file."


@pytest.mark.parametrize(
    ("environment", "chosen"),
    [
        ({}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_TW"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "", VARIABLE: ""}, "zh"),
        ({"LC_ALL": "zh_CN.UTF-8", VARIABLE: "en"}, "en"),
        ({"LANG": "C", VARIABLE: "zh"}, "zh"),
    ],
)
def test_language_of_the_terminal(environment: dict[str, str], chosen: str) -> None:
    assert language(environment) == chosen


def test_english_is_as_it_was_raised() -> None:
    error = KyonError("x: y", "it is empty.", "Ask something")
    assert localized(error) == str(error) == "x: y: it is empty. Ask something."


def test_chinese_takes_two_columns() -> None:
    assert [padded("ab", 5), padded("数据", 5)] == ["ab   ", "数据 "]


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["fit", "--data.sorce", "x.jsonl"], "kyon-pl fit：data.sorce：没有这项设置。是否想写“data.source”？"),
        (["chatt"], "kyon-pl chatt：命令“chatt”：没有这个命令。是否想写“chat”？"),
        (["--log_level", "info"], "命令行：没有给出命令。可选：fit"),
        (["fit", "--config", "list.yaml"], "kyon-pl fit：list.yaml：内容是列表，不是设置。设置的格式为 `key: value`"),
        (["fit", "--config", "none.yaml"], "文件“none.yaml”不存在。请给出 YAML 文件的路径，或下列名字之一：character"),
    ],
)
def test_errors_in_chinese(words: list[str], printed: str, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("[1, 2]\n", encoding="utf-8")
    environment = {**os.environ, "LANG": "zh_CN.UTF-8", "PYTHONUTF8": "1"}
    for name in ("LC_ALL", "LC_MESSAGES", VARIABLE):
        environment.pop(name, None)
    command = [sys.executable, "-m", "kyon_pl", *words]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=HANG_S)
    assert (run.returncode, run.stdout) == (2, "")
    assert printed in run.stderr
    assert "Traceback" not in run.stderr


def test_a_language_that_there_is_not(tmp_path: Path) -> None:
    environment = {**os.environ, VARIABLE: "fr"}
    command = [sys.executable, "-m", "kyon_pl", "--version"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert run.returncode == 2
    assert run.stderr == "kyon-pl: $KYON_PL_LANG: there is no language 'fr' here. Use one of: zh, en.\n"
