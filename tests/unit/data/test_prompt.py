from __future__ import annotations

import pytest

from kyon_pl.data.prompt import Context, Segment, Template, render, template_hash
from kyon_pl.errors import SettingError


def test_raw_is_the_context_as_it_stands_and_only_the_target_is_trained() -> None:
    context = "You are {context}###{0} }###\n"
    assert render(context, "yes") == [Segment(context, trained=False), Segment("yes", trained=True)]
    assert render(context) == [Segment(context, trained=False)]


def test_an_unknown_template_is_refused_by_name() -> None:
    with pytest.raises(SettingError, match=r"template: there is no 'chatml'\. Choose one of: raw, chatglm2"):
        render("", template="chatml")


def test_the_hash_tells_wordings_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = template_hash("raw")
    monkeypatch.setattr("kyon_pl.data.prompt.TEMPLATES", {"raw": Template("{question}\n", "", "")})
    assert len(raw) == 8
    assert template_hash("raw") != raw


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("system###memory###turn###question", ("system", ("memory", "turn"), "question")),
        ("system###question", ("system", (), "question")),
        ("###", ("", (), "")),
        ("all in one", ("all in one", (), "all in one")),
    ],
)
def test_a_context_comes_apart_and_together(text: str, parts: tuple[str, tuple[str, ...], str]) -> None:
    context = Context.parse(text)
    assert (context.system, context.middle, context.question) == parts
    if "###" in text:
        assert context.join(context.middle) == text
