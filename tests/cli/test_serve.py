"""A model merged for transformers, behind `transformers serve`, asked by an `openai` client."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from limits import HANG_S
from openai import OpenAI
from openai.types.chat import ChatCompletionUserMessageParam
from transformers import AutoTokenizer
from web_host import free_port, write_small_adapter

from kyon_pl.chat.loading import load_chat_model
from kyon_pl.chat.model import Sampling
from kyon_pl.cli import main

QUESTION = "Will you cross in fog?"
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    adapter = write_small_adapter(folder / "adapter", 2)
    words = ["merge", "--adapter", str(adapter), "--output", str(folder / "glm")]
    main([*words, "--format", "glm", "--dtype", "float32"])
    return folder / "glm"


@pytest.fixture(scope="module")
def client(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    port, log = free_port(), tmp_path_factory.mktemp("log") / "log"
    program = Path(sys.executable).with_name("transformers")
    words = [program, "serve", str(model), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as stream:
        server = subprocess.Popen(words, stdout=stream, stderr=stream)
    try:
        for _ in range(240):
            assert server.poll() is None, log.read_text(encoding="utf-8")[-2000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").is_success:
                    break
            except httpx.ConnectError:
                time.sleep(0.5)
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    finally:
        server.terminate()
        server.wait(timeout=HANG_S)


@pytest.mark.slow
def test_it_answers_as_chat_does_whole_and_in_pieces(client: OpenAI, model: Path) -> None:
    messages: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": QUESTION}]
    whole = client.chat.completions.create(
        model=str(model), messages=messages, max_tokens=NEW_TOKENS, temperature=0, seed=0
    )
    stream = client.chat.completions.create(
        model=str(model), messages=messages, max_tokens=NEW_TOKENS, temperature=0, seed=0, stream=True
    )
    pieces = [piece for chunk in stream if chunk.choices and (piece := chunk.choices[0].delta.content)]
    prompt = AutoTokenizer.from_pretrained(model).apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    said = load_chat_model(str(model), "last", None, None, "chatglm2").reply(prompt, Sampling(NEW_TOKENS))
    assert len(pieces) > 3, "it comes piece by piece"
    assert "".join(pieces).strip() == (whole.choices[0].message.content or "").strip() == said.text.strip() != ""
