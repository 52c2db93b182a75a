"""Every setting of the data is part of a run's fingerprint, unless it is named here as one without effect."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningArgumentParser

from kyon_pl.data import DialogueDataModule
from kyon_pl.data.prompt import TEMPLATES, Template
from kyon_pl.demo import ASSETS
from kyon_pl.runs.fingerprint import differences, fingerprint_of_settings, keep_accumulation

WITHOUT_EFFECT = {
    "workers",
    "processes",
    "cache_dir",
    "bad_rows_file",
    "test_source",
    "test_split",
    "predict_source",
    "seed",  # seed_everything is compared
    "tokenizer",  # the rows that it makes are compared
    "tokenizer_revision",
    "form",  # the encoded rows are compared
    "rows_per_cluster",  # where no rows share
    "tokens_per_step",  # where it is null: batch size, accumulation and devices are compared
    "rows_per_step",  # these are compared
}
CHANGES = {
    "drop": ["leak"],
    "source_weights": [2, 1],
    "template": "chatglm2",
    "train_turns": "all",
    "source": ["demo", "demo"],
}


def fingerprint(**changes: object) -> dict[str, str]:
    """Of the settings of `data` as a config file gives them."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(DialogueDataModule, "data")
    return fingerprint_of_settings(parser.parse_object({"data": changes}).as_dict())


def test_all_settings_but_those_without_effect_are_compared() -> None:
    names = {*inspect.signature(DialogueDataModule).parameters} - WITHOUT_EFFECT
    assert set(fingerprint()) == {f"data.{name}" for name in names}


def test_how_the_tokens_of_a_step_are_cut_is_not_compared() -> None:
    """Only where `tokens_per_step` holds: packed."""

    def compared(batching: str, **numbers: int) -> dict[str, str]:
        trainer = {"accumulate_grad_batches": numbers.pop("accumulate")}
        return fingerprint_of_settings({"data": {"batching": batching, **numbers}, "trainer": trainer})

    cuts = [{"tokens_per_batch": size, "accumulate": 32 // size, "tokens_per_step": 32} for size in (2, 8)]
    one, two = (compared("shared", **cut) for cut in cuts)
    assert differences(one, keep_accumulation(one, two)) == []
    one, two = (compared("grouped", **cut) for cut in cuts)
    assert len(differences(one, keep_accumulation(one, two))) == 2
    one, two = (compared("packed", **cuts[0] | {"tokens_per_step": step}) for step in (32, 64))
    assert len(differences(one, keep_accumulation(one, two))) == 1


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_told_by_its_name(name: str) -> None:
    (changed,) = differences(fingerprint(), fingerprint(**{name: CHANGES[name]}))
    assert changed.startswith(f"data.{name}: ")


def test_rows_labels_dialogues_and_the_wording_of_the_template_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_rows(**row: object) -> dict[str, str]:
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
        tokenizer = str(ASSETS / "base")
        data = DialogueDataModule(
            str(tmp_path / "rows.jsonl"), tokenizer=tokenizer, workers=0, processes=1, cache_dir=str(tmp_path / "cache")
        )
        return data.fingerprint()

    talk = [{"role": role, "content": text} for role, text in [("user", "q"), ("assistant", "a")]]
    plain = of_rows(messages=talk)
    assert set(plain) == {"data: template", "data: train rows"}
    assert of_rows(messages=talk) == plain
    assert of_rows(messages=talk, dialogue="1") != plain
    monkeypatch.setitem(TEMPLATES, "raw", Template("{question}!", "", ""))
    (told,) = (line for line in differences(plain, of_rows(messages=talk)) if "template" in line)
    assert "raw" in told


def test_a_warmup_share_without_effect_is_no_difference() -> None:
    """Runs of earlier versions have warm-up steps and no share, and are resumed."""

    def compared(**arguments: float | None) -> dict[str, str]:
        return fingerprint_of_settings({"model": {"schedule": {"init_args": arguments}}})

    assert compared(warmup_steps=3, warmup_share=0.03) == compared(warmup_steps=3)
    assert compared(warmup_steps=None, warmup_share=0.03) != compared(warmup_steps=None, warmup_share=0.1)
