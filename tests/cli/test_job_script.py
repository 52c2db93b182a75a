"""docs/slurm.sh does what the README says, with a stand-in for srun."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_job_script_starts_the_command_once_a_task(tmp_path: Path) -> None:
    """`srun` is SLURM's and `kyon-pl` is tested elsewhere: both write down what they are asked."""
    for name, says in {"srun": 'exec "$@"', "kyon-pl": f'echo "$@" >> {tmp_path}/asked'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_NTASKS_PER_NODE": "4"}
    subprocess.run([ROOT / "docs/slurm.sh", "--data.workers", "1"], check=True, env=environment, cwd=ROOT)
    asked = (tmp_path / "asked").read_text().split()
    assert asked == ["fit", "--config", "configs/lora.yaml", "--trainer.devices", "4", "--data.workers", "1"]
    assert (ROOT / "configs/lora.yaml").is_file()
