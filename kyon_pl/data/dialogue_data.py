"""Dialogue rows, from a source to planned batches. It needs no trainer and imports no Lightning."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from kyon_pl.batch import Batch
from kyon_pl.data.batches.collate import DialogueCollator, LabelBoundary, PlannedCollator
from kyon_pl.data.batches.loader import TokenRows, Use
from kyon_pl.data.batches.plan import PACKED, Batching, BatchPlanner, pack_of_step
from kyon_pl.data.batches.sampler import MicroBatch, PlannedBatchSampler, largest_batches, smaller_batch_settings
from kyon_pl.data.encoding.encode import PAD_TOKEN_ID, EncodeSettings, OverLength, load_tokenizer
from kyon_pl.data.encoding.table import BadRows, EncodedTable, encode_rows
from kyon_pl.data.prompt import TrainTurns, template_hash
from kyon_pl.data.reading.columns import ColumnNames
from kyon_pl.data.reading.forms import FormName, check_form
from kyon_pl.data.reading.quality import Oddity, check_drop
from kyon_pl.data.reading.sources import SourceSettings, load_rows
from kyon_pl.data.report import bad_rows_output, report, write_bad_rows
from kyon_pl.data.split import Mix, check_weights, split_by_question
from kyon_pl.errors import DataError, SettingError
from kyon_pl.outputs import Output, check_outputs

USES: dict[str | None, tuple[Use, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
    None: ("train", "validation", "test", "predict"),
}
"""The uses of rows in each stage of Lightning; None: all stages."""

log = logging.getLogger("kyon_pl.data")
_FALLBACK: dict[Use, Use] = {"predict": "test", "test": "validation", "validation": "train"}
"""The use whose rows are taken if a use has no source of its own."""
_MAX_PROCESSES = 16
_RANGES = {
    "rows_per_batch": (1, 2**31),
    "tokens_per_batch": (1, 2**24),  # a packed batch has several tensors of this length
    "tokens_per_step": (1, 2**24),
    "rows_per_step": (1, 2**31),
    "validation_rows_per_batch": (1, 2**31),
    "processes": (1, 1024),  # as many are started
    "workers": (0, 1024),
    "seed": (0, 2**63),
}
"""The lowest and highest value of settings that are numbers."""
_MAY_BE_NULL = ("tokens_per_step", "rows_per_step")

SOURCES = ("source", "validation_source", "test_source", "predict_source")
"""Settings that name rows."""


class DialogueData:
    """Dialogue rows, each a context and a reply to train, from a source to planned batches.

    A source is a Hub data set id; a JSON, JSONL, CSV, TSV, Excel, Parquet or Arrow file, text also with gzip or zstd;
    a folder of such files, or one written by `save_to_disk`; a glob; `demo`, the embedded rows; or a list of these. A
    row has a context and a target; or the columns of another form, see `form`; or `input_ids` and `seq_len`, which are
    used unchanged.

    Args:
        source: rows to train on: a file, folder, glob or Hub id, `modelscope:OWNER/NAME` for a data set on ModelScope,
            `demo`, or a list of these.
        source_weights: for a list of sources, how often rows of each one appear in an epoch, relative to each other.
            An epoch takes each row of the lowest weight once, and rows of k times that weight k times; for a fraction,
            rows are drawn once for all epochs. unset: each row once.
        name: configuration of `source` on the Hub, or in a folder whose README has several; also used for other
            sources that equal `source`.
        revision: branch, tag or commit of `source` on the Hub or ModelScope, used like `name`.
        split: split of `source` on the Hub, or in a folder whose README or file names have splits.
        context_column: column of the prompt: system prompt, memories, history and question, joined by `###`.
        target_column: column of the reply.
        form: form of the rows. `auto`: in each row the first that its columns fit. `context_target`: the two columns
            above. `messages`, `sharegpt` (`conversations`) and `conversation`: a list of turns. The others: a column of
            the prompt and one of the reply, and `history`. `system` is read beside all but the first.
        validation_source: rows to validate on; unset: `validation_share` of the rows of `source`.
        validation_split: split of `validation_source`.
        validation_share: share of the rows of `source` to validate on, 0 to 1; 0: no validation. Rows with the same
            question, or the same value in a column `dialogue`, are never on both sides.
        test_source: rows of `test`; unset: the validation rows.
        test_split: split of `test_source` and of `predict_source`.
        predict_source: prompts of `predict`, which need no target; unset: the rows of `test`.
        bad_rows: rows that cannot be used are counted and the first few shown; then `drop` continues without them,
            `error` stops.
        drop: kinds of odd rows to drop, except from `predict_source`. All kinds are counted. `duplicate`: context and
            target equal an earlier row's; `loop`: the target repeats the same few tokens; `punctuation`: the target has
            no letter or digit; `leak`: the context contains the target verbatim. Rows with an empty target are bad
            rows.
        bad_rows_file: JSONL file to write, one line per bad or odd row: file, line, what is wrong, whether it is
            left out.
        tokenizer: Hub id or folder of ChatGLM2's tokenizer; the command line sets it from `model.base`. Not needed if
            all rows have ids.
        tokenizer_revision: branch, tag or commit of `tokenizer` on the Hub.
        template: wording of the prompt. `raw`: the context unchanged, messages joined by `###`; `chatglm2`: the rounds
            of the published model, a context being the question of the first round.
        train_turns: replies of a conversation to train: the `last`; or `all`, each with its end of sequence. With
            `last`, earlier replies are part of the prompt, without an end of sequence.
        max_tokens: longest row in tokens, end of sequence included; null: no limit.
        over_length: handling of longer rows. `shrink_context`: remove memories and turns, or rounds of messages, oldest
            first; system prompt, question and target are kept whole, and a row is bad if these alone are too long.
            `drop`: a longer row is bad. `error`: stop.
        append_eos: append the end-of-sequence token to each target, so that the model learns to stop.
        label_boundary: `target`: train target and end of sequence; `seed`: also train the last token of the context, as
            the original does.
        batching: `packed`: rows concatenated up to `tokens_per_batch`, without attention between them; `shared`:
            packed, and a beginning that rows have in common, such as their system prompt, is computed once; `grouped`:
            `rows_per_batch` rows of similar length, padded; `padded`: `rows_per_batch` rows in shuffled order, padded.
        rows_per_cluster: most rows that share a beginning in a `shared` batch; null: no limit. More rows save more, but
            an optimizer step then sees rows from fewer places of the data: with 4, take twice as many rows a step.
        rows_per_batch: rows of a padded training batch on one device.
        tokens_per_batch: tokens of a packed training batch on one device. `auto`: `kyon-pl fit` takes the fastest size
            for this machine; elsewhere the smallest.
        tokens_per_step: tokens of an optimizer step over all devices, if packed. It is divided into packs that have
            room for the longest row, and a batch is one or more of them, so that the rows of a step do not depend on
            batch size, accumulation and devices. null: a step is what these make.
        rows_per_step: rows of an optimizer step over all devices, if not packed; for an accumulation that is `auto`.
            null: a step is what batch size, accumulation and devices make.
        validation_rows_per_batch: rows of a batch on one device in validate, test and predict; padded, by length.
        shuffle: shuffle the training rows in every epoch; false: keep their order.
        seed: seed of that order; the command line sets it from `seed_everything`.
        workers: number of processes that load batches; 0: the training process loads them.
        processes: number of processes that encode rows; unset: one per core, 16 at most.
        cache_dir: folder of encoded rows; unset: the cache of `datasets` (HF_DATASETS_CACHE).

    Raises:
        SettingError: a setting has an invalid value.
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
        form: FormName = "auto",
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
        rows_per_cluster: int | None = 2,
        rows_per_batch: int = 8,
        tokens_per_batch: int | Literal["auto"] = 4096,
        tokens_per_step: int | None = None,
        rows_per_step: int | None = None,
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
        check_form(form)
        self.form: FormName = form
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
        self.rows_per_cluster = rows_per_cluster
        self.rows_per_batch = rows_per_batch
        self.tokens_per_step = tokens_per_step
        self.rows_per_step = rows_per_step
        self.tokens_per_pack: int | None = None
        self.tokens_per_batch = (max_tokens or 1) if tokens_per_batch == "auto" else tokens_per_batch
        self.validation_rows_per_batch = validation_rows_per_batch
        self.shuffle = shuffle
        self.seed = seed
        self.workers = workers
        self.processes = min(os.cpu_count() or 1, _MAX_PROCESSES) if processes is None else processes
        self.cache_dir = cache_dir
        self.collator = DialogueCollator(PAD_TOKEN_ID, label_boundary)
        self.rows: dict[Use, TokenRows] = {}
        self.train_sampler: PlannedBatchSampler | None = None
        self._check_numbers()
        if batching in PACKED and tokens_per_step is not None and max_tokens is not None:
            cluster = rows_per_cluster if batching == "shared" else 1
            self.tokens_per_pack = pack_of_step(tokens_per_step, max_tokens, cluster)
            self.tokens_per_batch = self.tokens_per_pack if tokens_per_batch == "auto" else tokens_per_batch
        self._check_settings()

    def _check_numbers(self) -> None:
        for name, (lowest, highest) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NULL:
                continue
            if value is None:
                raise SettingError(f"data.{name}", "null is no number", f"Set {lowest} or more, or leave it out.")
            if value < lowest:
                raise SettingError(f"data.{name}", f"{value} is too low", f"Set {lowest} or more.")
            if value > highest:
                raise SettingError(f"data.{name}", f"{value} is too high", f"Set {highest} or less.")

    def _check_settings(self) -> None:
        max_tokens = self.encoding.max_tokens
        if self.batching in PACKED and (max_tokens is None or max_tokens > self.tokens_per_batch):
            found = f"{max_tokens or 'null'}, but a packed batch has {self.tokens_per_batch} tokens"
            raise SettingError("data.max_tokens", found, "Lower it to data.tokens_per_batch or less, or raise that.")
        if self.tokens_per_pack and self.tokens_per_batch % self.tokens_per_pack:
            found = (
                f"{self.tokens_per_batch:,} is no multiple of {self.tokens_per_pack:,}, the packs of tokens_per_step"
            )
            raise SettingError("data.tokens_per_batch", found, f"Set auto, or a multiple of {self.tokens_per_pack}.")
        if not 0 <= self.validation_share < 1:
            found = f"{self.validation_share} is not a share"
            raise SettingError("data.validation_share", found, "Set 0, or a share below 1.")
        if self.encoding.train_turns == "all" and self.label_boundary == "seed":
            found = "all, and data.label_boundary seed is the original's, which trains one reply a row"
            raise SettingError("data.train_turns", found, "Set last, or data.label_boundary: target.")

    def prepare(self, stage: str | None = None) -> None:
        """Download and encode the rows of a stage into the cache, without keeping state.

        Args:
            stage: fit, validate, test or predict; None: all.

        Raises:
            MissingFileError: rows or tokenizer do not exist.
            DataError: rows cannot be used, see `bad_rows`.
            SettingError: a setting does not fit the rows.
        """
        for origin in self._origins(USES[stage]):
            table = self._table(origin)
            if self.batching == "shared" and origin == "train":
                _ = table.tree  # found once and kept

    def load(self, stage: str | None = None, *, verbose: bool = True) -> None:
        """Load the rows of a stage into `rows`; they are prepared if needed.

        Args:
            stage: fit, validate, test or predict; None: all.
            verbose: log what was read and skipped, and write `bad_rows_file`.

        Raises:
            DataError: there are no rows to train on, or none for the stage.
            SettingError: `bad_rows_file` names an input, or a file that is not ours.
            KyonError: see `prepare`.
        """
        check_outputs(self.outputs(), self.inputs())
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
                write_bad_rows(bad_rows_output(self.bad_rows_file), list(tables.values()))

    def outputs(self) -> list[Output]:
        """The files that `load` writes.

        Raises:
            SettingError: one that cannot be a path.
        """
        return [bad_rows_output(self.bad_rows_file)] if self.bad_rows_file else []

    def inputs(self) -> dict[str, str | list[str] | None]:
        """The sources of all stages, by the setting that names them."""
        return {f"data.{name}": getattr(self, name) for name in SOURCES}

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
        """Plan the micro-batches of every epoch, after `load`.

        Args:
            rank: rank of this process.
            world_size: number of processes.
            accumulate_grad_batches: micro-batches of an optimizer step on one device.
            limit_batches: micro-batches of an epoch on one device, or a share of them; None: all.
            shuffle: False overrides the setting `shuffle`.
            position: returns the number of optimizer steps done; None: start with the first.
        """
        rows = self.rows["train"]
        planner = BatchPlanner(
            row_tokens=rows.tokens,
            row_trained_tokens=rows.trained_tokens(self.label_boundary),
            batching=self.batching,
            rows_per_batch=self.rows_per_batch,
            tokens_per_batch=self.tokens_per_batch,
            tokens_per_pack=self.tokens_per_pack,
            shuffle=self.shuffle and shuffle,
            seed=self.seed,
            rows_per_cluster=self.rows_per_cluster,
            **({"tree": rows.tree} if self.batching == "shared" else {}),
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
        """Yield the training batches of the first epoch, collated in this process."""
        return self._collate(self.sampler)

    def largest_batches(self, epochs: int) -> list[Batch]:
        """Return the one or two training batches of some epochs that need the most memory; none if none is used."""
        batches = self.sampler.batches_used * self.sampler.world_size
        return list(self._collate(largest_batches(self.sampler.planner, batches, epochs))) if batches else []

    def train_collator(self) -> PlannedCollator:
        """Return the collator of training batches."""
        if self.batching in PACKED:
            shares = self.batching == "shared"
            return PlannedCollator(self.collator, self.tokens_per_batch, self.encoding.max_tokens, shares)
        return PlannedCollator(self.collator)

    def place(self, row_number: int) -> str:
        """Return file and line of a training row, given its number in a batch."""
        rows = self.rows["train"]
        return rows.table.rows.place(int(rows.numbers[row_number]))

    def smaller_batch_settings(self, accumulate_grad_batches: int = 1) -> str:
        """Return advice on which settings halve the size of a training batch.

        Args:
            accumulate_grad_batches: current value of `trainer.accumulate_grad_batches`.
        """
        longest_row = self.encoding.max_tokens or int(self.rows["train"].tokens.max())
        size = self.rows_per_batch, self.tokens_per_batch
        return smaller_batch_settings(self.batching, *size, longest_row, accumulate_grad_batches)

    def check_ids(self, vocabulary_size: int) -> None:
        """Check that the ids of all rows are in the vocabulary of the base.

        Args:
            vocabulary_size: number of rows of the base's embedding.

        Raises:
            DataError: a row has an id outside the vocabulary.
        """
        for rows in self.rows.values():
            number = rows.table.first_row_outside_vocabulary(vocabulary_size)
            if number is not None:
                found = f"an id of {vocabulary_size:,} or more, and the base has {vocabulary_size:,} ids from 0 on"
                fix = "Give the ids of this base's tokenizer, or text."
                raise DataError(rows.table.rows.place(number), found, fix)

    def fingerprint(self) -> dict[str, str]:
        """Return row counts and checksums of the rows of `fit`, and a hash of the template.

        Raises:
            KyonError: see `prepare`; rows that are not loaded are prepared.
        """
        loaded = {self._origin(use): rows.table for use, rows in self.rows.items()}
        tables = {origin: loaded.get(origin) or self._table(origin) for origin in self._origins(USES["fit"])}
        rows = {f"data: {origin} rows": f"{len(table)}, CRC {table.crc32:08x}" for origin, table in tables.items()}
        return rows | {"data: template": f"{self.encoding.template}, {template_hash(self.encoding.template)}"}

    def _collate(self, planned: Iterable[MicroBatch]) -> Iterator[Batch]:
        rows, collate = self.rows["train"], self.train_collator()
        return (collate(rows.__getitems__(micro_batch)) for micro_batch in planned)

    def _source_of(self, use: Use) -> str | list[str] | None:
        sources = {"train": self.source, "validation": self.validation_source, "test": self.test_source}
        return self.predict_source if use == "predict" else sources[use]

    def _origin(self, use: Use) -> Use:
        """Return the use whose source has these rows: `use` itself or, if it has no source, its fallback."""
        return use if self._source_of(use) is not None else self._origin(_FALLBACK[use])

    def _origins(self, uses: Sequence[Use]) -> list[Use]:
        return sorted({self._origin(use) for use in uses})

    def _table(self, origin: Use) -> EncodedTable:
        source = self._source_of(origin)
        assert source is not None
        columns = ColumnNames(self.context_column, self.target_column, origin != "predict", self.form)
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
        """Log how sources are mixed, and warn if `validation_share` yields no rows."""
        if "train" not in self.rows:
            return
        rows, validation = self.rows["train"], self.rows["validation"]
        if self.mix:
            sources = rows.table.rows.source_numbers[np.unique(rows.numbers)]
            self.mix.report([self.source] if isinstance(self.source, str) else self.source, sources)
        if self.validation_share and validation.table is rows.table and not len(validation):
            reason = "there are too few rows, or nearly all are in one group of shared questions and dialogues"
            log.warning("data: no validation rows: %s; you can set data.validation_source", reason)
