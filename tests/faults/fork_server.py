"""A process that has imported everything and forks a child for each run: a real process that really dies, without
seconds of imports first.

It reads requests from standard input and answers on standard output, one JSON object a line:

    {"words": [...], "folder": ..., "log": ..., "environments": [{...}, ...]}  ->  [pid, ...]
        `kyon-pl WORDS` in that folder, once for each environment, all in one process group that the first one leads;
        of an environment, PYTHONPATH comes first where packages are looked for, and MORE_WORDS behind the words
    {"wait": [pid, ...]}  ->  [status, ...]
        as subprocess has them: negative for a signal
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch.utils.tensorboard  # noqa: F401  # the logger imports it late

import kyon_pl.cli.lightning_cli  # noqa: F401  # the command imports it late too
from kyon_pl.cli import main

ALLOWED = [word for module in ("kill_at", "held_weights", "count_bytes") for word in ("--allow_code", module)]
"""The callbacks of these tests, which a config may not name otherwise."""


def serve() -> None:
    """Answer requests until there are none; in a child, return with everything set for its run."""
    assert threading.active_count() == 1, "a process with threads cannot be forked"
    for line in sys.stdin:
        request = json.loads(line)
        answer: list[int] = []
        if "wait" in request:
            answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in request["wait"]]
        for environment in request.get("environments", []):
            pid = os.fork()
            if pid == 0:
                return become(request, environment)
            answer.append(pid)
            os.setpgid(pid, answer[0])
        print(json.dumps(answer), flush=True)
    raise SystemExit


def become(request: dict[str, Any], environment: dict[str, str]) -> None:
    """Make this child the process that a shell would have started."""
    os.chdir(request["folder"])
    log, nothing = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(ours, theirs)
    os.environ.update(environment)
    sys.path[:0] = [environment["PYTHONPATH"]] if "PYTHONPATH" in environment else []
    words = [*request["words"], *ALLOWED, *environment.get("MORE_WORDS", "").split()]
    sys.argv = [str(Path(sys.executable).with_name("kyon-pl")), *words]


if __name__ == "__main__":
    serve()
    main()
