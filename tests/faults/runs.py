"""Runs of `kyon-pl fit` as real processes: a tiny base, rows of ids, dropout, shuffle, loader workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from lightning.fabric.plugins.environments.lightning import find_free_network_port

HERE = Path(__file__).parent
ROWS, VALIDATION_ROWS, LONGEST_ROW = 34, 6, 40  # LONGEST_ROW: tokens
FAMILIES = 5  # of rows that begin alike, if beginnings are shared
EPOCHS, ACCUMULATE = 3, 2
BATCHES = 9  # micro-batches of an epoch over all ranks, padded or packed; of two ranks the second ends with a dummy
SHAPE = {
    "model_type": "chatglm",
    "num_layers": 2,
    "padded_vocab_size": 96,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "kv_channels": 8,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
}


@dataclass(frozen=True)
class Way:
    """What a run is made of.

    Attributes:
        batching: `padded` validates in the middle of an epoch, at step 2 and every second one, where a checkpoint is
            due too; `packed` and `shared` validate at the end of an epoch. The rows of `shared` begin alike.
        accumulate: micro-batches of one process in an optimizer step.
    """

    processes: int = 1
    precision: str = "32-true"
    batching: str = "padded"
    accumulate: int = ACCUMULATE

    def __str__(self) -> str:
        return f"{self.processes}-{self.precision}-{self.batching}"

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches of one process; an odd number, so that the last window is a partial one."""
        return -(-BATCHES // self.processes)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps."""
        return -(-self.batches_per_epoch // self.accumulate)

    def config(self) -> dict[str, Any]:
        """The YAML of fit."""
        trainer = {
            "accelerator": "cpu",
            "devices": self.processes,
            "strategy": "ddp" if self.processes > 1 else "auto",
            "precision": self.precision,
            "max_epochs": EPOCHS,
            "accumulate_grad_batches": self.accumulate,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "val_check_interval": 2 * self.accumulate if self.batching == "padded" else 1.0,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "kill_at.KillEarly"},
                {
                    "class_path": "kyon_pl.training.callbacks.StepCheckpoint",
                    "init_args": {"every_n_steps": 2, "keep": 2},
                },
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {
                        "filename": "best-step={step}",
                        "auto_insert_metric_name": False,
                        "monitor": "val/loss",
                    },
                },
                {"class_path": "kill_at.KillLate"},
            ],
        }
        model = {
            "base": "random",
            "random_config": "shape",
            "checkpointing": "none",
            "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": ["query_key_value"]},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}},
            "schedule": {"class_path": "kyon_pl.training.LinearDecay", "init_args": {"warmup_steps": 3}},
        }
        data = {
            "source": "train.jsonl",
            "validation_source": "validation.jsonl",
            "max_tokens": LONGEST_ROW,
            "batching": self.batching,
            "rows_per_batch": 4,
            "tokens_per_batch": 76 if self.batching == "shared" else 96,
            "workers": 2,
            "processes": 1,
        }
        return {"seed_everything": 5, "auto_resume": True, "trainer": trainer, "model": model, "data": data}


def write_inputs(folder: Path, way: Way) -> None:
    """Everything that `kyon-pl fit --config run.yaml` needs in a folder."""
    (folder / "shape").mkdir(parents=True)
    (folder / "shape/config.json").write_text(json.dumps(SHAPE))
    (folder / "run.yaml").write_text(yaml.safe_dump(way.config()))
    rng = Random(7)
    for name, rows in (("train", ROWS), ("validation", VALIDATION_ROWS)):
        made = [random_row(rng) for _ in range(rows)]
        if way.batching == "shared":
            for number, row in enumerate(made):
                begin_alike(row, number % FAMILIES)
        lines = "".join(json.dumps(row) + "\n" for row in made)
        (folder / f"{name}.jsonl").write_text(lines)


def random_row(rng: Random) -> dict[str, Any]:
    """Eight to 40 ids, the end of sequence last, trained from a random place on."""
    length = rng.randint(8, LONGEST_ROW)
    return {"input_ids": [*rng.choices(range(3, 96), k=length - 1), 2], "seq_len": rng.randint(2, length - 2)}


