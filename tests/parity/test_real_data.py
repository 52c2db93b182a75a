"""Real rows through the real tokenizer: what is trained is the target and the end of sequence, in every row."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch

from kyon_pl.batch import Batch
from kyon_pl.data import DialogueDataModule, read_jsonl_file
from kyon_pl.data.encoding.encode import load_tokenizer

REAL_DATA, CHATGLM2 = os.environ.get("KYON_REAL_DATA_DIR"), os.environ.get("KYON_CHATGLM2_DIR")
pytestmark = [
    pytest.mark.skipif(not REAL_DATA, reason="KYON_REAL_DATA_DIR is not set: real rows are not in the repository"),
    pytest.mark.skipif(
        not CHATGLM2, reason="KYON_CHATGLM2_DIR is not set: the real tokenizer is not in the repository"
    ),
]
EOS = 2


@pytest.fixture(scope="module")
def source() -> Path:
    return Path(str(REAL_DATA)) / "fusion_sample.jsonl"


@pytest.fixture(scope="module")
def lines(source: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def rows_of(batch: Batch, packed: bool) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """(row number, ids, labels) of each row of a batch."""
    if not packed:
        return list(zip(batch.row_numbers, batch.input_ids, batch.labels, strict=True))
    assert batch.cu_seqlens is not None
    bounds = batch.cu_seqlens.tolist()
    return [
        (number, batch.input_ids[0, start:end], batch.labels[0, start:end])
        for number, start, end in zip(batch.row_numbers, bounds, bounds[1:], strict=False)
    ]


@pytest.mark.parametrize("batching", ["packed", "grouped"])
def test_every_trained_token_belongs_to_the_target_or_ends_it(
    source: Path,
    lines: list[dict[str, str]],
    cache: str,
    batching: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = DialogueDataModule(
        source=str(source), tokenizer=CHATGLM2, batching=batching, workers=0, processes=1, cache_dir=cache
    )
    module.prepare_data()
    with caplog.at_level(logging.INFO, "kyon_pl.data"):
        module.setup("fit")
    with capsys.disabled():
        print("", *(record.getMessage() for record in caplog.records), sep="\n")
    table = module.rows["train"].table
    tokenizer = load_tokenizer(CHATGLM2, None)
    assert tokenizer is not None

    seen = []
    for use, loader in (("train", module.train_dataloader()), ("validation", module.val_dataloader())):
        for batch in loader:
            packed = use == "train" and batching == "packed"
            for place, ids, labels in rows_of(batch, packed):
                number = int(module.rows[use].numbers[place])  # type: ignore[index]
                trained = labels != -100
                length = int(table.tokens[number])
                assert torch.equal(labels[trained], ids[trained])
                assert trained.nonzero().flatten().tolist() == list(range(int(table.seq_len[number]), length))
                assert ids[length - 1] == EOS
                assert tokenizer.decode(ids[trained][:-1]) == lines[number]["target"]
                context = tokenizer.decode(ids[: length - int(trained.sum())])
                system, *_, question = lines[number]["context"].split("###")
                if table.cut_tokens[number]:
                    assert context.startswith(system + "###")
                    assert context.endswith("###" + question)
                    assert length <= 2048
                else:
                    assert context == lines[number]["context"]
                seen.append(number)
    assert sorted(seen) == table.good.tolist()
    assert len(table) == len(lines)
    assert len(seen) + len(table.problems) == len(lines)


def test_a_real_file_with_all_its_objects_on_one_line_is_read() -> None:
    rows = read_jsonl_file(Path(str(REAL_DATA)) / "training_rows" / "baizhantang_one_line.jsonl")
    assert len(rows) == 1019
    assert {"query", "answer", "chat_history", "embedding"} <= rows[0].keys() & rows[-1].keys()
