"""`kyon-pl push` with the real client against a local Hub."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import HubServer
from huggingface_hub import ModelCard
from peft import LoraConfig
from published_layout import tiny_config, write_published_layout
from push_asker import TOKEN, PushAsker
from safetensors.torch import load_file, save_file
from torch.utils.tensorboard import SummaryWriter
from web_host import write_small_adapter

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM, ChatGLMTokenizer
from kyon_pl.demo import BASE
from kyon_pl.export.convert_adapter import convert_adapter
from kyon_pl.export.merge import merge
from kyon_pl.lora import attach_lora, load_adapter, write_adapter
from kyon_pl.runs.checkpoint_io import AdapterCheckpointIO
from kyon_pl.runs.integrity import size_and_sha256
from kyon_pl.runs.prompt_format import PromptFormat, RoleFormat

MODEL, DATA = "THUDM/chatglm2-6b", "silk-road/Chat_Suzumiya_Fusion"
WEIGHTS = "adapter_model.safetensors"
ROLE = RoleFormat(
    *("You are Bo.", "{asker}:{words}", "Ada", "fixed", "###", "auto"),
    *(8, 1000, 500, "tokens", "likeness", "0, CRC 00000000", "/home/me/roles/Bo"),
)
SETTINGS = {
    "seed_everything": 2023,
    "trainer": {"precision": "16-mixed", "max_epochs": 2, "max_steps": -1},
    "model": {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}}},
    "data": {"source": [DATA, "/home/me/private/rows.jsonl"], "batching": "packed", "tokens_per_batch": 8192},
}


def tiny_base() -> ChatGLM2ForCausalLM:
    torch.manual_seed(0)
    return ChatGLM2ForCausalLM(tiny_config(padded_vocab_size=len(ChatGLMTokenizer.from_pretrained(BASE)))).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: best at step 20, last at step 30, curves, and an adapter with weights that are not zero."""
    folder = tmp_path_factory.mktemp("run") / "version_0"
    model = attach_lora(tiny_base(), LoraConfig(r=2, target_modules=["query_key_value"]), MODEL)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def write(_: object, beside: Path) -> None:
        write_adapter(model, state, beside)
        ChatGLMTokenizer.from_pretrained(BASE).save_pretrained(beside)

    best = {"monitor": "val/loss", "best_model_path": "best.ckpt", "best_model_score": torch.tensor(1.25)}
    for name, step in {"best": 20, "step=30": 30}.items():
        checkpoint = {"global_step": step, "state_dict": {}, "callbacks": {"ModelCheckpoint": best}}
        writer = AdapterCheckpointIO(write, yaml.dump(SETTINGS), PromptFormat("raw", roles={"Bo": ROLE}))
        writer.save_checkpoint(checkpoint, folder / f"checkpoints/{name}.ckpt")
    with SummaryWriter(str(folder)) as curves:
        for step, loss in {0: 4.5, 20: 1.25, 30: 1.5}.items():
            curves.add_scalar("val/loss", loss, step)
            curves.add_scalar("val/perplexity", 2**loss, step)
        curves.add_scalar("train/loss", 2.0, 10)
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    base = write_published_layout(
        tmp_path_factory.mktemp("base"), tiny_base(), tokenizer_model=BASE / "tokenizer.model", shards=2
    )
    with HubServer(models={MODEL: base, "other/theirs": base}, token=TOKEN) as hub:
        yield hub


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be modified."""
    return shutil.copytree(run, tmp_path / "version_0")


def content(hub: HubServer, repo_id: str) -> dict[str, bytes]:
    files = hub.repositories["models", repo_id].files
    return {name: file.content.read_bytes() for name, file in files.items()}


def written(hub: HubServer) -> int:
    """Number of write requests."""
    return len(hub.asked("POST *")) + len(hub.asked("PUT *"))


@pytest.mark.parametrize("flag", [["--dry-run"], ["--dry_run", "true"]])
def test_dry_run_shows_files_and_card_and_uploads_nothing(
    hub: HubServer, kyon_pl: PushAsker, run: Path, flag: list[str]
) -> None:
    before = written(hub)
    answer = kyon_pl("push", *flag, "--repo_id", "shown", "--adapter", str(run), token=None)
    assert answer.status == 0, answer.err
    for name in (WEIGHTS, "adapter_config.json", "tokenizer.model", "README.md", "# shown", "USER/shown"):
        assert name in answer.out
    assert "COMPLETE" not in answer.out
    assert "were uploaded" in answer.err
    assert written(hub) == before


def test_pushed_files_and_card_work(hub: HubServer, kyon_pl: PushAsker, run: Path) -> None:
    answer = kyon_pl("push", "--repo_id", "haruhi", "--adapter", str(run))
    assert answer.status == 0, answer.err
    assert f"{hub.endpoint}/kyon/haruhi" in answer.err
    assert "kyon/haruhi" in hub.private
    sent, folder = content(hub, "kyon/haruhi"), run / "checkpoints/best"
    assert {WEIGHTS, "adapter_config.json", "tokenizer.model"} <= sent.keys()
    assert not {"COMPLETE", "config.yaml"} & sent.keys()
    changed = {".gitattributes", "README.md", "prompt_format.yaml"}
    assert all(data == (folder / name).read_bytes() for name, data in sent.items() if name not in changed)
    assert hub.commits[-1][2] == "best, with kyon-pl push"
    assert not [request for request in hub.asked("PUT *") if request.authorized], "storage gets no token"

    card = ModelCard(sent["README.md"].decode())
    assert (card.data.base_model, card.data.license, card.data.library_name) == (MODEL, "other", "peft")
    assert card.data.datasets == [DATA]
    assert {(result.metric_type, result.metric_value) for result in card.data.eval_results} == {
        ("loss", 1.25),
        ("perplexity", 2.3784),
    }
    for said in ("after optimizer step 20", "| 20 | 2.0000 | 1.2500 |", "| lora.r | 2 |", "16-mixed", "`rows.jsonl`"):
        assert said in card.text
    assert not [name for name, data in sent.items() if str(run.parents[2]).encode() in data or b"/home/me" in data]

    snippet = card.text.partition("```python\n")[2].partition("```")[0].replace('device_map="auto"', 'device_map="cpu"')
    checked = (
        snippet
        + """