def begin_alike(row: dict[str, Any], family: int) -> None:
    """Replace the context: half a row's ids, the same in all rows of a family as far as they go."""
    ids = row["input_ids"]
    row["seq_len"] = context = len(ids) // 2
    ids[:context] = [3, *[4 + family] * LONGEST_ROW][:context]


Undisturbed = Callable[[Way], Path]
"""Gives the run folder of a way that nothing happened to; the fixture of that name."""


@dataclass
class Run:
    """A started run.

    Attributes:
        pids: of its ranks; the first leads the process group of them all and of their loader workers.
        log: what they said; not in the folder of the run, which may be on a full disk.
    """

    server: ForkServer
    pids: list[int]
    log: Path

    def wait(self) -> list[int]:
        """The ranks' exit statuses, as subprocess has them."""
        statuses = self.server.ask(wait=self.pids)
        self.server.running.remove(self.pids[0])
        return statuses

    def send(self, number: signal.Signals) -> None:
        """A signal to all ranks and their loader workers."""
        os.killpg(self.pids[0], number)

    def said(self) -> str:
        """The log."""
        return self.log.read_text(encoding="utf-8")


class ForkServer:
    """See fork_server.py."""

    def __init__(self, hash_seed: int) -> None:
        environment = os.environ | {"PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(HERE / "fork_server.py")]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.running: list[int] = []
        self.logs = TemporaryDirectory(prefix="kyon_pl-logs-")

    def ask(self, **request: Any) -> list[int]:
        """One request and its answer."""
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer: list[int] = json.loads(self.process.stdout.readline())
        return answer

    def start(
        self,
        words: list[str],
        folder: Path,
        processes: int,
        environment: dict[str, str],
        of_last_rank: dict[str, str],
    ) -> Run:
        """Start the ranks of a run."""
        log = Path(self.logs.name) / f"{len(list(Path(self.logs.name).iterdir()))}.txt"
        common = {"MASTER_PORT": str(find_free_network_port()), "KILL_AT": "", **environment}
        ranks = [common | {"LOCAL_RANK": str(rank)} for rank in range(processes)] if processes > 1 else [common]
        ranks[-1] |= of_last_rank
        pids = self.ask(words=words, folder=str(folder), log=str(log), environments=ranks)
        self.running.append(pids[0])
        return Run(self, pids, log)

    def close(self) -> None:
        """End it, and what still runs."""
        for leader in self.running:
            os.killpg(leader, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self.logs.cleanup()


class ForkServers:
    """Two of them that take turns and hash differently, so that no run depends on the order of a set."""

    def __init__(self) -> None:
        self.all = [ForkServer(hash_seed) for hash_seed in (1, 2)]
        self.turns = cycle(self.all)

    def start(
        self,
        words: list[str],
        folder: Path,
        processes: int = 1,
        environment: dict[str, str] | None = None,
        of_last_rank: dict[str, str] | None = None,
    ) -> Run:
        """`kyon-pl WORDS` in a folder, so many ranks; see fork_server.py for what their environment can ask for."""
        return next(self.turns).start(words, folder, processes, environment or {}, of_last_rank or {})

    def fit(self, folder: Path, way: Way, kill_at: str = "", *words: str) -> tuple[list[int], str]:
        """The same command, always: what it exits with, and what it says.

        Args:
            folder: with what `write_inputs` wrote.
            way: for the number of processes.
            kill_at: see kill_at.py.
            words: more of the command line.
        """
        command = ["fit", "--config", "run.yaml", *words]
        run = self.start(command, folder, way.processes, {"KILL_AT": kill_at})
        return run.wait(), run.said()


def only_run(folder: Path) -> Path:
    """The run folder; that a run goes on in its own folder is part of what is tested."""
    (run,) = (folder / "lightning_logs").iterdir()
    return run


@contextmanager
def fork_servers() -> Iterator[ForkServers]:
    """Both, ended at the end of the block."""
    servers = ForkServers()
    try:
        yield servers
    finally:
        for server in servers.all:
            server.close()
