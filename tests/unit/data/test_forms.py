"""The forms in which people keep dialogue: one conversation is the same row in each, and nothing is half read."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from kyon_pl.chatglm2.tokenization import read_tokenizer
from kyon_pl.data import DialogueDataModule
from kyon_pl.data.reading.checks import check_row, unread_columns
from kyon_pl.data.reading.columns import ColumnNames, form_of
from kyon_pl.data.reading.forms import FORMS
from kyon_pl.data.reading.sources import SourceSettings, load_rows
from kyon_pl.demo import BASE
from kyon_pl.errors import DataError, SettingError

JsonObject = dict[str, Any]


class Talk(NamedTuple):
    """A conversation: `rounds` are questions with their replies."""

    system: str
    greeting: str
    rounds: list[tuple[str, str]]

    def turns(self, system: bool = True) -> list[tuple[str, str]]:
        first = [("system", self.system)] if system and self.system else []
        first += [("assistant", self.greeting)] if self.greeting else []
        return first + [turn for q, a in self.rounds for turn in (("user", q), ("assistant", a))]

    def messages(self, system: bool = True, role: str = "role", text: str = "content") -> list[JsonObject]:
        return [{role: who, text: said} for who, said in self.turns(system)]

    def sharegpt(self, system: bool = True) -> list[JsonObject]:
        speakers = {"system": "system", "user": "human", "assistant": "gpt"}
        return [{"from": speakers[who], "value": said} for who, said in self.turns(system)]

    def rounds_of(self, question: str, reply: str, with_system: bool = False) -> list[JsonObject]:
        greeting = [{question: "", reply: self.greeting}] if self.greeting else []
        rounds: list[JsonObject] = [*greeting, *({question: q, reply: a} for q, a in self.rounds)]
        return [rounds[0] | {"system": self.system}, *rounds[1:]] if with_system else rounds

    def pair(self, prompt: str, reply: str) -> JsonObject:
        history = ([["", self.greeting]] if self.greeting else []) + [list(pair) for pair in self.rounds[:-1]]
        question, answer = self.rounds[-1]
        return {prompt: question, reply: answer, "history": history or None, "system": self.system or None}


def alpaca(talk: Talk) -> JsonObject:
    row = talk.pair("instruction", "output")
    row["instruction"], found, row["input"] = row["instruction"].partition("\n")
    return row if found else row | {"input": ""}


def in_parts(talk: Talk) -> JsonObject:
    for message in (messages := talk.messages()):
        message["content"] = [{"type": "text", "text": part} for part in message["content"].split("\n")]
    return {"messages": messages}


def split_turns(talk: Talk) -> JsonObject:
    """Each line of a turn as a turn of its own."""
    return {"messages": [{"role": who, "content": part} for who, said in talk.turns() for part in said.split("\n")]}


WRITERS: dict[str, Callable[[Talk], Any]] = {
    "context_target": lambda t: {
        "context": "###".join(said for _, said in t.turns()[:-1]),
        "target": t.rounds[-1][1],
    },
    "messages": lambda t: {"messages": t.messages()},
    "messages, developer": lambda t: {
        "messages": [m | {"role": m["role"].replace("system", "developer")} for m in t.messages()]
    },
    "messages, system beside": lambda t: {"messages": t.messages(system=False), "system": t.system},
    "messages, system twice": lambda t: {"messages": t.messages(), "system": t.system},
    "messages, JSON text": lambda t: {"messages": json.dumps(t.messages(), indent=1)},
    "messages, Python text": lambda t: {"messages": str(t.messages())},
    "messages, parts": in_parts,
    "messages, one speaker twice": split_turns,
    "messages, no column": lambda t: t.messages(),
    "sharegpt": lambda t: {"conversations": t.sharegpt()},
    "sharegpt, system beside": lambda t: {"conversations": t.sharegpt(system=False), "system": t.system},
    "sharegpt, JSON text": lambda t: {"conversations": json.dumps(t.sharegpt(), ensure_ascii=False)},
    "sharegpt, roles": lambda t: {"conversations": t.messages(role="role", text="content")},
    "conversation": lambda t: {"conversation": t.messages()},
    "conversation, rounds of Firefly": lambda t: {
        "conversation": t.rounds_of("human", "assistant"),
        "system": t.system,
    },
    "conversation, rounds of XTuner": lambda t: {"conversation": t.rounds_of("input", "output", with_system=True)},
    "conversation, Chinese": lambda t: {
        "conversation": [
            m | {"role": {"system": "系统", "user": "用户", "assistant": "助手"}[m["role"]]} for m in t.messages()
        ]
    },
    "alpaca": alpaca,
    "alpaca, Chinese": lambda t: {
        {"instruction": "指令", "output": "输出", "history": "历史", "system": "系统提示", "input": "输入"}[name]: value
        for name, value in alpaca(t).items()
    },
    "instruction_response": lambda t: {
        {"output": "response", "input": "context"}.get(name, name): value for name, value in alpaca(t).items()
    },
    "alpaca, history as JSON text": lambda t: alpaca(t) | {"history": json.dumps(alpaca(t)["history"] or [])},
    "query_response": lambda t: t.pair("query", "response"),
    "prompt_response": lambda t: t.pair("prompt", "response"),
    "prompt_completion": lambda t: t.pair("prompt", "completion"),
    "prompt_completion, messages": lambda t: {"prompt": t.messages()[:-1], "completion": t.messages()[-1:]},
    "question_answer": lambda t: t.pair("question", "answer"),
    "question_answer, capitals": lambda t: {
        name.title(): value for name, value in t.pair("question", "answer").items()
    },
    "question_answer, Chinese": lambda t: t.pair("问题", " 回答\u3000"),
    "input_output": lambda t: t.pair("input", "output"),
    "input_target": lambda t: t.pair("input", "target"),
    "content_summary": lambda t: t.pair("content", "summary"),
    "user_assistant": lambda t: t.pair("user", "assistant"),
    "human_assistant": lambda t: t.pair("Human", "Assistant"),
}
TEXT = st.text("ab答「'\"{\\", min_size=1, max_size=4).map(lambda text: f"x{text}y")
TALKS = st.builds(
    Talk,
    system=st.just("") | TEXT,
    greeting=st.just("") | TEXT,
    rounds=st.lists(st.tuples(TEXT | st.builds("{}\n{}".format, TEXT, TEXT), TEXT), min_size=1, max_size=3),
)


@settings(deadline=None, max_examples=60)
@given(talk=TALKS)
def test_the_same_conversation_is_the_same_row_in_every_form(talk: Talk) -> None:
    expected = check_row({"messages": talk.messages()}, ColumnNames())
    assert expected["problem"] == ""
    assert expected["messages"] == talk.messages()[:-1]
    assert expected["context"] == "###".join(said for _, said in talk.turns()[:-1])
    for name, write in WRITERS.items():
        row = write(talk)
        found = check_row(row, ColumnNames())
        form = name.partition(",")[0]
        assert found["form"] == form, name
        assert unread_columns(row, form, ColumnNames()) == set()
        messages = [] if form == "context_target" else expected["messages"]
        assert found == expected | {"messages": messages, "form": form}, name
        if isinstance(row, dict):
            assert check_row(row, ColumnNames(form=form)) == found  # type: ignore[arg-type]


TALK = Talk("You are Bo.", "Ho there!", [("Is it far?", "Two hundred strokes."), ("In fog?", "Not before the bell.")])


@pytest.fixture(scope="module")
def every_form(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms")
    for number, (name, write) in enumerate(WRITERS.items()):
        lines = [json.dumps(write(TALK._replace(system=f"You are Bo {number} {copy}."))) for copy in range(2)]
        (folder / f"{number:02} {name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("train_turns", "trained"), [("last", TALK.rounds[1:]), ("all", TALK.rounds)])
def test_every_form_trains_the_replies_and_their_ends(
    every_form: Path, tmp_path: Path, train_turns: str, trained: Any
) -> None:
    data = DialogueDataModule(
        source=str(every_form),
        tokenizer=str(BASE),
        cache_dir=str(tmp_path),
        validation_share=0,
        train_turns=train_turns,  # type: ignore[arg-type]
    )
    data.load("fit")
    tokenizer = read_tokenizer(BASE)
    assert len(data.rows["train"]) == 2 * len(WRITERS)
    for row, form in zip(
        data.rows["train"].read([*range(2 * len(WRITERS))]), [n for n in WRITERS for _ in "12"], strict=True
    ):
        ids, labelled = row["input_ids"], [True] * len(row["input_ids"])
        labelled[: row["seq_len"]] = [False] * row["seq_len"]
        masked = row.get("masked", ())
        for start, end in zip(masked[::2], masked[1::2], strict=True):
            labelled[start:end] = [False] * (end - start)
        text = tokenizer.decode([i for i, on in zip(ids, labelled, strict=True) if on and i != tokenizer.eos_token_id])
        ends = sum(on and i == tokenizer.eos_token_id for i, on in zip(ids, labelled, strict=True))
        replies = TALK.rounds[1:] if form == "context_target" else trained
        assert (text.replace(" ", ""), ends) == ("".join(a for _, a in replies).replace(" ", ""), len(replies)), form


# a row, and why it cannot be used
REFUSED = {
    "image part": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image_url"}]}]},
        "no text in 'content' in 'messages': message 1",
    ),
    "tool's turn": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "observation", "value": "o"}]},
        "no known role in 'conversations': message 2, 'observation' (str)",
    ),
    "no reply": ({"conversations": [{"from": "human", "value": "q"}]}, "no reply at the end of 'conversations'"),
    "number": ({"instruction": "q", "output": 4}, "no text in 'output': '4' (int)"),
    "number inside": ({"query": "q", "response": "a", "system": 4}, "no text in 'system': '4' (int)"),
    "blank": ({"query": " ", "response": "a"}, "empty 'query'"),
    "quotes": ({"prompt": "q", "response": "「」"}, "nothing said in 'response': '「」' (str)"),
    "history of texts": (
        {"query": "q", "response": "a", "history": ["q", "a"]},
        "no pair of texts in 'history': pair 1",
    ),
    "history of halves": (
        {"query": "q", "response": "a", "history": [["q", ""]]},
        "no pair of texts in 'history': pair 1",
    ),
    "no list": ({"query": "q", "response": "a", "history": "q: a"}, "no list in 'history': 'q: a' (str)"),
    "half a list": ({"messages": '[{"role": "user"'}, "no list in 'messages'"),
    "no text in turns": ({"conversations": [{"from": "human"}]}, "no 'content' in 'conversations': message 1"),
    "half a round": (
        {"conversation": [{"human": "q", "assistant": "a"}, {"human": " ", "assistant": "b"}]},
        "empty 'human' in 'conversation': message 2",
    ),
    "silent round": (
        {"conversation": [{"input": "q", "output": None}, {"input": "q", "output": "a"}]},
        "null in 'output' in 'conversation': message 1",
    ),
    "Chinese column": ({"问题": "q", "回答": 4}, "no text in '回答': '4' (int)"),
    "too long": (
        {"messages": [{"role": "user", "content": "q" * 600_000}, {"role": "assistant", "content": "a" * 600_000}]},
        "too long: the contents of 'messages' together",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_cannot_be_read_whole_is_a_bad_row(name: str) -> None:
    row, problem = REFUSED[name]
    checked = check_row(row, ColumnNames())
    assert checked["problem"].startswith(problem)
    assert (checked["context"], checked["messages"]) == ("", [])


def test_the_form_of_a_row() -> None:
    """A context and a target come first; an empty column counts as missing; a prompt to be answered needs no reply."""
    prompts = ColumnNames(target_required=False)
    both = {"context": "c", "target": "t", "messages": TALK.messages()}
    assert form_of(both, ColumnNames()) == "context_target"
    assert form_of(both | {"context": None}, ColumnNames()) == "messages"
    assert form_of({"context": "c", "question": "q", "answer": "a"}, ColumnNames()) == "question_answer"
    assert form_of({"conversations": TALK.sharegpt()}, ColumnNames("conversations", "conversations")) == "sharegpt"
    assert form_of({"prompt": "p", "completion": "c", "response": None}, prompts) == "prompt_completion"
    assert form_of({"context": "c", "question": "q", "answer": "a"}, prompts) == "question_answer"
    assert form_of({"prompt": "p", "summary": "s"}, prompts) == "prompt_response"
    alone = {name: form_of({form.prompt: "q"}, prompts) for name, form in FORMS.items()}
    assert {name: form for name, form in alone.items() if name != form} == {
        "instruction_response": "alpaca",
        "prompt_completion": "prompt_response",
        "input_target": "input_output",
        **dict.fromkeys(["content_summary", "user_assistant", "human_assistant"], "context_target"),
    }


ASKED = [
    name for name in WRITERS if not (text := name.partition(", ")[2]).endswith("text") or text.startswith("history")
]


@pytest.mark.parametrize("name", ASKED)
def test_a_prompt_to_be_answered_needs_no_reply(name: str) -> None:
    row, names = WRITERS[name](TALK), ColumnNames(target_required=False)
    form = FORMS.get(name.partition(",")[0])
    if form is None:
        row["target"] = None
    elif form.reply is not None:
        row = {column: None if names.name_of(column) == form.reply else value for column, value in row.items()}
    else:
        turns = row if isinstance(row, list) else row[form.prompt]
        last = turns.pop()
        if "role" not in last and "from" not in last:
            turns.append(dict(zip(last, [*[*last.values()][:-1], None], strict=True)))
    if form and form.common:
        names = ColumnNames(target_required=False, form=name.partition(",")[0])  # type: ignore[arg-type]
    found = check_row(row, names)
    assert (found["problem"], found["target"]) == ("", None)
    assert found["context"] == "###".join(said for _, said in TALK.turns()[:-1])


def load(tmp_path: Path, rows: list[JsonObject], **more: Any) -> DialogueDataModule:
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    data = DialogueDataModule(
        source=str(tmp_path / "rows.json"),
        tokenizer=str(BASE),
        cache_dir=str(tmp_path / "cache"),
        validation_share=0,
        **more,
    )
    data.load("fit")
    return data


def test_what_was_recognized_and_what_was_not_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    row = {
        "conversations": [*TALK.sharegpt()[:-1], {"from": "gpt", "value": "a", "loss": True}],
        "tools": "[]",
        "id": 3,
    }
    load(tmp_path, [row, row | {"lang": "en", "id": None}])
    said = "data: rows.json: sharegpt conversations, 2 rows; columns not read: conversations.loss, id, lang, tools"
    assert [record.levelname for record in caplog.records if record.message == said] == ["WARNING"]


def test_names_that_differ_in_form_alone_are_read_and_the_own_name_goes_first(tmp_path: Path) -> None:
    row = {"问题": "Chinese", "Question": "English", "ANSWER": "a", "User": "Bo"}
    assert check_row(row, ColumnNames())["messages"] == [{"role": "user", "content": "Chinese"}]
    assert unread_columns(row, "question_answer", ColumnNames()) == {"Question", "User"}
    assert check_row(row | {"question": "own"}, ColumnNames())["context"] == "own"
    named = ColumnNames("Question", "ANSWER")
    assert check_row(row, named)["context"] == "English"
    assert unread_columns(row, "context_target", named) == {"问题", "User"}


def test_such_columns_of_files_with_a_schema_are_not_left_out(tmp_path: Path) -> None:
    Dataset.from_dict({"问题": ["q", "r"], " Answer": ["a", "b"], "id": [1, 2]}).to_parquet(tmp_path / "rows.parquet")
    settings = SourceSettings(str(tmp_path / "rows.parquet"))
    rows = load_rows(settings, str(tmp_path / "cache")).dataset
    assert (rows["context"][:], rows["target"][:]) == (["q", "r"], ["a", "b"])
    assert rows["unread"][:] == [["id"], []]


def test_columns_that_were_named_are_read_and_the_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An alpaca file read as two columns leaves out its questions: loudly."""
    rows = [{"instruction": "Answer.", "input": f"Question {n}?", "output": f"Reply {n}."} for n in range(12)]
    data = load(tmp_path, rows, context_column="instruction", target_column="output")
    assert data.rows["train"].table.rows.dataset["context"][:] == ["Answer."] * 12
    assert "data: rows.json: context and target, 12 rows; columns not read: input" in caplog.text
    several = (
        r"12 replies to 1 prompts that have several different replies; one has 12: .*rows\.json, row 1, 'Answer\.'"
    )
    assert re.search(several, caplog.text)
    caplog.clear()
    load(tmp_path, rows)
    assert "not read" not in caplog.text
    assert "replies to" not in caplog.text


