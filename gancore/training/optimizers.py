"""Optimizers of both networks: made from the recipe, saved and restored; rates and averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gancore.errors import CheckpointError, ContractError
from gancore.isolation.copies import copied
from gancore.recipe import Optimizer
from gancore.text import shown
from gancore.training.device import arranged

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
    fused = all(
        parameter.device.type in FUSED and parameter.is_floating_point() for parameter in parameters
    )
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
    return _Average(copied(generator, "generator"), multi_avg_fn=average)


class _Average(AveragedModel):
    """An average that has the extra state of what it averages, as it has its buffers."""

    def update_parameters(self, model: nn.Module) -> None:
        super().update_parameters(model)
        for mine, theirs in zip(self.module.modules(), model.modules(), strict=True):
            if type(theirs).get_extra_state is not nn.Module.get_extra_state:
                mine.set_extra_state(copied(theirs.get_extra_state(), "extra state"))


def averaged_weights(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return what a generator is sampled with, of a checkpoint: its average, if it has one."""
    if "ema" not in tensors:
        return dict(tensors["generator"])
    return {
        key.removeprefix("module."): tensor
        for key, tensor in tensors["ema"].items()
        if key != "n_averaged"
    }


def decay_factor(decay: Decay, step: int, steps: int) -> float:
    """Return the learning rate's factor at a generator update: 1 at 0, 0 at `steps`."""
    match decay:
        case "linear":
            return 1 - step / steps
        case "cosine":
            return (1 + math.cos(math.pi * step / steps)) / 2
        case _:
            return 1.0


def optimizer_state(
    name: str, optimizer: torch.optim.Optimizer, module: nn.Module
) -> dict[str, Tensor]:
    """Return an optimizer's tensors by `name/parameter/key`; rates come from the recipe."""
    return {
        f"{name}/{parameter_name}/{key}": tensor
        for parameter_name, parameter in module.named_parameters()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    name: str,
    optimizer: torch.optim.Optimizer,
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    by_position: bool = False,
) -> list[str]:
    """Give an optimizer back what `optimizer_state` returned, in the layout of its parameters.

    by_position: keys are `name/position/key`, as in checkpoints of format 1

    A parameter without state, as it never had a gradient or was frozen, begins anew. The state of
    one that is frozen now is left out. Any other has all that the optimizer keeps. Returns a line
    about each of these, where there are any. Raises CheckpointError for what does not fit: fused
    kernels would read beyond a small tensor.
    """
    state: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        owner, _, rest = path.partition("/")
        parameter_name, _, key = rest.rpartition("/")  # a name may hold a slash, a key does not
        if owner == name:
            state.setdefault(parameter_name, {})[key] = tensor
    if not state:
        raise CheckpointError(
            f"the checkpoint has no state of the {name}'s optimizer: none of its parameters had a "
            f"gradient, or the file is not whole. Let the {name} have gradients (outside "
            "torch.no_grad, checkpoints with use_reentrant=False) and train again, or copy the run "
            "folder anew"
        )
    groups = optimizer.state_dict()["param_groups"]
    trained = [one for group in optimizer.param_groups for one in group["params"]]
    position = {id(parameter): number for number, parameter in enumerate(trained)}
    # a parameter that several layers share has a name in each, any of which may have been the first
    known: dict[str, nn.Parameter] = (
        {str(number): parameter for number, parameter in enumerate(trained)}
        if by_position
        else dict(module.named_parameters(remove_duplicate=False))
    )
    frozen: list[str] = []
    restored: dict[int | None, dict[str, Tensor]] = {}
    for parameter_name, values in state.items():
        parameter = known.get(parameter_name)
        number = position.get(id(parameter))
        if parameter is not None and number is None:
            frozen.append(parameter_name)
            continue
        expected = (
            {} if number is None or number in restored else _first_state(optimizer, trained[number])
        )
        for key in sorted(expected.keys() | values.keys()):
            wanted, saved = _form(expected.get(key)), _form(values.get(key))
            if wanted != saved:
                raise CheckpointError(
                    f"the checkpoint's optimizer state {shown(f'{name}/{parameter_name}/{key}')}: "
                    f"expected {wanted}, found {saved}. {REMEDY}"
                )
        restored[number] = values
    optimizer.load_state_dict({"state": restored, "param_groups": groups})
    for values in optimizer.state.values():
        values |= {key: arranged(tensor) for key, tensor in values.items()}
    fresh = [
        parameter_name
        for parameter_name, parameter in module.named_parameters()
        if id(parameter) in position and position[id(parameter)] not in restored
    ]
    what = {
        "has no optimizer state in the checkpoint, so that begins anew": fresh,
        "is frozen now, so the checkpoint's optimizer state of it is left out": sorted(frozen),
    }
    return [f"the {name}'s {_first(names)} {said}" for said, names in what.items() if names]


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


def _first(names: Sequence[str]) -> str:
    return shown(names[0], 200) + (f" (and {len(names) - 1:,} more)" if names[1:] else "")
