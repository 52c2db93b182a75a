"""Size and structure of kyon_pl in a checkout, and the files that one row passes through from its source to the loss.

    python benchmarks/house.py [--json] [--root DIR] [--no-trace]

Files are the Python files of kyon_pl/ that git tracks; outside git, and where git tracks none of them, all. Lines
include blank lines and comments. A function's lines include its docstring, not its decorators; functions inside
functions are counted too. Public are functions, classes and methods without a leading underscore, special methods left
out, that are not inside a function or a private class.

An import cycle is a group of modules that all reach each other through imports (a strongly connected component).
`from package import name` imports the module `package.name` where there is one, else `package/__init__.py`. That
Python executes `__init__.py` on the way to a submodule is not counted as an import. Imports under `if TYPE_CHECKING`
and names in strings (`import_module`) are ignored. A first-level package is a package or module directly in kyon_pl/.

The files of the row are traced by `house_row.py` in a process of its own; its docstring says what is counted.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

PACKAGE = "kyon_pl"
ENTRY_MODULES = ("__init__", "__main__")
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
Graph = dict[str, set[str]]
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def python_files(root: Path) -> list[Path]:
    """The package's Python files, relative to the root."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--", PACKAGE]
    settings = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # hooks have GIT_DIR
    listed = subprocess.run(command, env=settings, capture_output=True, text=True, check=False).stdout.split("\0")
    tracked = [Path(name) for name in listed if name.endswith(".py") and (root / name).is_file()]
    return sorted(tracked or (file.relative_to(root) for file in (root / PACKAGE).rglob("*.py")))


def module_name(file: Path) -> str:
    """The dotted name of a file's module."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, package: str, in_function: bool = False) -> Iterator[tuple[str, bool]]:
    """Each imported name with its module, dotted, and whether the import stands inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", in_function) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from imported(ast.Module(node.orelse, []), package, in_function)
        else:
            yield from imported(node, package, in_function or isinstance(node, FUNCTION))


def import_graphs(trees: dict[Path, ast.Module]) -> tuple[Graph, Graph]:
    """Which module imports which: at the top level; and with the imports inside functions."""
    modules = {module_name(file) for file in trees}
    top_level, everywhere = ({module: set[str]() for module in sorted(modules)} for _ in range(2))
    for file, tree in trees.items():
        module = module_name(file)
        package = module if file.stem == "__init__" else module.rpartition(".")[0]
        for name, in_function in imported(tree, package):
            target = next((known for known in (name, name.rpartition(".")[0]) if known in modules), module)
            for graph in (everywhere,) if in_function else (everywhere, top_level):
                graph[module] |= {target} - {module}
    return top_level, everywhere


def of_packages(graph: Graph) -> Graph:
    """The same imports between first-level packages."""
    merged: Graph = defaultdict(set)
    for module, targets in graph.items():
        package = ".".join(module.split(".")[:2])
        merged[package] |= {".".join(target.split(".")[:2]) for target in targets} - {package}
    return dict(merged)


def cycles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one node, the largest first."""
    reached: Graph = {}
    for start in graph:
        found, waiting = set[str](), [*graph[start]]
        while waiting:
            if (node := waiting.pop()) not in found:
                found.add(node)
                waiting += graph[node]
        reached[start] = found
    components = {frozenset(node for node in reached[start] if start in reached[node]) for start in graph}
    return sorted((sorted(component) for component in components if component), key=lambda names: (-len(names), names))


def definitions(tree: ast.AST, prefix: str, public: bool = True) -> Iterator[tuple[str, Definition, bool]]:
    """Each function and class with its dotted name, and whether it is public."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition):
            shown = public and not node.name.startswith("_")
            yield f"{prefix}.{node.name}", node, shown
            yield from definitions(node, f"{prefix}.{node.name}", shown and isinstance(node, ast.ClassDef))
        else:
            yield from definitions(node, prefix, public)


