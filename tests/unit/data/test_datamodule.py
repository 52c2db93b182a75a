from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from character_tokenizer import CharacterTokenizer, read
from lightning.pytorch import LightningModule, Trainer

from kyon_pl.batch import Batch, PromptBatch, Workload
from kyon_pl.data import DialogueDataModule
from kyon_pl.data.split import split_by_question
from kyon_pl.errors import DataError, KyonError, SettingError

ROWS = [{"context": f"sys###memory {i}###question {i // 2}", "target": f"answer {i}"} for i in range(100)]
MakeModule = Callable[..., DialogueDataModule]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> CharacterTokenizer:
    tokenizer = CharacterTokenizer()
    monkeypatch.setattr("kyon_pl.data.dialogue_data.load_tokenizer", lambda *_: tokenizer)
    return tokenizer


@pytest.fixture
def make(tmp_path: Path, tokenizer: CharacterTokenizer) -> MakeModule:
    """A data module over ROWS, or over what is given."""

    def make(rows: list[Any] = ROWS, **settings: Any) -> DialogueDataModule:
        if "source" not in settings:
            path = tmp_path / "rows.jsonl"
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
            settings["source"] = str(path)
        defaults = {"cache_dir": str(tmp_path / "cache"), "workers": 0, "processes": 1}
        return DialogueDataModule(**defaults | {"max_tokens": 64, "tokens_per_batch": 128} | settings)

    return make


def fitted(module: DialogueDataModule) -> DialogueDataModule:
    module.prepare_data()
    module.setup("fit")
    return module


def texts(batches: Any) -> list[str]:
    """The rows of batches, padded or packed, in characters."""
    found = []
    for batch in batches:
        for row in batch.input_ids:
            found += [f"<>{text}$" for text in read(row).replace("_", "").replace("$", "").split("<>")[1:]]
    return found


WHOLE = [f"<>{row['context']}{row['target']}$" for row in ROWS]


@pytest.mark.parametrize("batching", ["packed", "grouped", "padded"])
def test_every_row_is_trained_or_validated_once_and_no_question_on_both_sides(make: MakeModule, batching: str) -> None:
    module = fitted(make(batching=batching, validation_share=0.1))
    train, validation = texts(module.train_dataloader()), texts(module.val_dataloader())
    assert sorted(train + validation) == sorted(WHOLE)
    assert len(validation) == 10

    def questions(rows: list[str]) -> set[str]:
        return {row.split("###")[2].split("answer")[0] for row in rows}

    assert not questions(train) & questions(validation)


def test_packed_batches_have_one_shape_and_the_plan_numbers_their_rows(make: MakeModule) -> None:
    module = fitted(make())
    batches = list(module.train_dataloader())
    assert {tuple(batch.input_ids.shape) for batch in batches} == {(1, 128)}
    assert {batch.max_seqlen for batch in batches} == {64}
    assert len(batches) == module.steps_per_epoch
    assert sum(batch.tokens for batch in batches) == module.tokens_per_epoch
    assert all(batch.step_trained_tokens == batch.trained_tokens > 0 for batch in batches)
    assert isinstance(module, Workload)
    rows = module.rows["train"]
    for batch in batches[:3]:
        packed = [read(rows[number]["input_ids"]) for number in batch.row_numbers]
        assert read(batch.input_ids[0]).rstrip("_") == "".join(packed)


def test_the_order_is_one_of_the_seed_and_the_epoch(make: MakeModule) -> None:
    def order(**settings: Any) -> list[str]:
        return texts(fitted(make(**settings)).train_dataloader())

    assert order() == order()
    assert order() != order(seed=1)
    plain = order(shuffle=False, batching="padded", validation_share=0.0)
    assert [row for start in range(0, 100, 8) for row in sorted(plain[start : start + 8])] == [
        row for start in range(0, 100, 8) for row in sorted(WHOLE[start : start + 8])
    ]


def test_what_was_read_dropped_and_shortened_is_said(make: MakeModule, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        *ROWS,
        {"context": "c", "target": None},
        {"context": "c", "target": ""},
        {"context": "c", "target": " "},
        {"context": "s###" + "long " * 20 + "###q", "target": "shortened"},
        {"context": "s###q", "target": "too long " * 10},
    ]
    with caplog.at_level(logging.INFO, "kyon_pl.data"):
        fitted(make(rows))
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:2] == [
        "data: 105 rows in rows.jsonl",
        "data: 4 rows skipped: 2 × empty 'target', 1 × null in 'target', 1 × too long",
    ]
    assert [line.split("/")[-1] for line in lines[2:6]] == [
        "rows.jsonl, line 101: null in 'target'",
        "rows.jsonl, line 102: empty 'target'",
        "rows.jsonl, line 103: empty 'target'",
        "rows.jsonl, line 105: too long: 98 tokens, and max_tokens is 64",
    ]
    assert lines[6] == ("data: 1 rows shortened to 64 tokens: the oldest 56 tokens of their contexts were removed")
    assert lines[7].startswith("data: train: 93 rows, ")
    assert lines[8].startswith("data: validation: 8 rows, ")
    assert lines[9] == "data: none of the 4 validation questions is trained on"
    assert len(lines) == 10
    assert [record.levelname for record in caplog.records[1:6]] == ["WARNING"] * 5


