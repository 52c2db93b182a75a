"""The current code continues and uses what earlier versions wrote; `make_artefacts.py` makes the artefacts.

The artefacts were trained on the demo's base and rows. A version that changes one of these starts a new run in place of
the resumed one, and the tests fail.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from peft import LoraConfig, PeftModel
from recorded import (
    CHECKPOINT,
    FINISHED,
    FIT,
    FORMATS,
    QUESTIONS,
    RUN,
    VALIDATE,
    chat_words,
    convert_words,
    hardware,
    merge_words,
    printed_loss,
    sha256_of_file,
    sha256_of_tensors,
)
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from kyon_pl import ChatGLM2ForCausalLM
from kyon_pl.cli import main
from kyon_pl.demo import BASE

HERE = Path(__file__).parent
COMMITS = sorted(file.parent.name for file in HERE.glob("*/expected.json"))
ADAPTER = "adapter_model.safetensors"
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
# 37c419d wrote the path of a callback into config.yaml as it was given, also that of the module it was defined in
CALLBACK = "kyon_pl.training.callbacks.StepCheckpoint"
CALLBACK_IN_MODULE = "kyon_pl.training.callbacks.step_checkpoint.StepCheckpoint"

Expected = dict[str, Any]


@pytest.fixture(scope="module", params=COMMITS)
def commit(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def expected(commit: str) -> Expected:
    recorded: Expected = json.loads((HERE / commit / "expected.json").read_text(encoding="utf-8"))
    return recorded


@pytest.fixture
def here(commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a copy of the artefacts."""
    folder = tmp_path / "legacy"
    shutil.copytree(HERE / commit, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def resumed(commit: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the artefacts whose interrupted run was continued by the same command."""
    folder = tmp_path_factory.mktemp("resumed") / "legacy"
    shutil.copytree(HERE / commit, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(FIT if same_settings(folder) else [*FIT, "--ckpt_path", "last", "--allow_changed_settings", "true"])
    return folder


def test_killed_run_is_resumed_to_the_recorded_adapter(resumed: Path, expected: Expected) -> None:
    run, step = resumed / RUN, expected["finished_at_step"]
    assert [path.name for path in run.parent.iterdir()] == [run.name]
    before = len((HERE / expected["commit"] / RUN / "run.log").read_text(encoding="utf-8").splitlines())
    lines = (run / "run.log").read_text(encoding="utf-8").splitlines()[before:]
    first = next(line for line in lines if ".ckpt" in line)  # the log names the checkpoint that the run goes on from
    assert first.endswith(f" {expected['resumed_from']}")
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["finished_at_step"] == step
    check_adapter(run / f"checkpoints/step={step}" / ADAPTER, resumed / FINISHED / ADAPTER, expected)


def test_resumed_curves_have_each_step_once(resumed: Path, expected: Expected) -> None:
    """The killed run had drawn curves behind its last checkpoint, with the code of that time."""
    curves = EventAccumulator(str(resumed / RUN)).Reload()
    assert [event.step for event in curves.Scalars("val/loss")] == [0, 20, 40, 60]
    assert [event.step for event in curves.Scalars("train/loss")] == list(range(3, expected["finished_at_step"] + 1, 3))


def test_resumed_run_is_finished(
    resumed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not same_settings(resumed):
        pytest.skip("other settings of PEFT or Lightning make a new run")
    monkeypatch.chdir(resumed)
    main(FIT)
    assert "finished already" in capsys.readouterr().err


def test_checkpoint_has_the_recorded_validation_loss(
    here: Path, expected: Expected, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_without_settings(here)
    main(VALIDATE)
    assert printed_loss(capsys.readouterr().out) == pytest.approx(expected["validation_loss"], abs=1e-4)


@pytest.mark.parametrize("question", QUESTIONS)
def test_finished_adapter_gives_the_recorded_reply(
    here: Path, expected: Expected, question: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(chat_words(FINISHED, question))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["reply"] == expected["replies"][question]


def test_merged_adapter_is_base_and_adapter(here: Path, expected: Expected) -> None:
    """Both formats have the recorded weights where the hardware is the same, and the logits of base and adapter."""
    base = ChatGLM2ForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    live = PeftModel.from_pretrained(base, here / FINISHED).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        logits = live(ids).logits
        with live.disable_adapter():
            assert float((live(ids).logits - logits).abs().max()) > 1  # the adapter changes them
    for format in FORMATS:
        main(merge_words(format, format))
        if hardware() == expected["hardware"]:
            assert sha256_of_tensors(here / format) == expected["merged_tensors_sha256"][format]
        model = AutoModelForCausalLM.from_pretrained(here / format, dtype=torch.float32).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, logits, rtol=1e-4, atol=1e-4)


def test_converted_adapter_is_the_recorded_one(here: Path, expected: Expected) -> None:
    """It holds rows of the adapter, and so is the same on all hardware."""
    main(convert_words("converted"))
    assert sha256_of_tensors(here / "converted") == expected["converted_tensors_sha256"]


def test_saved_config_is_accepted_and_resolved_to_itself(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skip_without_settings(here)
    saved = yaml.safe_load((here / RUN / "config.yaml").read_text(encoding="utf-8"))
    assert list(missing(saved, printed_config(f"{RUN}/config.yaml", capsys))) == []


def test_saved_config_is_previewed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skip_without_settings(here)
    main(["preview", "--config", f"{RUN}/config.yaml", "--rows", "1"])
    assert "1 of 800 rows" in capsys.readouterr().out


def test_callback_named_by_its_module_is_accepted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skip_without_settings(here)
    config = here / RUN / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert text.count(CALLBACK) == 1
    config.write_text(text.replace(CALLBACK, CALLBACK_IN_MODULE), encoding="utf-8")
    callbacks = printed_config(f"{RUN}/config.yaml", capsys)["trainer"]["callbacks"]
    assert callbacks[0]["class_path"] in (CALLBACK, CALLBACK_IN_MODULE)


def test_altered_checkpoint_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_a_byte(here / CHECKPOINT)
    with pytest.raises(SystemExit) as stopped:
        main(["validate", "--config", "run.yaml", "--ckpt_path", CHECKPOINT, "--trainer.logger", "false"])
    assert stopped.value.code == 2
    assert "kyon-pl validate: checkpoint" in capsys.readouterr().err


def test_altered_newest_checkpoint_is_passed_over(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_a_byte(here / CHECKPOINT)
    main(["chat", "--adapter", RUN, "--which", "last", "--prompt", "?", "--max_new_tokens", "1"])
    said = capsys.readouterr().err
    assert f"{CHECKPOINT} is skipped" in said
    assert "checkpoints/best-step=40" in said


def test_altered_adapter_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_a_byte(here / FINISHED / ADAPTER)
    with pytest.raises(SystemExit) as stopped:
        main(chat_words(f"{FINISHED}.ckpt", "no role"))
    assert stopped.value.code == 2
    assert ADAPTER in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (f"{RUN}/run.json", FIT),
        (CHECKPOINT, VALIDATE),
        (f"{FINISHED}/COMPLETE", chat_words(f"{FINISHED}.ckpt", "no role")),
        ("merged/kyon_pl.json", ["push", "--adapter", "merged", "--repo_id", "somebody/it", "--dry_run"]),
    ],
)
def test_what_a_newer_version_wrote_is_refused(
    here: Path, file: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if file.startswith("merged"):
        main(merge_words("chatglm", "merged"))
    if file == CHECKPOINT:
        torch.save({**torch.load(file), "format_version": 99}, file)
    else:
        record = json.loads(Path(file).read_text(encoding="utf-8"))
        Path(file).write_text(json.dumps({**record, "format_version": 99}), encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main(words)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"{Path(file).name}: format version 99, which a newer kyon_pl wrote; this one reads up to 1" in said


def test_another_adapter_is_not_the_recorded_one(here: Path, expected: Expected) -> None:
    """The comparison fails on the adapter that the run was resumed from, by its bytes and by its tensors."""
    other = here / Path(CHECKPOINT).with_suffix("") / ADAPTER
    elsewhere = {**expected, "hardware": None}
    for recorded in ({**expected, "hardware": hardware()}, elsewhere):
        with pytest.raises(AssertionError):
            check_adapter(other, here / FINISHED / ADAPTER, recorded)
    check_adapter(here / FINISHED / ADAPTER, here / FINISHED / ADAPTER, elsewhere)


def check_adapter(file: Path, finished: Path, expected: Expected) -> None:
    """An adapter is the recorded one: the same bytes on the same hardware, tensors that are close on another."""
    if hardware() == expected["hardware"]:
        assert sha256_of_file(file) == expected["adapter_sha256"]
        return
    tensors, recorded = load_file(file), load_file(finished)
    assert tensors.keys() == recorded.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, recorded[name], **CLOSE)


def settings_here() -> dict[str, set[str]]:
    """The names of what can be set of the LoRA and of the Trainer, in the installed PEFT and Lightning."""
    lora = {field.name for field in dataclasses.fields(LoraConfig) if field.init}
    return {"LoraConfig": lora, "Trainer": set(inspect.signature(Trainer).parameters)}


def settings_saved(folder: Path) -> dict[str, set[str]]:
    """The same in the config of the run in a folder."""
    saved = yaml.safe_load((folder / RUN / "config.yaml").read_text(encoding="utf-8"))
    return {"LoraConfig": set(saved["model"]["lora"]["init_args"]), "Trainer": set(saved["trainer"])}


def same_settings(folder: Path) -> bool:
    """Whether the installed packages have the settings of the run; others are part of its fingerprint."""
    return settings_here() == settings_saved(folder)


def skip_without_settings(folder: Path) -> None:
    """Skip a test where the installed PEFT or Lightning lacks a setting of the saved config, as an older one does."""
    here, saved = settings_here(), settings_saved(folder)
    lacking = sorted(name for part in saved for name in saved[part] - here[part])
    if lacking:
        pytest.skip(f"PEFT {peft.__version__} or Lightning lacks {', '.join(lacking)}")


def printed_config(config: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `fit --print_config` prints."""
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", config, "--print_config"])
    assert stopped.value.code in (0, None)
    printed: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return printed


def missing(saved: Any, now: Any, place: str = "") -> list[str]:
    """The keys of a nested value that are missing or another in a second one, which may have more."""
    if isinstance(saved, dict) and isinstance(now, dict):
        return [text for key in saved for text in missing(saved[key], now.get(key, "nothing"), f"{place}.{key}")]
    if isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        return [text for n, pair in enumerate(zip(saved, now, strict=True)) for text in missing(*pair, f"{place}.{n}")]
    return [] if saved == now else [f"{place}: {saved} and {now}"]


def flip_a_byte(file: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
