"""A llama.cpp server, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

PROGRAM = """
import json, sys, xllamacpp
given = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path = given["model"]
params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path=path, scale=1.0) for path in given["loras"]]
params.n_ctx, params.n_parallel, params.n_gpu_layers, params.port = given["context"], 1, 0, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
kind = {"f32": xllamacpp.ggml_type.GGML_TYPE_F32, "f16": xllamacpp.ggml_type.GGML_TYPE_F16}[given["cache"]]
params.cache_type_k = params.cache_type_v = kind
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.use_jinja, params.warmup, params.fit_params = True, False, False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


class LlamaServer:
    """Serves a GGUF until the block ends.

    Args:
        model: the file.
        loras: adapters, each a file.
        cache: type of keys and values.
        context: length of the context, in tokens.

    Attributes:
        url: of the server.
    """

    def __init__(self, model: Path, loras: Sequence[Path] = (), cache: str = "f32", context: int = 2048) -> None:
        given = {"model": str(model), "loras": [str(path) for path in loras], "cache": cache, "context": context}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the server; a pipe would fill up
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(given)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            self.log.seek(0)
            raise AssertionError(self.log.read()[-2000:])
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def ask(self, path: str, **content: object) -> Any:
        """The JSON that answers a POST."""
        answer = self.client.post(path, json=content)
        assert answer.is_success, answer.text
        return answer.json()


if __name__ == "__main__":
    with LlamaServer(Path(sys.argv[1])) as llama_server:
        assert llama_server.ask("/completion", prompt=[500], n_predict=1)["tokens_predicted"] == 1
