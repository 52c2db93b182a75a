"""The whole road on a fresh clone: a card and a chat log, and each command from the `next:` line of the one before."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from limits import HANG_S
from own_character import CHARACTER
from png_card import encoded, png

from kyon_pl.demo.corpus import exchange
from kyon_pl.demo.grammar import CHARACTERS, Speaker
from kyon_pl.demo.world import ASKERS, facts

ROOT = Path(__file__).parents[2]
PELL = next(speaker for speaker in CHARACTERS if speaker.name == "Pell")


def dialogues(speaker: Speaker, asker: str, separator: str) -> str:
    """Ten questions, each answered by the character."""
    rng = Random(5)
    known = [fact for fact in facts(speaker.language) if fact.intent in speaker.replies]
    return separator.join("\n".join(exchange(rng, speaker, fact, asker)) for fact in rng.sample(known, 10))


def card() -> bytes:
    examples = "<START>\n" + dialogues(PELL, "{{user}}", "\n<START>\n")
    data = {"name": "Pell", "description": PELL.system_prompt, "mes_example": examples}
    return png(tEXt_chara=encoded({"spec": "chara_card_v2", "spec_version": "2.0", "data": data}))


def chat_log() -> bytes:
    return dialogues(CHARACTER, ASKERS["zh"][0], "\n\n").encode()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("road") / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "role", "question"),
    [
        ("Pell.png", card(), "roles/Pell", "Where is the tower?"),
        ("log.txt", chat_log(), f"roles/{CHARACTER.name}", "钟楼在哪里？"),
    ],
    ids=["card", "chat log"],
)
def test_each_command_leads_to_the_next(clone: Path, name: str, content: bytes, role: str, question: str) -> None:
    (clone / name).write_bytes(content)
    script = [sys.executable, "tests/cli/follow_next.py", name, role, question]
    environment = os.environ | {"PYTHONPATH": str(clone)}
    road = subprocess.run(script, cwd=clone, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert road.returncode == 0, road.stdout + road.stderr
    print(road.stdout)
    *commands, reply = road.stdout.splitlines()
    assert len(commands) == 5
    assert f"--character {shlex.quote(role)}" in commands[-1]
    assert reply
