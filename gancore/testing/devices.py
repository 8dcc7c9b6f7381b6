"""A guard against tensors on the wrong device, on machines that have only one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from gancore.errors import ContractError


class OneDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations whose tensors, but for scalars, are on different devices.

    With the samples on `meta`, a tensor that was left on the CPU shows, also in matrix products,
    convolutions and indexing, which `meta` itself lets pass.
    """

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Check one operation."""
        tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {str(tensor.device) for tensor in tensors if tensor.dim()}
        if len(devices) > 1 and "_to_copy" not in str(func):
            raise ContractError(
                f"{func} was given tensors on {' and '.join(sorted(devices))}: make new tensors "
                "on the device of the samples, such as torch.rand(..., device=x.device)"
            )
        return func(*args, **(kwargs or {}))
