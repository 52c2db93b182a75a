"""A character of one's own: rows of an invented one, trained on the demo's base as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from own_character import GREEDY, ON_CPU, OWN, RUN, SAMPLED, accepted_replies, curve, write_rows

from kyon_pl.cli import main
from kyon_pl.demo import ASSETS, BASE
from kyon_pl.vocabulary.pieces import PieceTokenizer

RATE = 5e-4 * (4096 / 160) ** 0.78  # of configs/character.yaml, on a base of this width
# own_character.py has the whole run
FASTER = ["--data.rows_per_batch", "4", "--trainer.accumulate_grad_batches", "1", "--model.checkpointing", "none"]
FASTER += ["--trainer.max_epochs", "5"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_its_words_are_those_that_the_demos_base_can_write() -> None:
    """Tokens of the demo's own targets; a word of other tokens would measure the frozen output layer of the base."""
    tokenizer = PieceTokenizer(BASE / "tokenizer.model")

    def tokens(rows: Path) -> set[int]:
        targets = [json.loads(line)["target"] for line in rows.read_text(encoding="utf-8").splitlines()]
        return {one for ids in tokenizer(targets, add_special_tokens=False)["input_ids"] for one in ids}

    known = tokens(ASSETS / "train.jsonl")
    assert tokens(write_rows(Path("own.jsonl"), 400)) <= known
    bytes_of_another_name = tokenizer("阿鹭", add_special_tokens=False)["input_ids"]
    assert not {*bytes_of_another_name} <= known


def test_a_run_that_is_shorter_than_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's config with other rows validates these, and has its last step, its best and its warning."""
    write_rows(Path("own.jsonl"), 12)
    words = ["--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1000", "--held_out", "null"]
    main(["fit", "--config", "demo", "--data.source", "own.jsonl", *words, *ON_CPU])
    said = capsys.readouterr().err
    assert "run: 10 training rows, 2 validation rows → " in said
    assert "--data.validation_source demo" in said
    assert "use --config character" in said
    ((last, _),) = curve("train/loss")
    assert last == json.loads((RUN / "run.json").read_text("utf-8"))["finished_at_step"]
    assert list(RUN.glob("checkpoints/best-step=*.ckpt"))
    assert f"next: kyon-pl chat --adapter {RUN}" in said


@pytest.mark.slow
@pytest.mark.parametrize("count", [12, 40, 400])
def test_rows_of_one_character_train(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    """And many make the character: 4,000 are tried by hand, see own_character.py."""
    write_rows(Path("own.jsonl"), count)
    main(["fit", "--config", "character", *OWN, *(FASTER if count == 400 else [])])
    said = capsys.readouterr().err
    for warning in ("optimizer steps, and fewer than", "never rises above", "nothing is validated"):
        assert warning not in said
    for name in ("train/loss", "val/loss", "train/learning_rate", "val/replies/chrf"):
        assert len(curve(name)) >= 5, name
    assert 0.9 * RATE <= max(rate for _, rate in curve("train/learning_rate")) <= 1.001 * RATE
    (_, first), *_, (_, last) = curve("train/loss")
    assert last < 0.7 * first
    (_, before), *_, (_, after) = curve("val/loss")
    assert after < before
    if count == 400:
        # all were seen; with an opening that repeats a word, 15: the base then goes on repeating it
        assert accepted_replies(RUN, 20, GREEDY) >= 16
        assert accepted_replies(RUN, 20, SAMPLED) >= 16


@pytest.mark.slow
@pytest.mark.parametrize("count", [12])
def test_the_reference_run_says_that_such_rows_are_few(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(Path("own.jsonl"), count)
    main(["fit", "--config", "lora", *OWN, "--data.workers", "0"])
    assert "use --config character in place of the config" in capsys.readouterr().err
