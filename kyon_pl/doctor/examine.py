"""Machine and config, looked at and put into the report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from kyon_pl.doctor.findings import Finding, finding_of
from kyon_pl.doctor.judge import judge
from kyon_pl.doctor.machine import Machine, look_at_machine, machine_findings
from kyon_pl.doctor.plan import Plan, make_plan
from kyon_pl.doctor.report import MEMORY_PARTS, Report
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
    report.config.extend([*judge(plan, machine, settings), *plan.problems])
    report.memory = plan.memory
    report.needs = _needs(plan)
    report.advice = _advice(plan)


def _needs(plan: Plan) -> dict[str, Any]:
    base, memory = plan.base, plan.memory
    parts = {f"{name}_bytes": getattr(memory, name) for name in MEMORY_PARTS} if memory else None
    return {
        "base": base.name,
        "base_folder": str(base.folder) if base.folder else None,
        "parameters": base.config.parameter_count if base.config else None,
        "download_bytes": base.download_bytes,
        "device": plan.device_type,
        "device_is_here": plan.here,
        "devices": plan.devices,
        "work": asdict(plan.work),
        "memory": parts,
        "peak_bytes": memory.peak if memory else None,
        "needed_bytes": plan.needed_bytes,
        "available_bytes": plan.available_bytes,
        "checkpoints_bytes": plan.checkpoints_bytes,
        "training_seconds": plan.speed.seconds if plan.speed else None,
        "training_seconds_source": plan.speed.source if plan.speed else None,
    }


def _advice(plan: Plan) -> dict[str, int]:
    if plan.device_type != "cuda" or plan.available_bytes is None or plan.memory is None:
        return {}
    return {
        "tokens_per_batch_with_checkpointing": plan.largest_pack(plan.longest_row, gradient_checkpointing=True),
        "tokens_per_batch_without_checkpointing": plan.largest_pack(plan.longest_row, gradient_checkpointing=False),
    }
