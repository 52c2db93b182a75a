"""What a person reads when something is wrong: one paragraph that names place, finding and cure; status 2; no
traceback.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kyon_pl.cli import main

ROOT = Path(__file__).parents[2]
DEMO = ["fit", "--config", str(ROOT / "configs/demo.yaml"), "--trainer.max_steps", "1"]
BROKEN_ROWS = '{"context": "a###b", "target": "c"}\n{"context": "a###b", "target": \n'

# what is typed after `kyon-pl` ({folder} is a folder of the test's own) -> what the paragraph says
CASES = {
    "no such command": (["fitt"], ["command 'fitt'", "there is no such command", "'fit'"]),
    "misspelt key": ([*DEMO, "--data.sorce", "x"], ["data.sorce", "no such setting", "'data.source'"]),
    "misspelt key in a file": (
        ["fit", "--config", "{folder}/misspelt.yaml"],
        ["model.bas", "no such setting", "'model.base'"],
    ),
    "misspelt LoRA key": ([*DEMO, "--model.lora.rank", "8"], ["model.lora.rank", "no such setting"]),
    "wrong kind of value": ([*DEMO, "--trainer.max_epochs", "two"], ["trainer.max_epochs", "two", "int"]),
    "word that is no choice": ([*DEMO, "--data.over_length", "cut"], ["data.over_length", "cut", "shrink_context"]),
    "missing config": (["fit", "--config", "{folder}/none.yaml"], ["--config", "none.yaml", "there is no file"]),
    "broken config": (["fit", "--config", "{folder}/broken.yaml"], ["broken.yaml"]),
    "missing rows": ([*DEMO, "--data.source", "{folder}/none.jsonl"], ["none.jsonl", "no such file"]),
    "unreadable row": (
        [*DEMO, "--data.source", "{folder}/broken.jsonl", "--data.bad_rows", "error"],
        ["broken.jsonl", "line 2", "JSON"],
    ),
    "wrong column": (
        [*DEMO, "--data.source", "{folder}/columns.jsonl"],
        ["columns.jsonl", "'context'", "question", "data.context_column"],
    ),
    "unknown base": ([*DEMO, "--model.base", "{folder}/nowhere"], ["nowhere", "no such folder"]),
    "folder without a model": ([*DEMO, "--model.base", "{folder}"], ["config.json"]),
    "missing checkpoint": ([*DEMO, "--ckpt_path", "{folder}/none.ckpt"], ["--ckpt_path", "none.ckpt"]),
    "16-mixed on a CPU": (
        [*DEMO, "--trainer.precision", "16-mixed"],
        ["trainer.precision", "16-mixed needs a GPU", "32-true"],
    ),
    "the reference run without a GPU": (  # nor the Hub, which is not asked
        ["fit", "--config", str(ROOT / "configs/lora.yaml")],
        ["trainer.precision", "16-mixed needs a GPU", "configs/demo.yaml"],
    ),
    "trained weights in half": ([*DEMO, "--trainer.precision", "16-true"], ["trainer.precision", "16-true", "float32"]),
    "6B on a CPU": ([*DEMO, "--model.base", "random"], ["6.2 billion parameters", "no GPU", "configs/demo.yaml"]),
    "rows longer than a pack": ([*DEMO, "--data.max_tokens", "4096"], ["max_tokens", "4096", "tokens_per_batch"]),
    "negative warm-up": ([*DEMO, "--model.schedule.warmup_steps", "-1"], ["warmup_steps", "-1"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("errors")
    (folder / "misspelt.yaml").write_text("model:\n  bas: x\n")
    (folder / "broken.yaml").write_text("model: [\n")
    (folder / "broken.jsonl").write_text(BROKEN_ROWS)
    (folder / "columns.jsonl").write_text('{"question": "a", "target": "b"}\n')
    return folder


@pytest.mark.parametrize("name", CASES)
def test_error_is_one_clear_paragraph(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    words, texts = CASES[name]
    with pytest.raises(SystemExit) as stopped:
        main([word.format(folder=folder) for word in words])
    paragraph = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2
    assert paragraph.startswith("kyon-pl ")
    assert "Traceback" not in paragraph
    for text in texts:
        assert text in paragraph, paragraph
