"""`kyon-pl build-data` on the demo's characters, in both modes, and `kyon-pl fit` on its rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

import pytest
from pyarrow import parquet

from kyon_pl.cli import main
from kyon_pl.demo.corpus import exchange, note
from kyon_pl.demo.grammar import CHARACTERS, Speaker
from kyon_pl.demo.world import ASKERS, facts

ROOT = Path(__file__).parents[2]


def write_character(folder: Path, speaker: Speaker, rng: Random) -> None:
    """Notes as memories, and dialogues of one to three questions and replies."""
    known = [fact for fact in facts(speaker.language) if fact.intent in speaker.replies]
    (folder / "texts").mkdir(parents=True)
    (folder / "dialogues").mkdir()
    (folder / "system_prompt.txt").write_text(speaker.system_prompt, encoding="utf-8")
    for number, fact in enumerate(known[:12]):
        (folder / f"texts/{number:02}.txt").write_text(note(rng, fact), encoding="utf-8")
    dialogues = []
    for number in range(12):
        asker = rng.choice(ASKERS[speaker.language])
        lines = [line for fact in rng.sample(known, 1 + number % 3) for line in exchange(rng, speaker, fact, asker)]
        turns = [dict(zip(("role", "text"), line.split(":", 1), strict=True)) for line in lines]
        dialogues.append(json.dumps({"dialogue": turns, "source": "demo"}, ensure_ascii=False))
    (folder / "dialogues/invented.jsonl").write_text("\n".join(dialogues), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    for speaker in CHARACTERS:
        write_character(folder / "roles" / speaker.name, speaker, Random(speaker.name))
    return folder


@pytest.mark.parametrize("mode", ["fixed", "original"])
def test_rows_of_the_demos_characters_are_built_and_trained_on(
    folder: Path, mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    main(["build-data", "--characters", "roles", "--mode", mode, "--output", f"{mode}.parquet"])
    output = capsys.readouterr().err
    rows = parquet.read_table(f"{mode}.parquet").to_pylist()
    assert len(rows) == 24 * len(CHARACTERS)
    said = f"build-data: {len(rows)} rows in {mode}.parquet, report in {mode}.report.txt\n"
    assert output.endswith(f"{said}next: kyon-pl preview --data.source {mode}.parquet\n")
    assert {row["character"] for row in rows} == {speaker.name for speaker in CHARACTERS}
    assert len({row["dialogue"] for row in rows if row["character"] == "Pell"}) == 12
    assert all(row["context"].endswith(f"###{row['question']}") for row in rows)
    if mode == "original":
        return  # fit reads them the same

    settings = "--trainer.max_steps 1 --trainer.limit_val_batches 1 --trainer.num_sanity_val_steps 0"
    settings += f" --data.validation_source null --data.source {mode}.parquet --auto_resume false"
    main(["fit", "--config", str(ROOT / "configs/demo.yaml"), *settings.split()])
    output = capsys.readouterr().err
    assert f"data: {len(rows)} rows in {mode}.parquet" in output
    assert "trained to step 1" in output


def test_errors_are_one_paragraph(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build-data", "--characters", str(folder / "roles/Pell"), "--output", str(folder / "x.jsonl")]
    for more, found in (
        (["--aliases", '{"Pell": ["Nobody"]}'], "no row for role Pell (12 × no turn of the role in the dialogue)"),
        (["--mode", "faithful"], "faithful"),
        (["--retrieval", "stored"], "a row without a stored vector of the right size; the memories have no dimensions"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*words, *more])
        output = capsys.readouterr().err
        assert stopped.value.code == 2
        assert output.startswith("kyon-pl build-data: ")
        assert found in output
        assert output.count("\n") == 1
    assert not os.path.lexists(folder / "x.jsonl")
