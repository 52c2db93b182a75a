"""Callbacks for several ranks: random numbers that do not depend on the rank, and checks that the ranks agree."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
import zlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from kyon_pl.errors import MachineError, SettingError
from kyon_pl.runs.fingerprint import shorten

log = logging.getLogger(__name__)

# ranks notice a lost rank within moments of each other
BARRIER_TIMEOUT = timedelta(seconds=10)
EXIT_WAIT_S = 3


class Randomness(Callback):
    """Seeds torch for every micro-batch, so that resumed runs need no saved random state.

    Args:
        seed: seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the generators of CPU and devices, without synchronizing.

        The seed depends on the run's seed, the epoch and the micro-batch's number over all ranks.
        """
        micro_batch = batch_idx * trainer.world_size + trainer.global_rank
        torch.manual_seed(derive_seed(self.seed, trainer.current_epoch, micro_batch))


def derive_seed(*numbers: int) -> int:
    """A 64-bit seed derived from non-negative integers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class Ranks(Callback):
    """Checks that all ranks have the same versions, settings, base, data and adapter, and names a lost rank.

    Args:
        identity: returns what must be equal on all ranks; called after base and data are on disk.
        timeout: timeout of the strategy's process group.
    """

    def __init__(self, identity: Callable[[], dict[str, str]], timeout: timedelta) -> None:
        self.identity = identity
        self.timeout = timeout
        self.group: dist.ProcessGroup | None = None
        self.processes: list[tuple[str, int]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare the ranks, and log the timeout.

        Raises:
            SettingError: a rank differs from rank 0; the message names the rank and the key.
        """
        if stage != "fit" or trainer.world_size == 1:
            return
        self.group = dist.new_group(backend="gloo", timeout=self.timeout)
        self.processes = self._gather(trainer, (socket.gethostname(), os.getpid()))
        check_equal_ranks(self._gather(trainer, self.identity()))
        message = "ranks: %d with equal settings; a rank that does not answer for %s stops the run (trainer.strategy)"
        log.info(message, trainer.world_size, self.timeout)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the trained weights, since not every strategy broadcasts them from rank 0.

        Raises:
            SettingError: as `setup`.
        """
        if self.group is not None:
            check_equal_ranks(self._gather(trainer, {"trained weights": checksum(pl_module)}))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Log the explanation of a failed communication, and set it as its `__cause__`.

        Logged at once: where Lightning has started the ranks, it kills this process some seconds after another one has
        ended, often before the command line can say why.
        """
        if self.group is not None and is_communication_error(exception):
            exception.__cause__ = explanation = self._explain()
            log.error("%s", explanation)

    def _gather(self, trainer: Trainer, own: Any) -> list[Any]:
        gathered: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(gathered, own, group=self.group)
        return gathered

    def _explain(self) -> MachineError:
        fix = "See the last lines of that rank's log; the same command resumes from the last checkpoint"
        if ended := self._ended_ranks():
            found = "its process has ended: it was killed, or it stopped with an error of its own"
            return MachineError(list_ranks(ended), found, fix)
        found = f"no answer after up to {self.timeout} (timeout of trainer.strategy)"
        return MachineError(list_ranks(self._silent_ranks()), found, fix)

    def _ended_ranks(self) -> list[int]:
        """The ranks of this machine whose process has ended; a rank that stops with an error takes some seconds."""
        local = {rank: pid for rank, (host, pid) in enumerate(self.processes) if host == socket.gethostname()}
        until_s = time.monotonic() + EXIT_WAIT_S
        while not (ended := [rank for rank, pid in local.items() if has_ended(pid)]) and time.monotonic() < until_s:
            time.sleep(0.1)
        return ended

    def _silent_ranks(self) -> list[int]:
        """The ranks that do not answer. Only rank 0 learns about all ranks; the others learn about rank 0."""
        try:
            dist.monitored_barrier(self.group, BARRIER_TIMEOUT, wait_all_ranks=True)
        except RuntimeError as error:
            failed = re.search(r"Ranks? ([\d, ]+) failed to pass", str(error))
            return [int(rank) for rank in failed[1].split(",")] if failed else []
        return []


def check_equal_ranks(identities: list[Mapping[str, str]]) -> None:
    """Check that all ranks equal rank 0.

    Args:
        identities: one dictionary per rank.

    Raises:
        SettingError: a rank differs.
    """
    first = identities[0]
    for rank, other in enumerate(identities):
        different = [
            f"{key} is {other.get(key, 'unset')}, but {first.get(key, 'unset')} on rank 0"
            for key in sorted(first.keys() | other.keys())
            if first.get(key) != other.get(key)
        ]
        if different:
            fix = "Start all ranks with the same command, and the same versions of this package and its libraries"
            raise SettingError(f"rank {rank}", shorten(different), fix)


def checksum(module: torch.nn.Module) -> str:
    """CRC-32 of all trained parameters."""
    crc = 0
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            crc = zlib.crc32(parameter.detach().cpu().numpy().tobytes(), zlib.crc32(name.encode(), crc))
    return f"CRC {crc:08x}"


def is_communication_error(exception: BaseException) -> bool:
    """Whether an error comes from gloo or NCCL; gloo raises RuntimeErrors that name its source files."""
    return isinstance(exception, dist.DistError) or (isinstance(exception, RuntimeError) and "gloo" in str(exception))


def has_ended(pid: int) -> bool:
    """Whether a process of this machine has ended; zombies count as ended on Linux."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] in "ZX"


def list_ranks(ranks: list[int]) -> str:
    """`rank 2`, or `ranks 1, 2`."""
    if not ranks:
        return "rank 0, or a rank that it names"
    names = ", ".join(map(str, ranks))
    return f"ranks {names}" if len(ranks) > 1 else f"rank {names}"
