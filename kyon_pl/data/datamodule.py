"""The DataModule: rows from the Hub or from files, as the batches of fit, validate, test and predict."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from kyon_pl.batch import Batch, PromptBatch
from kyon_pl.data.batching import PlannedBatchSampler
from kyon_pl.data.checks import ColumnNames
from kyon_pl.data.collate import DialogueCollator, LabelBoundary, PlannedCollator
from kyon_pl.data.encode import EncodeSettings, OverLength
from kyon_pl.data.heaviest import heaviest, lighter_settings
from kyon_pl.data.loader import planned_loader
from kyon_pl.data.mix import Mix, check_weights
from kyon_pl.data.plan import Batching, BatchPlanner
from kyon_pl.data.prompt import TrainTurns, template_hash
from kyon_pl.data.quality import Oddity, check_drop
from kyon_pl.data.report import list_bad_rows, report
from kyon_pl.data.rows import Prompt, PromptRows, TokenRows, Use, collate_prompts
from kyon_pl.data.sources import SourceSettings, load_rows
from kyon_pl.data.split import split_by_question
from kyon_pl.data.table import BadRows, EncodedTable, encode_rows
from kyon_pl.data.tokenizer import PAD_TOKEN_ID, load_tokenizer
from kyon_pl.errors import DataError, SettingError

_USES: dict[str | None, tuple[Use, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
    None: ("train", "validation", "test", "predict"),
}
_FALLBACK: dict[Use, Use] = {"predict": "test", "test": "validation", "validation": "train"}
_MOST_PROCESSES = 16
_LEAST = {
    "rows_per_batch": 1,
    "tokens_per_batch": 1,
    "validation_rows_per_batch": 1,
    "seed": 0,
    "workers": 0,
    "processes": 1,
}
log = logging.getLogger("kyon_pl.data")


class DialogueDataModule(LightningDataModule):
    """Dialogue rows, each a context and the reply to learn.

    Where a source is asked for, it is a Hub data set id; or a JSONL, JSON, CSV or Parquet file, a folder of such files,
    a glob; or `demo`, the embedded rows; or a list of these. A row with `messages` (a list of `role`: system, user or
    assistant, and `content`) instead of a context is a conversation. Rows that carry `input_ids` and `seq_len` instead
    of text are taken as they are.

    Args:
        source: the rows to train on.
        source_weights: how often rows of each entry of the list `source` appear in an epoch, relative to each other. A
            source of the least weight is gone through once, one of k times that weight k times over; of a fraction, as
            many of its rows are drawn, once for all epochs. unset: each row once.
        name: configuration of `source` on the Hub, of each where there are several; of other sources too where they
            name the same id.
        revision: likewise, branch, tag or commit.
        split: split of `source` on the Hub, or in a folder whose file names tell splits apart.
        context_column: name of the column with the prompt: system prompt, memories, history, question, joined by `###`.
        target_column: name of the column with the reply.
        validation_source: the rows to validate on; unset, `validation_share` of the rows to train on.
        validation_split: split of `validation_source`.
        validation_share: share of the rows, 0 to 1, that is kept from training to validate on, by whole questions, and
            by whole dialogues where a column `dialogue` tells them, so that none is ever on both sides. 0: no
            validation.
        test_source: the rows of `test`; unset, the validation rows.
        test_split: split of `test_source`, and of `predict_source`.
        predict_source: the prompts of `predict`, which need no target; unset, the rows of `test`.
        bad_rows: rows that cannot be used are always counted and the first few shown; `drop` goes on without them,
            `error` stops.
        drop: kinds of odd rows to leave out, except of `predict_source`. All are counted. `duplicate`: context and
            target of an earlier row; `loop`: a target that repeats the same few tokens; `punctuation`: a target without
            a letter or digit; `leak`: a target that stands word for word in its context. Empty targets are bad rows,
            never trained on.
        bad_rows_file: JSONL to write, one line for each bad or odd row: its file and line, what is wrong, and whether
            it is left out.
        tokenizer: Hub id or folder of ChatGLM2's tokenizer; the command line takes it from `model.base`. Not needed if
            all rows carry ids.
        tokenizer_revision: branch, tag or commit of `tokenizer` on the Hub.
        template: how a context becomes a prompt. `raw`: as it stands, messages joined by `###`; `chatglm2`: in rounds,
            as the published model was tuned, a context being the question of the first.
        train_turns: of a conversation, train the `last` reply; or `all`, each with its end of sequence. A reply before
            the last is part of the prompt, without an end, or trained.
        max_tokens: the longest row, in tokens, end of sequence included; null: no limit.
        over_length: what becomes of longer rows. `shrink_context`: memories and turns go, the oldest first, rounds of
            messages whole; system prompt, question and target stay whole, and a row where these alone are too long is a
            bad one. `drop`: a
            longer row is a bad one. `error`: stop.
        append_eos: end each target with the end-of-sequence token, so that the model learns to stop.
        label_boundary: `target` trains target and end of sequence; `seed` trains the last token of the context too, as
            the original does.
        batching: `packed`: rows one behind the other up to `tokens_per_batch`, none sees another; `grouped`:
            `rows_per_batch` rows of like length, padded; `padded`: `rows_per_batch` rows as they come, padded.
        rows_per_batch: rows of a padded training batch on one device.
        tokens_per_batch: tokens of a packed training batch on one device.
        validation_rows_per_batch: rows of a batch on one device in validate, test and predict; padded, by length.
        shuffle: draw the order of the training rows anew in every epoch; false: as they come.
        seed: of that order; the command line takes it from `seed_everything`.
        workers: processes that read batches ahead; 0: the training process reads them.
        processes: processes that encode rows; unset, one a core, 16 at most.
        cache_dir: where encoded rows are kept; unset, the cache of `datasets` (HF_DATASETS_CACHE).

    Raises:
        SettingError: a setting with an impossible value.
    """

    def __init__(
        self,
        source: str | list[str] = "silk-road/Chat_Suzumiya_Fusion",
        source_weights: list[float] | None = None,
        name: str | None = None,
        revision: str | None = None,
        split: str = "train",
        context_column: str = "context",
        target_column: str = "target",
        validation_source: str | list[str] | None = None,
        validation_split: str = "validation",
        validation_share: float = 0.02,
        test_source: str | list[str] | None = None,
        test_split: str = "test",
        predict_source: str | list[str] | None = None,
        bad_rows: BadRows = "drop",
        drop: Sequence[Oddity] = (),
        bad_rows_file: str | None = None,
        tokenizer: str | None = None,
        tokenizer_revision: str | None = None,
        template: str = "raw",
        train_turns: TrainTurns = "last",
        max_tokens: int | None = 2048,
        over_length: OverLength = "shrink_context",
        append_eos: bool = True,
        label_boundary: LabelBoundary = "target",
        batching: Batching = "packed",
        rows_per_batch: int = 8,
        tokens_per_batch: int = 4096,
        validation_rows_per_batch: int = 8,
        shuffle: bool = True,
        seed: int = 2023,
        workers: int = 2,
        processes: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        check_weights(source, source_weights)
        self.source = source
        self.mix = Mix(tuple(source_weights), seed) if source_weights else None
        self.name = name
        self.revision = revision
        self.split = split
        self.context_column = context_column
        self.target_column = target_column
        self.validation_source = validation_source
        self.validation_split = validation_split
        self.validation_share = validation_share
        self.test_source = test_source
        self.test_split = test_split
        self.predict_source = predict_source
        self.bad_rows: BadRows = bad_rows
        check_drop(drop)
        self.drop = tuple(drop)
        self.bad_rows_file = bad_rows_file
        self.tokenizer = tokenizer
        self.tokenizer_revision = tokenizer_revision
        self.encoding = EncodeSettings(max_tokens, over_length, append_eos, template, train_turns)
        self.label_boundary: LabelBoundary = label_boundary
        self.batching: Batching = batching
        self.rows_per_batch = rows_per_batch
        self.tokens_per_batch = tokens_per_batch
        self.validation_rows_per_batch = validation_rows_per_batch
        self.shuffle = shuffle
        self.seed = seed
        self.workers = workers
        self.processes = min(os.cpu_count() or 1, _MOST_PROCESSES) if processes is None else processes
        self.cache_dir = cache_dir
        self.collator = DialogueCollator(PAD_TOKEN_ID, label_boundary)
        self.rows: dict[Use, TokenRows] = {}
        self.train_sampler: PlannedBatchSampler | None = None
        self._check_settings()

    def _check_settings(self) -> None:
        max_tokens = self.encoding.max_tokens
        if self.batching == "packed" and (max_tokens is None or max_tokens > self.tokens_per_batch):
            found = f"{max_tokens or 'null'}, but a packed batch has {self.tokens_per_batch} tokens"
            raise SettingError("data.max_tokens", found, "Lower it to data.tokens_per_batch or less, or raise that.")
        if not 0 <= self.validation_share < 1:
            raise SettingError("data.validation_share", f"{self.validation_share} is no share", "Set 0, or up to 1.")
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) < least:
                raise SettingError(f"data.{name}", f"{value} is too low", f"Set {least} or more.")
        if self.encoding.train_turns == "all" and self.label_boundary == "seed":
            found = "all, and data.label_boundary seed is the original's, which trains one reply a row"
            raise SettingError("data.train_turns", found, "Set last, or data.label_boundary: target.")

    def prepare_data(self) -> None:
        """Download and encode, once a machine. Everything ends up in the cache; nothing is kept here.

        Raises:
            MissingFileError: rows or tokenizer that are not there.
            DataError: rows that cannot be used and are not to be dropped.
            SettingError: a setting that does not fit the rows.
        """
        for origin in sorted({self._origin(use) for use in self._uses()}):
            self._table(origin)

    def setup(self, stage: str | None = None) -> None:
        """Take the rows from the cache, on every rank, plan the training batches and say what there is.

        Args:
            stage: fit, validate, test or predict; None: all.

        Raises:
            DataError: no rows to train on, or none for what was asked.
            KyonError: as `prepare_data`.
        """
        uses = _USES[stage]
        tables = {origin: self._table(origin) for origin in sorted({self._origin(use) for use in uses})}
        self.rows = {use: self._share(use, tables[self._origin(use)]) for use in uses}
        for use, rows in self.rows.items():
            if not len(rows) and use == _USES[stage][0]:
                fix = f"Set data.{use}_source, or give more rows and a data.validation_share above 0."
                raise DataError(f"rows to {use}", "there are none", fix)
        if "train" in self.rows:
            self.train_sampler = self._make_train_sampler()
            self._check_validation_interval(self.train_sampler.batches_used)
        if self.trainer is None or self.trainer.is_global_zero:
            report(list(tables.values()), self.rows, self.label_boundary)
            self._report_shares()
            if self.bad_rows_file:
                list_bad_rows(Path(self.bad_rows_file), list(tables.values()))

    def check_ids(self, vocabulary_size: int) -> None:
        """Compare ready-made ids with the vocabulary of the base; text is encoded to ids that exist.

        Args:
            vocabulary_size: rows of its embedding.

        Raises:
            DataError: a row holds an id that the base does not have.
        """
        for rows in self.rows.values():
            number = rows.table.first_row_beyond(vocabulary_size)
            if number is not None:
                found = f"an id of {vocabulary_size:,} or more, and the base has {vocabulary_size:,} ids from 0 on"
                fix = "Give the ids of this base's tokenizer, or text."
                raise DataError(rows.table.rows.place(number), found, fix)

    def fingerprint(self) -> dict[str, str]:
        """What tells the rows of `fit` from others, whatever they are called; before `setup` it prepares them.

        Raises:
            KyonError: as `prepare_data`.
        """
        known = {self._origin(use): rows.table for use, rows in self.rows.items()}
        origins = sorted({self._origin(use) for use in _USES["fit"]})
        tables = {origin: known.get(origin) or self._table(origin) for origin in origins}
        found = {f"data: {origin} rows": f"{len(table)}, CRC {table.crc32:08x}" for origin, table in tables.items()}
        return found | {"data: template": f"{self.encoding.template}, {template_hash(self.encoding.template)}"}

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of every epoch; known after `setup`, before any loader or model is there."""
        assert self.train_sampler is not None
        return self.train_sampler.steps_per_epoch

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches of one device in every epoch."""
        assert self.train_sampler is not None
        return self.train_sampler.batches_used

    @property
    def tokens_per_epoch(self) -> int:
        """Real tokens of an epoch, over all ranks; where `limit_train_batches` cuts it short, as many on average."""
        assert self.train_sampler is not None
        return int(self.rows["train"].tokens.sum()) * self.train_sampler.batches_used // len(self.train_sampler)

    def train_dataloader(self) -> DataLoader[Batch]:
        """This rank's share of the planned batches, from the optimizer step that the trainer has reached."""
        assert self.train_sampler is not None
        return self._loader(self.rows["train"], self.train_sampler, self._train_collator())

    def heaviest_batches(self, epochs: int) -> list[Batch]:
        """The training batches of that many epochs that need the most memory, one or two; none if none is used."""
        sampler, rows, collate = self.train_sampler, self.rows["train"], self._train_collator()
        assert sampler is not None
        used = sampler.batches_used * sampler.world_size
        return (
            [collate(rows.__getitems__(planned)) for planned in heaviest(sampler.planner, used, epochs)] if used else []
        )

    def place(self, row_number: int) -> str:
        """File and line of a training row, given its number in a batch."""
        rows = self.rows["train"]
        return rows.table.rows.place(int(rows.numbers[row_number]))

    def lighter_settings(self) -> str:
        """The settings to change for training batches of half the size, in words."""
        longest_row = self.encoding.max_tokens or int(self.rows["train"].tokens.max())
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        return lighter_settings(self.batching, self.rows_per_batch, self.tokens_per_batch, longest_row, accumulate)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """This rank's share of the validation rows, each row on one rank only; an empty list if there are none."""
        return self._evaluation_loader(self.rows["validation"])

    def test_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """This rank's share of the test rows, as in validation."""
        return self._evaluation_loader(self.rows["test"])

    def predict_dataloader(self) -> DataLoader[Prompt | None]:
        """This rank's share of the prompts, in their order, in as many batches as every other rank has."""
        prompts = PromptRows(self.rows["predict"], start=self._rank, step=self._world_size)
        return DataLoader(
            prompts, batch_size=self.validation_rows_per_batch, collate_fn=collate_prompts, num_workers=self.workers
        )

    def held_out_prompts(
        self, use: Literal["validation", "test"], most: int | None, one_a_question: bool
    ) -> PromptBatch:
        """This rank's share of some held-out rows as prompts; see `RowSource`."""
        places = self.rows[use].spread_places(most, one_a_question)
        prompts = PromptRows(self.rows[use])
        return collate_prompts([prompts[place] for place in places[self._rank :: self._world_size]])

    def shown_rows(self, count: int) -> str:
        """The first training rows as the model sees them; see `RowSource`."""
        from kyon_pl.data.preview import rows_text  # which reads this module

        return rows_text(self, count)

    def planned_batches(self) -> Iterator[Batch]:
        """The batches of `train_dataloader`, made here and now, without the loader's workers."""
        assert self.train_sampler is not None
        rows, collate = self.rows["train"], self._train_collator()
        return (collate(rows.__getitems__(planned)) for planned in self.train_sampler)

    # where rows come from

    def _uses(self) -> tuple[Use, ...]:
        return _USES[self.trainer.state.fn.value if self.trainer and self.trainer.state.fn else None]

    def _own_source(self, use: Use) -> str | list[str] | None:
        sources = {"train": self.source, "validation": self.validation_source, "test": self.test_source}
        return self.predict_source if use == "predict" else sources[use]

    def _origin(self, use: Use) -> Use:
        """The use that names the source of these rows: test rows may be validation rows, and these a share of train."""
        return use if self._own_source(use) is not None else self._origin(_FALLBACK[use])

    def _table(self, origin: Use) -> EncodedTable:
        source = self._own_source(origin)
        assert source is not None
        columns = ColumnNames(self.context_column, self.target_column, target_required=origin != "predict")
        name, revision = (self.name, self.revision) if source == self.source else (None, None)
        split = {"train": self.split, "validation": self.validation_split}.get(origin, self.test_split)
        settings = SourceSettings(source, name, revision, split, columns)
        rows = load_rows(settings, self.cache_dir, self.processes)
        tokenizer = load_tokenizer(self.tokenizer, self.tokenizer_revision) if rows.have_text else None
        table = encode_rows(rows, tokenizer, self.encoding, self.processes, () if origin == "predict" else self.drop)
        table.check(self.bad_rows)
        return table

    def _share(self, use: Use, table: EncodedTable) -> TokenRows:
        if self._origin(use) != "train":
            return TokenRows(table, table.kept)
        share = 0.0 if self.validation_source else self.validation_share
        kept = table.kept
        train, validation = split_by_question(table.questions[kept], share, table.groups[kept])
        if use != "train":
            return TokenRows(table, kept[validation])
        if self.mix is None:
            return TokenRows(table, kept[train])
        return TokenRows(table, self.mix.rows_of_an_epoch(kept[train], table.rows.source_numbers[kept[train]]))

    def _report_shares(self) -> None:
        """How sources are mixed, and a validation that was asked for and has no rows."""
        if "train" not in self.rows:
            return
        rows, validation = self.rows["train"], self.rows["validation"]
        if self.mix:
            sources = rows.table.rows.source_numbers[np.unique(rows.numbers)]
            self.mix.report([self.source] if isinstance(self.source, str) else self.source, sources)
        if self.validation_share and validation.table is rows.table and not len(validation):
            why = "there are too few, or questions and dialogues tie nearly all together"
            log.warning("data: no rows to validate on: %s; data.validation_source can name others", why)

    # how they become batches

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _make_train_sampler(self) -> PlannedBatchSampler:
        trainer, rows = self.trainer, self.rows["train"]
        planner = BatchPlanner(
            row_tokens=rows.tokens,
            row_trained_tokens=rows.trained_tokens(self.label_boundary),
            batching=self.batching,
            rows_per_batch=self.rows_per_batch,
            tokens_per_batch=self.tokens_per_batch,
            shuffle=self.shuffle and not (trainer and trainer.overfit_batches),  # type: ignore[attr-defined]
            seed=self.seed,
        )
        return PlannedBatchSampler(
            planner,
            rank=self._rank,
            world_size=self._world_size,
            accumulate_grad_batches=trainer.accumulate_grad_batches if trainer else 1,
            limit_batches=trainer.limit_train_batches if trainer else None,
            position=(lambda: trainer.global_step) if trainer else None,
        )

    def _check_validation_interval(self, batches: int) -> None:
        """A validation that never comes; Lightning says so as well, after the base has been loaded."""
        trainer = self.trainer
        every_n_batches = trainer.val_check_interval if trainer else None
        if type(every_n_batches) is int and every_n_batches > batches and trainer.check_val_every_n_epoch is not None:  # type: ignore[union-attr]
            found = f"{every_n_batches}, and an epoch has {batches} micro-batches"
            raise SettingError("trainer.val_check_interval", found, "Lower it, or set 1.0: once an epoch.")

    def _train_collator(self) -> PlannedCollator:
        packed = (self.tokens_per_batch, self.encoding.max_tokens) if self.batching == "packed" else (None, None)
        return PlannedCollator(self.collator, *packed)

    def _evaluation_loader(self, rows: TokenRows) -> DataLoader[Batch] | list[Any]:
        if not len(rows):
            return []
        planner = BatchPlanner(
            row_tokens=rows.tokens,
            row_trained_tokens=rows.trained_tokens(self.label_boundary),
            batching="grouped",
            rows_per_batch=self.validation_rows_per_batch,
            shuffle=False,
        )
        sampler = PlannedBatchSampler(planner, rank=self._rank, world_size=self._world_size)
        return self._loader(rows, sampler, PlannedCollator(self.collator))

    def _loader(self, rows: TokenRows, sampler: PlannedBatchSampler, collate: PlannedCollator) -> DataLoader[Batch]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return planned_loader(rows, sampler, collate, workers=self.workers, pin_memory=on_gpu)
