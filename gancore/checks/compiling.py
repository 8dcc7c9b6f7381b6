"""torch.compile around critics and penalties, whose gradients are differentiated a second time.

PyTorch can't differentiate compiled code twice. It raises an error only then, and a vague one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from gancore.errors import ContractError

P = ParamSpec("P")
R = TypeVar("R")

UNCOMPILED = (
    "an input gradient is differentiated a second time, which compiled code can't be: without "
    "fullgraph=True it is left out of the graph by itself; else call it outside of torch.compile"
)

CAN_FOLLOW = hasattr(torch._dynamo.config, "trace_autograd_ops")
"""Whether dynamo can follow autograd: torch 2.9 can't, and lacks the setting."""


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Leave a function out of a user's torch.compile: torch breaks the graph around it.

    A run's own graph, in which dynamo follows autograd, holds it.
    """
    apart: Callable[P, R] = torch.compiler.disable(function, reason=UNCOMPILED)  # type: ignore[no-untyped-call]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() and not (
            CAN_FOLLOW and torch._dynamo.config.trace_autograd_ops
        ):
            return apart(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def refuse_unfit(critic: object) -> None:
    """Raise ContractError for torch.compile around the critic alone, or a part of it.

    Its input gradients can't be differentiated a second time.
    """
    if not isinstance(critic, nn.Module):
        return
    for name, module in critic.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise ContractError(
                f"the critic's {name or 'whole'!r} is torch.compile'd, and its gradient can't be "
                "differentiated a second time: give the module itself"
            )


def refuse_compiled(scores: Tensor) -> None:
    """Raise ContractError where a part of the graph is compiled; torch would raise later."""
    seen, waiting = set(), [scores.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CompiledFunctionBackward":
            raise ContractError(
                "the critic runs compiled code, whose gradient torch.compile can't differentiate a "
                "second time: give the critic uncompiled (in a run train.compile = true compiles "
                "critic and penalty together)"
            )
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
