"""`kyon-pl import-role`: each kind of file becomes a role folder, and what cannot is refused in words."""

from __future__ import annotations

import base64
import json
import logging
import re
import shlex
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from novel_prose import Said, demo_prose, prose
from png_card import encoded, png
from written_scenes import SCENES

from kyon_pl.cli import main
from kyon_pl.data.reading.sources import SourceSettings, load_rows
from kyon_pl.errors import KyonError
from kyon_pl.roles.build import build_data
from kyon_pl.roles.importing.command import import_role
from kyon_pl.roles.importing.novels import read_speeches
from kyon_pl.roles.role import read_role

DATA: dict[str, Any] = {
    "name": "Pell",
    "description": "{{char}} is a brass heron who keeps the books of Tingluo.",
    "personality": "proud, polite",
    "scenario": "{{user}} visits the book house. {{random:rain,sun}}",
    "first_mes": "Ahem! <USER>, wipe your boots.",
    "mes_example": "a note\n<START>\n{{user}}: Where is the tower?\n{{char}}: It stands north.\nI stood there first.\n"
    "<start>\n{{user}}: And the inn?\n{{char}}: “Closed, dear {{user}}.”",
    "alternate_greetings": ["Ahem! Again?"],
    "system_prompt": "{{original}}Write as {{char}}.",
    "post_history_instructions": "",
    "creator_notes": "made by hand",
    "character_book": {
        "entries": [
            {"keys": ["tower"], "content": "The tower opens at dusk.", "enabled": True},
            {"keys": ["inn"], "content": "The inn burnt down.", "enabled": False},
        ]
    },
}
V1 = {key: DATA[key] for key in ("name", "description", "personality", "scenario", "first_mes", "mes_example")}


def v2(**more: object) -> dict[str, object]:
    return {"spec": "chara_card_v2", "spec_version": "2.0", "data": DATA | more}


def v3(**more: object) -> dict[str, object]:
    return {"spec": "chara_card_v3", "spec_version": "3.0", "data": DATA | more}


CARDS = {
    "v1.json": json.dumps(V1 | {"avatar": "none"}).encode(),
    "v2.json": json.dumps(v2()).encode("utf-16"),
    "v3.json": json.dumps(v3()).encode(),
    "v2.png": png(tEXt_chara=encoded(v2())),
    "both.png": png(zTXt_ccv3=encoded(v3()), tEXt_chara=encoded(v2(name="Wrong"))),
    "long.png": png(iTXt_ccv3=encoded(v3())),
}
LOG = "小满：钟楼在哪里？\n绵卷：就在北坡。\n跟我飘过去哒！\n\n小满：谁在照看它？\n绵卷：阿砚呀。\n绵卷：人可好。\n"
WECHAT = (
    "小满 2024-05-01 09:00:10\n钟楼在哪里？\n\n绵卷 2024-05-01 09:00:31\n就在北坡。\n跟我飘过去哒！\n\n"
    "绵卷 2024-05-01 09:02\n[图片]\n\n小满 2024-05-01 18:00\n谁在照看它？\n\n绵卷 2024-05-01 18:01:02\n阿砚呀。\n\n"
    "绵卷 2024-05-01 18:01:09\n人可好。\n"
)
QQ = "\n".join(re.sub(r"(?m)^(\S+) (2024\S+ \S+)$", r"\2 \1(12345678)", WECHAT).split("\n"))
DISCORD = (
    "[01-May-24 09:00 AM] 小满: 钟楼在哪里？\n[01-May-24 09:00 AM] 绵卷: 就在北坡。\n跟我飘过去哒！\n"
    "[01-May-24 06:00 PM] 小满: 谁在照看它？\n[01-May-24 06:01 PM] 绵卷: 阿砚呀。\n"
    "[01-May-24 06:01 PM] 绵卷: 人可好。\n"
)
COPIED = (
    "小满 — Today at 9:00 AM\n钟楼在哪里？\n绵卷 — Today at 9:01 AM\n就在北坡。\n跟我飘过去哒！\n"
    "小满 — Today at 6:00 PM\n谁在照看它？\n绵卷 — Today at 6:00 PM\n阿砚呀。\n人可好。\n"
)
MESSAGES = [
    ("2024-05-01T09:00:00.1+00:00", "小满", "钟楼在哪里？"),
    ("2024-05-01T09:01:00+00:00", "绵卷", "就在北坡。\n跟我飘过去哒！"),
    ("2024-05-01T18:00:00+00:00", "小满", "谁在照看它？"),
    ("2024-05-01T18:01:00+00:00", "绵卷", "阿砚呀。\n人可好。"),
]
EXPORT = {
    "guild": {"name": "Tingluo"},
    "channel": {"name": "quay"},
    "messages": [
        *({"timestamp": t, "type": "Default", "content": c, "author": {"name": n}} for t, n, c in MESSAGES),
        {"timestamp": "2024-05-01T19:00:00+00:00", "type": "GuildMemberJoin", "content": "x", "author": {"name": "y"}},
    ],
}
TABLE = [("1", "小满", "钟楼在哪里？"), ("1", "绵卷", "就在北坡。\n跟我飘过去哒！"), ("2", "小满", "谁在照看它？")]
TABLE += [("2", "绵卷", "阿砚呀。"), ("2", "绵卷", "“人可好。”")]


