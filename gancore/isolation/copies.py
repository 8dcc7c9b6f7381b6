"""Copies of networks and states, also of those that keep results of a forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.overrides import TorchFunctionMode

from gancore.errors import InputError

T = TypeVar("T")


class _WithoutGraphs(TorchFunctionMode):
    """Lets torch copy a tensor that has a graph, which it refuses, without it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def copied(value: T, what: str) -> T:
    """Return a deep copy, in which tensors have no graph: a kept feature, or a normalized weight.

    Raises InputError, which names `what`, where something in it can't be copied.
    """
    try:
        with _WithoutGraphs():
            return copy.deepcopy(value)
    except Exception as error:  # whatever its parts raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(
            f"the {what} can't be copied, as sample grids and scores need it ({reason}): keep that "
            "part out of it, or give it a __deepcopy__"
        ) from error
