"""Random numbers of a batch that is split: each process draws all of them, and keeps its part.

So plugins draw with plain torch.rand, and a batch of 64 on one process meets the same numbers as
2 × 32 on two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gancore.ranks import Ranks


class SplitDraws(TorchFunctionMode):
    """While it is on, a random tensor with a number or row for each sample is part of a larger one.

    That is one whose first dimension is `size`, this process's part of the batch, which is number
    `index` of `count`. Any other is drawn alike by all, as their generators are seeded alike.
    """

    def __init__(self, size: int, index: int, count: int) -> None:
        super().__init__()
        self._size = size
        self._count = count
        self._start = index * size

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func`; if it draws a part of the batch, for the whole, and answer that part."""
        kwargs = dict(kwargs or {})
        if func not in DRAWS:
            return func(*args, **kwargs)
        if func in SIZES and args and isinstance(args[0], int):
            args = (args,)  # torch.rand(2, 3) as torch.rand((2, 3))
        given = [*args, *kwargs.values()]
        wide = [self._widened(each) for each in given]
        if all(one is other for one, other in zip(wide, given, strict=True)):
            return func(*args, **kwargs)
        named = dict(zip(kwargs, wide[len(args) :], strict=True))
        mine = func(*wide[: len(args)], **named).narrow(0, self._start, self._size)
        return args[0].copy_(mine) if func in IN_PLACE else mine

    def _widened(self, value: Any) -> Any:
        """Return a size, or a tensor, of this process's part for the whole batch."""
        if isinstance(value, Tensor):
            if value.dim() and len(value) == self._size:
                return torch.cat([value] * self._count)
        elif isinstance(value, tuple | list) and value and value[0] == self._size:
            return (self._size * self._count, *value[1:])
        return value


def split_draws(size: int, ranks: Ranks) -> AbstractContextManager[object]:
    """Return the context in which a process with `size` samples draws for the whole batch."""
    return nullcontext() if ranks.count == 1 else SplitDraws(size, ranks.index, ranks.count)


SIZES = frozenset({torch.rand, torch.randn})

IN_PLACE = frozenset(
    {
        Tensor.bernoulli_,
        Tensor.cauchy_,
        Tensor.exponential_,
        Tensor.geometric_,
        Tensor.log_normal_,
        Tensor.normal_,
        Tensor.random_,
        Tensor.uniform_,
    }
)

DRAWS = (
    SIZES
    | IN_PLACE
    | {
        torch.bernoulli,
        torch.normal,
        torch.poisson,
        torch.rand_like,
        torch.randint,
        torch.randint_like,
        torch.randn_like,
        F.alpha_dropout,
        F.dropout,
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
        F.feature_alpha_dropout,
        F.gumbel_softmax,
        F.rrelu,
        Tensor.bernoulli,
        torch.dropout,
    }
)
"""What draws numbers for each of its elements alone."""
