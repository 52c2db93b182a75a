"""One short demo run through the command line, and everything that a person does with its result."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kyon_pl import ChatGLM2ForCausalLM, ChatGLM2LoRA, ChatGLMTokenizer
from kyon_pl.chat.conversation import Conversation
from kyon_pl.chat.loading import load_chat_model
from kyon_pl.chat.model import Sampling
from kyon_pl.chat.role_play import RolePlay
from kyon_pl.cli import main
from kyon_pl.demo import ASSETS, BASE
from kyon_pl.demo.grammar import CHARACTERS, QUESTIONS
from kyon_pl.demo.world import facts
from kyon_pl.roles.contexts import ContextLimits
from kyon_pl.roles.role import find_roles

ROOT = Path(__file__).parents[2]
SHORT = [
    "--trainer.max_epochs",
    "2",
    "--trainer.limit_train_batches",
    "7",
    "--trainer.log_every_n_steps",
    "2",
    "--trainer.enable_progress_bar",
    "false",
]
STEPS = 8  # two epochs of seven batches, accumulated by two: the last step of each is a partial one


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config", str(ROOT / "configs/demo.yaml"), *SHORT])
    return folder / "lightning_logs/version_0"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_curves_are_there_and_finite(curves: dict[str, list[tuple[int, float]]]) -> None:
    names = (
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens_per_s",
        "trained_tokens_per_s",
        "rows_per_s",
        "padding_share",
    )
    for name in names:
        assert [step for step, _ in curves[f"train/{name}"]] == [2, 4, 6, 8], name
        assert all(math.isfinite(value) for _, value in curves[f"train/{name}"]), name
    losses = [value for _, value in curves["val/loss"]]
    assert losses[-1] < losses[0]
    assert curves["val/perplexity"][-1][1] == pytest.approx(math.exp(losses[-1]), rel=1e-4)


def test_the_estimate_counts_the_tokens_of_the_whole_run(run: Path) -> None:
    """Its packs, of 1,024 tokens, are nearly full."""
    log = (run / "run.log").read_text(encoding="utf-8")
    found = re.search(rf"estimate: {STEPS} optimizer steps, ([\d,]+) tokens", log)
    assert found
    assert 0.9 < int(found[1].replace(",", "")) / (2 * 7 * 1024) <= 1


def test_schedule_ends_exactly_at_its_last_value(run: Path, curves: dict[str, list[tuple[int, float]]]) -> None:
    warmup_steps, rate = 5, 5e-3  # configs/demo.yaml
    shares = [2 / 6, 4 / 6, 1.0, (STEPS - 7) / (STEPS - warmup_steps)]  # steps 1, 3, 5 and 7, counted from 0
    assert [value for _, value in curves["train/learning_rate"]] == pytest.approx([rate * share for share in shares])
    checkpoint = torch.load(run / f"checkpoints/step={STEPS}.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.0


def test_checkpoint_is_small_and_the_adapter_is_plain_peft(run: Path) -> None:
    file, folder = run / f"checkpoints/step={STEPS}.ckpt", run / f"checkpoints/step={STEPS}"
    state = torch.load(file, weights_only=True)["state_dict"]
    assert all("lora_" in name for name in state)
    assert file.stat().st_size < 4 * sum(value.numel() * 4 for value in state.values())
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["target_modules"]) == (16, 32, ["query_key_value"])

    tokenizer = ChatGLMTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode("阿砚平时忙什么呀？")])
    theirs = PeftModel.from_pretrained(ChatGLM2ForCausalLM.from_pretrained(BASE, dtype=torch.float32), folder).eval()
    ours = ChatGLM2LoRA(base="demo")
    ours.model = PeftModel.from_pretrained(ChatGLM2ForCausalLM.from_pretrained(BASE, dtype=torch.float32), folder)
    with torch.no_grad():  # other weights first, so that what is compared came out of the checkpoint
        for name, value in ours.named_parameters():
            if name in state:
                value.zero_()
    assert not ours.load_state_dict(state, strict=False).unexpected_keys
    with torch.no_grad():
        assert torch.equal(ours.model.eval()(ids).logits, theirs(ids).logits)
        assert not torch.equal(theirs.get_base_model()(ids).logits * 0, theirs(ids).logits)


def test_validate_gives_the_loss_that_fit_logged(
    run: Path, curves: dict[str, list[tuple[int, float]]], capsys: pytest.CaptureFixture[str]
) -> None:
    """From the saved config of the run, which so round-trips too."""
    checkpoint = run / f"checkpoints/step={STEPS}.ckpt"
    main(
        ["validate", "--config", str(run / "config.yaml"), "--ckpt_path", str(checkpoint), "--trainer.logger", "false"]
    )
    printed = re.search(r"val/loss\D+([\d.]+)", capsys.readouterr().out)
    assert printed
    assert float(printed[1]) == pytest.approx(curves["val/loss"][-1][1], rel=1e-5)


def test_scores_are_the_same_numbers_everywhere(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the terminal, run.log, scores.md and TensorBoard."""
    monkeypatch.chdir(tmp_path)
    words = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / f"checkpoints/step={STEPS}.ckpt")]
    words += ["--held_out.validate_rows", "6", "--held_out.max_new_tokens", "8", "--trainer.limit_val_batches", "1"]
    main(["validate", *words, "--trainer.default_root_dir", str(tmp_path)])
    folder = tmp_path / "lightning_logs/version_0"
    events = EventAccumulator(str(folder)).Reload()
    drawn = {tag.removeprefix("val/"): events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    lines = (folder / "scores.md").read_text(encoding="utf-8").splitlines()
    assert "6 held-out questions" in lines[0]
    table = {cells[0]: cells[1:] for cells in (line.strip("| ").split(" | ") for line in lines[4:])}
    assert list(table)[:3] == ["loss", "perplexity", "chrf"]
    said = [replaced.split() for replaced in capsys.readouterr().err.splitlines()]
    logged = (folder / "run.log").read_text(encoding="utf-8")
    for name, (base, tuned, _, _) in table.items():
        replies = name not in ("loss", "perplexity")
        assert tuned == f"{drawn[f'replies/{name}' if replies else name]:.2f}"
        assert base == (f"{drawn[f'base_replies/{name}']:.2f}" if replies else "–")
        assert [name, base, tuned] in [cells[:3] for cells in said]
        assert f"  {name}" in logged


def test_predict_writes_replies(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    replies = tmp_path / "replies.jsonl"
    words = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / f"checkpoints/step={STEPS}.ckpt")]
    words += ["--replies.path", str(replies), "--trainer.limit_predict_batches", "2", "--model.max_new_tokens", "8"]
    main(["predict", *words, "--trainer.logger", "false"])
    assert [path.name for path in tmp_path.iterdir()] == [replies.name]  # without a logger nothing is logged to a file
    rows = [json.loads(line) for line in replies.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 16
    assert rows[0].keys() == {"row", "prompt", "reply", "reference", "stopped"}
    assert all(row["prompt"].count("###") and row["reference"] for row in rows)
    assert any(row["reply"] for row in rows)


def test_saved_config_is_the_resolved_one(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert config["data"]["tokens_per_batch"] == 1024
    assert config["seed_everything"] == 2023
    inside = torch.load(run / f"checkpoints/step={STEPS}.ckpt", weights_only=True)["config"]
    assert yaml.safe_load(inside) == yaml.safe_load((run / f"checkpoints/step={STEPS}/config.yaml").read_text())


def test_checkpoint_of_another_shape_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = run / f"checkpoints/step={STEPS}.ckpt"
    words = ["--config", str(ROOT / "configs/demo.yaml"), "--ckpt_path", str(checkpoint), "--model.lora.r", "4"]
    with pytest.raises(SystemExit):
        main(["validate", *words, "--trainer.logger", "false"])
    assert "lora_A" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_persuades(demo_run: Path, tmp_path: Path) -> None:
    """The tuned character answers held-out questions in its own manner, and the base visibly does not."""
    (best,) = demo_run.glob("checkpoints/best-step=*.ckpt")
    main(["validate", "--config", str(demo_run / "config.yaml"), "--ckpt_path", str(best)])
    validated = tmp_path / "lightning_logs/version_0"
    events = EventAccumulator(str(validated)).Reload()
    values = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    assert values["val/replies/stop_rate"] >= 0.95
    assert values["val/replies/chrf"] >= max(40, 1.5 * values["val/base_replies/chrf"])
    before = EventAccumulator(str(demo_run)).Reload().Scalars("val/loss")[0].value
    assert values["val/perplexity"] <= 0.5 * math.exp(before)
    rows = [json.loads(line) for line in (validated / "held_out_replies.jsonl").read_text("utf-8").splitlines()]
    trained = {json.loads(line)["target"] for line in (ASSETS / "train.jsonl").read_text("utf-8").splitlines()}
    tuned = [row["replies"][-1]["reply"] for row in rows]
    speakers = [next(c for c in CHARACTERS if row["reference"].startswith(c.name)) for row in rows]
    assert len(rows) == 92
    assert share(speaker.accepts(reply) for speaker, reply in zip(speakers, tuned, strict=True)) >= 0.9
    assert share(speaker.accepts(row["base"]) for speaker, row in zip(speakers, rows, strict=True)) <= 0.1
    assert share(reply in trained for reply in tuned) <= 0.5
    assert share(chat_with_the_demo(demo_run)) >= 0.9


def chat_with_the_demo(run: Path) -> Iterator[bool]:
    """Ask for what is held out, as `kyon-pl chat --character demo --asker NAME`: whether the answers are true."""
    model = load_chat_model(str(run), "best", None, None, None)
    for role, character in zip(find_roles(["demo"], {})[:2], CHARACTERS, strict=False):
        play = RolePlay(role, "auto", ContextLimits(), model.count_tokens)
        for fact in (fact for fact in facts(character.language) if fact.held_out):
            question = QUESTIONS[fact.language][fact.intent][0].format(thing=fact.thing)
            reply = Conversation(model, role=play, asker="小满").ask(question, Sampling(64)).text
            yield reply == character.reply(fact, "小满")


def share(answers: Iterable[bool]) -> float:
    counted = list(answers)
    return sum(counted) / len(counted)


def test_plain_chat_plays_the_demos_character(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It samples, as for any role; `--temperature 0` and no role are greedy."""
    monkeypatch.chdir(run.parents[1])
    asked = {
        "plain": [],
        "same": ["--adapter", str(run), "--character", "demo", "--temperature", "0.8", "--top_p", "0.8"],
        "greedy": ["--temperature", "0"],
        "greedy too": ["--temperature", "0", "--seed", "5"],
        "no role": ["--character", ""],
    }
    replies = {}
    for name, words in asked.items():
        main(["chat", "-p", "钟楼在哪里？", "--max_new_tokens", "24", "--json", *words])
        replies[name] = json.loads(capsys.readouterr().out.splitlines()[-1])["reply"]
    assert replies["plain"] == replies["same"]
    assert replies["greedy"] == replies["greedy too"] != replies["no role"]