def test_equal_rows_and_few_replies_are_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"query": f"q{min(n, 28)}", "response": f"a{n}"} for n in range(30)]
    load(tmp_path, [*rows, rows[0]])
    assert "2 replies to 1 prompts" not in "".join(r.message for r in caplog.records if r.levelname == "WARNING")
    caplog.clear()
    load(tmp_path, rows[:3] * 4)
    assert "several different replies" not in caplog.text


def test_an_unknown_form_is_refused_and_the_advice_of_a_missing_column_works(tmp_path: Path) -> None:
    rows = [{"ask": f"q{n}", "reply": f"a{n}"} for n in range(3)]
    with pytest.raises(DataError, match=r"no column 'context'.*Set data\.context_column and data\.target_column"):
        load(tmp_path, rows)
    assert len(load(tmp_path, rows, context_column="ask", target_column="reply").rows["train"]) == 3
    rows = [{"query": f"q{n}", "response": f"a{n}"} for n in range(3)]
    with pytest.raises(DataError, match=r"no column 'instruction'.*Set data\.form to auto .*instruction and output"):
        load(tmp_path, rows, form="alpaca")
    assert len(load(tmp_path, rows, form="auto").rows["train"]) == 3
    with pytest.raises(SettingError, match=r"data\.form: there is no 'Alpaca'.*alpaca"):
        load(tmp_path, rows, form="Alpaca")
