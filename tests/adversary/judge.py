"""The one judge of all attempts: what may be the end of a command, whatever it was given."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass

from attack import Attack, Ended

from kyon_pl.logs import replace_control_characters

TRACEBACK = re.compile(r"Traceback \(most recent call last\)|Exception ignored in|^Fatal Python error", re.MULTILINE)
FRAME = re.compile(r'File "([^"]+)", line (\d+)')
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069]")
ENDS_BY_SIGNAL = {128 + number for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP)}


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """What is allowed though the judge finds a fault in it.

    Attributes:
        reason: why it is allowed.
        fault: the kind of fault.
        holds: whether it is for this attempt.
    """

    reason: str
    fault: str
    holds: Callable[[Attack, Ended, str], bool]


ALLOWED = (
    Allowed(
        reason="doctor answers with status 1 that something is missing: it is its result",
        fault="status",
        holds=lambda attack, ended, text: (
            attack.command == "doctor" and ended.status == 1 and "cannot work here" in text
        ),
    ),
    Allowed(
        reason="without memory for an allocation the interpreter or a library may be stopped by a signal",
        fault="status",
        holds=lambda attack, ended, text: "AS" in attack.surroundings.limits and (ended.status or 0) < 0,
    ),
    Allowed(
        reason="where standard error is closed, gone or full, Python itself ends with another status",
        fault="status",
        holds=lambda attack, ended, text: (
            ("stderr" in attack.surroundings.streams or is_silenced(attack)) and ended.status in (1, 120, 141)
        ),
    ),
    Allowed(
        reason="without memory a library may wait for a thread that could not be started",
        fault="hang",
        holds=lambda attack, ended, text: "AS" in attack.surroundings.limits,
    ),
    Allowed(
        reason="a config that is cut where the number of epochs stood trains for as many as Lightning's default",
        fault="hang",
        holds=lambda attack, ended, text: attack.kind == "config.yaml" and "cut" in attack.how and "Epoch " in text,
    ),
    Allowed(
        reason="a run over several machines waits for the others",
        fault="hang",
        holds=lambda attack, ended, text: "trainer.num_nodes" in attack.how or "WORLD_SIZE" in attack.how,
    ),
    Allowed(
        reason="what a library says of a name that is no UTF-8 does not have the name; the paragraph asks for UTF-8",
        fault="unnamed",
        holds=lambda attack, ended, text: "use names in UTF-8" in text,
    ),
    Allowed(
        reason="an error of the system at a read has no name of a file in it; only files like /proc/self/mem have such",
        fault="unnamed",
        holds=lambda attack, ended, text: "/proc/self/mem" in attack.how,
    ),
    Allowed(
        reason="an empty or absent name, and a config without settings, mean the default, which a refusal names",
        fault="unnamed",
        holds=lambda attack, ended, text: (
            attack.how.endswith((": nothing", ": no text", ": null"))
            or (attack.kind == "config.yaml" and attack.how.startswith("an empty object"))
        ),
    ),
    Allowed(
        reason="a report is written into the folder of its run, unless another one is named",
        fault="changed",
        holds=lambda attack, ended, text: (
            attack.command == "report" and all("version_0/report" in n for n in ended.changed)
        ),
    ),
    Allowed(
        reason="a refusal on a standard error that is closed or full cannot be read by anybody",
        fault="unsaid",
        holds=lambda attack, ended, text: "stderr" in attack.surroundings.streams or is_silenced(attack),
    ),
)


def is_silenced(attack: Attack) -> bool:
    """Whether the limit for files holds for what the command says, too: here it is kept in files."""
    return attack.surroundings.limits.get("FSIZE", 1 << 20) < 20_000


def faults(attack: Attack, ended: Ended) -> list[str]:
    """What is wrong with the end of an attempt; nothing, if it is one that may be.

    A command ends with status 0; with status 2 and one paragraph on standard error that names the place; or with 128
    and the number of a signal. It shows no traceback and no control character, takes less than `forks.HANG_S`, and
    changes no input.

    Args:
        attack: that was tried.
        ended: what came of it.

    Returns:
        Kinds of fault: `hang`, `traceback`, `status`, `unsaid`, `unnamed`, `control`, `changed`.
    """
    errors = ended.errors.decode(attack.surroundings.encoding, "replace")
    text = errors + ended.output.decode(attack.surroundings.encoding, "replace")
    found = []
    if ended.status is None:
        found.append("hang")
    elif ended.status not in {0, 2} | ENDS_BY_SIGNAL:
        found.append("status")
    if TRACEBACK.search(text):
        found.append("traceback")
    if CONTROL.search(text.replace("\x1b[A", "")):  # tqdm moves between its bars
        found.append("control")
    if ended.changed:
        found.append("changed")
    if ended.status == 2:
        paragraph = (errors.strip().splitlines() or [""])[-1]
        if not paragraph.startswith((f"kyon-pl {attack.command}: ", "kyon-pl: ")):
            found.append("unsaid")
        elif attack.places and not any(is_named(place, paragraph) for place in attack.places):
            found.append("unnamed")
    return [fault for fault in found if not any(e.fault == fault and e.holds(attack, ended, text) for e in ALLOWED)]


def is_named(place: str, paragraph: str) -> bool:
    """Whether a paragraph has the beginning of a name, as a terminal shows it."""
    shown = replace_control_characters(place).replace("\n", "↵")[:40]
    return shown.lower() in paragraph.lower()


def where(ended: Ended) -> str:
    """The innermost place of this package in a traceback, and the last line of it."""
    text = ended.errors.decode("utf-8", "replace") + ended.output.decode("utf-8", "replace")
    frames = [(file, line) for file, line in FRAME.findall(text) if "/kyon_pl/" in file and "/tests/" not in file]
    place = "no frame of the package"
    if frames:
        file, line = frames[-1]
        place = f"{file.rpartition('/kyon_pl/')[2]}:{line}"
    lines = [line for line in text.strip().splitlines() if line.strip()]
    last = next(
        (line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception|Interrupt|Warning)\b", line)), ""
    )
    return f"{place}: {(last or (lines or [''])[-1])[:160]}"
