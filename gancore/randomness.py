"""Random numbers as a function of (seed, stream, counter): there is no generator state to lose.

Each use draws from its own named stream, so that adding a plugin changes neither the initial
weights nor the latents nor the data order.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class Stream:
    """A named stream of random numbers on one device."""

    def __init__(self, seed: int, name: str, device: torch.device | str = "cpu") -> None:
        self._base = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4])
        self._device = torch.device(device)
        self._generator = torch.Generator(self._device)

    def key(self, counter: int) -> int:
        """Return 32 bits, different for every counter below 2³² (a bijection of it)."""
        return _scramble((self._base + counter) & 0xFFFFFFFF)

    def at(self, counter: int) -> torch.Generator:
        """Return this stream's generator, set to `counter`; valid until the next call."""
        return self._generator.manual_seed(self.key(counter))

    def seed_global(self, counter: int) -> None:
        """Set torch's global generators, of the CPU and of this device, to `counter`.

        torch.manual_seed would do, at a hundred times the cost.
        """
        torch.default_generator.manual_seed(self.key(counter))
        if self._device.type == "cuda":
            index = self._device.index
            index = torch.cuda.current_device() if index is None else index
            torch.cuda.default_generators[index].manual_seed(self.key(counter))


class Order:
    """An endless data order: epoch after epoch, each a permutation of range(size).

    It is the same on every device; an epoch's goes there as a whole, and nothing after that.
    """

    def __init__(self, seed: int, name: str, size: int, device: torch.device | str = "cpu") -> None:
        self._stream = Stream(seed, name)
        self._size = size
        self._device = torch.device(device)
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def take(self, start: int, count: int) -> Tensor:
        """Return the int64 indices at positions start … start + count − 1."""
        parts = []
        while count > 0:
            epoch, offset = divmod(start, self._size)
            part = self._of(epoch)[offset : offset + count]
            parts.append(part)
            start += len(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator, pinned = self._stream.at(epoch), self._device.type == "cuda"
            order = torch.randperm(self._size, generator=generator, pin_memory=pinned)
            self._permutation = order.to(self._device, non_blocking=True)
            self._epoch = epoch
        return self._permutation


def _scramble(x: int) -> int:
    """Mix 32 bits by the finalizer of MurmurHash3, a bijection (Appleby, 2011)."""
    x ^= x >> 16
    x = x * 0x85EBCA6B & 0xFFFFFFFF
    x ^= x >> 13
    x = x * 0xC2B2AE35 & 0xFFFFFFFF
    return x ^ x >> 16
