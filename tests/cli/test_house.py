"""benchmarks/house.py on packages of a few lines, whose numbers are known."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/house.py"

# no module imports one that imports it
PACKAGE = {
    "__init__.py": "",
    "__main__.py": "from kyon_pl.alpha import one\n",
    "single.py": "import kyon_pl.beta\n",
    "alpha/__init__.py": "",
    "alpha/one.py": '''
        from kyon_pl.alpha.two import Two


        @print
        def one():
            """Has a docstring."""

            def inside():
                pass

            return inside
        ''',
    "alpha/two.py": '''
        class Two:
            def method(self):
                """Has a docstring."""

            def _private(self):
                pass

            def __len__(self):
                return 2


        class _Private:
            def method(self):
                pass
        ''',
    "beta.py": "",
}
ALPHA = [["kyon_pl.alpha.one", "kyon_pl.alpha.two"]]
MODULES = [["kyon_pl.alpha.two", "kyon_pl.beta"]]
PACKAGES = [["kyon_pl.alpha", "kyon_pl.beta"]]


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / "kyon_pl" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
    return root


def run(*words: object, script: Path = SCRIPT, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, script, *map(str, words)]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cycles(found: dict[str, Any]) -> list[list[list[str]]]:
    """Of modules, then of first-level packages: at the top level, then with imports inside functions."""
    kinds = ("module_cycles", "module_cycles_with_functions", "package_cycles", "package_cycles_with_functions")
    return [found[kind] for kind in kinds]


def test_numbers(tmp_path: Path) -> None:
    done = run("--root", write(tmp_path, PACKAGE), "--json", "--no-trace")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "files": 7,
        "lines": 0 + 1 + 1 + 0 + 11 + 14 + 0,
        "median_file_lines": 1,
        "largest_file": "kyon_pl/alpha/two.py",
        "largest_file_lines": 14,
        "first_level_modules": 2,
        "first_level_entry_modules": ["__init__", "__main__"],
        "fullest_folder": "kyon_pl",
        "fullest_folder_files": 4,
        "module_cycles": [],
        "module_cycles_with_functions": [],
        "package_cycles": [],
        "package_cycles_with_functions": [],
        "functions": 6,
        "median_function_lines": 2,
        "longest_function": "kyon_pl.alpha.one.one",
        "longest_function_lines": 7,
        "public_definitions": 3,
        "public_definitions_with_docstring": 2,
    }


def test_table_has_the_same_numbers(tmp_path: Path) -> None:
    beta = PACKAGE["beta.py"] + "from kyon_pl.alpha import two\n"
    two = PACKAGE["alpha/two.py"] + "import kyon_pl.beta\n"
    done = run("--root", write(tmp_path, PACKAGE | {"beta.py": beta, "alpha/two.py": two}), "--no-trace")
    rows = dict([cell.strip() for cell in line.split("|")[1:3]] for line in done.stdout.splitlines() if "|" in line)
    assert rows["modules directly in kyon_pl/"] == "2 and __init__ and __main__"
    assert rows["import cycles, modules, top level"] == "1 (of 2)"
    assert rows["lines of the longest function"] == "7: kyon_pl.alpha.one.one"
    assert rows["public definitions with docstring"] == "2 of 3 (66.7%)"
    assert "files that one row passes through" not in rows


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"alpha/two.py": "from kyon_pl.alpha.one import one"}, [ALPHA, ALPHA, [], []]),
        ({"alpha/two.py": "from kyon_pl.alpha import one"}, [ALPHA, ALPHA, [], []]),
        ({"alpha/two.py": "from . import one"}, [ALPHA, ALPHA, [], []]),
        ({"alpha/two.py": "from ..alpha.one import one"}, [ALPHA, ALPHA, [], []]),
        ({"alpha/two.py": "try:\n    import kyon_pl.alpha.one\nexcept ImportError:\n    pass"}, [ALPHA, ALPHA, [], []]),
        ({"alpha/two.py": "def f():\n    from kyon_pl.alpha.one import one"}, [[], ALPHA, [], []]),
        ({"alpha/two.py": "if TYPE_CHECKING:\n    from kyon_pl.alpha.one import one"}, [[], [], [], []]),
        ({"alpha/two.py": "if TYPE_CHECKING:\n    pass\nelse:\n    import kyon_pl.alpha.one"}, [ALPHA, ALPHA, [], []]),
        (
            {"alpha/two.py": "import kyon_pl.beta", "beta.py": "from kyon_pl.alpha.two import Two"},
            [MODULES, MODULES, PACKAGES, PACKAGES],
        ),
        # the packages import each other, their modules do not
        ({"alpha/one.py": "import kyon_pl.beta", "beta.py": "import kyon_pl.alpha.two"}, [[], [], PACKAGES, PACKAGES]),
        (
            {"alpha/two.py": "import kyon_pl.beta", "beta.py": "def f():\n    import kyon_pl.alpha.one"},
            [[], [["kyon_pl.alpha.one", *MODULES[0]]], [], PACKAGES],
        ),
    ],
)
def test_cycles(house: ModuleType, tmp_path: Path, files: dict[str, str], found: list[list[list[str]]]) -> None:
    assert cycles(house.measure(write(tmp_path / "control", PACKAGE))) == [[], [], [], []]
    assert cycles(house.measure(write(tmp_path / "changed", PACKAGE | files))) == found


def test_git_says_which_files(house: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where git itself runs the tests, from a hook, and names another repository in the environment."""
    assert house.measure(write(tmp_path, PACKAGE))["files"] == 7
    for words in (["init", "--quiet"], ["add", "kyon_pl/single.py", "kyon_pl/alpha"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))
    assert house.measure(tmp_path)["files"] == 4


