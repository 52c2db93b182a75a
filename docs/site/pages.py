"""A hook of MkDocs: pages that stand elsewhere in the repository, and the reference, which is made of docstrings."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
FROM_ELSEWHERE = {
    "index.md": "README.md",
    "zh/index.md": "README.zh-CN.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
REFERENCE = {
    "Model and training": (
        "kyon_pl.ChatGLM2LoRA",
        "kyon_pl.DialogueDataModule",
        "kyon_pl.chatglm2.ChatGLM2ForCausalLM",
    ),
    "Callbacks": ("kyon_pl.training.callbacks.StepCheckpoint", "kyon_pl.training.callbacks.AdapterAverage"),
    "Chat": ("kyon_pl.chat.loading",),
}
_LINK = re.compile(r"(\]\(|src=\"|href=\")(?!https?:|#)([^)#\"]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for page, source in FROM_ELSEWHERE.items():
        files.append(File.generated(config, page, content=_moved((ROOT / source).read_text(encoding="utf-8"), page)))
    for example in sorted((ROOT / "examples").iterdir()):
        if example.suffix in (".py", ".ipynb"):
            files.append(File.generated(config, f"examples/{example.name}", abs_src_path=str(example)))
    parts = ["# Reference"]
    for title, names in REFERENCE.items():
        parts += [f"## {title}", *(f"::: {name}" for name in names)]
    files.append(File.generated(config, "reference.md", content="\n\n".join(parts) + "\n"))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Examples lie beside docs/ in the repository, and in it on the site."""
    if page.file.src_uri in FROM_ELSEWHERE:
        return markdown
    return markdown.replace("](../examples/", "](examples/").replace("](../../examples/", "](../examples/")


def _moved(text: str, page: str) -> str:
    """A text of the top of the repository, with links as the page of the site needs them."""
    return _LINK.sub(lambda match: match[1] + _from_page(match[2], page), text)


def _from_page(target: str, page: str) -> str:
    """A link of a file at the top of the repository, as the page of the site needs it."""
    up = "../" * page.count("/")
    pages = {source: name for name, source in FROM_ELSEWHERE.items()}
    if target in pages:
        return up + pages[target]
    if target.startswith("docs/"):
        return up + target.removeprefix("docs/")
    return up + target
