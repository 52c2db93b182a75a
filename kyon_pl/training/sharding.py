# mypy: allow-untyped-calls
"""A frozen base that no device holds whole: FSDP2 for what is large and never changes, DDP for the rest."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from kyon_pl.chatglm2 import ChatGLM2ForCausalLM


def shard_base(base: ChatGLM2ForCausalLM, device: torch.device) -> None:
    """Leave each rank its share of every frozen weight, part by part: embedding, layers, head, and the last norm.

    The ranks gather a part when it is to compute, forward and backward, and drop it behind that. Weights are gathered
    as they are, so that all numbers are those of a whole base, bit by bit; every rank has to make every forward pass.

    The adapter is no part of it. It is megabytes, DDP has it whole on every rank, and so gradients, clipping, guards
    and checkpoints are DDP's. What is left has one dtype and no gradient: FSDP2 gathers it, and reduces nothing.

    Args:
        base: with LoRA attached, on the CPU; a part goes to the device, is cut there, and only the share stays. In the
            dtype of its files it is these files, mapped, and there once a machine; converted, each rank has a copy.
        device: of this rank; the process group is there.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    trained = {parameter for parameter in base.parameters() if parameter.requires_grad}
    # the inner model comes last, and is the root, which FSDP2 wants to be called first: PEFT calls `base.forward`
    # and not `base`, and so passes by its hooks
    layers = base.transformer.encoder.layers
    for part in (base.get_input_embeddings(), *layers, base.get_output_embeddings(), base.transformer):
        fully_shard(part, mesh=mesh, ignored_params=trained)


def keep_from_ddp(module: torch.nn.Module) -> None:
    """Have DDP pass over the shares, or it would send the first rank's to all others at its start.

    This is torch's way to tell it, for all its underscore; Lightning looks there too, in validate, test and predict.

    Args:
        module: what the strategy wraps, the base in it.
    """
    shares = [name for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, shares)
