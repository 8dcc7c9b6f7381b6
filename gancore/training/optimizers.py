"""Optimizers of both networks: made from the recipe, saved and restored; rates and averages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gancore.errors import ContractError
from gancore.recipe import Optimizer
from gancore.training.environment import arranged

Decay = Literal["none", "linear", "cosine"]


def trainable(module: nn.Module, what: str) -> list[nn.Parameter]:
    """Return the parameters to train. Raises ContractError where there are none."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ContractError(f"the {what} has no parameters to train")
    return parameters


def grad_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the 2-norm of all gradients together."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients)


def make_optimizer(section: Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer that a recipe's section asks for."""
    if section.name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=section.lr, alpha=section.alpha)
    return torch.optim.Adam(parameters, lr=section.lr, betas=section.betas)


def moving_average(generator: nn.Module, decay: float) -> AveragedModel | None:
    """Return the exponential moving average of a generator, or None where decay is 0."""
    if not decay:
        return None
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(generator, multi_avg_fn=average)


def decay_factor(decay: Decay, step: int, steps: int) -> float:
    """Return the learning rate's factor at a generator update: 1 at 0, 0 at `steps`."""
    match decay:
        case "linear":
            return 1 - step / steps
        case "cosine":
            return (1 + math.cos(math.pi * step / steps)) / 2
        case _:
            return 1.0


def optimizer_state(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's tensors by `name/parameter/key`; rates come from the recipe."""
    return {
        f"{name}/{index}/{key}": tensor
        for index, state in optimizer.state_dict()["state"].items()
        for key, tensor in state.items()
    }


def restore_optimizer(
    name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Give an optimizer back what `optimizer_state` returned, in the layout of its parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        owner, index, key = path.split("/")
        if owner == name:
            state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for values in optimizer.state.values():
        values |= {key: arranged(tensor) for key, tensor in values.items()}
