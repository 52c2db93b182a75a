"""Every command in the README is run, with the substitutions that are named here and no others."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from limits import HANG_S

from kyon_pl.cli import main
from kyon_pl.cli.messages import known_settings
from kyon_pl.demo import ASSETS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.+)$", README, re.MULTILINE)
SNIPPETS = re.findall(r"```python\n(.+?)```", README, re.DOTALL)

# the reference run in small: another base, other rows (tests/cli/test_hub_run.py has the real ids), a few steps, a CPU
SMALL_LORA = "--model.base demo --data.source demo --trainer.max_steps 2 --trainer.limit_train_batches 4"
SMALL_LORA += " --trainer.limit_val_batches 2 --trainer.accelerator cpu --data.tokens_per_step 4096 --data.workers 0"
SUBSTITUTIONS = [
    # make sets up another environment: its recipes are run here by hand, and whole by continuous integration
    (r"^make demo$", "kyon-pl fit --config configs/demo.yaml --trainer.limit_train_batches 2"),
    (r"^make test$", f"{sys.executable} -m pytest --collect-only -q tests/unit/test_error_kinds.py"),
    # several GPUs: two processes are tests/cli/test_ddp.py's
    (r" --trainer.devices 4$", ""),
    # for GPUs: test_speed_settings.py among the GPU tests has the formats, test_compile.py compiles on a CPU
    (
        r"(configs/overlay/(?:bf16|fp8|qlora).yaml)$",
        r"\1 --model.quantization null",
    ),
    (r"(kyon-pl fit --config configs/lora.yaml)", rf"\1 {SMALL_LORA}"),
    (
        r"--model.base demo --data.source demo (.*)--data.source ('.+?'|\w+.jsonl)",
        r"--model.base demo \1--data.source \2",
    ),
    (r"(configs/lora.yaml)(?!.*--trainer.precision)(.*)$", r"\1\2 --trainer.precision 32-true"),
    # the newest run is that of the reader's own character
    (r"(--ckpt_path last .*)$", r"\1 --data.source bo.jsonl"),
    # there is no GPU, and so no good end
    (r"^kyon-pl doctor --config configs/lora.yaml", "kyon-pl doctor --config configs/demo.yaml"),
    # nobody is there to type: tests/cli/test_chat.py has a terminal
    (r"^kyon-pl chat( --character \S+ --asker \S+)?$", r"kyon-pl chat\1 -p 'Is it far?' --max_new_tokens 8"),
    # the servers would not end: tests/cli/test_web.py and tests/cli/test_serve.py have them
    (r"^kyon-pl (web .*)$", rf"{sys.executable} -m kyon_pl \1 --help"),
    (r"^transformers serve .*$", "transformers serve --help"),
    # tests/cli/test_chat_server.py has the chat; here llama.cpp loads the file and adds a token
    (r"^llama-server -m (\S+) -c 4096$", rf"{sys.executable} tests/llama_cpp.py \1"),
    (r"^kyon-pl (chat --server .*)$", rf"{sys.executable} -m kyon_pl \1 --help"),
    # the server would not end
    (r"^tensorboard --logdir", "tensorboard --inspect --logdir"),
    (r"^kyon-pl (validate|predict)(.*)$", r"kyon-pl \1\2 --trainer.limit_\1_batches 1 --trainer.logger false"),
    (r"^(kyon-pl predict.*)$", r"\1 --model.max_new_tokens 8"),
    (r"trainer.limit_validate_batches", "trainer.limit_val_batches"),
]


def substituted(command: str) -> str:
    for pattern, replacement in SUBSTITUTIONS:
        command = re.sub(pattern, replacement, command)
    return command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README's reader has: the configs and rows of their own."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "tests").symlink_to(ROOT / "tests")
    (folder / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    with (ASSETS / "train.jsonl").open(encoding="utf-8") as rows:
        (folder / "rows.jsonl").write_text("".join(islice(rows, 100)), encoding="utf-8")
    return folder


def test_commands_are_found() -> None:
    assert len(COMMANDS) == 39
    assert "kyon-pl fit --config configs/lora.yaml" in COMMANDS


@pytest.fixture(scope="module")
def run_up_to(folder: Path) -> Callable[[int], None]:
    """Runs the README's commands up to one, in their order: what one writes, the next one reads."""
    commands = iter(enumerate(COMMANDS))
    done: set[int] = set()

    def run(last: int) -> None:
        while last not in done:
            number, command = next(commands)
            run_command(command, folder)
            done.add(number)

    return run


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=[command[:60] for command in COMMANDS])
def test_command_runs(
    number: int, folder: Path, run_up_to: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    try:
        run_up_to(number)
    except StopIteration:
        pytest.fail("a command before this one failed")


def run_command(command: str, folder: Path) -> None:
    words = shlex.split(substituted(command))
    if words[0] == "kyon-pl":
        main(words[1:])
        name_last_checkpoint(folder)
    elif words[0] == "source":  # the environment that the tests run in is active
        return
    elif words[0] in ("mkdir", "echo"):  # the reader's own files
        subprocess.run(command, shell=True, check=True)
    else:
        program = Path(sys.executable).parent / words[0]  # an absolute path stays as it is
        run = subprocess.run([program, *words[1:]], capture_output=True, text=True, timeout=HANG_S)
        assert run.returncode == 0, f"{command}\n{run.stdout[-1000:]}{run.stderr[-2000:]}"


def name_last_checkpoint(folder: Path) -> None:
    """The README writes LAST where a number stands; so that its commands run as they are, here LAST is a name too."""
    checkpoints = folder / "lightning_logs/version_0/checkpoints"
    if not (checkpoints / "LAST").exists():
        newest = max(checkpoints.glob("step=*.ckpt"))
        (checkpoints / "LAST.ckpt").symlink_to(newest)
        (checkpoints / "LAST").symlink_to(newest.with_suffix(""))


def test_every_snippet_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert len(SNIPPETS) == 1
    for snippet in SNIPPETS:
        exec(snippet.replace('"THUDM/chatglm2-6b"', f'"{ASSETS / "base"}"'), {})


def test_the_chinese_readme_says_the_same() -> None:
    """As far as a machine can tell: what is typed, run, shown and tested; two sections refer to the English one."""
    chinese = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    english = re.sub(r"## (What is where|From train.py).+?(?=\n## )", "", README, flags=re.DOTALL)
    for pattern in (
        r"^```.*?^```$",
        r"\]\((docs/[^)]+)\)",
        r"`(tests/[\w/.]+\.py)`",
        r"`((?:data|model|trainer)\.\w+)`",
    ):
        found = [re.findall(pattern, text, re.MULTILINE | re.DOTALL) for text in (english, chinese)]
        assert found[0]
        assert found[0] == found[1]
    assert len(re.findall("^## ", english, re.MULTILINE)) == len(re.findall("^## ", chinese, re.MULTILINE))


def test_tree_names_what_is_there() -> None:
    tree = re.search(r"## What is where\n\n```\n(.+?)```", README, re.DOTALL)
    assert tree
    for line in tree[1].splitlines():
        assert (ROOT / line.split()[0]).exists(), line


def test_named_tests_and_pictures_exist() -> None:
    named = re.findall(r"`(tests/[\w/.]+\.py)`", README)
    assert len(named) > 10
    named += re.findall(r"\]\((docs/[^)#]+)", README)
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_named_settings_exist() -> None:
    """In the README's own text; the first column of its last table speaks of the original."""
    ours = re.sub(r"^\| [^|]+\|", "", README, flags=re.MULTILINE)
    named = set(re.findall(r"(?:`|--)((?:data|model|trainer)\.\w+)", ours))
    assert len(named) > 20
    assert named <= set(known_settings())
