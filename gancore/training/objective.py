"""The objective of one update: penalties first, then the loss, all checked against the contract.

Penalties come first so that a penalty's forward pass can serve the loss too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gancore.errors import ContractError, NonFiniteError
from gancore.plugins import Loaded, Plugins
from gancore.step import CriticStep, GeneratorStep

HOOKS = {
    "critic": ("critic_loss", "penalty"),
    "generator": ("generator_loss", "generator_penalty"),
}


@dataclass(frozen=True)
class Objective:
    """What an update minimizes, and its parts by record key, unscaled."""

    total: Tensor
    terms: dict[str, Tensor]


def objective(
    plugins: Plugins, step: CriticStep | GeneratorStep, autocast: AbstractContextManager[None]
) -> Objective:
    """Return the loss of this step plus all penalties that are due; only the loss is autocast.

    Raises ContractError for an answer that is no scalar of the right dtype and device, or that
    nothing can be learned from.
    """
    critic = isinstance(step, CriticStep)
    loss_hook, penalty_hook = HOOKS["critic" if critic else "generator"]
    terms = {}
    extra: list[Tensor] = []
    for each, scale, answer in plugins.answer_penalties(penalty_hook, step):
        value = _checked(answer, each, penalty_hook, step.real)
        if (each.name, penalty_hook) not in plugins.proven:
            _refuse_unconnected(value, step, each, penalty_hook)
            plugins.proven.add((each.name, penalty_hook))
        terms[f"{penalty_hook}/{each.name}"] = value
        extra.append(value if scale == 1.0 else scale * value)
    with autocast:
        total = _checked(plugins.answer_loss(loss_hook, step), plugins.loss, loss_hook, step.real)
    terms[loss_hook] = total
    for value in extra:
        total = total + value
    return Objective(total, terms)


def to_host(terms: Mapping[str, Tensor], update: int) -> dict[str, float]:
    """Copy all terms to the host at once.

    Raises NonFiniteError that names the first that is inf or nan.
    """
    values = torch.stack([term.detach().double() for term in terms.values()]).tolist()
    named = dict(zip(terms, values, strict=True))
    for name, value in named.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{name} is {value} at update {update}; the weights are those before it. "
                "Lower the learning rate, or look at the last records and checkpoint"
            )
    return named


def _refuse_unconnected(
    value: Tensor, step: CriticStep | GeneratorStep, each: Loaded, hook: str
) -> None:
    """Refuse a penalty whose graph leads to no parameter: it would train nothing, silently."""
    module = step.critic if isinstance(step, CriticStep) else step.generator
    if not isinstance(module, nn.Module):
        return
    wanted = {id(parameter) for parameter in module.parameters()}
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if id(getattr(node, "variable", None)) in wanted:
            return
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    raise ContractError(
        f"plugin {each}: {hook} answered a value that depends on no parameters of the "
        f"{type(module).__name__}, so it trains nothing: is it of samples only, or detached?"
    )


def _checked(value: object, each: Loaded, hook: str, like: Tensor) -> Tensor:
    """Return `value` if it keeps the contract of its hook."""
    if not isinstance(value, Tensor):
        fault = f"{type(value).__name__} {value!r}"
    elif value.dim() != 0:
        fault = f"a tensor of shape {tuple(value.shape)}"
    elif value.dtype != like.dtype or value.device != like.device:
        fault = f"a {value.dtype} on {value.device}"
    elif not value.requires_grad:
        fault = "a constant, from which nothing can be learned (detached, or made under no_grad?)"
    else:
        return value
    raise ContractError(
        f"plugin {each}: {hook} answered {fault}; expected a scalar {like.dtype} tensor on "
        f"{like.device} with a graph to the parameters"
    )
