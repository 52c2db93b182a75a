"""`kyon-pl push`: uploads an adapter or a merged model with a model card to the Hub, after checking its files."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]
from peft import get_peft_model
from transformers import GlmForCausalLM

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM
from kyon_pl.chatglm2.checkpoint import check_weights
from kyon_pl.chatglm2.configuration import read_config
from kyon_pl.chatglm2.files import weight_files
from kyon_pl.chatglm2.glm import read_glm_config
from kyon_pl.demo import fetch_base_config
from kyon_pl.errors import CheckpointError, KyonError, SettingError
from kyon_pl.files import entry, explained, read_json_object
from kyon_pl.hub.download import LICENCE_FILES, TOKENIZER_FILES, checked_requests
from kyon_pl.logs import from_here, replace_control_characters
from kyon_pl.lora.saved import check_fit, check_ranks, read_adapter, weights_file
from kyon_pl.publish.model_card import gguf_files, hub_id, model_card
from kyon_pl.publish.repository import prepare_repository, push_errors, repository_url
from kyon_pl.runs.adapters import SETTINGS, adapter_base, find_adapter
from kyon_pl.runs.integrity import EXPORT_RECORD, MARKER, check_format_version, fault_of_adapter, size_and_sha256
from kyon_pl.runs.prompt_format import PROMPT_FORMAT, read_prompt_format

log = logging.getLogger(__name__)

CARD = "README.md"
# not uploaded by default: the marker of a complete checkpoint, and files with paths of this machine
LEFT_OUT = (MARKER, "config.yaml", EXPORT_RECORD)
# beside the weights, what kyon-pl, PEFT and transformers write; other files of the folder are not ours to publish
WRITTEN = (
    *(
        SETTINGS,
        "Modelfile",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
    ),
    *(*TOKENIZER_FILES, "tokenizer.json", "added_tokens.json", "chat_template.jinja", *LICENCE_FILES, *LEFT_OUT),
    PROMPT_FORMAT,
)
_SHOWN_NAMES = 5
_EXPORT_AGAIN = "Export it again; do not publish this one"


def push(
    repo_id: str,
    adapter: str | None = None,
    which: Literal["best", "last"] | None = None,
    base: str | None = None,
    private: bool = True,
    revision: str | None = None,
    commit_message: str | None = None,
    allow_patterns: list[str] | None = None,
    ignore_patterns: list[str] | None = None,
    delete_patterns: list[str] | None = None,
    dry_run: bool = False,
) -> None:
    """Push an adapter or a merged model to the Hub, with a model card.

    The files are checked first and uploaded as one commit: weights, settings, tokenizer and licence. Other files of the
    folder are named, and not sent. The token comes from HF_TOKEN or from `hf auth login`.

    Args:
        repo_id: USER/NAME; a NAME alone goes to the account of the token. The repository is created if needed.
        adapter: a PEFT folder, a run folder, a folder of runs, a checkpoint, or a folder of `merge` or
            `convert-adapter --to gguf`; unset, the newest run here.
        which: the checkpoint to use of a run, best (by validation loss) or last; by default the best, or the last if
            nothing was validated.
        base: the Hub id of the base, if the adapter names a folder of this machine.
        private: whether a new repository is private; an existing one is not changed.
        revision: the branch; unset, main.
        commit_message: unset, it names the adapter and its step.
        allow_patterns: upload only these of the files, such as `*.safetensors`.
        ignore_patterns: do not upload these files; unset, COMPLETE, config.yaml and kyon_pl.json, which describe this
            machine.
        delete_patterns: delete these files of the repository in the same commit.
        dry_run: show the files and the card, and upload nothing.

    Raises:
        MissingFileError: no such adapter, or the Hub cannot be reached.
        CheckpointError: the files are incomplete, or differ from what was saved.
        SettingError: no token, no write access, a conflict, or no files to upload.
    """
    folder = find_export(adapter, which)
    check_export(folder)
    base = base or base_name(folder)
    ignored = LEFT_OUT if ignore_patterns is None else ignore_patterns
    files = files_to_upload(folder, allow_patterns, ignored)
    if dry_run:
        _print_dry_run(folder, files, str(model_card(folder, repo_id if "/" in repo_id else f"USER/{repo_id}", base)))
        return
    if not hub_id(base):
        log.warning("the base %s is not an id on the Hub: others cannot find it; name it with --base", base)
    api = HfApi()
    with push_errors(repo_id), checked_requests():
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        parent = prepare_repository(api, repo_id, "model", private, revision)
    additions = _additions(folder, files, str(model_card(folder, repo_id, base)), base)
    message = commit_message or f"{folder.name}, with kyon-pl push"
    with push_errors(repo_id):
        deletions = _deletions(api, repo_id, revision, delete_patterns, keep=[*files, CARD])
        commit = api.create_commit(
            repo_id, [*deletions, *additions], commit_message=message, revision=revision, parent_commit=parent
        )
    url = repository_url(repo_id, "model")
    if commit.oid == parent:
        log.info("nothing new: %s already has all files of %s", url, from_here(folder))
        return
    megabytes = sum((folder / file).stat().st_size for file in files) / 1e6
    log.info("pushed %d files (%.1f MB) of %s: %s", len(additions), megabytes, from_here(folder), url)


def find_export(name: str | None, which: Literal["best", "last"] | None) -> Path:
    """The folder to upload: the folder of a merged model, or what `find_adapter` returns."""
    folder = Path(name) if name else None
    merged = folder and ((folder / "config.json").is_file() or gguf_files(folder))
    if folder and merged and not (folder / SETTINGS).is_file():
        return folder
    return find_adapter(name, which)


def base_name(folder: Path) -> str | None:
    """The base that an adapter's settings or a merged model's record name."""
    for name, key in ((SETTINGS, "base_model_name_or_path"), (EXPORT_RECORD, "base")):
        if (folder / name).is_file():
            base = read_json_object(folder / name).get(key)
            return base if isinstance(base, str) else None
    return None


def files_to_upload(folder: Path, allow: Sequence[str] | None, ignore: Sequence[str]) -> list[str]:
    """Names of weights and of `WRITTEN` in the folder that match the patterns, without README.md: the card replaces it.

    Raises:
        SettingError: no file matches.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    is_adapter = (folder / SETTINGS).is_file()
    weights = [weights_file(folder)] if is_adapter else gguf_files(folder) or weight_files(folder)
    ours = {*WRITTEN, CARD, *(file.name for file in weights)}
    if others := [name for name in names if name not in ours]:
        more = f" and {len(others) - _SHOWN_NAMES:,} more" if len(others) > _SHOWN_NAMES else ""
        log.warning("not sent, since no part of the model: %s%s", ", ".join(others[:_SHOWN_NAMES]), more)
    allowed = None if allow is None else list(allow)
    written = [name for name in names if name in ours and name != CARD]
    kept = [str(name) for name in filter_repo_objects(written, allow_patterns=allowed, ignore_patterns=list(ignore))]
    if not kept:
        raise SettingError("--allow_patterns", f"no file of {folder} matches the patterns", "Remove the patterns")
    return kept


