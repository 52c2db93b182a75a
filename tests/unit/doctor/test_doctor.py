"""The doctor's findings on simulated machines, on package versions, and on a partly downloaded base."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from huggingface_hub import constants

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.cli.tools import GpuName, doctor_settings
from kyon_pl.demo import BASE
from kyon_pl.doctor.device import minimum_peak_bytes
from kyon_pl.doctor.examine import base_finding, config_findings
from kyon_pl.doctor.machine import Gpu, Machine, _has_kernels, driver_version, machine_findings
from kyon_pl.doctor.memory import needed_bytes
from kyon_pl.doctor.packages import packages
from kyon_pl.doctor.plan import find_base, make_plan
from kyon_pl.doctor.report import Finding
from kyon_pl.doctor.speed import CARDS
from kyon_pl.errors import KyonError
from kyon_pl.training.throughput import flop_per_token

ROOT = Path(__file__).parents[3]
GIB = 2**30
MACHINE = Machine(
    system="Linux x86_64",
    cpus=8,
    memory_bytes=64 * GIB,
    run_folder="/runs",
    run_folder_free_bytes=100 * GIB,
    cache_folder="/cache",
    cache_free_bytes=100 * GIB,
    rows_folder="/rows",
    rows_free_bytes=100 * GIB,
    not_writable={},
    shared_memory_bytes=GIB,
    torch_version="2.11.0",
    torch_cuda="13.0",
    cuda_available=True,
    mps_available=False,
    driver="580.95.05",
    gpus=(Gpu("NVIDIA L4", 22 * GIB, 22 * GIB, (8, 9), has_kernels=True),),
)
NO_GPU = {"cuda_available": False, "gpus": ()}
OLD_GPU = Gpu("Tesla K80", 11 * GIB, 11 * GIB, (3, 7), has_kernels=False)

# changes to MACHINE -> name and state of a finding, and text that it contains
MACHINES = {
    "as it should be": ({}, ("torch and GPU", "ok", "driver 580.95.05")),
    "no GPU": (NO_GPU | {"driver": None}, ("torch and GPU", "warning", "a CPU machine")),
    "torch without CUDA": (NO_GPU | {"torch_cuda": None}, ("torch and GPU", "missing", "build without CUDA, though")),
    "driver too old": (NO_GPU | {"driver": "535.1"}, ("torch and GPU", "missing", "580 or newer")),
    "driver new enough": (NO_GPU | {"torch_cuda": "12.8", "driver": "535.1"}, ("torch and GPU", "missing", "VISIBLE")),
    "GPU too old": ({"gpus": (OLD_GPU,)}, ("GPU", "missing", "not built for it")),
    "Windows": (NO_GPU | {"system": "Windows AMD64", "driver": None}, ("system", "missing", "WSL 2")),
    "Apple": (NO_GPU | {"system": "Darwin arm64", "driver": None}, ("system", "warning", "accelerator cpu")),
}


@pytest.mark.parametrize("name", MACHINES)
def test_machines(name: str) -> None:
    changed, (line, state, words) = MACHINES[name]
    found = {finding.name: finding for finding in machine_findings(replace(MACHINE, **changed))}
    assert found[line].state == state
    assert words in " ".join((found[line].found, found[line].fix))
    assert sum(finding.state == "missing" for finding in found.values()) == (state == "missing")


def test_kernels_for_a_gpu() -> None:
    """`sm_` code runs on newer GPUs of the same major version, `compute_` code on all newer GPUs."""
    built_for = ["sm_75", "sm_80", "sm_90a"]
    assert [_has_kernels(of, built_for) for of in ((7, 0), (7, 5), (8, 9), (9, 0), (10, 0))] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert _has_kernels((12, 0), [*built_for, "compute_90"])


def test_versions_are_compared_with_the_metadata() -> None:
    found = {package.name: package for package in packages()}
    assert {"torch", "lightning", "transformers"} <= found.keys()
    assert found.keys().isdisjoint({"pytest", "matplotlib"})
    assert all(package.usable for package in found.values())
    assert not replace(found["torch"], version="2.10.0").usable
    assert not replace(found["lightning"], version="2.6.2").usable
    assert not replace(found["peft"], version=None).usable


def fake_package(folder: Path, name: str, version: str) -> dict[str, str]:
    """Create a package that shadows the real one and writes a file when imported; returns the environment for it."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(f"open({str(folder / 'imported')!r}, 'w')\nraise SystemExit('stolen')")
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


