"""Attacks on the process: every command × what a terminal, a disk, a user or a limit does to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attack import Attack, Surroundings
from keys import BASIS, NEEDS
from world import World

STREAMS = ("closed", "gone", "full")
LONG = "n" * 250
ODD_NAMES = {
    "a space": "a b",
    "brackets": "[a] {b} *",
    "a quote": "a'b\"c",
    "a line feed": "a\nb",
    "escapes": "a\x1b]0;PWNED\x07b",
    "Chinese": "凉宫 春日",
    "no UTF-8": "a\udcffb",
    "a dash first": "-x",
    "255 bytes": "n" * 248,
    "300 letters": "n" * 300,
    "5,000 letters": "n" * 5000,
    "another user's home": "~nobody/x",
    "the home of nobody": "~nobody-here/x",
    "a tilde": "~/x",
    "a variable": "$HOME/x",
    "in a file": "../in/config.yaml/x",
    "in /proc": "/proc/x",
    "in /dev/full": "/dev/full",
    "in a folder that is not there": "a/b/c/d/x",
    "a folder of the system": "/proc",
    "a dot": ".",
    "nothing": "",
}
UNWRITABLE = ("/proc/x", "/dev/null", "/dev/null/x", "", "locked/x", "n" * 5000)
READ_LATE = ("TERM=dumb COLUMNS=x", "COLUMNS=0", "COLUMNS=-5", "NO_COLOR=1", "TZ=x", "MPLBACKEND=x")
READ_BY_IMPORTS = (
    "LC_ALL=C",
    "PYTHONUTF8=0 LC_ALL=POSIX PYTHONCOERCECLOCALE=0",
    "SLURM_PROCID=x",
    "RANK=x",
    "LOCAL_RANK=-1",
    "WORLD_SIZE=x RANK=0",
    "SLURM_NTASKS=x SLURM_JOB_ID=1",
    "OMP_NUM_THREADS=x",
    "HF_ENDPOINT=x",
    "HF_TOKEN=\x01",
    "CUDA_VISIBLE_DEVICES=9",
)
OUTPUTS = {
    "fit": ("--trainer.default_root_dir", ""),
    "merge": ("--output", ""),
    "convert-adapter": ("--output", ""),
    "report": ("--output", ""),
    "build-data": ("--output", ".jsonl"),
    "preview": ("--png", ".png"),
}
INPUTS = {
    "fit": (
        "--data.source",
        "--model.base",
        "--model.adapter",
        "--ckpt_path",
        "--data.cache_dir",
        "--data.bad_rows_file",
        "--config",
        "--model.random_config",
    ),
    "validate": ("--ckpt_path", "--data.validation_source"),
    "predict": ("--replies.path", "--ckpt_path"),
    "chat": ("--adapter", "--base", "--character"),
    "merge": ("--adapter", "--base"),
    "convert-adapter": ("--adapter", "--base"),
    "push": ("--adapter",),
    "report": ("--runs",),
    "build-data": ("--characters", "--dialogues", "--bad_rows_file", "--tokenizer"),
    "preview": ("--data.source", "--data.cache_dir", "--config"),
    "doctor": ("--config", "--model.base"),
}


def surroundings() -> Iterator[tuple[str, Surroundings]]:
    """Each with what it is called."""
    for stream in ("stdin", "stdout", "stderr"):
        for end in STREAMS[: 1 if stream == "stdin" else 3]:
            yield f"{stream} {end}", Surroundings(streams={stream: end})
    yield "all streams closed", Surroundings(streams=dict.fromkeys(("stdin", "stdout", "stderr"), "closed"))
    yield "stdin is binary", Surroundings(streams={"stdin": "/bin/true"})
    for encoding in ("ascii", "latin-1", "gbk", "cp1252", "utf-16"):
        yield f"output in {encoding}", Surroundings(encoding=encoding)
    for limit, values in {
        "NOFILE": (8, 16, 64),
        "FSIZE": (0, 1000, 20_000, 500_000),
        "AS": (0, 30 << 20, 200 << 20),
        "NPROC": (1,),
        "STACK": (200_000,),
        "CPU": (30,),
    }.items():
        for value in values:
            yield f"limit {limit} {value}", Surroundings(limits={limit: value}, powerless=limit == "NPROC")
    for size in (4, 40, 200, 1000):
        yield f"a disk of {size} KiB", Surroundings(disk_kib=size)
    yield "a read-only disk", Surroundings(read_only=True)
    yield "an output folder of mode 555", Surroundings(powerless=True, out_mode=0o555)
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        for place in UNWRITABLE:
            yield f"{name}={place[:20]}", Surroundings(environment={name: place}, powerless=True)
    for text in READ_LATE:
        yield text, Surroundings(environment=dict(pair.split("=", 1) for pair in text.split()))


def environments() -> Iterator[tuple[str, Surroundings]]:
    """What imports read, each with what it is called: these need a process of their own."""
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        for place in UNWRITABLE:
            yield f"{name}={place[:20]}", Surroundings(environment={name: place}, own_process=True, powerless=True)
    for text in READ_BY_IMPORTS:
        pairs = dict(pair.split("=", 1) for pair in text.split())
        encoding = "ascii" if "LC_ALL" in text else "utf-8"
        yield repr(text), Surroundings(environment=pairs, own_process=True, encoding=encoding)


def odd_processes(world: World) -> Iterator[Attack]:
    """Every command × what may be odd about a process."""
    yield from _processes(world, "process", surroundings())


def odd_environments(world: World) -> Iterator[Attack]:
    """Every command × every environment that is read by imports."""
    yield from _processes(world, "environment", environments())


def _processes(world: World, kind: str, around: Iterator[tuple[str, Surroundings]]) -> Iterator[Attack]:
    for how, ours in around:
        for command, basis in BASIS.items():
            make = _make(world, command, basis.split())
            yield Attack(kind=kind, how=how, command=command, make=make, surroundings=ours)


def odd_names(world: World) -> Iterator[Attack]:
    """Every option that takes a path × every odd name; of outputs also an existing file or folder of that name."""
    for command, options in INPUTS.items():
        for option in options:
            for how, name in ODD_NAMES.items():
                yield _named(world, command, option, how, name)
    for command, (option, suffix) in OUTPUTS.items():
        for how, name in ODD_NAMES.items():
            yield _named(world, command, option, how, name + suffix if name else name)


def _named(world: World, command: str, option: str, how: str, name: str) -> Attack:
    words = [*BASIS[command].split(), f"{option}={name}"]
    places = (
        option.rpartition(".")[2].lstrip("-"),
        name[:20] or "config",
        "in/config",
        "/proc",
        "path",
        "home/x",
        "/nonexistent",
    )
    return Attack(
        kind="names of paths", how=f"{option}: {how}", command=command, make=_make(world, command, words), places=places
    )


def _make(world: World, command: str, words: list[str]) -> object:
    def make(folder: Path) -> list[str]:
        world.lend(folder, *NEEDS, *(["runs"] if command == "report" else []))
        (folder / "out/locked").mkdir(mode=0o500)
        return words

    return make
