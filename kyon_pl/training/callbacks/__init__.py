"""What happens beside the training step, one file each."""

from kyon_pl.training.callbacks.progress import Progress
from kyon_pl.training.callbacks.reply_writer import ReplyWriter
from kyon_pl.training.callbacks.run_estimate import RunEstimate
from kyon_pl.training.callbacks.step_checkpoint import StepCheckpoint
from kyon_pl.training.callbacks.step_metrics import StepMetrics

__all__ = ["Progress", "ReplyWriter", "RunEstimate", "StepCheckpoint", "StepMetrics"]