def _print_dry_run(folder: Path, files: Sequence[str], card: str) -> None:
    for name in files:
        print(f"{(folder / name).stat().st_size:>15,}  {replace_control_characters(name)}")
    print(f"{len(card.encode()):>15,}  {CARD}\n\n{replace_control_characters(card)}")
    log.info("dry run: no files of %s were uploaded", from_here(folder))


def _additions(folder: Path, files: Sequence[str], card: str, base: str | None) -> list[CommitOperationAdd]:
    """The files and the card, without paths of this machine.

    The adapter's settings name the base by its public id, or a folder by its name alone.
    """
    contents: dict[str, Any] = {name: folder / name for name in files}
    contents[CARD] = card.encode()
    public = base if base is None or hub_id(base) else Path(base).name
    if SETTINGS in contents and public != base_name(folder):
        settings = read_json_object(folder / SETTINGS) | {"base_model_name_or_path": public}
        contents[SETTINGS] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    if PROMPT_FORMAT in contents and (prompts := read_prompt_format(folder)):
        contents[PROMPT_FORMAT] = prompts.without_locations().text().encode()
    return [CommitOperationAdd(name, content) for name, content in contents.items()]


def _deletions(
    api: HfApi, repo_id: str, revision: str | None, patterns: Sequence[str] | None, keep: Sequence[str]
) -> list[CommitOperationDelete]:
    """The repository's files that match the patterns and are not uploaded again."""
    if not patterns:
        return []
    names = [name for name in api.list_repo_files(repo_id, revision=revision) if name not in {*keep, ".gitattributes"}]
    return [CommitOperationDelete(name) for name in filter_repo_objects(names, allow_patterns=list(patterns))]