def table(header: str, delimiter: str, columns: slice) -> str:
    rows = [delimiter.join(f'"{cell}"' for cell in row[columns]) for row in TABLE]
    return "\n".join([*([header] if header else []), *rows])


LOGS = {
    "plain.txt": LOG.encode(),
    "spaced.txt": LOG.replace("\n\n", "\n\n\n")
    .replace("？\n", "？\n\n")
    .replace("呀。\n", "呀。\n\n")
    .encode("gb18030"),
    "wechat.txt": WECHAT.encode(),
    "qq.txt": QQ.encode("utf-16"),
    "discord.txt": DISCORD.encode(),
    "copied.txt": COPIED.encode(),
    "export.json": json.dumps(EXPORT).encode(),
    "table.csv": table("场次,角色,台词,备注", ",", slice(None)).encode("gb18030"),
    "table.tsv": table("scene\tName\tLine", "\t", slice(None)).encode("utf-16"),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    logging.getLogger("kyon_pl").propagate = True
    return tmp_path


def write(name: str, content: bytes) -> str:
    Path(name).write_bytes(content)
    return name


def dialogues(folder: str) -> list[list[tuple[str, str]]]:
    lines = Path(folder, "dialogues/imported.jsonl").read_text(encoding="utf-8").splitlines()
    return [[(turn["role"], turn["text"]) for turn in json.loads(line)["dialogue"]] for line in lines]


def report(folder: str) -> str:
    return Path(folder, "report.txt").read_text(encoding="utf-8")


def built(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    """The rows of the command that `import-role` says is next."""
    words = shlex.split(caplog.messages[-1].removeprefix("next: "))
    assert words[:2] == ["kyon-pl", "build-data"]
    build_data(**{name[2:]: value for name, value in zip(words[2::2], words[3::2], strict=True)})  # type: ignore[arg-type]
    return [json.loads(line) for line in Path(words[-1]).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", CARDS)
def test_a_card_becomes_a_role(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    import_role(write(name, CARDS[name]), "roles/heron", user="Ada")
    role = read_role(Path("roles/heron"))
    assert role.aliases == ("Pell",)
    assert "Pell is a brass heron who keeps the books of Tingluo." in role.system_prompt
    assert "Ada visits the book house." in role.system_prompt
    assert role.greeting == "Ahem! Ada, wipe your boots."
    assert "Pell:Ahem! Ada, wipe your boots." in role.memories
    assert dialogues("roles/heron") == [
        [("Ada", "Where is the tower?"), ("Pell", "It stands north.\nI stood there first.")],
        [("Ada", "And the inn?"), ("Pell", "Closed, dear Ada.")],
    ]
    assert "lines of mes_example not read, before a speaker's name: 1" in report("roles/heron")
    assert "macros left as they are: {{random:rain,sun}}" in report("roles/heron")
    if name.startswith("v1"):
        assert "fields not read: avatar" in report("roles/heron")
    else:
        assert role.system_prompt.startswith("Write as Pell.\n")
        assert {"The tower opens at dusk.", "Pell:Ahem! Again?"} <= {*role.memories}
        assert not any("burnt" in memory for memory in role.memories)
        assert "fields not read: creator_notes" in report("roles/heron")
    rows = built(caplog)
    assert [row["target"] for row in rows] == ["Pell:It stands north.\nI stood there first.", "Pell:Closed, dear Ada."]


@pytest.mark.parametrize("name", ["v1.json", "v2.json", "v2.png", "plain.txt", "export.json"])
def test_the_advice_of_a_source_that_holds_no_rows_works(name: str, here: Path) -> None:
    with pytest.raises(KyonError, match="kyon-pl import-role") as refused:
        load_rows(SourceSettings(write(name, (CARDS | LOGS)[name])), str(here / "cache"))
    command = str(refused.value).rpartition("kyon-pl ")[2].rstrip(".").replace("NAME", "绵卷")
    main(shlex.split(command))
    assert read_role(Path("roles/绵卷")).memories


def test_the_nickname_of_a_card_speaks() -> None:
    import_role(write("card.json", json.dumps(v3(nickname="Pelly")).encode()), "roles/Pell")
    assert read_role(Path("roles/Pell")).aliases == ("Pelly", "Pell")
    assert dialogues("roles/Pell")[1] == [("User", "And the inn?"), ("Pelly", "Closed, dear User.")]


@pytest.mark.parametrize("name", LOGS)
def test_every_log_and_table_of_one_conversation_gives_the_same_dialogues(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    import_role(write(name, LOGS[name]), "roles/绵卷")
    assert dialogues("roles/绵卷") == [
        [("小满", "钟楼在哪里？"), ("绵卷", "就在北坡。\n跟我飘过去哒！")],
        [("小满", "谁在照看它？"), ("绵卷", "阿砚呀。\n人可好。")],
    ]
    assert read_role(Path("roles/绵卷")).memories[0] == "小满:钟楼在哪里？\n绵卷:就在北坡。\n跟我飘过去哒！"
    assert [row["target"] for row in built(caplog)] == ["绵卷:就在北坡。\n跟我飘过去哒！", "绵卷:阿砚呀。\n人可好。"]
    if name == "table.csv":
        assert "columns not read: 备注" in report("roles/绵卷")
    if name in ("wechat.txt", "export.json"):
        assert "not read: 1 message without" in report("roles/绵卷")


def test_the_command_takes_the_file_first(capsys: pytest.CaptureFixture[str]) -> None:
    main(["import-role", write("log.txt", LOG.encode()), "--output", "roles/绵卷"])
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "log.txt: a chat log, 5 messages"
    assert said[-1] == "next: kyon-pl build-data --characters 'roles/绵卷' --output '绵卷.jsonl'"


def test_a_role_that_answers_nothing_is_not_sent_to_build_data(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    import_role(write("log.txt", b"Bo: Hello?\nAda: Hello.\n"), "roles/Bo")
    assert caplog.messages[-1].startswith("next: write dialogues in which Bo answers")


def test_two_columns_without_names_are_speaker_and_words() -> None:
    import_role(write("lines.csv", table("", ";", slice(1, None)).encode()), "out", name="绵卷")
    assert dialogues("out")[0][0] == ("小满", "钟楼在哪里？")


def test_a_name_that_starts_like_the_characters_is_not_the_character() -> None:
    import_role(write("log.txt", b"Bobby: Hello?\nBo: Hello, Bobby.\nAda: And me?\nBobby: Hi.\n"), "out", name="Bo")
    assert dialogues("out") == [
        [("(Bobby)", "Hello?"), ("Bo", "Hello, Bobby."), ("Ada", "And me?"), ("(Bobby)", "Hi.")]
    ]
    assert "Bobby is written as (Bobby)" in report("out")


def test_a_long_dialogue_is_cut_before_a_question() -> None:
    lines = "".join(f"Ada: {n}?\nBo: {n}.\n" for n in range(70))
    import_role(write("log.txt", lines.encode()), "roles/Bo")
    assert [len(dialogue) for dialogue in dialogues("roles/Bo")] == [40, 40, 40, 20]


def score(found: list[tuple[str, str]], truth: list[tuple[str, str]]) -> tuple[float, float]:
    """Precision and recall of (speaker, words)."""
    hits = (Counter(found) & Counter(truth)).total()
    return hits / len(found), hits / len(truth)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_who_speaks_in_a_novel(language: str) -> None:
    text, said = prose(7, language, 200)
    speeches, not_speech = read_speeches(text, language)  # type: ignore[arg-type]
    named = score(
        [(s.speaker, s.words) for s in speeches if s.certainty == "named"],
        [(s.speaker, s.words) for s in said if s.named],
    )
    every = score([(s.speaker, s.words) for s in speeches], [(s.speaker, s.words) for s in said])
    print(f"{language}: named {named[0]:.3f} {named[1]:.3f}, all {every[0]:.3f} {every[1]:.3f} (precision, recall)")
    assert min(named) >= 0.98
    assert min(every) >= 0.9
    assert not_speech > 0  # the quoted names of streets


QUOTED = re.compile(r"[“\"]([^“”\"]*)[”\"]<(.+?)>")


def said_in(scene: str) -> list[Said]:
    """Who says what; `named` if the paragraph has the name outside the quotes."""
    paragraphs = [(QUOTED.sub("", paragraph), QUOTED.findall(paragraph)) for paragraph in scene.splitlines()]
    return [
        Said(who, words, who.split(" ")[-1] in narration) for narration, quotes in paragraphs for words, who in quotes
    ]


@pytest.mark.parametrize("name", SCENES)
def test_who_speaks_in_written_scenes(name: str) -> None:
    """The third ones were read without changes for them, except for 见 and 叫; those from the sixth on without any."""
    said = said_in(SCENES[name])
    speeches, _ = read_speeches(re.sub("<.+?>", "", SCENES[name]), name[:2])  # type: ignore[arg-type]
    precision, recall = score([(s.speaker, s.words) for s in speeches], [(s.speaker, s.words) for s in said])
    print(f"{name}: {precision:.3f} {recall:.3f} (precision, recall)")
    assert min(precision, recall) >= {"en3": 0.7, "zh7": 0.8}.get(name, 0.9)
    assert {(s.speaker, s.words) for s in speeches if s.certainty == "named"} <= {(s.speaker, s.words) for s in said}


@pytest.mark.parametrize("names", [tuple(SCENES), ("zh6", "zh7", "en6")])
def test_who_speaks_where_the_paragraph_has_the_name(names: tuple[str, ...]) -> None:
    found, truth = [], []
    for name in names:
        named = [(s.speaker, s.words) for s in said_in(SCENES[name]) if s.named]
        speeches, _ = read_speeches(re.sub("<.+?>", "", SCENES[name]), name[:2])  # type: ignore[arg-type]
        found += [(s.speaker, s.words) for s in speeches if s.words in {words for _, words in named}]
        truth += named
    precision, recall = score(found, truth)
    print(f"{len(truth)} quotes of {', '.join(names)}: {precision:.3f} {recall:.3f} (precision, recall)")
    assert min(precision, recall) >= 0.95


def test_who_speaks_in_the_demos_own_prose_without_quotes() -> None:
    text, said = demo_prose(Random(3), 200)
    speeches, _ = read_speeches(text, "zh")
    bare = [(s.speaker, s.words.strip("。.，, ")) for s in speeches]
    scores = score(bare, [(name, words.strip("。.，, ")) for name, words in said])
    print(f"demo: {scores[0]:.3f} {scores[1]:.3f} (precision, recall)")
    assert min(scores) >= 0.9


def test_speakers_of_a_novel_are_corrected_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    novel = "小满问：“钟楼在哪里？”\n“就在北坡。”绵卷说。\n他笑了。“那谁在照看它？”\n“阿砚呀。”绵卷说。\n“人可好。”\n"
    file = write("novel.txt", novel.encode())
    import_role(file, "roles/绵卷")
    listed = Path("roles/绵卷/speakers.csv").read_text(encoding="utf-8-sig").splitlines()
    assert listed[0] == "line,speaker,certainty,words"
    assert listed[2] == "2,绵卷,named,就在北坡。"
    assert listed[5].startswith("5,小满,guessed")
    Path("roles/绵卷/system_prompt.txt").write_text("你是绵卷。\n", encoding="utf-8")
    fixed = "\r\n".join([*listed[:3], "3,小满,guessed,那谁在照看它？", listed[4], "5,绵卷,guessed,人可好。"])
    Path("roles/绵卷/speakers.csv").write_text(fixed, encoding="gb18030")
    import_role(file, "roles/绵卷", speakers="roles/绵卷/speakers.csv")
    assert dialogues("roles/绵卷") == [
        [("小满", "钟楼在哪里？"), ("绵卷", "就在北坡。"), ("小满", "那谁在照看它？"), ("绵卷", "阿砚呀。\n人可好。")]
    ]
    assert Path("roles/绵卷/system_prompt.txt").read_text(encoding="utf-8") == "你是绵卷。\n"
    assert Path("roles/绵卷/speakers.csv").read_text(encoding="gb18030") == fixed.replace("\r\n", "\n")
    assert len(built(caplog)) == 2
    write("other.csv", "line,speaker,certainty,words\n9,绵卷,named,没有说过。\n".encode())
    with pytest.raises(KyonError, match="line 9"):
        import_role(file, "roles/two", speakers="other.csv", name="绵卷")


def test_an_english_novel_that_is_wrapped_at_a_fixed_width() -> None:
    novel = (
        "Pell looked up from the books, which were many, and heavy, and all of\n"
        'them old. "Ahem! The tower," said Pell, "stands\nnorth of the quay."\n\n'
        '"And when does it open its doors to a visitor from the other side of\nthe harbour?" asked the clerk.\n\n'
        '"At dusk."\n'
    )
    import_role(write("novel.txt", novel.encode()), "roles/Pell")
    assert dialogues("roles/Pell")[0] == [
        ("Pell", "Ahem! The tower, stands north of the quay."),
        ("the clerk", "And when does it open its doors to a visitor from the other side of the harbour?"),
        ("Pell", "At dusk."),
    ]
    assert any("heavy" in memory for memory in read_role(Path("roles/Pell")).memories)


def damaged(content: bytes) -> bytes:
    place = content.index(b"chara") + 40
    return content[:place] + b"!" + content[place + 1 :]


DEEP = json.dumps(v2(extensions=0)).replace('"extensions": 0', f'"x": {"[" * 300}{"]" * 300}')
BOMB = png(zTXt_chara=b"A" * 60_000_000)
REFUSED: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "no card.png": (png(tEXt_Software=b"x"), {}, "a PNG without a card (no 'chara' or 'ccv3'; it has software)"),
    "cut.png": (CARDS["v2.png"][:200], {}, "the PNG is cut off"),
    "crc.png": (damaged(CARDS["v2.png"]), {}, "wrong checksum of 'tEXt'"),
    "bomb.png": (BOMB, {}, "more than 50,000,000 bytes"),
    "base64.png": (png(tEXt_chara=b"%%%"), {}, "no JSON in base64"),
    "json.png": (png(tEXt_chara=base64.b64encode(b"{")), {}, "broken JSON"),
    "list.png": (png(tEXt_chara=base64.b64encode(b"[1]")), {}, "no character card"),
    "name.json": (json.dumps(v2(name=7)).encode(), {}, "name: '7' (int) is no text"),
    "book.json": (json.dumps(v2(character_book=[3])).encode(), {}, "no list of entries"),
    "data.json": (b'{"spec": "chara_card_v2", "data": 3}', {}, "is no object"),
    "nameless.json": (json.dumps(v2(name="")).encode(), {}, "the card has no name. Give --name"),
    "deep.json": (b'{"a":' * 100_000, {}, "nested too deeply"),
    "deep card.json": (DEEP.encode(), {}, "nested too deeply"),
    "empty.txt": (b"", {}, "it is empty"),
    "space.txt": (b" \n ", {}, "there is only space"),
    "binary.txt": (bytes(range(256)) * 9, {}, "no text"),
    "nul.txt": (b"Bo: Hello\0\n", {}, "NUL"),
    "picture.txt": (b"\xff\xd8\xff\xe0", {}, "it is a JPEG picture"),
    "nobody.txt": (LOG.encode(), {"name": "老榫"}, "nobody called 老榫 says anything. Turns by speaker: 小满 (2)"),
    "whose.txt": (LOG.encode(), {}, "Give --name; turns by speaker: 小满 (2), 绵卷 (2)"),
    "silent.txt": ("夜里下了雨。天亮了。\n".encode(), {"name": "绵卷"}, "no speech is found"),
    "columns.csv": (b"a,b,c\n1,2,3\n", {}, "no column of speakers and of texts among 'a', 'b', 'c'"),
    "header.csv": (b"speaker,text\n", {}, "a table without rows"),
    "speakers.txt": (LOG.encode(), {"speakers": "x.csv"}, "is read as chat_log"),
    "table.txt": (LOG.encode(), {"kind": "table"}, "no table"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_imported_is_refused_in_words(name: str) -> None:
    content, options, found = REFUSED[name]
    with pytest.raises(KyonError) as refused:
        import_role(write(name, content), "out", **options)
    assert found in str(refused.value)
    assert not Path("out").exists()


def test_nothing_from_elsewhere_is_replaced() -> None:
    file = write("log.txt", LOG.encode())
    import_role(file, "roles/绵卷")
    import_role(write("short.txt", LOG.partition("\n\n")[0].encode()), "roles/绵卷")  # its own files are
    assert sorted(path.name for path in Path("roles/绵卷/texts").iterdir()) == ["0001.txt"]
    for name in ("aliases.txt", "texts/0001.txt", "dialogues/imported.jsonl", "dialogues/mine.jsonl"):
        path = Path("roles/绵卷", name)
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(b"mine")
        with pytest.raises(KyonError, match="from elsewhere"):
            import_role(file, "roles/绵卷")
        assert path.read_bytes() == b"mine"
        path.unlink() if before is None else path.write_bytes(before)
    import_role(file, "roles/绵卷")
