"""Dialogue rows from a source to planned batches, without a trainer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kyon_pl.batch import Batch
from kyon_pl.data.batches.collate import DialogueCollator, LabelBoundary, PlannedCollator
from kyon_pl.data.batches.loader import TokenRows, Use
from kyon_pl.data.batches.plan import Batching, BatchPlanner
from kyon_pl.data.batches.sampler import PlannedBatchSampler, largest_batches, smaller_batch_settings
from kyon_pl.data.encoding.encode import PAD_TOKEN_ID, EncodeSettings, OverLength, load_tokenizer
from kyon_pl.data.encoding.table import BadRows, EncodedTable, encode_rows
from kyon_pl.data.prompt import TrainTurns, template_hash
from kyon_pl.data.reading.checks import ColumnNames
from kyon_pl.data.reading.quality import Oddity, check_drop
from kyon_pl.data.reading.sources import SourceSettings, load_rows
from kyon_pl.data.report import list_bad_rows, report
from kyon_pl.data.split import Mix, check_weights, split_by_question
from kyon_pl.errors import DataError, SettingError

USES: dict[str | None, tuple[Use, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
    None: ("train", "validation", "test", "predict"),
}
"""The uses of rows in each of Lightning's stages; None: all stages."""

_FALLBACK: dict[Use, Use] = {"predict": "test", "test": "validation", "validation": "train"}
_MAX_PROCESSES = 16
_LEAST = {
    "rows_per_batch": 1,
    "tokens_per_batch": 1,
    "validation_rows_per_batch": 1,
    "seed": 0,
    "workers": 0,
    "processes": 1,
}
log = logging.getLogger("kyon_pl.data")


