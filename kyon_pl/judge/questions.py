"""The questions that both sides answer: held-out rows of a run or rows of a file, as prompts."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from kyon_pl.data.batches.loader import Prompt, PromptRows, Use
from kyon_pl.data.dialogue_data import DialogueData
from kyon_pl.data.prompt import Context
from kyon_pl.errors import CheckpointError, DataError, SettingError
from kyon_pl.files import read_yaml_mapping

_FIX = "Name rows with --questions FILE"


@dataclass(frozen=True)
class Question:
    """A question with its context.

    Attributes:
        context: the text of the prompt before rendering: system prompt, memories, history and question.
        reference: the row's reply; empty if it has none.
    """

    context: str
    reference: str

    @property
    def parts(self) -> Context:
        """The context in parts."""
        return Context.parse(self.context)

    @property
    def system(self) -> str:
        """The system prompt; empty if the context is the question alone."""
        parts = self.parts
        return parts.system if parts.system != parts.question else ""


class QuestionRows:
    """Rows to ask, and their prompts as ids.

    Args:
        settings: of the run's data, by name; empty without a run.
        tokenizer: folder or Hub id.
        source: file, folder, glob or Hub id of the rows; None: the validation rows of the run.
        most: maximum number of questions.

    Raises:
        SettingError: there are neither rows nor a run, or no number of questions.
    """

    def __init__(self, settings: Mapping[str, Any], tokenizer: str, source: str | None, most: int) -> None:
        if source is None and not settings:
            raise SettingError("--questions", "no rows are named, and there is no run whose rows could be asked", _FIX)
        if most < 1:
            raise SettingError("--number", f"{most} is too low", "Set 1 or more")
        named = {} if source is None else {"predict_source": source}
        self.settings = {**settings, "tokenizer": tokenizer, "bad_rows": "drop", "bad_rows_file": None, **named}
        self.is_file, self.most = source is not None, most

    def read(self, template: str | None = None, train_turns: str | None = None) -> list[tuple[Question, list[int]]]:
        """The questions with the ids of their prompts.

        Args:
            template: wording of the prompt; None: that of the run.
            train_turns: which replies of a row are trained; None: those of the run.

        Raises:
            DataError: there are no such rows, or rows of ids without text.
            KyonError: the rows cannot be read or encoded.
        """
        given = {"template": template, "train_turns": train_turns}
        data = DialogueData(**self.settings | {key: value for key, value in given.items() if value is not None})
        use: Use = "predict" if self.is_file else "validation"
        try:
            data.load("predict" if self.is_file else "validate", verbose=False)
        except DataError as error:
            if self.is_file:
                raise
            raise DataError(error.where, error.found, _FIX) from error
        rows = data.rows[use]
        prompts = PromptRows(rows)
        chosen = [prompts[index] for index in rows.spread_indices(self.most, one_a_question=not self.is_file)]
        return [_question(prompt) for prompt in chosen if prompt is not None]


def data_settings(folder: Path) -> dict[str, Any]:
    """The settings of the data in the `config.yaml` of an adapter's folder or its run; empty if there is none.

    Args:
        folder: of the adapter.

    Raises:
        CheckpointError: they cannot be read, or `DialogueData` does not take them.
    """
    file = next(
        (place / "config.yaml" for place in (folder, folder.parent.parent) if (place / "config.yaml").is_file()), None
    )
    if file is None:
        return {}
    recorded = read_yaml_mapping(file).get("data")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DialogueData, "data")
    try:
        settings = parser.parse_object({"data": recorded})
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip(" -")
        raise CheckpointError(f"{file}: data", reason, _FIX) from None
    found: dict[str, Any] = settings.data.as_dict()
    return found


def questions_hash(questions: Sequence[Question]) -> str:
    """A hash of the questions with their contexts and references."""
    return hashlib.sha256(json.dumps([vars(one) for one in questions]).encode()).hexdigest()


def _question(prompt: Prompt) -> tuple[Question, list[int]]:
    if not prompt.text:
        raise DataError(f"row {prompt.row_number}", "it has ids and no text, which a judge could read", _FIX)
    return Question(prompt.text, prompt.reference), prompt.input_ids