BAD = [ROWS[0], {"context": "c", "target": 5}, ROWS[1]]
LONG = [ROWS[0], {"context": "s###" + "m" * 99 + "###q", "target": "a"}]

# rows, settings, and what the error says
REFUSED = {
    "bad rows": (
        BAD,
        {"bad_rows": "error"},
        DataError,
        r"rows\.jsonl, line 2: no text in 'target': '5' \(int\): bad rows",
    ),
    "too long": (
        LONG,
        {"over_length": "error"},
        DataError,
        r"rows\.jsonl, line 2: too long: 111 tokens.*; 1 of 2 rows are too long",
    ),
    "too long to shrink": (
        [ROWS[0], {"context": "m" * 99, "target": "a"}],
        {"bad_rows": "error"},
        DataError,
        "line 2: too long",
    ),
    "no good row": (
        BAD[1:2] * 3,
        {},
        DataError,
        r"rows\.jsonl: none of its 3 rows can be used \(3 × no text in 'target'",
    ),
    "no row": ([], {}, DataError, r"rows\.jsonl: it has no rows"),
    "nothing to validate": (ROWS[:3], {"stage": "validate"}, DataError, "rows to validation: there are none"),
    "nothing to test": (
        ROWS,
        {"stage": "test", "validation_share": 0},
        DataError,
        r"rows to test: there are none.*test_source",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_cannot_be_used_stop_the_run(make: MakeModule, name: str) -> None:
    rows, settings, kind, message = REFUSED[name]
    stage = settings.get("stage", "fit")
    module = make(rows, **{key: value for key, value in settings.items() if key != "stage"})
    with pytest.raises(KyonError, match=message) as caught:
        module.setup(stage)
    assert type(caught.value) is kind


def test_a_file_without_a_good_row_is_named_among_others(make: MakeModule, tmp_path: Path) -> None:
    good, empty = write(tmp_path / "good.jsonl", ROWS), write(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match=r"empty\.jsonl: it has no rows"):
        make(source=[str(good), str(empty)]).prepare_data()


def test_over_length_drop_counts_what_it_drops(make: MakeModule) -> None:
    module = fitted(make(LONG + ROWS, over_length="drop"))
    table = module.rows["train"].table
    assert list(table.problems) == [1]
    assert (table.tokens[1], table.cut_tokens.sum()) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 256}, r"data\.max_tokens: 256, but a packed batch has 128 tokens"),
        ({"max_tokens": None}, r"data\.max_tokens: null, but a packed batch"),
        ({"validation_share": 1.5}, r"data\.validation_share: 1\.5 is not a share"),
        ({"over_length": "cut"}, r"data\.over_length"),
        ({"template": "chat"}, "template"),
        ({"label_boundary": "last"}, r"data\.label_boundary"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_read(
    make: MakeModule, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        make(**settings)


def test_only_a_change_encodes_again(make: MakeModule, tokenizer: CharacterTokenizer, tmp_path: Path) -> None:
    def newly_encoded(rows: list[Any] = ROWS, **settings: Any) -> int:
        before = tokenizer.texts_encoded
        fitted(make(rows, **settings))
        return tokenizer.texts_encoded - before

    each = 2 * len(ROWS)
    assert newly_encoded() == each
    assert newly_encoded() == 0
    assert newly_encoded(batching="padded", label_boundary="seed", validation_share=0.5, seed=7, bad_rows="error") == 0
    assert newly_encoded(max_tokens=63) == each
    assert newly_encoded(append_eos=False) == each
    assert newly_encoded(over_length="drop") == each
    assert newly_encoded(target_column="context") == each
    assert newly_encoded() == 0
    tokenizer.fingerprint = "another vocabulary"
    assert newly_encoded() == each
    assert newly_encoded(ROWS[:-1]) == each - 2


def test_prepare_data_keeps_nothing_that_other_ranks_would_miss(make: MakeModule) -> None:
    module = make()
    before = dict(vars(module))
    module.prepare_data()
    assert vars(module) == before
    assert module.rows == {}


def test_many_rows_are_encoded_in_parallel_to_the_same_ids(make: MakeModule, tmp_path: Path) -> None:
    rows = [{"context": f"s###question {i}", "target": f"answer {i}"} for i in range(4100)]
    columns = []
    for processes in (1, 2):
        module = fitted(make(rows, processes=processes, validation_share=0, cache_dir=str(tmp_path / f"{processes}")))
        columns.append(module.rows["train"].table.encoded["input_ids"][:])
    assert len(module.rows["train"].table.encoded.cache_files) == 2
    assert columns[0] == columns[1]
    assert read(columns[0][4099]) == "<>s###question 4099answer 4099$"


def test_ready_made_rows_need_no_tokenizer(make: MakeModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    ids = [{"input_ids": [5] * n + [7, 8], "seq_len": n} for n in range(1, 40)]
    module = fitted(make(ids, batching="padded", validation_share=0, label_boundary="seed", shuffle=False))
    batch = next(iter(module.train_dataloader()))
    assert batch.row_numbers == tuple(range(7, -1, -1))
    assert batch.input_ids[-1].tolist() == [5, 7, 8, *[0] * 7]
    assert batch.trained_tokens == 3 * 7 + 2  # the very first token is labelled, but nothing predicts it
    with pytest.raises(SettingError, match=r"data\.tokenizer: null, and there are rows of text"):
        make(ROWS).prepare_data()


def test_ready_made_rows_without_an_end_are_said(make: MakeModule, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"input_ids": [5, 6, end], "seq_len": 1} for end in (2, 2, 7)] + [ROWS[0]]
    text = "data: 1 rows of token ids lack the end-of-sequence token (2)"
    fitted(make(rows, append_eos=False))
    assert text not in caplog.text
    fitted(make(rows))
    assert text in caplog.text


def test_other_sources_have_their_own_rows_and_leaks_are_said(
    make: MakeModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources = {
        "validation_source": str(write(tmp_path / "v.jsonl", ROWS[10:14])),
        "test_source": str(write(tmp_path / "t.jsonl", [{"context": "s###new", "target": "t"}])),
        "predict_source": str(
            write(tmp_path / "p.jsonl", [{"context": "s###prompt"}, {"context": "s###q", "target": "r"}])
        ),
    }
    module = make(**sources)
    module.prepare_data()
    with caplog.at_level(logging.INFO, "kyon_pl.data"):
        module.setup()
    assert {use: len(rows) for use, rows in module.rows.items()} == {
        "train": 100,
        "validation": 4,
        "test": 1,
        "predict": 2,
    }
    assert (
        "data: 2 of the 2 validation questions are also trained on: the validation loss will be too low" in caplog.text
    )
    assert texts(module.test_dataloader()) == ["<>s###newt$"]
    prompts = next(iter(module.predict_dataloader()))
    assert [read(ids) for ids in prompts.input_ids] == ["<>s###prompt", "<>s###q"]
    assert (prompts.prompts, prompts.references) == (["s###prompt", "s###q"], ["", "r"])
    assert prompts.row_numbers == [0, 1]


def test_without_sources_of_their_own_test_and_predict_take_the_validation_rows(make: MakeModule) -> None:
    module = make()
    module.prepare_data()
    module.setup()
    assert texts(module.test_dataloader()) == texts(module.val_dataloader())
    (prompts,) = module.predict_dataloader()
    assert [f"<>{p}{r}$" for p, r in zip(prompts.prompts, prompts.references, strict=True)] == [
        WHOLE[number] for number in prompts.row_numbers
    ]
    assert {read(ids) for ids in prompts.input_ids} == {f"<>{prompt}" for prompt in prompts.prompts}


def as_rank(module: DialogueDataModule, rank: int, world_size: int) -> DialogueDataModule:
    """The module as a process of a larger run sees it."""
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank,
        world_size=world_size,
        is_global_zero=rank == 0,
        accumulate_grad_batches=2,
        limit_train_batches=1.0,
        overfit_batches=0.0,
        val_check_interval=1.0,
        global_step=0,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        state=SimpleNamespace(fn=None),
    )
    module.setup()
    return module


@pytest.mark.parametrize("batching", ["packed", "grouped"])
def test_ranks_share_all_rows_and_have_equally_many_batches(make: MakeModule, batching: str) -> None:
    make().prepare_data()
    ranks = [
        as_rank(make(batching=batching, validation_share=0.15, validation_rows_per_batch=4), r, 3) for r in range(3)
    ]
    for loader in ("train_dataloader", "val_dataloader"):
        batches = [list(getattr(module, loader)()) for module in ranks]
        assert len({len(own) for own in batches}) == 1
        seen = sorted(texts(batch for own in batches for batch in own))
        rows = ranks[0].rows["train" if loader == "train_dataloader" else "validation"]
        assert seen == sorted(read(rows[place]["input_ids"]) for place in range(len(rows)))
    for steps in zip(*([batch.step_trained_tokens for batch in m.train_dataloader()] for m in ranks), strict=True):
        assert len(set(steps)) == 1
    prompts = [number for module in ranks for batch in module.predict_dataloader() for number in batch.row_numbers]
    assert sorted(prompts) == ranks[0].rows["predict"].numbers.tolist()


def test_workers_change_nothing(make: MakeModule) -> None:
    make().prepare_data()
    alone, helped = (list(fitted(make(workers=workers)).train_dataloader()) for workers in (0, 2))
    for one, other in zip(alone, helped, strict=True):
        assert one.row_numbers == other.row_numbers
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.labels, other.labels)


def test_the_loader_reports_its_position_and_goes_back_to_it(make: MakeModule) -> None:
    module = fitted(make())
    loader = module.train_dataloader()
    rest = texts(loader)[:]
    loader.batch_sampler.step = 4
    state = json.loads(json.dumps(loader.state_dict()))
    again = fitted(make()).train_dataloader()
    again.load_state_dict(state)
    assert texts(again) == texts(loader) != rest
    assert texts(again) == rest[-len(texts(again)) :]


class Recorder(LightningModule):
    """Trains one number and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "predict": []}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen["train"].append(batch)
        return self.weight * batch.trained_tokens

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen["val"].append(batch)

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.seen["predict"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path: Path, **settings: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(
        accelerator="cpu", devices=1, default_root_dir=tmp_path, use_distributed_sampler=False, **quiet | settings
    )


def test_a_trainer_runs_the_planned_steps_of_every_epoch(make: MakeModule, tmp_path: Path) -> None:
    module, recorder = make(), Recorder()
    run = trainer(tmp_path, max_epochs=2, accumulate_grad_batches=3)
    run.fit(recorder, datamodule=module)
    assert run.global_step == 2 * module.steps_per_epoch
    batches = recorder.seen["train"]
    epochs = [texts(batches[: len(batches) // 2]), texts(batches[len(batches) // 2 :])]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    first_step = batches[:3]
    assert {batch.step_trained_tokens for batch in first_step} == {sum(batch.trained_tokens for batch in first_step)}
    run.predict(recorder, datamodule=module)
    assert sum(len(batch.prompts) for batch in recorder.seen["predict"]) == 8


@pytest.mark.parametrize(
    ("settings", "batches"),
    [({"limit_train_batches": 5}, 5), ({"overfit_batches": 2}, 2), ({"limit_train_batches": 0.5}, None)],
)
def test_the_plan_knows_the_trainers_limits(
    make: MakeModule, tmp_path: Path, settings: dict[str, Any], batches: int | None
) -> None:
    module, recorder = make(validation_share=0.1), Recorder()
    run = trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2, **settings)
    run.fit(recorder, datamodule=module)
    assert run.global_step == 2 * module.steps_per_epoch
    seen = recorder.seen["train"]
    if batches:
        assert len(seen) == 2 * batches
    if "overfit_batches" in settings:
        assert texts(seen[:2]) == texts(seen[2:])


def test_a_run_without_validation_rows_is_a_run(make: MakeModule, tmp_path: Path) -> None:
    recorder = Recorder()
    trainer(tmp_path, max_epochs=1).fit(recorder, datamodule=make(validation_share=0.0))
    assert recorder.seen["val"] == []
    assert sorted(texts(recorder.seen["train"])) == sorted(WHOLE)


def test_the_split_takes_whole_questions_and_leaves_something_to_train() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(-(2**63), 2**63 - 1, 400)
    questions = np.repeat(hashes, 5)
    train, validation = split_by_question(questions, 0.02)
    assert len(validation) == 40
    assert sorted([*train, *validation]) == list(range(2000))
    assert not set(questions[train]) & set(questions[validation])
    # rows that are added do not move questions from validation to training
    more = np.concatenate([questions, rng.integers(-(2**63), 2**63 - 1, 100)])
    assert len(set(questions[validation]) & set(more[split_by_question(more, 0.02)[1]])) >= 6
    assert [len(part) for part in split_by_question(questions[:5], 0.5)] == [5, 0]
    assert [len(part) for part in split_by_question(hashes[:100], 0.02)] == [92, 8]
    assert [len(part) for part in split_by_question(hashes[:10], 0.02)] == [8, 2]
    assert [len(part) for part in split_by_question(hashes, 0.0)] == [400, 0]
    assert [len(part) for part in split_by_question(hashes[:0], 0.1)] == [0, 0]
