"""Penalties where a user compiles: around them they are left out of the graph, and are right."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gancore import CriticStep
from gancore.checks.compiling import UNCOMPILED
from gancore.errors import ContractError
from gancore_gp import gradient_penalty
from gancore_r1 import R1, r1_penalty

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

BACKEND = "aot_eager"  # which differentiates as inductor does


def linear() -> tuple[nn.Linear, Tensor]:
    """D(x) = 3x₁ + 4x₂: ‖∇D‖ = 5."""
    critic = nn.Linear(2, 1)
    with torch.no_grad():
        critic.weight.copy_(torch.tensor([[3.0, 4.0]]))
    return critic, torch.rand(4, 2)


CALLS: dict[str, tuple[Callable[[nn.Linear, Tensor], Tensor], float, float]] = {
    "r1": (lambda critic, x: r1_penalty(critic, x), 125, 10),
    "gp": (lambda critic, x: gradient_penalty(critic, x, x + 1), 160, 16),
    "a step's": (lambda critic, x: R1().penalty(CriticStep(critic, x, x)), 125, 10),
}
"""Penalties, their values, and the factor of w in their gradients: 10·2·(5 − 1)/5, or γ."""


@pytest.mark.parametrize("name", CALLS)
def test_a_compiled_function_that_calls_a_penalty(name: str) -> None:
    call, value, factor = CALLS[name]
    critic, x = linear()

    def objective(x: Tensor) -> Tensor:
        return critic(x).mean() + call(critic, x)

    found = torch.compile(objective, backend=BACKEND)(x)
    assert found.item() == pytest.approx(critic(x).mean().item() + value, rel=1e-5)
    found.backward()
    assert critic.weight.grad is not None
    torch.testing.assert_close(critic.weight.grad, x.mean(0)[None] + factor * critic.weight)


def test_one_graph_of_it_is_refused_with_the_remedy() -> None:
    critic, x = linear()
    whole = torch.compile(lambda x: r1_penalty(critic, x), backend=BACKEND, fullgraph=True)
    with pytest.raises(Exception, match="Skip calling") as caught:
        whole(x)
    assert UNCOMPILED in str(caught.value)


class Within(nn.Module):
    """Has a compiled part that is no module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.part = torch.compile(lambda x: inner(x), backend=BACKEND)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.part(x.tanh())


COMPILED: dict[str, Callable[[nn.Module], Any]] = {
    "a function": lambda critic: torch.compile(lambda x: critic(x), backend=BACKEND),
    "a module in a partial": lambda critic: partial(torch.compile(critic, backend=BACKEND)),
    "a part of a module": Within,
    "a module": lambda critic: torch.compile(critic, backend=BACKEND),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_critics_are_refused_before_the_backward_pass(name: str) -> None:
    critic, x = linear()
    for call in (r1_penalty, lambda critic, x: CriticStep(critic, x, x).input_gradient(x)):
        made = COMPILED[name](critic)
        with pytest.raises(ContractError, match=r"compile.* a second time|second time"):
            call(made, x.clone().requires_grad_())
