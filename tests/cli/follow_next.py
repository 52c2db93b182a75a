"""Types what the commands say is next: from a card or a chat log to a reply in `kyon-pl chat -p`.

    python tests/cli/follow_next.py card.png roles/Pell 'Where is the tower?'

Only `import-role` is typed by hand. Each later command is the first `next:` line of the one before, with the options of
`TEST_SIZED` added: the demo's base in place of ChatGLM2-6B, a CPU in place of a GPU, fewer epochs, and one question.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

ROAD = ["import-role", "build-data", "preview", "fit", "chat"]
TEST_SIZED = {
    "preview": ["--model.base", "demo"],
    "fit": ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.max_epochs", "4"],
    "chat": ["--max_new_tokens", "32"],
}


def follow_next(file: str, role: str, question: str) -> str:
    """The reply at the end of the road.

    Raises:
        SystemExit: a command failed, or said another next command than that of `ROAD`.
    """
    words = ["import-role", file, "--output", role]
    for command, following in zip(ROAD, [*ROAD[1:], None], strict=True):
        words += TEST_SIZED.get(command, []) + ([] if following else ["-p", question])
        print(f"$ {shlex.join(['kyon-pl', *words])}", flush=True)
        run = subprocess.run([sys.executable, "-m", "kyon_pl", *words], capture_output=True, text=True, check=False)
        if run.returncode:
            sys.exit(f"exit status {run.returncode}\n{run.stderr}")
        if following:
            said = re.search(r"^next: kyon-pl (.+)$", run.stderr, re.MULTILINE)
            words = shlex.split(said[1]) if said else []
            if words[:1] != [following]:
                sys.exit(f"no `next: kyon-pl {following}`\n{run.stderr}")
    return run.stdout.strip()


if __name__ == "__main__":
    print(follow_next(*sys.argv[1:]))
