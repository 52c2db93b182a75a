"""The LightningDataModule: dialogue rows as the batches of fit, validate, test and predict."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from kyon_pl.batch import Batch, PromptBatch
from kyon_pl.data.batches.collate import PlannedCollator
from kyon_pl.data.batches.loader import Prompt, PromptRows, TokenRows, collate_prompts, planned_loader
from kyon_pl.data.batches.plan import BatchPlanner
from kyon_pl.data.batches.sampler import PlannedBatchSampler, check_unchanged
from kyon_pl.data.dialogue_data import DialogueData
from kyon_pl.data.shown_rows import rows_text
from kyon_pl.errors import SettingError


class DialogueDataModule(DialogueData, LightningDataModule):
    """`DialogueData` with the hooks of a LightningDataModule; batches are planned over ranks and accumulation.

    Its settings are those of `DialogueData`. With a Trainer, validate, test and predict read only their own rows.
    """

    def prepare_data(self) -> None:
        """Download and encode rows, once per machine; see `prepare`."""
        self.prepare(self.trainer.state.fn.value if self.trainer and self.trainer.state.fn else None)

    def setup(self, stage: str | None = None) -> None:
        """Load the rows and plan the training batches, on every rank.

        Args:
            stage: fit, validate, test or predict; None: all.

        Raises:
            SettingError: the validation interval is longer than an epoch.
            KyonError: see `load`.
        """
        self.load(stage, verbose=self.trainer is None or self.trainer.is_global_zero)
        if "train" in self.rows:
            self._plan_training()
            self._check_validation_interval()

    def train_dataloader(self) -> DataLoader[Batch]:
        """This rank's share of the planned batches, starting at the trainer's optimizer step."""
        return self._loader(self.rows["train"], self.sampler, self.train_collator())

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """This rank's share of the validation rows, each row on one rank; an empty list if there are none."""
        return self._evaluation_loader(self.rows["validation"])

    def test_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """This rank's share of the test rows, each row on one rank; an empty list if there are none."""
        return self._evaluation_loader(self.rows["test"])

    def predict_dataloader(self) -> DataLoader[Prompt | None]:
        """This rank's share of the prompts, in order; all ranks have equally many batches."""
        prompts = PromptRows(self.rows["predict"], start=self._rank, step=self._world_size)
        return DataLoader(
            prompts, batch_size=self.validation_rows_per_batch, collate_fn=collate_prompts, num_workers=self.workers
        )

    def check_plan(self, *, world_size: int, accumulate_grad_batches: int, batches_per_epoch: int | float) -> None:
        """Check that nothing that the plan of the training batches depends on has changed; see `batch.PlannedSource`.

        Raises:
            SettingError: a number of the Trainer or a setting of the data has changed since `setup`.
        """
        self.sampler.check_plan(
            world_size=world_size,
            accumulate_grad_batches=accumulate_grad_batches,
            batches_per_epoch=batches_per_epoch,
        )
        planner = self.sampler.planner
        sizes = ("batching", "rows_per_batch", "tokens_per_batch", "rows_per_cluster", "seed")
        check_unchanged({f"data.{name}": (getattr(planner, name), getattr(self, name)) for name in sizes})

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of every epoch; available after `setup`."""
        return self.sampler.steps_per_epoch

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches of one device in every epoch."""
        return self.sampler.batches_used

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of an epoch without padding, over all ranks; with `limit_train_batches`, the average."""
        return self._used_share(int(self.rows["train"].tokens.sum()))

    @property
    def computed_tokens_per_epoch(self) -> int:
        """Those of them that are computed, about as many in every epoch; fewer if rows share their beginnings."""
        return self._used_share(int(self.rows["train"].tokens.sum()) - self.sampler.planner.shared_tokens)

    def _used_share(self, tokens: int) -> int:
        return tokens * self.sampler.batches_used // len(self.sampler)

    @property
    def training_rows(self) -> int:
        """Training rows of an epoch, over all ranks."""
        return len(self.rows["train"])

    @property
    def validation_rows(self) -> int:
        """Validation rows, over all ranks; available in `fit` and `validate`."""
        return len(self.rows["validation"])

    def held_out_prompts(
        self, use: Literal["validation", "test"], most: int | None, one_a_question: bool
    ) -> PromptBatch:
        """This rank's share of some held-out rows as prompts; see `RowSource`."""
        indices = self.rows[use].spread_indices(most, one_a_question)
        prompts = PromptRows(self.rows[use])
        return collate_prompts([prompts[index] for index in indices[self._rank :: self._world_size]])

    def shown_rows(self, count: int) -> str:
        """The first training rows as the model sees them; see `RowSource`."""
        return rows_text(self, count)

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _plan_training(self) -> None:
        trainer = self.trainer
        if trainer is None:
            self.plan_training()
            return
        self.plan_training(
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            accumulate_grad_batches=trainer.accumulate_grad_batches,
            limit_batches=trainer.limit_train_batches,
            shuffle=not trainer.overfit_batches,  # type: ignore[attr-defined]
            position=lambda: trainer.global_step,
        )

    def _check_validation_interval(self) -> None:
        """Check `trainer.val_check_interval`; Lightning does so, too, but only after the base is loaded."""
        if self.trainer is None:
            return
        interval, batches = self.trainer.val_check_interval, self.batches_per_epoch
        if type(interval) is int and interval > batches and self.trainer.check_val_every_n_epoch is not None:
            found = f"{interval}, and an epoch has {batches} micro-batches"
            raise SettingError("trainer.val_check_interval", found, "Lower it, or set 1.0: once an epoch.")

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
