"""Every command of the README and of the pages it leads to is run, with the substitutions that are named here."""

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
from png_card import encoded, png

from kyon_pl.cli import main
from kyon_pl.cli.messages import known_settings
from kyon_pl.demo import ASSETS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("training", "data", "chat", "share")  # in this order
IN_CHINESE = ("training", "chat", "share", "troubleshooting")
ENGLISH = "\n".join([README, *((ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in PAGES)])
COMMANDS = re.findall(r"^\$ (.+)$", ENGLISH, re.MULTILINE)
TALK = "".join(f"<START>\n{{{{user}}}}: Is it far?\n{{{{char}}}}: {100 * turn} strokes.\n" for turn in range(1, 9))
SNIPPETS = re.findall(r"```python\n(.+?)```", README, re.DOTALL)

# the reference run in small: another base, other rows (tests/cli/test_hub_run.py has the real ids), a few steps, a CPU
SMALL_LORA = "--model.base demo --data.source demo --trainer.max_steps 2 --trainer.limit_train_batches 4"
SMALL_LORA += " --trainer.limit_val_batches 2 --trainer.accelerator cpu --data.tokens_per_step 4096 --data.workers 0"
SUBSTITUTIONS = [
    # make sets up another environment: its recipe is run here by hand, and whole by continuous integration
    (r"^make demo$", "kyon-pl fit --config configs/demo.yaml --trainer.limit_train_batches 2"),
    # a character of one's own, on a CPU
    (
        r"^kyon-pl fit --config character (.*)$",
        r"kyon-pl fit --config character \1 --model.base demo --trainer.accelerator cpu --trainer.precision 32-true "
        "--trainer.max_steps 2 --data.workers 0",
    ),
    (r"^(kyon-pl preview --config character .*)$", r"\1 --model.base demo"),
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
    # the newest run is that of the reader's own rows
    (r"(--ckpt_path last .*)$", r"\1 --data.source rows.jsonl"),
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
    # a page that would not end, and endpoints: tests/cli/test_judge.py and tests/cli/test_judge_page.py have them
    (r"^kyon-pl (judge.*)$", rf"{sys.executable} -m kyon_pl \1 --help"),
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
    data = {"name": "Bo", "description": "Bo rows the ferry of a small harbour.", "mes_example": TALK}
    (folder / "Bo.png").write_bytes(png(tEXt_chara=encoded({"spec": "chara_card_v2", "data": data})))
    return folder


def test_commands_are_found() -> None:
    assert len(COMMANDS) == 56
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


@pytest.mark.parametrize("page", ["", *IN_CHINESE])
def test_the_chinese_page_says_the_same(page: str) -> None:
    """As far as a machine can tell: what is typed and run, which tests and settings are named, and all sections."""
    names = (f"docs/{page}.md", f"docs/zh/{page}.md") if page else ("README.md", "README.zh-CN.md")
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in names]
    patterns = (
        r"^```.*?^```$",
        r"`(tests/[\w/.]+\.py)`",
        r"`((?:data|model|trainer)\.\w+)`",
        r"\]\([\w/.]*?(\w+\.\w+)\)",
    )
    for pattern in patterns:
        english, chinese = (re.findall(pattern, text, re.MULTILINE | re.DOTALL) for text in texts)
        other_language = {"CN.md", f"{page}.md", "README.md", "report.png", "report_zh.png"}
        assert sorted({*english} - other_language) == sorted({*chinese} - other_language), pattern
    assert len(re.findall("^## ", texts[0], re.MULTILINE)) == len(re.findall("^## ", texts[1], re.MULTILINE))


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_a_readme_is_short(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 160


def test_named_files_exist() -> None:
    """What pages link to, and the tests that they name."""
    missing, named = [], 0
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = page.read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
        tests = re.findall(r"`(tests/[\w/.]+\.py)`", text)
        named += len(links) + len(tests)
        missing += [(page.name, link) for link in links if not (page.parent / link).exists()]
        missing += [(page.name, test) for test in tests if not (ROOT / test).is_file()]
    assert named > 100
    assert missing == []


def test_named_settings_exist() -> None:
    named = set(re.findall(r"(?:`|--)((?:data|model|trainer)\.\w+)", ENGLISH))
    assert len(named) > 20
    assert named <= set(known_settings())
