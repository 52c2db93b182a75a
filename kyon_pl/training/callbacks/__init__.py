"""Lightning callbacks: guards, checkpoints, logging, signals and replies."""

from kyon_pl.training.callbacks.adapter_average import AdapterAverage
from kyon_pl.training.callbacks.adapter_guard import AdapterGuard
from kyon_pl.training.callbacks.finite_guard import FiniteGuard
from kyon_pl.training.callbacks.held_out_replies import HeldOutReplies, ReplySettings
from kyon_pl.training.callbacks.memory_guard import MemoryGuard
from kyon_pl.training.callbacks.optional_curves import OptionalCurves
from kyon_pl.training.callbacks.ranks import Randomness, Ranks
from kyon_pl.training.callbacks.reply_writer import ReplyWriter
from kyon_pl.training.callbacks.run_output import FinalMetrics, RunEstimate, RunLog, ShownRows
from kyon_pl.training.callbacks.run_record import RunRecord
from kyon_pl.training.callbacks.spread_validations import SpreadValidations
from kyon_pl.training.callbacks.step_checkpoint import StepCheckpoint
from kyon_pl.training.callbacks.step_metrics import FirstValidation, Progress, StepMetrics
from kyon_pl.training.callbacks.stop_signals import StopSignals

__all__ = [
    "AdapterAverage",
    "AdapterGuard",
    "FinalMetrics",
    "FiniteGuard",
    "FirstValidation",
    "HeldOutReplies",
    "MemoryGuard",
    "OptionalCurves",
    "Progress",
    "Randomness",
    "Ranks",
    "ReplySettings",
    "ReplyWriter",
    "RunEstimate",
    "RunLog",
    "RunRecord",
    "ShownRows",
    "SpreadValidations",
    "StepCheckpoint",
    "StepMetrics",
    "StopSignals",
]