class DialogueData:
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
        self.processes = min(os.cpu_count() or 1, _MAX_PROCESSES) if processes is None else processes
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

    def prepare(self, stage: str | None = None) -> None:
        """Download and encode the rows of a stage. Everything ends up in the cache; nothing is kept here.

        Args:
            stage: fit, validate, test or predict; None: all.

        Raises:
            MissingFileError: rows or a tokenizer that are not there.
            DataError: rows that cannot be used, with `bad_rows="error"`.
            SettingError: a setting that does not fit the rows.
        """
        for origin in self._origins(USES[stage]):
            self._table(origin)

    def load(self, stage: str | None = None, *, verbose: bool = True) -> None:
        """Take the rows of a stage from the cache and split them by use.

        Args:
            stage: fit, validate, test or predict; None: all.
            verbose: log what was read and what was left out, and write `bad_rows_file`.

        Raises:
            DataError: no rows to train on, or none for what was asked.
            KyonError: as `prepare`.
        """
        tables = {origin: self._table(origin) for origin in self._origins(USES[stage])}
        self.rows = {use: self._rows_of(use, tables[self._origin(use)]) for use in USES[stage]}
        first = USES[stage][0]
        if not len(self.rows[first]):
            fix = f"Set data.{first}_source, or give more rows and a data.validation_share above 0."
            raise DataError(f"rows to {first}", "there are none", fix)
        if verbose:
            report(list(tables.values()), self.rows, self.label_boundary)
            self._report_split()
            if self.bad_rows_file:
                list_bad_rows(Path(self.bad_rows_file), list(tables.values()))

    def plan_training(
        self,
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulate_grad_batches: int = 1,
        limit_batches: int | float | None = None,
        shuffle: bool = True,
        position: Callable[[], int] | None = None,
    ) -> PlannedBatchSampler:
        """Plan the micro-batches of every epoch; `load` has been called.

        Args:
            rank: of this process.
            world_size: number of processes.
            accumulate_grad_batches: micro-batches of an optimizer step on one device.
            limit_batches: micro-batches of an epoch on one device, or a share of them; None: all.
            shuffle: false keeps the rows' order whatever the setting `shuffle` says.
            position: gives the optimizer step to continue from; None: the first.
        """
        rows = self.rows["train"]
        planner = BatchPlanner(
            row_tokens=rows.tokens,
            row_trained_tokens=rows.trained_tokens(self.label_boundary),
            batching=self.batching,
            rows_per_batch=self.rows_per_batch,
            tokens_per_batch=self.tokens_per_batch,
            shuffle=self.shuffle and shuffle,
            seed=self.seed,
        )
        self.train_sampler = PlannedBatchSampler(
            planner,
            rank=rank,
            world_size=world_size,
            accumulate_grad_batches=accumulate_grad_batches,
            limit_batches=limit_batches,
            position=position,
        )
        return self.train_sampler

    @property
    def sampler(self) -> PlannedBatchSampler:
        """The plan of the training batches.

        Raises:
            RuntimeError: before `plan_training`.
        """
        if self.train_sampler is None:
            raise RuntimeError("call `plan_training` (or the data module's `setup`) first")
        return self.train_sampler

    def planned_batches(self) -> Iterator[Batch]:
        """The training batches of the first epoch, collated in this process."""
        rows, collate = self.rows["train"], self.train_collator()
        return (collate(rows.__getitems__(planned)) for planned in self.sampler)

    def largest_batches(self, epochs: int) -> list[Batch]:
        """The one or two training batches of that many epochs that need the most memory; none if no batch is used."""
        rows, collate, used = self.rows["train"], self.train_collator(), self.sampler.batches_used
        if not used:
            return []
        planned = largest_batches(self.sampler.planner, used * self.sampler.world_size, epochs)
        return [collate(rows.__getitems__(batch)) for batch in planned]

    def train_collator(self) -> PlannedCollator:
        """Makes a training batch of planned rows."""
        packed = (self.tokens_per_batch, self.encoding.max_tokens) if self.batching == "packed" else (None, None)
        return PlannedCollator(self.collator, *packed)

    def place(self, row_number: int) -> str:
        """File and line of a training row, given its number in a batch."""
        rows = self.rows["train"]
        return rows.table.rows.place(int(rows.numbers[row_number]))

    def smaller_batch_settings(self, accumulate_grad_batches: int = 1) -> str:
        """The settings to change for training batches of half the size, in words.

        Args:
            accumulate_grad_batches: the present `trainer.accumulate_grad_batches`.
        """
        longest_row = self.encoding.max_tokens or int(self.rows["train"].tokens.max())
        size = self.rows_per_batch, self.tokens_per_batch
        return smaller_batch_settings(self.batching, *size, longest_row, accumulate_grad_batches)

    def check_ids(self, vocabulary_size: int) -> None:
        """Compare ids that the rows brought along with the vocabulary of the base.

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
        """Row counts and checksums of the rows of `fit`, and the template; before `load` the rows are prepared.

        Raises:
            KyonError: as `prepare`.
        """
        known = {self._origin(use): rows.table for use, rows in self.rows.items()}
        tables = {origin: known.get(origin) or self._table(origin) for origin in self._origins(USES["fit"])}
        found = {f"data: {origin} rows": f"{len(table)}, CRC {table.crc32:08x}" for origin, table in tables.items()}
        return found | {"data: template": f"{self.encoding.template}, {template_hash(self.encoding.template)}"}

    def _own_source(self, use: Use) -> str | list[str] | None:
        sources = {"train": self.source, "validation": self.validation_source, "test": self.test_source}
        return self.predict_source if use == "predict" else sources[use]

    def _origin(self, use: Use) -> Use:
        """The use that names the source of these rows: test rows may be validation rows, and these a share of train."""
        return use if self._own_source(use) is not None else self._origin(_FALLBACK[use])

    def _origins(self, uses: Sequence[Use]) -> list[Use]:
        return sorted({self._origin(use) for use in uses})

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

    def _rows_of(self, use: Use, table: EncodedTable) -> TokenRows:
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

    def _report_split(self) -> None:
        """How sources are mixed, and a validation share that got no rows."""
        if "train" not in self.rows:
            return
        rows, validation = self.rows["train"], self.rows["validation"]
        if self.mix:
            sources = rows.table.rows.source_numbers[np.unique(rows.numbers)]
            self.mix.report([self.source] if isinstance(self.source, str) else self.source, sources)
        if self.validation_share and validation.table is rows.table and not len(validation):
            why = "there are too few, or questions and dialogues tie nearly all together"
            log.warning("data: no rows to validate on: %s; data.validation_source can name others", why)