def run(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_malicious_lightning_is_reported_and_not_imported(version: str, tmp_path: Path) -> None:
    environment = fake_package(tmp_path, "lightning", version)
    doctor = run(["-m", "kyon_pl", "doctor", "--json"], environment)
    report = json.loads(doctor.stdout)
    assert (doctor.returncode, report["works"], report["missing"]) == (1, False, ["lightning"])
    assert report["machine"]["packages"]["lightning"] == version
    fit = run(["-m", "kyon_pl", "fit"], environment)
    assert fit.returncode == 2
    assert f"lightning {version}: a malicious release" in fit.stderr
    assert not (tmp_path / "imported").exists()


def test_another_shadowing_version_is_imported_by_fit_only(tmp_path: Path) -> None:
    """fit imports it, which shows that the file would be written. doctor reports a version out of range unimported."""
    environment = fake_package(tmp_path, "lightning", "2.6.0")
    doctor = run(["-m", "kyon_pl", "doctor"], environment)
    assert doctor.returncode == 1
    line = next(line for line in doctor.stdout.splitlines() if "2.6.0" in line)
    assert line.split()[:2] == ["✗", "lightning"]
    assert not (tmp_path / "imported").exists()
    run(["-m", "kyon_pl", "fit"], environment)
    assert (tmp_path / "imported").exists()


def test_partly_downloaded_base(monkeypatch: pytest.MonkeyPatch) -> None:
    name, whole = "someone/half-a-base", ChatGLM2Config.from_pretrained(BASE)
    repository = Path(constants.HF_HUB_CACHE) / "models--someone--half-a-base"
    shutil.rmtree(repository, ignore_errors=True)
    absent = find_base(name, None, None)
    assert (absent.config, absent.download_bytes) == (None, None)
    assert base_finding(absent, MACHINE).state == "warning"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    shutil.copy(BASE / "config.json", snapshot)
    half = find_base(name, None, None)
    assert half.config is not None
    assert half.config.parameter_count == whole.parameter_count
    assert half.download_bytes == pytest.approx(2 * whole.parameter_count + 2**20, rel=1e-3)
    assert base_finding(half, replace(MACHINE, cache_free_bytes=1000)).state == "missing"
    for file in ("model.safetensors", "tokenizer.model"):
        shutil.copy(BASE / file, snapshot)
    assert find_base(name, None, None).download_bytes == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert base_finding(half, MACHINE).state == "missing"
    assert base_finding(find_base(name, None, None), MACHINE).state == "ok"


def test_published_base_is_known_without_download() -> None:
    base = find_base("THUDM/chatglm2-6b", None, None)
    assert base.config is not None
    assert base.download_bytes == pytest.approx(12.49e9, rel=1e-3)
    with pytest.raises(KyonError, match="no such folder"):
        find_base("./nowhere", None, None)


def test_flop_per_token() -> None:
    """24.6, 25.3 and 26.7 GFLOP without checkpointing, at 1,024, 2,048 and 4,096 tokens a row."""
    found = [flop_per_token(ChatGLM2Config(), tokens, recomputed=False) / 1e9 for tokens in (1024, 2048, 4096)]
    assert found == pytest.approx([24.6, 25.3, 26.7], abs=0.05)


def test_minimum_peak_of_6b() -> None:
    """6B in half precision does not fit 12 GiB and fits 16 GB; in float32 it needs more than 23 GiB.

    Sharded over two GPUs it does not fit 6 GiB and fits 8 GiB.
    """
    shape = ChatGLM2Config()
    half, whole = (minimum_peak_bytes(shape, precision, "cuda") for precision in ("16-mixed", "32-true"))
    assert 11.8 * GIB < needed_bytes(half, "cuda") < 14.5 * GIB
    assert needed_bytes(whole, "cuda") > 23 * GIB
    assert 6 * GIB < needed_bytes(minimum_peak_bytes(shape, "16-mixed", "cuda", sharded_over=2), "cuda") < 8 * GIB


def on_l4(**changed: object) -> dict[str, Finding]:
    """The findings about the reference run with a random base, on a machine with one L4."""
    settings = doctor_settings(["doctor", "--config", str(ROOT / "configs/lora.yaml"), "--model.base", "random"])
    for name, value in changed.items():
        settings[name.replace("__", ".")] = value
    plan = make_plan(settings, MACHINE, gpu_gib=22.0)
    here = replace(plan, target=replace(plan.target, is_local=True))  # planning needs no GPU
    return {finding.name: finding for finding in config_findings(here, MACHINE, settings)}


def test_findings_on_a_gpu() -> None:
    found = on_l4()
    assert {finding.state for finding in found.values()} == {"ok"}
    assert "bf16-mixed" in found["device"].fix
    assert "1 × NVIDIA L4" in found["device"].found
    assert "1 of them here" in on_l4(trainer__devices=2)["device"].found
    no_checkpointing = on_l4(model__checkpointing="none", model__compile=False, data__tokens_per_batch=4096)[
        "GPU memory"
    ]
    assert no_checkpointing.state == "missing"
    assert "model.checkpointing to 1" in no_checkpointing.fix
    assert "validation_rows_per_batch from 64 to 16" in on_l4(data__validation_rows_per_batch=64)["GPU memory"].fix
    large = {"data__tokens_per_step": None, "trainer__accumulate_grad_batches": 1, "data__tokens_per_batch": 65536}
    assert "data.tokens_per_batch" in on_l4(**large)["GPU memory"].fix
    assert on_l4(data__workers=10_000)["shared memory"].state == "missing"


def test_a_gpu_of_another_machine_by_name() -> None:
    """Time and choice from measured or published rates, which is said; and the overlay that fits a small one."""

    def found(gpu_gib: float | None, card: str | None) -> dict[str, str]:
        settings = doctor_settings(["doctor", "--config", str(ROOT / "configs/lora.yaml"), "--model.base", "random"])
        settings.data.tokenizer = "demo"
        settings.data.source = "silk-road/Chat_Suzumiya_Fusion"
        plan = make_plan(settings, MACHINE, gpu_gib, CARDS[card] if card else None)
        findings = [*config_findings(plan, MACHINE, settings)]
        return {finding.name: f"{finding.found} {finding.fix}" for finding in findings} | {"choice": str(plan.choice)}

    t4, h100 = found(None, "t4"), found(None, "h100")
    assert "h" in t4["time"]
    assert "scaled by published rates" in t4["time"]
    assert "from measurements on an H100)" in h100["time"]
    assert "model.compile: false (auto): not tried on GPUs before Ampere" in t4["choice"]
    assert "model.checkpointing: none (auto)" in h100["choice"]
    assert "name it with --gpu" in found(16, None)["time"]
    assert "Add --config configs/overlay/qlora.yaml" in found(8, None)["GPU memory"]
    assert set(CARDS) == set(get_args(GpuName))


def test_driver_version_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver_version() is None
    program = tmp_path / "nvidia-smi"
    for text, version in (("echo 535.104.05", "535.104.05"), ("echo no devices; exit 9", None)):
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        assert driver_version() == version


def test_refused_quantization_is_a_finding() -> None:
    """Without a GPU: fp8 is refused for the precision, and compile with a sharded base on any GPU."""
    assert "bf16-mixed" in on_l4(model__quantization="fp8")["weights"].fix
    assert "shard_base" in on_l4(model__compile=True, model__shard_base=True)["weights"].found
    assert "weights" not in on_l4(model__compile=True)
