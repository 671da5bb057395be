"""A model whose parameters are parted among the processes, for one that does not fit on a device.

FSDP2 (`torch.distributed.fsdp.fully_shard`; Zhao et al. 2023, "PyTorch FSDP"): each process holds
an even part of every parameter, its gradient and its moments. The weights of a unit are put
together when its forward or backward pass comes, and its gradients are added up and parted again.

Everything here also takes ordinary tensors and models, for which it is the identity.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from minibert.world import World


def shard(
    model: nn.Module, units: Iterable[nn.Module], world: World, device: torch.device, in_bf16: bool
) -> None:
    """Parts the parameters of a model among the processes and moves each part to its device.

    Every process hands in the same weights. An optimiser must be built afterwards.

    Args:
        units: modules in `model` whose parameters are put together and let go by themselves; the
            rest stays whole from a step's forward to the end of its backward pass, so that the
            word embedding is there when the MLM head asks for it.
        in_bf16: exchange the units' weights in bf16, as autocast would compute with them: half the
            traffic, and no bf16 copy of the whole model is kept for the backward pass. Gradients
            are added up in fp32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # slow to import

    # The output is a view; what it warns of, writing into it, is nowhere done.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (world.size,))
    dtype = torch.bfloat16 if in_bf16 else None
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    if device.type != "cpu":
        keep_on_host(model)


def keep_on_host(model: nn.Module) -> None:
    """Has tensors of the host reach a sharded model as they are.

    FSDP2 moves what a root module is given to its device (`_root_pre_forward`). A mask there does
    not tell how long sequences are unless the device is waited for, so nothing would be packed.
    """

    def hide(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return tuple(map(_hidden, args)), {k: _hidden(v) for k, v in kwargs.items()}

    def show(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return tuple(map(_shown, args)), {k: _shown(v) for k, v in kwargs.items()}

    model.register_forward_pre_hook(hide, prepend=True, with_kwargs=True)  # before FSDP2's
    model.register_forward_pre_hook(show, with_kwargs=True)


class _OfHost:
    """A tensor that FSDP2, which looks into tuples, lists and dictionaries, does not find."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _hidden(value: Any) -> Any:
    return _OfHost(value) if isinstance(value, Tensor) and value.is_cpu else value


def _shown(value: Any) -> Any:
    return value.tensor if isinstance(value, _OfHost) else value


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds parts of the model's parameters only."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from its parts; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor) -> Tensor:
    """What of a tensor this process holds; nothing is exchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Tensors put together for the main process, in its own memory; the others get none.

    Every process must ask. One tensor at a time is whole on the device.
    """
    found = {}
    for name, tensor in tensors.items():
        value = whole(tensor)
        if world.is_main:
            found[name] = value.cpu() if isinstance(tensor, DTensor) else value
    return found


def part_like(tensor: Tensor, other: Tensor) -> Tensor:
    """What of a whole tensor this process holds if it is parted like another, on its device.

    Nothing is exchanged: every process must have the same whole.
    """
    tensor = tensor.to(other.device)
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def clip_gradients(
    model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float, read: bool = True
) -> Tensor:
    """Has the next step take gradients whose common norm is at most `max_norm`.

    Fused AdamW divides whole gradients as it reads them, which spares a pass over them; for other
    optimisers, and for parts of gradients, they are scaled here.

    Args:
        read: look at the norm first, for gradients that need no scaling; False where the device
            would have to be waited for.

    Returns:
        The norm before, over every parameter and process.
    """
    parameters = list(model.parameters())
    norm = whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    within = read and bool(norm + 1e-6 <= max_norm)
    # torch.amp.GradScaler asks and tells the optimiser so; on MPS torch 2.11 does not divide.
    divides = getattr(optimizer, "_step_supports_amp_scaling", False)
    if divides and norm.device.type in ("cpu", "cuda") and not is_sharded(model):
        divisor = None if within else ((norm + 1e-6) / max_norm).clamp(min=1.0)
        optimizer.grad_scale = divisor  # type: ignore[attr-defined]
    elif not within:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
