"""The strategy of several devices that hold a copy of the base each."""

from __future__ import annotations

from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy

DDP_TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others; it must exceed the longest validation or save."""


def adapter_ddp() -> DDPStrategy:
    """DDP that communicates the gradients of the adapter and nothing else.

    Every rank reads the same base, so it need not be broadcast; `Ranks` compares what is trained. Buckets are small
    parts of the adapter, so that communication overlaps the backward pass.
    """
    return DDPStrategy(timeout=DDP_TIMEOUT, gradient_as_bucket_view=True, bucket_cap_mb=4, init_sync=False)
