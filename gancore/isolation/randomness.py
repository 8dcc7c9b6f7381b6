"""Random numbers as functions of who draws: there is no generator state to lose, nor to share.

A run's own draws (latents, data order) come from named streams. A number that a step draws for a
plugin (`step.rand`) is a hash of its place: seed, who draws, update, call and index. For all other
draws (a plugin's plain `torch.rand`, a network's dropout) the global generators are seeded just
before. So adding a plugin changes the numbers of no other.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator
from torch import Tensor

WORD = 0xFFFFFFFF
"""The largest number of 32 bits."""

FACTORS = (0x7FEB352D, 0x846CA68B - 2**32)
"""Of `_mixed`; the second is negative, so that no product leaves the 64 bits of an int64."""

Word = TypeVar("Word", int, Tensor)
"""32 bits: an int, or an int64 tensor of them."""

Key = tuple[int, int]

Count = int | Callable[[], int]
"""A number, or what tells it: a compiled update depends on its number only where that is asked."""


class Stream:
    """A named stream of random numbers on one device."""

    def __init__(self, seed: int, name: str, device: torch.device | str = "cpu") -> None:
        self._base = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4])
        self._device = torch.device(device)
        self._generator = torch.Generator(self._device)

    def key(self, counter: int) -> int:
        """Return 32 bits, different for every counter below 2³² (a bijection of it)."""
        return _scramble((self._base + counter) & WORD)

    def at(self, counter: int) -> torch.Generator:
        """Return this stream's generator, set to `counter`; valid until the next call."""
        return self._generator.manual_seed(self.key(counter))

    def seed_global(self, counter: int) -> int:
        """Set the global generators to `counter`: torch's of the CPU and of this device, NumPy's
        and Python's. Return the key that they were set to.

        torch.manual_seed would do for torch's, at a hundred times the cost.
        """
        key = self.key(counter)
        torch.default_generator.manual_seed(key)
        if self._device.type == "cuda":
            index = self._device.index
            index = torch.cuda.current_device() if index is None else index
            torch.cuda.default_generators[index].manual_seed(key)
        np.random.seed(key)
        random.seed(key)
        return key


class Randomness:
    """Who draws what in a run.

    seed     of the run
    device   whose global generator is seeded beside the CPU's
    index    which of `count` processes this is: its rows of what `numbers` draws for a batch
    process  what tells apart the streams of what each process draws by itself; as `index` if None

    A compiled update can't hold a seeding, nor its number as a constant. While one runs, `clock` is
    that number as a tensor (), int64, and nothing is seeded.
    """

    def __init__(
        self,
        seed: int,
        device: torch.device | str = "cpu",
        *,
        index: int = 0,
        process: int | None = None,
    ) -> None:
        self.clock: Tensor | None = None
        self.index = index
        self._seed = seed
        self._device = torch.device(device if torch.device(device).type == "cuda" else "cpu")
        self._process = index if process is None else process
        self._streams: dict[str, Stream] = {}
        self._keys: dict[str, Key] = {}
        self._set_to: int | None = None

    def seed(self, who: str, update: int = 0, *, alone: bool = False) -> None:
        """Seed the global generators for what `who` draws in an update.

        alone: each process gets numbers of its own, for its own part of a batch
        """
        if self.clock is None:
            self._set_to = self._stream(who, alone).seed_global(update)

    def apart(self, who: str, update: int) -> AbstractContextManager[None]:
        """Return a context in which a network draws numbers of its own, for this process alone.

        Afterwards the global generators go on where they were.
        """
        if self.clock is not None:
            return nullcontext()
        return self._apart(who, update)

    @contextmanager
    def _apart(self, who: str, update: int) -> Iterator[None]:
        with self.aside():
            self.seed(who, update, alone=True)
            yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let the global generators go on afterwards where they were."""
        set_to = self._set_to
        with kept(numpy_is_at=set_to):
            yield
        self._set_to = set_to

    def numbers(
        self,
        who: str,
        call: int,
        update: Count,
        shape: Sequence[int],
        like: Tensor,
        *,
        is_batch: bool = False,
        normal: bool = False,
    ) -> Tensor:
        """Return numbers of a shape, dtype and device of `like`: uniform in [0, 1), or normal.

        call      which call of `who` in this update this is
        is_batch  the first dimension is this process's part of the batch; otherwise all draw alike

        Each is a function of (seed, who, call, update, index) alone, on however many processes.
        """
        count = math.prod(shape)
        start = self.index * count if is_batch else 0
        index = torch.arange(start, start + count, device=like.device)
        draw = _normal if normal else _uniform
        key = _derived(self._key(who), call)
        now = self.clock if self.clock is not None else update() if callable(update) else update
        return draw(key, now, index, like.dtype).reshape(tuple(shape))

    def _stream(self, who: str, alone: bool) -> Stream:
        name = f"{who}/process {self._process}" if alone and self._process else who
        if name not in self._streams:
            self._streams[name] = Stream(self._seed, f"global/{name}", self._device)
        return self._streams[name]

    def _key(self, who: str) -> Key:
        """Return 64 bits for a name. Plain arithmetic: a hash from a library can't be compiled."""
        if torch.compiler.is_compiling():
            return _named(self._seed, who)
        if who not in self._keys:
            self._keys[who] = _named(self._seed, who)
        return self._keys[who]


