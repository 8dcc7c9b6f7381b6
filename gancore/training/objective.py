"""The objective of one update: penalties first, then the loss, all checked against the contract.

Penalties come first so that a penalty's forward pass can serve the loss too. All that is here can
be compiled, but for the walk through a penalty's graph, which a compiled update leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gancore.distributed.ranks import Ranks
from gancore.errors import ContractError, NonFiniteError
from gancore.plugins import Loaded, Plugins
from gancore.step import CriticStep, GeneratorStep
from gancore.training.plan import Side

HOOKS: dict[Side, tuple[str, str]] = {
    "critic": ("critic_loss", "penalty"),
    "generator": ("generator_loss", "generator_penalty"),
}


NOTE = "note/"
"""What record keys of plugins' notes begin with."""

NOTED = "noted"
"""The term that says how many notes each process has, on the mean; no record has it."""


@dataclass(frozen=True)
class Objective:
    """What an update minimizes, and its parts by record key, unscaled."""

    total: Tensor
    terms: dict[str, Tensor]


Scales = Mapping[str, float | Tensor]
"""The scales of the penalties that are due, by name; tensors where a graph is made for them."""


class Gradients(NamedTuple):
    """What differentiating gives: terms, and the gradients of what is trained.

    names      of the terms, as in records; the plugins' notes come last
    values     (T,) the terms, float64
    gradients  one a parameter, None where the objective does not depend on it
    """

    names: tuple[str, ...]
    values: Tensor
    gradients: tuple[Tensor | None, ...]


def differentiate(
    plugins: Plugins,
    step: CriticStep | GeneratorStep,
    parameters: Sequence[nn.Parameter],
    autocast: AbstractContextManager[None],
    due: Scales,
) -> Gradients:
    """Return the gradients of this step's objective, and its terms in one small tensor.

    Nothing is left on samples, nor on the other network. Raises as `objective`.
    """
    critic = isinstance(step, CriticStep)
    parts = objective(plugins, step, autocast, due)
    gradients = torch.autograd.grad(parts.total, parameters, allow_unused=True)
    terms = dict(parts.terms)
    with torch.no_grad():
        if critic:
            with autocast:  # where the loss took them
                terms["d_real"] = step.scores(step.real).mean()
                terms["d_fake"] = step.scores(step.fake).mean()
        terms["critic_grad_norm" if critic else "generator_grad_norm"] = _norm(gradients)
        values = torch.stack(list(terms.values())).double()
        if step.notes:  # of any dtype
            notes = torch.stack([note.double() for note in step.notes.values()])
            values = torch.cat([values, notes])
    return Gradients((*terms, *step.notes), values, tuple(gradients))


def possible_terms(plugins: Plugins, side: Side) -> list[str]:
    """Return the names of all terms but notes that an update of this side may have."""
    loss_hook, penalty_hook = HOOKS[side]
    scores = ["d_real", "d_fake"] if side == "critic" else []
    return [*plugins.terms(penalty_hook), loss_hook, *scores]


def averaged(
    here: Gradients, parameters: Sequence[nn.Parameter], ranks: Ranks, terms: Sequence[str]
) -> Gradients:
    """Return gradients and terms of the whole batch out of those of each process's part.

    terms: all that any process may have, but for notes. One that all lack stays out, as a gradient
    that all lack stays None. All of it is one all-reduce. Notes stay this process's: `to_host`
    averages them, as nobody knows which ones the others have.
    """
    if ranks.count == 1:
        return here
    values = dict(zip(here.names, here.values, strict=True))
    notes = {name: value for name, value in values.items() if name.startswith(NOTE)}
    values[NOTED] = here.values.new_tensor(float(len(notes)))
    names = [*terms, NOTED]
    scalars = [here.values.new_zeros(())] * len(names)
    means = ranks.means(
        [*here.gradients, *(values.get(name) for name in names)], like=[*parameters, *scalars]
    )
    gradients = means[: len(parameters)]
    means_of_terms = zip(names, means[len(parameters) :], strict=True)
    everywhere = {name: mean for name, mean in means_of_terms if mean is not None}
    (norm,) = values.keys() - {*names, *notes}
    everywhere |= {norm: _norm(gradients), **notes}
    stacked = torch.stack([value.double() for value in everywhere.values()])
    return Gradients(tuple(everywhere), stacked, tuple(gradients))


def _norm(gradients: Sequence[Tensor | None]) -> Tensor:
    return nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])


def objective(
    plugins: Plugins,
    step: CriticStep | GeneratorStep,
    autocast: AbstractContextManager[None],
    due: Scales | None = None,
) -> Objective:
    """Return the loss of this step plus all penalties that are due; only the loss is autocast.

    due: scales of the penalties that are, by name, where they are known already

    Raises ContractError for an answer that is no scalar of the right dtype and device, or that
    nothing can be learned from.
    """
    critic = isinstance(step, CriticStep)
    loss_hook, penalty_hook = HOOKS["critic" if critic else "generator"]
    terms = {}
    extra: list[Tensor] = []
    for plugin, scale, answer in plugins.answer_penalties(penalty_hook, step, due):
        value = _checked(answer, plugin, penalty_hook, step.real)
        proven = torch.compiler.is_compiling() or (plugin.name, penalty_hook) in plugins.proven
        if not proven:
            _refuse_unconnected(value, step, plugin, penalty_hook)
            plugins.proven.add((plugin.name, penalty_hook))
        terms[f"{penalty_hook}/{plugin.name}"] = value
        extra.append((scale.to(value.dtype) if isinstance(scale, Tensor) else scale) * value)
    with autocast:
        total = _checked(plugins.answer_loss(loss_hook, step), plugins.loss, loss_hook, step.real)
    terms[loss_hook] = total
    for value in extra:
        total = total + value
    return Objective(total, terms)


def to_host(gradients: Gradients, update: int, ranks: Ranks | None = None) -> dict[str, float]:
    """Copy all terms to the host at once: the only thing that an update waits for.

    Each note becomes its mean over the processes that have it. Raises NonFiniteError that names
    the first term that is inf or nan; a note may be.
    """
    terms: dict[str, float] = dict(zip(gradients.names, gradients.values.tolist(), strict=True))
    if terms.pop(NOTED, 0) and ranks is not None:
        terms |= ranks.mean_of({name: terms[name] for name in terms if name.startswith(NOTE)})
    for name, value in terms.items():
        if not (math.isfinite(value) or name.startswith(NOTE)):
            raise NonFiniteError(
                f"{name} is {value} at update {update}; the weights are those before it. "
                "Lower the learning rate, or look at the last records and checkpoint"
            )
    return terms


def _refuse_unconnected(
    value: Tensor, step: CriticStep | GeneratorStep, plugin: Loaded, hook: str
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
        f"plugin {plugin}: {hook} answered a value that depends on no parameters of the "
        f"{type(module).__name__}, so it trains nothing: is it of samples only, or detached?"
    )


def _checked(value: object, plugin: Loaded, hook: str, like: Tensor) -> Tensor:
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
        f"plugin {plugin}: {hook} answered {fault}; expected a scalar {like.dtype} tensor on "
        f"{like.device} with a graph to the parameters"
    )
