"""What TensorBoard would draw."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curve = list[tuple[int, float]]


def curves(run: Path) -> dict[str, Curve]:
    """The points of every curve that does not depend on the clock, in the order in which they were written."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    names = [name for name in events.Tags()["scalars"] if not name.endswith("_per_s")]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}
