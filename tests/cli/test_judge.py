"""`kyon-pl judge` as a command: on the trained demo, killed in the middle, and with input that it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from rule_judge import Fault, rule_judge
from safetensors.torch import load_file, save_file

from kyon_pl.cli import main
from kyon_pl.demo import BASE
from kyon_pl.evaluation.judged import card_section, read_judgement
from kyon_pl.evaluation.report_judged import judged
from kyon_pl.evaluation.report_markdown import markdown
from kyon_pl.evaluation.report_messages import Language, words_in
from kyon_pl.evaluation.run_folder import read_run_folders
from kyon_pl.publish.model_card import model_card
from kyon_pl.runs.integrity import ADAPTER, MARKER, size_and_sha256

TRAINED = Path(__file__).parents[1] / "legacy/37c419d/finished/step=60"
QUESTION = "你在扮演绵卷，汀罗镇的云羊信使，说话软软的，总是很开心。###钟楼在北坡。###小满:「钟楼在哪里？」"
NOWHERE = "http://127.0.0.1:9/v1"


def planted(run: Path, weak: float, step: int) -> None:
    """A checkpoint whose adapter is the best one times a factor."""
    (best,) = (folder for folder in run.glob("checkpoints/best-step=*") if folder.is_dir())
    folder = run / f"checkpoints/step={step}"
    shutil.copytree(best, folder)
    weights = load_file(folder / ADAPTER)
    save_file({name: value * weak if "lora_B" in name else value for name, value in weights.items()}, folder / ADAPTER)
    marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    marker |= {"step": step, "adapter": size_and_sha256(folder / ADAPTER)}
    (folder / MARKER).write_text(json.dumps(marker), encoding="utf-8")
    shutil.copy(best.with_suffix(".ckpt"), folder.with_suffix(".ckpt"))


@pytest.fixture
def run(demo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the demo's run with its best checkpoint alone, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "lightning_logs/version_0"
    shutil.copytree(demo_run, folder)
    for path in folder.glob("checkpoints/step=*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


@pytest.mark.slow
def test_tuned_beats_base_and_draws_with_itself(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with rule_judge() as (url, judge):
        words = ["judge", "--number", "24", "--endpoint", url, "--endpoint_model", "rule"]
        main(words)
        (file,) = run.glob("judge/base_vs_best-step=*/rule/result.json")
        (match,) = read_judgement(file).matches
        assert match.rate.judged == 24
        assert (match.rate.rate or 0) >= 0.9
        assert (match.rate.interval or (0, 0))[0] > 0.8
        assert match.second in capsys.readouterr().out.splitlines()[-1]
        asked = len(judge.seen)
        main(words)
        assert len(judge.seen) == asked
        main([*words, "--first", str(run), "--second", str(run)])
    (same,) = run.glob("judge/best-*_vs_best-*/rule/result.json")
    (match,) = read_judgement(same).matches
    low, high = match.rate.interval or (1, 0)
    assert low <= 0.5 <= high
    assert match.rate.ties == 24


@pytest.mark.slow
def test_a_knockout_finds_the_planted_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted(run, 0.0, 10)
    planted(run, 0.4, 20)
    with rule_judge() as (url, _):
        words = ["--number", "8", "--endpoint", url, "--endpoint_model", "rule"]
        main(["judge", "--checkpoints_of", str(run), *words])
    (best,) = (folder.name for folder in run.glob("checkpoints/best-step=*") if folder.is_dir())
    judgement = read_judgement(run / "judge/knockout/rule/result.json")
    assert judgement.winner == best
    assert [(match.first, match.second) for match in judgement.matches] == [
        ("step=10", "step=20"),
        (judgement.matches[0].first if judgement.matches[1].first == "step=10" else "step=20", best),
    ]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("round 1: step=10 – step=20")
    assert printed[0].endswith(f"; {best} without a match")
    assert printed[1].endswith(f"→ {best}")
    assert printed[-1] == f"best checkpoint: {best}"


@pytest.mark.slow
def test_killed_in_the_middle_no_question_is_answered_twice(run: Path, tmp_path: Path) -> None:
    """The first time while it generates replies, then while the judge thinks."""
    with rule_judge() as (url, judge):
        command = [sys.executable, "-m", "kyon_pl", "judge", "--number", "8", "--endpoint", url]
        command += ["--endpoint_model", "rule"]
        answered: Counter[str] = Counter()
        rule = judge.rule
        process = subprocess.Popen(command)
        while not (found := [*run.glob("judge/*/replies/best*.jsonl")]) or found[0].read_bytes().count(b"\n") < 3:
            assert process.poll() is None
        process.kill()
        process.wait()
        replies = found[0].read_bytes()
        whole = replies[: replies.rfind(b"\n") + 1]

        def rule_that_kills(a: str, b: str) -> str:
            if sum(answered.values()) == 5 and not killed:
                killed.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            else:
                answered[json.dumps(judge.seen[-1]["messages"])] += 1
            return rule(a, b)

        killed: list[int] = []
        judge.rule = staticmethod(rule_that_kills)
        process = subprocess.Popen(command)
        assert process.wait() == -signal.SIGKILL
        assert found[0].read_bytes().startswith(whole)
        process = subprocess.Popen(command)
        assert process.wait() == 0
    assert set(answered.values()) == {1}
    (verdicts,) = run.glob("judge/*/rule/*.jsonl")
    assert len(verdicts.read_text(encoding="utf-8").splitlines()) == len(answered) > 8
    lines = found[0].read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["question"] for line in lines) == [*range(8)]


def write_result(run: Path, first: str, second: str, name: str = "rule", winner: str = "", judge: str = "rule") -> Path:
    file = run / f"judge/{first}_vs_{second}/{name}/result.json"
    file.parent.mkdir(parents=True)
    counts = {"first": first, "second": second, "wins": 8, "ties": 1, "losses": 1, "unjudged": 2}
    content = {"format_version": 1, "judge": judge, "questions": 12, "winner": winner, "matches": [counts]}
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def section_of(run: Path, language: Language = "en") -> str:
    (folder,) = read_run_folders([run])
    return markdown(judged(folder, words_in(language), ""), "")


def test_results_are_in_report_and_model_card(tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    folder = run / "checkpoints/step=60"
    shutil.copytree(TRAINED, folder)
    (run / "run.log").write_text("", encoding="utf-8")
    assert "Judged" not in section_of(run)
    assert card_section(run, "step=60") == []
    assert "Judged" not in str(model_card(folder, "me/bo", "demo"))
    write_result(run, "base", "step=60", "<b>judge", judge="/home/me/models/<b>judge")
    write_result(run, "base", "step=30")
    write_result(run, "step=30", "step=60", winner="step=60")
    section = section_of(run)
    assert "## Judged replies" in section
    assert "| 8 | 1 | 1 | 2 | 85.0 % | 65.0 to 100.0 |" in section
    assert "<b>" not in section
    assert section.count("\n| base | ") == 2
    assert "knockout judged by rule: step=60" in section
    assert "| 85.0 % | 65.0 至 100.0 |" in section_of(run, "zh")
    card = str(model_card(folder, "me/bo", "demo"))
    assert card.count("\n| base | step=60 |") == 1
    assert "step=30" not in card
    assert "/home" not in card
    write_result(run, "x", "y").write_text('{"judge": 7}', encoding="utf-8")
    assert "Cannot be read: judge/x" in section_of(run)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with a trained adapter, a foreign folder and files of questions."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TRAINED, "step=60")
    shutil.copytree(TRAINED, "damaged")
    Path("damaged/config.yaml").write_text("data: {source: 7, nonsense: 1}\n", encoding="utf-8")
    shutil.copytree(TRAINED, "alone")
    Path("alone/config.yaml").unlink()
    Path("foreign").mkdir()
    Path("foreign/notes.txt").write_text("mine", encoding="utf-8")
    Path("other").mkdir()
    Path("other/comparison.json").write_text('{"format_version": 1}', encoding="utf-8")
    Path("broken").mkdir()
    Path("broken/comparison.json").write_text("{", encoding="utf-8")
    Path("empty.jsonl").touch()
    Path("ids.jsonl").write_text('{"input_ids": [64790, 64792, 5, 2], "seq_len": 3}\n' * 4, encoding="utf-8")
    Path("q.jsonl").write_text(json.dumps({"context": QUESTION}) + "\n", encoding="utf-8")
    return tmp_path


MODEL = ["--endpoint_model", "rule"]
JUDGE = ["--endpoint", NOWHERE, *MODEL]
REFUSED: list[tuple[list[str], str]] = [
    (["--second", "base"], "--second: both sides are the base"),
    (["--second", "nowhere/at/all"], "no such file or folder"),
    (["--first", "nobody", "--second", "step=60"], "no such file or folder"),
    (["--second", str(BASE)], "is a merged model"),
    (["--second", "step=60", "--first_server", "http://127.0.0.1:9"], "no server answers there"),
    (["--second", "step=60", "--second_server", "127.0.0.1:9"], "is no address"),
    (["--second", "none", "--second_server", "http://127.0.0.1:9"], "no folder of its model"),
    (["--second", "step=60", "--base", "random"], "random weights, which are not saved"),
    (["--second", "step=60", "--which", "newest"], "which"),
    (["--second", "step=60", "--port", "0"], "--port: 0 is not a port"),
    (["--second", "step=60", "--port", "{used}"], "Choose another --port"),
    (["--second", "step=60", "--number", "0"], "--number: 0 is too low"),
    (["--second", "step=60", "--number", "many"], "number"),
    (["--second", "step=60", "--max_new_tokens", "0"], "--max_new_tokens: 0 is too low"),
    (["--second", "step=60", "--questions", "none.jsonl"], "none.jsonl"),
    (["--second", "step=60", "--questions", "empty.jsonl"], "empty.jsonl"),
    (["--second", "step=60", "--questions", "ids.jsonl"], "ids and no text"),
    (["--second", "alone"], "there is no run whose rows could be asked"),
    (["--second", "damaged"], "damaged/config.yaml: data"),
    (["--second", "step=60", "--output", "foreign"], "exists and is from elsewhere"),
    (["--second", "step=60", "--output", "q.jsonl"], "exists and is from elsewhere"),
    (["--second", "step=60", "--output", "other"], "is of another comparison"),
    (["--second", "step=60", "--output", "broken"], "broken JSON"),
    (["--second", "step=60", "--output", ""], "is no path"),
    (["--second", "step=60", *MODEL], "there is no --endpoint"),
    (["--second", "step=60", "--endpoint", NOWHERE], "--endpoint_model: it is missing"),
    (["--second", "step=60", "--endpoint", "localhost", *MODEL], "is no address"),
    (["--second", "step=60", "--endpoint", "http://a:b@c", *MODEL], "it contains a password"),
    (["--second", "step=60", "--endpoint", "http://a:port", *MODEL], "it is no address"),
    (["--second", "step=60", "--endpoint", "http://a:99999", *MODEL], "is no address"),
    (["--second", "step=60", "--endpoint", "http://[", *MODEL], "is no address"),
    (["--second", "step=60", "--endpoint", "http://a/v1?key=1", *MODEL], "has parameters"),
    (["--second", "step=60", *JUDGE, "--endpoint_timeout", "0"], "--endpoint_timeout: 0.0 is out of range"),
    (["--second", "step=60", *JUDGE, "--endpoint_timeout", ".nan"], "--endpoint_timeout: nan is out of range"),
    (
        ["--second", "step=60", "--questions", "q.jsonl", *JUDGE, "--max_new_tokens", "24"],
        "the judge cannot be reached",
    ),
    (["--checkpoints_of", "step=60"], "a knockout needs a model that judges"),
    (["--checkpoints_of", "step=60", "--second", "x", *JUDGE], "--second: a knockout takes all checkpoints"),
    (["--checkpoints_of", "step=60", *JUDGE], "it is not a run"),
    (["--judge", "me"], "judge"),
]


@pytest.fixture(scope="module")
def used_port() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(words)[-50:] for words, _ in REFUSED])
def test_what_is_refused(
    words: list[str], said: str, here: Path, used_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(
            ["judge", *(word.format(used=used_port) for word in words), "--max_new_tokens", "2"]
            if "--max_new_tokens" not in words
            else ["judge", *words]
        )
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert last.startswith("kyon-pl judge: ")
    assert said in last
    assert "Traceback" not in error
    assert (here / "foreign/notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ((401, {}, b'{"error": {"message": "no key"}}'), "KYON_PL_JUDGE_KEY"),
        ((404, {}, b'{"error": {"message": "no such model"}}'), "it answers 404 to 'rule': 'no such model'"),
        ((400, {}, b"too long"), "it answers 400"),
    ],
)
def test_what_an_endpoint_refuses_is_said(
    fault: Fault, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["judge", "--second", "step=60", "--questions", "q.jsonl", "--max_new_tokens", "24"]
    with rule_judge(faults=[fault]) as (url, _), pytest.raises(SystemExit) as stopped:
        main([*words, "--endpoint", url, *MODEL])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
