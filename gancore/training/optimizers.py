"""Optimizers of both networks: made from the recipe, saved and restored; rates and averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gancore.errors import CheckpointError, ContractError
from gancore.options import shown
from gancore.recipe import Optimizer
from gancore.training.environment import arranged

FUSED = ("cpu", "cuda")
"""Devices on which Adam makes its step in one kernel."""

REMEDY = "Undo what has changed of the optimizer, copy the run folder anew, or train again"

Decay = Literal["none", "linear", "cosine"]


def trainable(module: nn.Module, what: str) -> list[nn.Parameter]:
    """Return the parameters to train. Raises ContractError where there are none."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ContractError(f"the {what} has no parameters to train")
    return parameters


def make_optimizer(section: Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer that a recipe's section asks for, fused where the device has that."""
    if section.name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=section.lr, alpha=section.alpha)
    fused = all(each.device.type in FUSED and each.is_floating_point() for each in parameters)
    return torch.optim.Adam(parameters, lr=section.lr, betas=section.betas, fused=fused or None)


def apply_gradients(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor | None],
) -> None:
    """Make one optimizer step with these gradients, and keep none of them."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and gradient.stride() != parameter.stride():
            # fused kernels take both to lie alike in memory
            gradient = torch.empty_like(parameter).copy_(gradient)
        parameter.grad = gradient
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None


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
    """Give an optimizer back what `optimizer_state` returned, in the layout of its parameters.

    A parameter that never had a gradient has no state; any other has all that the optimizer keeps.
    Raises CheckpointError for what does not fit: fused kernels would read beyond a small tensor.
    """
    state: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        owner, _, rest = path.partition("/")
        index, _, key = rest.partition("/")
        if owner == name:
            state.setdefault(index, {})[key] = tensor
    if not state:
        raise CheckpointError(f"the checkpoint has no state of the {name}'s optimizer. {REMEDY}")
    groups = optimizer.state_dict()["param_groups"]
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    known = {str(index): parameter for index, parameter in enumerate(parameters)}
    for index, values in state.items():
        expected = _first_state(optimizer, known[index]) if index in known else {}
        for key in sorted(expected.keys() | values.keys()):
            wanted, found = _form(expected.get(key)), _form(values.get(key))
            if wanted != found:
                raise CheckpointError(
                    f"the checkpoint's optimizer state {shown(f'{name}/{index}/{key}')}: "
                    f"expected {wanted}, found {found}. {REMEDY}"
                )
    optimizer.load_state_dict(
        {"state": {int(index): values for index, values in state.items()}, "param_groups": groups}
    )
    for values in optimizer.state.values():
        values |= {key: arranged(tensor) for key, tensor in values.items()}


def _first_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return what an optimizer of this kind keeps of such a parameter after its first step."""
    like = torch.zeros_like(parameter)
    like.grad = torch.zeros_like(like)
    make: Callable[..., torch.optim.Optimizer] = type(optimizer)
    fresh = make([like], **optimizer.defaults)
    fresh.step()
    state: dict[str, Tensor] = fresh.state[like]
    return state


def _form(tensor: Tensor | None) -> str:
    if tensor is None:
        return "none"
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
