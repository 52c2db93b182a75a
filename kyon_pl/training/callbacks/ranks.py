"""Ranks that have to agree, and the random numbers that each of them draws."""

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


class Randomness(Callback):
    """Seeds torch anew for every micro-batch, so that a resumed run needs no saved random state, and no device matters.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the generators of CPU and devices from seed, epoch and the micro-batch's number in the plan over all
        ranks; no device is waited for.
        """
        planned = batch_idx * trainer.world_size + trainer.global_rank
        torch.manual_seed(seed_of(self.seed, trainer.current_epoch, planned))


def seed_of(*place: int) -> int:
    """A seed of 64 bits out of whole numbers from 0 up, each of which changes all of it."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])


log = logging.getLogger(__name__)

# the ranks that notice a lost one do so within moments of each other
PATIENCE = timedelta(seconds=10)
ENDING_S = 3


class Ranks(Callback):
    """Refuses ranks of other versions, settings, bases, data or adapters; names a rank that others wait for in vain.

    Args:
        identity: what must be the same on all ranks; called once base and data are there.
        timeout: that the strategy's process group has: how long a rank waits for another.
    """

    def __init__(self, identity: Callable[[], dict[str, str]], timeout: timedelta) -> None:
        self.identity = identity
        self.timeout = timeout
        self.group: dist.ProcessGroup | None = None
        self.processes: list[tuple[str, int]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare the ranks, and say how long they wait for each other.

        Raises:
            SettingError: one is unlike the first; rank and key are named.
        """
        if stage != "fit" or trainer.world_size == 1:
            return
        self.group = dist.new_group(backend="gloo", timeout=self.timeout)
        self.processes = self._gather(trainer, (socket.gethostname(), os.getpid()))
        check_alike(self._gather(trainer, self.identity()))
        text = "ranks: %d, alike; one that keeps the others waiting for %s stops the run (timeout of trainer.strategy)"
        log.info(text, trainer.world_size, self.timeout)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the weights that will be trained, which a strategy need not send from the first rank to the others.

        Raises:
            SettingError: as `setup`.
        """
        if self.group is not None:
            check_alike(self._gather(trainer, {"trained weights": checksum(pl_module)}))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give an exchange that failed its explanation as `__cause__`."""
        if self.group is not None and is_failed_exchange(exception):
            exception.__cause__ = self._explain()

    def _gather(self, trainer: Trainer, own: Any) -> list[Any]:
        gathered: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(gathered, own, group=self.group)
        return gathered

    def _explain(self) -> MachineError:
        fix = "See that rank's own last lines, if it has any; the same command goes on from the last checkpoint"
        if ended := self._ended():
            found = "its process has ended: it was killed from outside, or stopped by an error that it tells itself"
            return MachineError(named(ended), found, fix)
        found = f"no answer, and the others have waited for up to {self.timeout} (timeout of trainer.strategy)"
        return MachineError(named(self._silent()), found, fix)

    def _ended(self) -> list[int]:
        """The ranks of this machine that are no more; one that stops by an error takes some seconds to."""
        own = {rank: pid for rank, (host, pid) in enumerate(self.processes) if host == socket.gethostname()}
        until_s = time.monotonic() + ENDING_S
        while not (ended := [rank for rank, pid in own.items() if gone(pid)]) and time.monotonic() < until_s:
            time.sleep(0.1)
        return ended

    def _silent(self) -> list[int]:
        """The ranks that do not answer; ranks other than the first learn only whether the first does."""
        try:
            dist.monitored_barrier(self.group, PATIENCE, wait_all_ranks=True)
        except RuntimeError as error:
            failed = re.search(r"Ranks? ([\d, ]+) failed to pass", str(error))
            return [int(rank) for rank in failed[1].split(",")] if failed else []
        return []


def check_alike(identities: list[Mapping[str, str]]) -> None:
    """Refuse a rank that is unlike the first.

    Raises:
        SettingError: there is one.
    """
    first = identities[0]
    for rank, other in enumerate(identities):
        unlike = [
            f"{key} is {other.get(key, 'not there')}, and {first.get(key, 'not there')} on rank 0"
            for key in sorted(first.keys() | other.keys())
            if first.get(key) != other.get(key)
        ]
        if unlike:
            fix = "Start all ranks with the same command, and the same versions of this package and its libraries"
            raise SettingError(f"rank {rank}", shorten(unlike), fix)


def checksum(module: torch.nn.Module) -> str:
    """CRC-32 of all trained parameters."""
    crc = 0
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            crc = zlib.crc32(parameter.detach().cpu().numpy().tobytes(), zlib.crc32(name.encode(), crc))
    return f"CRC {crc:08x}"


def is_failed_exchange(exception: BaseException) -> bool:
    """Whether an error is one of gloo or NCCL; gloo's are plain RuntimeErrors with a place in its source."""
    return isinstance(exception, dist.DistError) or (isinstance(exception, RuntimeError) and "gloo" in str(exception))


def gone(pid: int) -> bool:
    """Whether a process of this machine has ended, also one that its parent has not asked for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")  # elsewhere than on Linux such a one counts as running
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] in "ZX"


def named(ranks: list[int]) -> str:
    """Ranks in words."""
    if not ranks:
        return "rank 0, or one that it names"
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