def _length(node: Definition) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def measure(root: Path) -> dict[str, Any]:
    """What can be counted without executing code. Files are relative to the root; a cycle is a list of its modules.

    Raises:
        FileNotFoundError: it has no Python files in kyon_pl/.
    """
    texts = {file: (root / file).read_text(encoding="utf-8") for file in python_files(root)}
    if not texts:
        raise FileNotFoundError(f"{root} has no Python files in {PACKAGE}/")
    trees = {file: ast.parse(text) for file, text in texts.items()}
    file_lines = {file.as_posix(): len(text.splitlines()) for file, text in texts.items()}
    first_level = [file.stem for file in texts if file.parent == Path(PACKAGE)]
    folder, files_in_folder = Counter(file.parent.as_posix() for file in texts).most_common(1)[0]
    found = [item for file, tree in trees.items() for item in definitions(tree, module_name(file))]
    functions = [(_length(node), name) for name, node, _ in found if isinstance(node, FUNCTION)]
    public = [node for _, node, shown in found if shown]
    top_level, everywhere = import_graphs(trees)
    return {
        "files": len(texts),
        "lines": sum(file_lines.values()),
        "median_file_lines": median(file_lines.values()),
        "largest_file": max(file_lines, key=file_lines.__getitem__),
        "largest_file_lines": max(file_lines.values()),
        "first_level_modules": sum(name not in ENTRY_MODULES for name in first_level),
        "first_level_entry_modules": [name for name in first_level if name in ENTRY_MODULES],
        "fullest_folder": folder,
        "fullest_folder_files": files_in_folder,
        "module_cycles": cycles(top_level),
        "module_cycles_with_functions": cycles(everywhere),
        "package_cycles": cycles(of_packages(top_level)),
        "package_cycles_with_functions": cycles(of_packages(everywhere)),
        "functions": len(functions),
        "median_function_lines": median([lines for lines, _ in functions] or [0]),
        "longest_function": max(functions, default=(0, ""))[1],
        "longest_function_lines": max(functions, default=(0, ""))[0],
        "public_definitions": len(public),
        "public_definitions_with_docstring": sum(ast.get_docstring(node) is not None for node in public),
    }


def row_files(root: Path) -> list[str]:
    """The files that a row passes through, from a process that imports kyon_pl from that checkout.

    Raises:
        RuntimeError: the training step failed; the text has what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = {"PYTHONPATH": str(root), "HF_HOME": folder, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(Path(__file__).resolve().with_name("house_row.py"))]
        run = subprocess.run(command, cwd=folder, env=os.environ | settings, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"the traced training step failed:\n{run.stderr}")
    return sorted(Path(name).relative_to(root).as_posix() for name in json.loads(run.stdout.splitlines()[-1]))


def table(found: dict[str, Any]) -> str:
    """The measures as a table in Markdown."""
    first_level = [str(found["first_level_modules"]), *found["first_level_entry_modules"]]
    documented, public = found["public_definitions_with_docstring"], found["public_definitions"]
    rows = [
        ("files, and their lines", f"{found['files']}, and {found['lines']}"),
        ("lines of a file, median", f"{found['median_file_lines']:g}"),
        ("lines of the largest file", f"{found['largest_file_lines']}: {found['largest_file']}"),
        (f"modules directly in {PACKAGE}/", " and ".join(first_level)),
        ("files of the fullest folder", f"{found['fullest_folder_files']}: {found['fullest_folder']}/"),
        ("import cycles, modules, top level", _sizes(found["module_cycles"])),
        ("import cycles, modules, with functions", _sizes(found["module_cycles_with_functions"])),
        ("import cycles, first-level packages, top level", _sizes(found["package_cycles"])),
        ("import cycles, first-level packages, with functions", _sizes(found["package_cycles_with_functions"])),
        ("functions", str(found["functions"])),
        ("lines of a function, median", f"{found['median_function_lines']:g}"),
        ("lines of the longest function", f"{found['longest_function_lines']}: {found['longest_function']}"),
        ("public definitions with docstring", f"{documented} of {public} ({documented / max(1, public):.1%})"),
    ]
    if "row_files" in found:
        rows.append(("files that one row passes through", str(len(found["row_files"]))))
    lines = [f"| {name:51} | {value} |" for name, value in [("measure", "value"), ("---", "---"), *rows]]
    return "\n".join([*lines, "", "`with functions` includes imports inside functions; `if TYPE_CHECKING` is ignored."])


def _sizes(groups: list[list[str]]) -> str:
    return str(len(groups)) + (f" (of {', '.join(str(len(names)) for names in groups)})" if groups else "")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON, with the names behind the counts")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="of the checkout")
    parser.add_argument("--no-trace", action="store_true", help="leave out the files that one row passes through")
    options = parser.parse_args()
    root = options.root.resolve()
    found = measure(root) | ({} if options.no_trace else {"row_files": row_files(root)})
    print(json.dumps(found, indent=2) if options.json else table(found))


if __name__ == "__main__":
    main()
