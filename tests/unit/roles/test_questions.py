"""The form of questions: found in rows, and given to what is typed."""

from __future__ import annotations

import pytest

from kyon_pl.roles.prompt_format import QuestionForms, write_question


@pytest.mark.parametrize(
    ("questions", "form", "asker"),
    [
        (["Ada:「Hm?」", "Eve:「Hm?」", "Eve:「Oh?」", "Ann:Oh?", "Ann:Ah?"], "{asker}:「{words}」", "Eve"),
        (["Ada：Hm?", "Ada: Hm?", "Ada: Oh?"], "{asker}: {words}", "Ada"),
        (["Mary Ann:“Hm?”"], "{asker}:“{words}”", "Mary Ann"),
        (["Hm?", "Oh?", "Ada:Oh?"], "{words}", ""),
        (['"Hm?"'], '"{words}"', ""),
    ],
)
def test_the_form_and_the_asker_of_most_questions(questions: list[str], form: str, asker: str) -> None:
    forms = QuestionForms()
    for question in questions:
        forms.add(question)
    assert forms.most_common() == (form, asker)


@pytest.mark.parametrize(
    ("form", "typed", "asker", "written"),
    [
        ("{asker}:「{words}」", "Hm?", "Ada", "Ada:「Hm?」"),
        ("{asker}:「{words}」", "「Hm?」(aside)", "Ada", "Ada:「Hm?」(aside)"),
        ("{asker}:「{words}」", "Eve：Hm?", "Ada", "Eve:「Hm?」"),
        ("{asker}:「{words}」", "Hm?", "", "Hm?"),
        ("{asker}: {words}", "Eve:「Hm?」", "Ada", "Eve: 「Hm?」"),
        ("{asker}:{words}", "Mary Ann: Hm?", "Mary Ann", "Mary Ann:Hm?"),
        ("{asker}:{words}", "{words} {asker}", "Ada", "Ada:{words} {asker}"),
        ("{words}", "Eve: Hm?", "Ada", "Eve: Hm?"),
        ("“{words}”", "Hm?", "", "“Hm?”"),
        ("“{words}”", "“Hm?”", "", "“Hm?”"),
    ],
)
def test_what_is_typed_gets_the_form(form: str, typed: str, asker: str, written: str) -> None:
    assert write_question(typed, form, asker) == written
