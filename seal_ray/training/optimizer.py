"""From a phase to a torch optimizer: parameter groups, learning rates, and its state by parameter name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from seal_ray.networks import Parts
from seal_ray.phases.optimizers import Optimizer, torch_optimizer
from seal_ray.phases.schedule import Phase, Row, group_rate, owner


def build_optimizer(
    network: nn.Module, parts: Parts, phase: Phase, settings: Optimizer, *, fused: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of the phase's groups, its state fresh; sets requires_grad of every parameter.

    `param_groups[i]` has the extra key `group`: the index of its Group in the phase. Group.ascend becomes
    torch's `maximize`, which for SGD at weight decay 0 equals a negative learning rate bit for bit.

    fused: for SGD of float32, one kernel that reads each group's learning rate from a tensor, and state that
    is there from the start, so that a captured step follows the schedule. On a CPU it has other last bits.
    """
    members: list[list[nn.Parameter]] = [[] for _ in phase.groups]
    owners = {stage: owner(phase.groups, parts, stage) for stage in parts.stages}
    for name, parameter in network.named_parameters():
        index = owners[parts.stage_of(name)]
        parameter.requires_grad_(index is not None)
        if index is not None:
            members[index].append(parameter)
    rate = next(network.parameters()).new_zeros(())
    optimizer = torch_optimizer(
        settings,
        [
            {
                "params": parameters,
                "group": index,
                "maximize": group.ascend,
                "weight_decay": settings.weight_decay * group.weight_decay,
                **({"fused": True, "lr": rate.clone()} if fused else {}),
            }
            for index, (group, parameters) in enumerate(zip(phase.groups, members, strict=True))
            if parameters
        ],
    )
    if fused and settings.own["momentum"]:
        for parameter in (p for parameters in members for p in parameters):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_learning_rate(
    optimizer: torch.optim.Optimizer, phase: Phase, lr: float, rows: Sequence[Row], phase_epoch: int
) -> None:
    """Set every group's rate for one epoch: the scheduled `lr` x the group's multiple."""
    for entry in optimizer.param_groups:
        entry["rate"] = lr * group_rate(phase.groups[entry["group"]], rows, phase_epoch)
        if isinstance(entry["lr"], Tensor):
            entry["lr"].fill_(entry["rate"])
        else:
            entry["lr"] = entry["rate"]


def signed_rate(optimizer: torch.optim.Optimizer, phase: Phase, parts: Parts, stage: str) -> float:
    """The learning rate at which a stage moves: negative while it climbs the loss, 0 while frozen."""
    index = owner(phase.groups, parts, stage)
    for entry in optimizer.param_groups:
        if entry["group"] == index:
            return float(-entry["rate"] if entry["maximize"] else entry["rate"])
    return 0.0


def optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """The optimizer's tensors, named `<parameter>:<key>`, whatever groups the parameters are in."""
    return {
        f"{name}:{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, network: nn.Module, state: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_state` named; parameters that the optimizer does not move are left out.

    Counts of steps stay on the CPU, where torch keeps them, other tensors go to their parameter's device and,
    where they are as large, to its memory order.
    """
    parameters = dict(network.named_parameters())
    moved = {p for entry in optimizer.param_groups for p in entry["params"]}
    for name, value in state.items():
        owner_name, key = name.rsplit(":", 1)
        parameter = parameters[owner_name]
        if parameter not in moved:
            continue
        if key == "step":
            kept = value.cpu().clone()
        elif value.shape == parameter.shape:
            kept = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        else:
            kept = value.to(parameter.device, copy=True)
        optimizer.state[parameter][key] = kept


def state_copies(settings: Optimizer) -> int:
    """How many tensors of a parameter's size the optimizer keeps for it."""
    parameter = nn.Parameter(torch.zeros(2, 3))
    parameter.grad = torch.zeros(2, 3)
    optimizer = torch_optimizer(settings, [parameter])
    optimizer.step()
    return sum(isinstance(v, Tensor) and v.shape == (2, 3) for v in optimizer.state[parameter].values())