def test_a_folder_without_the_package(house: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no Python files in kyon_pl/"):
        house.measure(tmp_path)


# a row goes through data.py, reading.py, collate.py, model.py and loss.py
TRACED = {
    "__init__.py": "from kyon_pl.data import DialogueDataModule\nfrom kyon_pl.model import ChatGLM2LoRA\n",
    "data.py": """
        from lightning.pytorch import LightningDataModule
        from torch.utils.data import DataLoader

        from kyon_pl.collate import collate
        from kyon_pl.reading import read


        class DialogueDataModule(LightningDataModule):
            def __init__(self, source, tokenizer, workers, processes, cache_dir):
                super().__init__()

            def prepare_data(self):
                pass

            def setup(self, stage=None):
                import kyon_pl.constant
                self.rows = read()

            def train_dataloader(self):
                return DataLoader(self.rows, collate_fn=collate)
        """,
    "reading.py": "def read():\n    return [1.0, 2.0]\n",
    "collate.py": "import torch\n\n\ndef collate(rows):\n    return torch.tensor(rows)\n",
    # imported on the way; what runs during an import is not counted
    "constant.py": "from kyon_pl.registry import register\n\n\nclass Body:\n    number = register()\n",
    "registry.py": "def register():\n    return 1\n",
    "model.py": """
        import torch
        from lightning.pytorch import LightningModule

        from kyon_pl.loss import loss
        from kyon_pl.optimizer import make


        class ChatGLM2LoRA(LightningModule):
            def __init__(self, base):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(()))

            def training_step(self, batch, batch_idx):
                return loss(self.weight * batch)

            def configure_optimizers(self):
                return make(self.parameters())
        """,
    "loss.py": "def loss(output):\n    return output.sum()\n",
    "optimizer.py": "import torch\n\n\ndef make(parameters):\n    return torch.optim.SGD(parameters, lr=1.0)\n",
}


@pytest.mark.slow
def test_files_that_a_row_passes_through(tmp_path: Path) -> None:
    done = run("--root", write(tmp_path, TRACED), "--json")
    assert done.returncode == 0, done.stderr
    passed = ["collate", "data", "loss", "model", "reading"]
    assert json.loads(done.stdout)["row_files"] == [f"kyon_pl/{name}.py" for name in passed]


@pytest.mark.slow
def test_batches_that_no_loader_makes_are_refused(tmp_path: Path) -> None:
    """Their files would be missing from the count."""
    data = TRACED["data.py"].replace("DataLoader(self.rows, collate_fn=collate)", "map(collate, [self.rows])")
    done = run("--root", write(tmp_path, TRACED | {"data.py": data}))
    assert done.returncode != 0
    assert "RuntimeError: not called: __iter__, __next__" in done.stderr


@pytest.mark.slow
def test_files_that_a_row_of_this_package_passes_through() -> None:
    from kyon_pl import ChatGLM2ForCausalLM, ChatGLM2LoRA, DialogueDataModule

    done = run("--root", ROOT, "--json")
    assert done.returncode == 0, done.stderr
    found = set(json.loads(done.stdout)["row_files"])
    for passed in (ChatGLM2ForCausalLM, ChatGLM2LoRA, DialogueDataModule):
        assert f"{passed.__module__.replace('.', '/')}.py" in found
    assert not found & {"kyon_pl/cli.py", "kyon_pl/__init__.py"}
    assert not [name for name in found if "callbacks" in name]