assert model.peft_config["default"].r == 2
from kyon_pl.runs.adapters import find_adapter
from kyon_pl.runs.prompt_format import read_prompt_format
assert read_prompt_format(find_adapter("kyon/haruhi")).roles["Bo"].asker == "Ada"
print(find_adapter("kyon/haruhi"))
"""
    )
    answer = kyon_pl("python", checked)
    assert answer.status == 0, answer.err
    fetched = Path(answer.out.splitlines()[-1])
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        theirs, ours = (load_adapter(tiny_base(), place, MODEL).eval()(ids).logits for place in (fetched, folder))
    assert torch.equal(theirs, ours)


def test_second_push_makes_a_commit_unless_nothing_changed(hub: HubServer, kyon_pl: PushAsker, copy: Path) -> None:
    def push(*words: str) -> str:
        answer = kyon_pl("push", "--repo_id", "kyon/again", "--adapter", str(copy), *words)
        assert answer.status == 0, answer.err
        return answer.err

    push("--private", "false")
    assert "kyon/again" not in hub.private
    first = len(hub.commits)
    assert "nothing new" in push("--private", "false")
    assert len(hub.commits) == first
    assert "already exists and is public" in push("--which", "last", "--commit_message", "the last one")
    assert len(hub.commits) == first + 1
    assert hub.commits[-1][2] == "the last one"
    assert b"after optimizer step 30" in content(hub, "kyon/again")["README.md"]


def test_patterns(hub: HubServer, kyon_pl: PushAsker, run: Path) -> None:
    def push(*words: str) -> set[str]:
        answer = kyon_pl("push", "--repo_id", "patterns", "--adapter", str(run), *words)
        assert answer.status == 0, answer.err
        return content(hub, "kyon/patterns").keys() - {".gitattributes"}

    assert push("--allow_patterns", '["adapter_*"]') == {"README.md", "adapter_config.json", WEIGHTS}
    assert push("--ignore_patterns", '["token*", "*.jinja"]') == {
        *("README.md", "adapter_config.json", WEIGHTS, "COMPLETE", "config.yaml", "prompt_format.yaml"),
    }
    words = ("--allow_patterns", '["adapter_*"]', "--delete_patterns", '["*.yaml", "COMPLETE", "adapter_*"]')
    assert push(*words) == {"README.md", "adapter_config.json", WEIGHTS}
    answer = kyon_pl("push", "--repo_id", "patterns", "--adapter", str(run), "--allow_patterns", '["*.nothing"]')
    assert (answer.status, "no file of" in answer.err) == (2, True)


def test_files_that_happen_to_lie_there_are_named_and_not_sent(hub: HubServer, kyon_pl: PushAsker, copy: Path) -> None:
    """Not by a pattern either."""
    folder = copy / "checkpoints/best"
    strange = (".env", ".git/config", "id_rsa", "other.safetensors", "samples/adapter_config.json", "notes\x1b[31m.txt")
    for name in strange:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("SECRET=1")
    for words in ([], ["--allow_patterns", '["*"]']):
        answer = kyon_pl("push", "--repo_id", "strange", "--adapter", str(folder), *words)
        assert answer.status == 0, answer.err
        sent = content(hub, "kyon/strange")
        assert {WEIGHTS, "adapter_config.json", "tokenizer.model"} <= sent.keys()
        assert not {*strange} & sent.keys()
        [line] = [line for line in answer.err.splitlines() if "not sent" in line]
        assert ".env, .git/config, id_rsa" in line
        assert "and 1 more" in line


def test_local_base_warns_and_base_option_names_it(hub: HubServer, kyon_pl: PushAsker, copy: Path) -> None:
    folder = copy / "checkpoints/best"
    base = write_published_layout(copy.parent / "my-base", tiny_base(), shards=1)
    settings = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    answer = kyon_pl("push", "--repo_id", "local", "--adapter", str(folder))
    assert "is not an id on the Hub: others cannot find it; name it with --base" in answer.err
    card = ModelCard(content(hub, "kyon/local")["README.md"].decode())
    assert card.data.base_model is None
    assert str(copy.parent) not in card.content
    kyon_pl("push", "--repo_id", "local", "--adapter", str(folder), "--base", MODEL)
    sent = content(hub, "kyon/local")
    assert json.loads(sent["adapter_config.json"])["base_model_name_or_path"] == MODEL
    assert ModelCard(sent["README.md"].decode()).data.base_model == MODEL


@pytest.mark.parametrize(
    ("repo_id", "fault", "token", "said"),
    [
        ("conflict", ("POST */commit/main", 412), TOKEN, "the repository changed during the push (412)"),
        ("conflict", ("POST */commit/main", 409), TOKEN, "the repository changed during the push (409)"),
        ("refused", None, "hf_wrong", "the Hub rejects the token of this machine (401)"),
        ("refused", None, None, "there is no token on this machine"),
        ("other/theirs", None, TOKEN, "this token has no write access (403)"),
        ("other/new", None, TOKEN, "this token has no write access (403)"),
        ("a b", None, TOKEN, "is not the name of a repository"),
        ("broken", ("POST */commit/main", 500), TOKEN, "the Hub cannot accept the push now (500"),
    ],
)
def test_hub_errors_are_explained(
    hub: HubServer, kyon_pl: PushAsker, run: Path, repo_id: str, fault: tuple[str, int] | None, token: str, said: str
) -> None:
    if fault:
        hub.fail(fault[0], status=fault[1])
    commits = list(hub.commits)
    answer = kyon_pl("push", "--repo_id", repo_id, "--adapter", str(run), token=token)
    assert answer.status == 2, answer.err
    assert said in answer.err
    assert "Traceback" not in answer.err
    assert hub.commits == commits


def test_concurrent_commit_is_not_overwritten(hub: HubServer, kyon_pl: PushAsker, run: Path, tmp_path: Path) -> None:
    """A commit between reading the repository and committing."""
    kyon_pl("push", "--repo_id", "race", "--adapter", str(run))
    (tmp_path / "theirs.txt").write_text("theirs")
    real = hub.take_fault

    def publish_first(request: str) -> object:
        if request == "POST /api/models/kyon/race/commit/main":
            hub.publish("models", "kyon/race", tmp_path)
        return real(request)

    hub.take_fault = publish_first  # type: ignore[method-assign, assignment]
    answer = kyon_pl("push", "--repo_id", "race", "--adapter", str(run), "--which", "last")
    hub.take_fault = real  # type: ignore[method-assign]
    assert (answer.status, "the repository changed during the push (412)" in answer.err) == (2, True)
    assert content(hub, "kyon/race") == {"theirs.txt": b"theirs"}


def test_unresponsive_hub_times_out(hub: HubServer, kyon_pl: PushAsker, run: Path) -> None:
    hub.stall("GET /api/whoami-v2", after_bytes=-1)
    answer = kyon_pl("push", "--repo_id", "silent", "--adapter", str(run))
    assert (answer.status, "the Hub cannot be reached (ReadTimeout" in answer.err) == (2, True), answer.err


State = dict[str, torch.Tensor]


def of_b(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], State]:
    return lambda state: {name: change(value) if ".lora_B." in name else value for name, value in state.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (of_b(torch.zeros_like), "lora_B.weight: it is all zero: this layer is untrained"),
        (of_b(torch.Tensor.half), "its tensors have several dtypes: float16, float32"),
        (of_b(lambda b: b[:-1].contiguous()), "lora_B.weight: (63, 2) instead of (64, 2)"),
        (lambda state: dict(list(state.items())[1:]), "lora_A.weight: it is missing"),
        (lambda state: {k: v for k, v in state.items() if "layers.0" in k}, "layers.1.self_attention.query_key_value"),
        (lambda state: state | {k.replace("layers.1", "layers.7"): v + 1 for k, v in state.items()}, "no such layer"),
    ],
)
def test_broken_adapter_is_not_pushed(
    hub: HubServer, kyon_pl: PushAsker, copy: Path, change: Callable[[State], State], said: str
) -> None:
    folder, before = copy / "checkpoints/best", written(hub)
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    answer = kyon_pl("push", "--repo_id", "bad", "--adapter", str(folder))
    assert (answer.status, "is not what was written" in answer.err) == (2, True), "its checksum differs"
    (folder / "COMPLETE").unlink()
    answer = kyon_pl("push", "--repo_id", "bad", "--adapter", str(folder))
    assert answer.status == 2, answer.err
    assert said in answer.err
    assert written(hub) == before


def test_a_merged_model(hub: HubServer, kyon_pl: PushAsker, tmp_path: Path) -> None:
    tiny_base().save_pretrained(tmp_path)
    sums = {path.name: size_and_sha256(path)["sha256"] for path in tmp_path.iterdir()}
    (tmp_path / "kyon_pl.json").write_text(json.dumps({"base": MODEL, "files": sums}))
    words = ("push", "--repo_id", "merged", "--adapter", str(tmp_path))
    answer = kyon_pl(*words)
    assert answer.status == 0, answer.err
    sent = content(hub, "kyon/merged")
    assert sent.keys() == {".gitattributes", "README.md", "config.json", "generation_config.json", "model.safetensors"}
    card = ModelCard(sent["README.md"].decode())
    assert (card.data.base_model, card.data.base_model_relation, card.data.library_name) == (
        MODEL,
        "finetune",
        "transformers",
    )
    assert 'ChatGLM2ForCausalLM.from_pretrained("kyon/merged"' in card.text
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"ffn_hidden_size": 64}))
    assert "config.json: it is not what was written" in kyon_pl(*words).err
    (tmp_path / "kyon_pl.json").unlink()
    assert "dense_4h_to_h.weight (32, 48) instead of (32, 64)" in kyon_pl(*words).err


def test_a_model_and_an_adapter_for_llama_cpp(hub: HubServer, kyon_pl: PushAsker, tmp_path: Path) -> None:
    adapter = write_small_adapter(tmp_path / "adapter", 1)
    merge(tmp_path / "bo", str(adapter), format="gguf", quantization="q8_0")
    (tmp_path / "bo/MODEL_LICENSE").write_text("terms", encoding="utf-8")
    words = ("push", "--repo_id", "gguf", "--adapter", str(tmp_path / "bo"), "--base", MODEL)
    answer = kyon_pl(*words)
    assert answer.status == 0, answer.err
    sent = content(hub, "kyon/gguf")
    files = {"bo-q8_0.gguf", "Modelfile", "MODEL_LICENSE", "prompt_format.yaml", "tokenizer.model"}
    assert sent.keys() == files | {".gitattributes", "README.md", "tokenizer_config.json"}
    card = ModelCard(sent["README.md"].decode())
    assert (card.data.base_model_relation, card.data.library_name, card.data.license) == ("quantized", "gguf", "other")
    for said in ("in GGUF for llama.cpp (bo-q8_0.gguf)", "$ llama-server -m bo-q8_0.gguf -c 4096", "### Ollama"):
        assert said in card.text
    (tmp_path / "bo/bo-q8_0.gguf").write_bytes(b"GGUF")
    assert "bo-q8_0.gguf: it is not what was written" in kyon_pl(*words).err

    convert_adapter(tmp_path / "lora", str(adapter), to="gguf")
    answer = kyon_pl("push", "--repo_id", "lora", "--adapter", str(tmp_path / "lora"), "--base", MODEL)
    assert answer.status == 0, answer.err
    card = ModelCard(content(hub, "kyon/lora")["README.md"].decode())
    assert card.data.base_model_relation == "adapter"
    assert "$ llama-server -m BASE.gguf --lora lora.gguf" in card.text


def test_interrupted_push_leaves_the_repository_unchanged(hub: HubServer, kyon_pl: PushAsker, copy: Path) -> None:
    """The last test of this file: it kills the process that runs the commands."""
    words = ("push", "--repo_id", "interrupted", "--adapter", str(copy / "checkpoints/best"))
    kyon_pl(*words)

    def change(by: float) -> bytes:
        file = copy / "checkpoints/best" / WEIGHTS
        save_file({name: tensor + by for name, tensor in load_file(file).items()}, file)
        return file.read_bytes()

    (copy / "checkpoints/best/COMPLETE").unlink()
    before, wanted = hub.repositories["models", "kyon/interrupted"].commit, change(1)
    hub.fail("PUT *", status=400)
    answer = kyon_pl(*words)
    assert (answer.status, "the repository is unchanged" in answer.err) == (2, True)
    assert hub.repositories["models", "kyon/interrupted"].commit == before
    assert kyon_pl(*words).status == 0, "the same command works once the Hub does"
    assert content(hub, "kyon/interrupted")[WEIGHTS] == wanted

    before, puts = hub.repositories["models", "kyon/interrupted"].commit, len(hub.asked("PUT *"))
    change(2)
    hub.stall("PUT *", after_bytes=-1)
    kyon_pl.say(*words)
    while len(hub.asked("PUT *")) == puts:
        time.sleep(0.02)
    kyon_pl.process.kill()
    kyon_pl.process.wait()
    assert hub.repositories["models", "kyon/interrupted"].commit == before
    assert content(hub, "kyon/interrupted")[WEIGHTS] == wanted
