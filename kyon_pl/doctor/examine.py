"""Machine and config, looked at and put into the report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from kyon_pl.doctor.judge import judge
from kyon_pl.doctor.machine import Machine, look_at_machine, machine_findings
from kyon_pl.doctor.plan import Plan, make_plan
from kyon_pl.doctor.report import MEMORY_PARTS, Finding, Report, finding_of
from kyon_pl.errors import KyonError


def examine_machine(settings: Namespace) -> tuple[Machine, list[Finding], dict[str, Any]]:
    """Look at the machine.

    Args:
        settings: of fit, for the place of its runs.

    Returns:
        What it has, as a thing, as lines and as numbers.
    """
    machine = look_at_machine(Path(settings.trainer.default_root_dir or "."))
    return machine, list(machine_findings(machine)), asdict(machine)


def examine_config(report: Report, settings: Namespace, machine: Machine) -> None:
    """Look at a config, and put what it needs into the report. What a run would refuse becomes a line.

    Args:
        report: to add to.
        settings: of fit.
        machine: where it is to run.
    """
    try:
        plan = make_plan(settings, machine, settings.gpu_gib)
    except KyonError as error:
        report.config.append(finding_of("config", error))
        return
    report.config.extend(judge(plan, machine, settings))
    report.memory = plan.needs.memory if plan.needs else None
    report.needs = _numbers(plan)
    report.advice = _advice(plan)


def _numbers(plan: Plan) -> dict[str, Any]:
    base, target, needs = plan.base, plan.target, plan.needs
    known: dict[str, Any] = {"parameters": None, "memory": None, "peak_bytes": None, "needed_bytes": None}
    known |= {"checkpoints_bytes": None, "training_seconds": None, "training_seconds_source": None}
    if needs is not None:
        speed = needs.speed
        known = {
            "parameters": needs.config.parameter_count,
            "memory": {f"{name}_bytes": getattr(needs.memory, name) for name in MEMORY_PARTS},
            "peak_bytes": needs.memory.peak,
            "needed_bytes": needs.device_bytes,
            "checkpoints_bytes": needs.checkpoints_bytes,
            "training_seconds": speed.seconds if speed else None,
            "training_seconds_source": speed.source if speed else None,
        }
    return {
        "base": base.name,
        "base_folder": str(base.folder) if base.folder else None,
        "download_bytes": base.download_bytes,
        "device": target.device_type,
        "device_is_here": target.here,
        "devices": target.devices,
        "available_bytes": target.available_bytes,
        "work": asdict(plan.work),
        **known,
    }


def _advice(plan: Plan) -> dict[str, int | None]:
    available, needs, shortest = plan.target.available_bytes, plan.needs, plan.longest_row
    if plan.target.device_type != "cuda" or available is None or needs is None:
        return {}
    return {
        "tokens_per_batch_with_checkpointing": needs.largest_pack(shortest, available, checkpointing="full"),
        "tokens_per_batch_without_checkpointing": needs.largest_pack(shortest, available, checkpointing="none"),
        "checkpointed_layers": needs.fewest_checkpointed(available),
    }
