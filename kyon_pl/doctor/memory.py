"""The peak of a run's memory on one device: the parts, and which of them are there at one time."""

from __future__ import annotations

from dataclasses import dataclass

from kyon_pl.chatglm2 import ChatGLM2Config
from kyon_pl.doctor import memory_parts as parts
from kyon_pl.doctor.memory_settings import MemorySettings
from kyon_pl.lora import checkpointed_layers

# cuBLAS takes one workspace of this size on Hopper (8 MiB elsewhere), and cuBLASLt another, out of torch's allocator;
# see CUBLAS_WORKSPACE_CONFIG in torch's notes on CUDA semantics
WORKSPACE_BYTES = 2 * 32 * 2**20
# CUDA's context with torch's kernels, which no allocator counts: 0.3 to 0.5 GiB, by GPU and driver
CONTEXT_BYTES = 2**29


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes by what holds them. Each is as large as where it is largest; they are not all there at one time.

    Attributes:
        frozen_weights: the base, or a rank's share with what is gathered of it, all the time.
        adapter: trained weights with gradients and Adam's state, all the time.
        workspace: of cuBLAS, all the time.
        mask: the attention mask of a batch, from its beginning to its end.
        saved: what the layers keep for the backward pass; those that are checkpointed, their inputs.
        recomputed: what one layer keeps while it is computed again; 0 where none is.
        layer_gradients: the most that the backward pass of one layer holds beside what was kept.
        head: logits at trained positions, their softmax and its gradients; then no layer is computed again.
        validation: a forward pass without gradients, beside weights and adapter only.
    """

    frozen_weights: int
    adapter: int
    workspace: int
    mask: int
    saved: int
    recomputed: int
    layer_gradients: int
    head: int
    validation: int

    @property
    def resident(self) -> int:
        """What is there all the time: frozen_weights + adapter + workspace."""
        return self.frozen_weights + self.adapter + self.workspace

    @property
    def training(self) -> int:
        """The peak of a training step: resident + mask + saved + max(recomputed + layer_gradients, head)."""
        return self.resident + self.mask + self.saved + max(self.recomputed + self.layer_gradients, self.head)

    @property
    def peak(self) -> int:
        """The larger one of training and of resident + validation."""
        return max(self.training, self.resident + self.validation)


def memory_estimate(config: ChatGLM2Config, settings: MemorySettings) -> MemoryEstimate:
    """Add up the peak of allocated memory, without CUDA's own context and without what the allocator leaves unused.

    Args:
        config: the shape of the base.
        settings: the run.

    Raises:
        SettingError: a precision that does not keep trained weights in float32; a number of checkpointed layers that
            the model does not have.
    """
    batch, layers = settings.training, config.num_layers
    kept_by_a_layer = parts.layer_saved_bytes(config, settings)
    checkpointed = checkpointed_layers(settings.checkpointing, layers)
    inputs = checkpointed * batch.total * config.hidden_size * settings.compute_bytes
    return MemoryEstimate(
        frozen_weights=parts.frozen_bytes(config, settings),
        adapter=parts.adapter_bytes(config, settings),
        workspace=WORKSPACE_BYTES if settings.device_type == "cuda" else 0,
        mask=parts.mask_bytes(settings),
        saved=inputs + (layers - checkpointed) * kept_by_a_layer,
        recomputed=kept_by_a_layer if checkpointed else 0,
        layer_gradients=parts.layer_gradient_bytes(config, settings),
        head=parts.head_bytes(config, settings),
        validation=parts.validation_bytes(config, settings),
    )


def needed_bytes(allocated_bytes: int, device_type: str) -> int:
    """What a device has to have for that much allocated memory: a GPU keeps CUDA's context beside it."""
    return allocated_bytes + (CONTEXT_BYTES if device_type == "cuda" else 0)
