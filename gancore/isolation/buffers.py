"""Buffers of a network, put back after a forward pass has changed them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put the buffers of networks back as they were, whether changed in place or assigned."""
    held = [
        (module, name, buffer, buffer.clone(), buffer._version)
        for root in modules
        for module in root.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value, version in held:
                # batch normalization moves its statistics without a new version, and where nothing
                # has moved a copy would spoil a graph that has saved the buffer
                if buffer._version != version or not _equal(buffer, value):
                    buffer.copy_(value)
                module._buffers[name] = buffer


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of a network that its state has."""
    state = module.state_dict()
    return {
        name: buffer
        for name, buffer in module.named_buffers(remove_duplicate=False)
        if name in state
    }


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are alike, nan being nan; sparse ones can't be compared."""
    if one.layout is not torch.strided:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
