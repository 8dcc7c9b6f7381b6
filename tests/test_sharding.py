"""A split batch: each process draws the numbers of the whole, and keeps its rows of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gancore.sharding import SplitDraws

X = torch.rand(6, 4, 5).double()
DRAWS: dict[str, Callable[[int, Callable[[Tensor], Tensor]], Tensor]] = {
    "rand": lambda n, mine: torch.rand(n, 3),
    "rand of a tuple": lambda n, mine: torch.rand((n, 3)),
    "rand by keyword": lambda n, mine: torch.rand(size=(n, 3)),
    "randn": lambda n, mine: torch.randn([n, 1, 1], dtype=torch.float64),
    "one for all": lambda n, mine: torch.rand(()).expand(n),
    "as many as all samples, for all": lambda n, mine: torch.rand(6).sum().expand(n),
    "randint": lambda n, mine: torch.randint(-4, 9, (n, 2)),
    "normal": lambda n, mine: torch.normal(0.0, 1.0, (n, 2)),
    "normal around": lambda n, mine: torch.normal(mine(X), 1.0),
    "rand_like": lambda n, mine: torch.rand_like(mine(X)),
    "randint_like": lambda n, mine: torch.randint_like(mine(X), 0, 9),
    "normal_": lambda n, mine: torch.empty(n, 3).normal_(),
    "bernoulli_": lambda n, mine: torch.empty(n, 4, 5).bernoulli_(mine(X)),
    "bernoulli": lambda n, mine: torch.bernoulli(mine(X)),
    "Tensor.bernoulli": lambda n, mine: mine(X).bernoulli(0.5),
    "exponential_": lambda n, mine: torch.empty(n, 3).exponential_(),
    "dropout": lambda n, mine: F.dropout(mine(X), 0.5),
    "dropout, a module in place": lambda n, mine: nn.Dropout(0.5, True)(mine(X).clone()),
    "dropout of channels": lambda n, mine: nn.Dropout2d(0.5)(mine(X)[..., None]),
    "dropout of none": lambda n, mine: F.dropout(mine(X), 0.5, training=False),
    "alpha dropout": lambda n, mine: nn.AlphaDropout(0.5)(mine(X)),
    "gumbel": lambda n, mine: F.gumbel_softmax(mine(X)),
    "rrelu": lambda n, mine: F.rrelu(-mine(X), training=True),
}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", DRAWS)
def test_a_split_batch_draws_the_numbers_of_the_whole(name: str, count: int) -> None:
    draw, size = DRAWS[name], 6 // count
    torch.manual_seed(0)
    expected, after = draw(6, lambda x: x), torch.rand(2)
    parts = []
    for index in range(count):
        torch.manual_seed(0)
        with SplitDraws(size, index, count):
            parts.append(draw(size, lambda x: x[index * size : (index + 1) * size]))  # noqa: B023
        assert torch.equal(torch.rand(2), after)
    assert torch.equal(torch.cat(parts), expected)


def test_dropout_that_is_split_has_its_gradient() -> None:
    x = torch.ones(3, 4, requires_grad=True)
    with SplitDraws(3, 1, 2):
        out = F.dropout(x, 0.5)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out)  # 0 or 2, as x is 1