@contextmanager
def kept(*, numpy_is_at: int | None = None) -> Iterator[None]:
    """Put the global generators back as they were: torch's, NumPy's and Python's.

    numpy_is_at  the seed that NumPy's was last set to, if that is known: it takes most of the time
                 to read and write, so where nothing has drawn since, it is seeded again instead
    """
    torch_states = [(generator, generator.get_state()) for generator in _generators()]
    python_state = random.getstate()
    is_fresh = numpy_is_at is not None and _is_fresh(numpy_is_at)
    numpy_state = None if is_fresh else np.random.get_state(legacy=False)
    try:
        yield
    finally:
        for generator, state in torch_states:
            generator.set_state(state)
        for generator in _generators()[len(torch_states) :]:
            # CUDA came up meanwhile: a seed that was given before goes for it too
            generator.manual_seed(torch.initial_seed())
        random.setstate(python_state)
        if numpy_state is None:
            np.random.seed(numpy_is_at)
        else:
            np.random.set_state(numpy_state)


def states() -> list[object]:
    """Return the states of the global generators: equal to those before if nothing has drawn."""
    _, words, *numpy_state = np.random.get_state(legacy=True)
    torch_states = [one.get_state().numpy().tobytes() for one in _generators()]
    return [*torch_states, random.getstate(), np.asarray(words).tobytes(), numpy_state]


def _generators() -> list[torch.Generator]:
    """Return torch's global generators: the CPU's, and those of CUDA if that is up."""
    cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    return [torch.default_generator, *cuda]


def _is_fresh(key: int) -> bool:
    """Whether NumPy's global generator is as it was seeded: a Mersenne twister of 624 words and a
    position at their end, of which the first is the seed itself until it is drawn from."""
    generator = get_bit_generator()
    if not isinstance(generator, np.random.MT19937):
        return False
    words = (ctypes.c_uint32 * 625).from_address(generator.ctypes.state_address)
    return words[0] == key and words[624] == 624


def _derived(key: Key, number: Word) -> tuple[Word, Word]:
    """Return the key of the `number`-th of what belongs to a key: for both words a bijection."""
    one = _mixed((key[0] + number) & WORD)
    return one, _mixed(one ^ key[1])


def _named(seed: int, name: str) -> Key:
    key = (seed & WORD, seed >> 32 & WORD)
    for byte in name.encode():
        key = _derived(key, byte)
    return _derived(key, len(name))


def _mixed(x: Word) -> Word:
    """Mix 32 bits by a bijection (Wellons, 2018, "Prospecting for hash functions": lowbias32)."""
    x = (x ^ x >> 16) * FACTORS[0] & WORD
    x = (x ^ x >> 15) * FACTORS[1] & WORD
    return x ^ x >> 16


def _words(key: Key, lane: int, update: Any, index: Tensor) -> Tensor:
    """Return 32 bits for each index (N,), int64: one of several words that a number is made of."""
    one, two = _derived(_derived(key, lane), update)
    return _mixed_(_mixed_((index + one).bitwise_and_(WORD)).bitwise_xor_(two))


def _mixed_(x: Tensor) -> Tensor:
    """`_mixed` in place, in half the time."""
    x.bitwise_xor_(x >> 16).mul_(FACTORS[0]).bitwise_and_(WORD)
    x.bitwise_xor_(x >> 15).mul_(FACTORS[1]).bitwise_and_(WORD)
    return x.bitwise_xor_(x >> 16)


def _uniform(key: Key, update: int | Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """Return multiples of ε/2 in [0, 1), as torch.rand does; ε is that of the dtype."""
    bits = 1 - round(math.log2(torch.finfo(dtype).eps))
    word = _words(key, 0, update, index)
    if bits > 32:
        word = word >> 5 << 26 | _words(key, 1, update, index) >> 6
        return word.to(dtype).mul_(2.0**-53)
    return (word >> 32 - bits).to(dtype).mul_(2.0**-bits)


def _normal(key: Key, update: int | Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """Return normal numbers (Box and Muller, 1958), at least in float32."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    radius = _words(key, 0, update, index).to(exact).add_(0.5).mul_(2.0**-32)
    angle = _words(key, 1, update, index).to(exact).mul_(2 * math.pi * 2.0**-32)
    return radius.log_().mul_(-2).sqrt_().mul_(angle.cos_()).to(dtype)


class DataOrder:
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
    x = x * 0x85EBCA6B & WORD
    x ^= x >> 13
    x = x * 0xC2B2AE35 & WORD
    return x ^ x >> 16
