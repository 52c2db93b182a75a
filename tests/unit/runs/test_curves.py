"""The order in which TensorBoard's files of one run are read."""

from __future__ import annotations

from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from kyon_pl.runs.curves import event_files, read_curves


def write_events(folder: Path, name: str, start: int, values: dict[int, float]) -> None:
    """A file that begins at a step, as one of a run that goes on does."""
    writer = EventFileWriter(str(folder / name))
    writer.add_event(Event(step=start, session_log=SessionLog(status=SessionLog.START)))
    for step, value in values.items():
        writer.add_event(Event(step=step, summary=Summary(value=[Summary.Value(tag="loss", simple_value=value)])))
    writer.close()
    (file,) = (folder / name).iterdir()
    file.rename(folder / f"events.out.tfevents.{name}")
    (folder / name).rmdir()


def test_files_are_read_in_the_order_in_which_they_were_begun(tmp_path: Path) -> None:
    """The second of a run that was killed behind step 3 comes after the first: numbers are no texts."""
    names = ["999.host.7.11", "1000.host.7.9", "1000.host.7.10", "1000.host.12.0"]
    write_events(tmp_path, names[2], 2, {2: 5.0})
    write_events(tmp_path, names[1], 1, {1: 1.0, 2: 2.0, 3: 3.0})
    write_events(tmp_path, names[0], 0, {1: 9.0})
    write_events(tmp_path, names[3], 3, {4: 6.0})
    assert [file.name.removeprefix("events.out.tfevents.") for file in event_files(tmp_path)] == names
    assert read_curves(tmp_path) == {"loss": [(1, 1.0), (2, 5.0), (4, 6.0)]}


def test_no_files_are_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == {}
