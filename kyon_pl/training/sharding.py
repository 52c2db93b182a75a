# mypy: allow-untyped-calls
"""A frozen base of which each rank holds a share (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM

Owners = dict[str, tuple[nn.Module, str]]
"""For each weight of a base by its published name: the module that has it, and its name there."""


def weight_owners(base: ChatGLM2ForCausalLM) -> Owners:
    """The modules that have the weights.

    Args:
        base: without an adapter, which would change the names.
    """
    parts = {name: name.rpartition(".") for name in base.state_dict()}
    return {name: (base.get_submodule(path), kind) for name, (path, _, kind) in parts.items()}


def shard_base(
    base: ChatGLM2ForCausalLM, owners: Owners, weights: Iterable[tuple[str, Tensor]], device: torch.device
) -> None:
    """Shard the frozen weights over all ranks with FSDP2: the embedding, each layer, the head and the last norm.

    Each rank reads its share of each weight, and nothing else: of memory-mapped files only the pages that hold it.
    Each module is gathered for its forward and its backward pass, and released afterwards. Weights are gathered in
    their own dtype, so results equal those of an unsharded base bit by bit. All ranks must make every forward pass.

    The adapter is not sharded: it takes megabytes, and DDP keeps it whole on every rank, so that gradients, clipping,
    guards and checkpoints are those of DDP. The remaining weights have one dtype and no gradients, so FSDP2 only
    gathers.

    Args:
        base: the model with LoRA attached, its own weights without memory (`base_without_weights`).
        owners: from `weight_owners`, before LoRA was attached.
        weights: all weights of the base by name, on the CPU or on the device.
        device: device of this rank; the process group must be initialized.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    trained = {parameter for parameter in base.parameters() if parameter.requires_grad}
    for module, kind in owners.values():
        shape = nn.Parameter(torch.empty_like(getattr(module, kind), device="meta"), requires_grad=False)
        module.register_parameter(kind, shape)
    # FSDP2 requires that its root is called first. The root is the inner model, and not `base`, because PEFT calls
    # `base.forward` directly and so skips the hooks of `base`
    layers = base.transformer.encoder.layers
    for module in (base.get_input_embeddings(), *layers, base.get_output_embeddings(), base.transformer):
        fully_shard(module, mesh=mesh, ignored_params=trained)
    for name, tensor in weights:
        module, kind = owners[name]
        dtype = getattr(module, kind).dtype
        module.register_parameter(kind, nn.Parameter(_share(tensor, dtype, device, mesh), requires_grad=False))


def _share(tensor: Tensor, dtype: torch.dtype, device: torch.device, mesh: DeviceMesh) -> DTensor:
    """This rank's rows of a weight, in a copy of their own on the device, as FSDP2 cuts it."""
    rows = -(-len(tensor) // mesh.size())
    local = tensor[mesh.get_local_rank() * rows :][:rows].to(device, copy=True).to(dtype)
    return DTensor.from_local(
        local,
        mesh,
        [Shard(0)],
        run_check=False,
        shape=tensor.shape,
        stride=torch.empty_like(tensor, device="meta").stride(),
    )


def exclude_shards_from_ddp(module: torch.nn.Module) -> None:
    """Make DDP ignore sharded parameters, which it would otherwise broadcast from rank 0 at its start.

    This is torch's way to exclude parameters, despite the leading underscore. Lightning reads the same list in
    validate, test and predict.

    Args:
        module: the module that the strategy wraps.
    """
    shards = [name for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, shards)