def check_export(folder: Path) -> None:
    """Check that a folder can be loaded and holds what was saved.

    Args:
        folder: a PEFT folder, or the folder of a merged model.

    Raises:
        MissingFileError: a file is missing.
        CheckpointError: a file differs from what was saved, weights do not fit the settings or the base, or an adapter
            is untrained; the message names the tensor or file.
    """
    if (folder / SETTINGS).is_file():
        check_adapter(folder)
    else:
        check_merged(folder)


def check_adapter(folder: Path) -> None:
    """Check an adapter's checksum, settings, names, shapes and dtypes, and that no `lora_B` is zero.

    Raises:
        MissingFileError: the weights are missing.
        CheckpointError: as `check_export`.
    """
    if (folder / MARKER).is_file() and (fault := fault_of_adapter(folder)):
        raise CheckpointError(str(folder), fault, _EXPORT_AGAIN)
    config, state = read_adapter(folder)
    file = weights_file(folder)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})
    if len(dtypes) > 1:
        raise CheckpointError(str(file), f"its tensors have several dtypes: {', '.join(dtypes)}", _EXPORT_AGAIN)
    for name, tensor in state.items():
        partner = name.replace(".lora_A.", ".lora_B.") if ".lora_A." in name else name.replace(".lora_B.", ".lora_A.")
        if partner not in state:
            raise CheckpointError(f"{file}: {partner}", "it is missing", _EXPORT_AGAIN)
        if ".lora_B." in name and not tensor.any():
            raise CheckpointError(f"{file}: {name}", "it is all zero: this layer is untrained", _EXPORT_AGAIN)
    if base_config := _base_config(folder, state):
        with torch.device("meta"):
            model = ChatGLM2ForCausalLM(base_config)
        config.base_model_name_or_path = None  # PEFT would warn that it differs from the model's own name
        check_ranks(folder, config, state)
        with explained("PEFT", folder, _EXPORT_AGAIN):
            wrapped = get_peft_model(model, config)
        check_fit(folder, wrapped, state)


def check_merged(folder: Path) -> None:
    """Check a merged model's checksums, if recorded, and its names and shapes against its `config.json`.

    Raises:
        MissingFileError: the weights or a shard are missing.
        CheckpointError: as `check_export`.
    """
    file = folder / EXPORT_RECORD
    if file.is_file():
        record = read_json_object(file)
        check_format_version(record, file)
        for name, sha256 in entry({"files": {}} | record, "files", dict, file).items():
            if not (folder / name).is_file():
                raise CheckpointError(str(folder / name), "it is missing", _EXPORT_AGAIN)
            if size_and_sha256(folder / name)["sha256"] != sha256:
                raise CheckpointError(str(folder / name), "it is not what was written", _EXPORT_AGAIN)
    if gguf_files(folder):  # written by merge or convert-adapter, which have read it again; or by llama-quantize
        return
    if read_json_object(folder / "config.json").get("model_type") == "glm":
        check_weights(folder, read_glm_config(folder), GlmForCausalLM)
    else:
        check_weights(folder, read_config(folder))


def _base_config(folder: Path, state: dict[str, torch.Tensor]) -> ChatGLM2Config | None:
    """The configuration of the base; None if it cannot be read or the adapter's names are not ChatGLM2's."""
    if not any(".transformer.encoder." in name for name in state):
        return None
    try:
        return read_config(fetch_base_config(adapter_base(folder), None))
    except KyonError as error:
        log.warning("the adapter was not compared with its base: %s", error)
        return None
