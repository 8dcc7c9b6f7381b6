"""Random numbers as a function of (seed, stream, counter), and the data order."""

from __future__ import annotations

import hashlib
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gancore.isolation.randomness import DataOrder, Stream

WORDS = 2**32
word = st.integers(0, WORDS - 1)


def undo_shift(x: int, shift: int) -> int:
    """Solve y ^ (y >> shift) = x for y, from the top bits down."""
    y = x
    for _ in range(32 // shift):
        y = x ^ (y >> shift)
    return y


def unscramble(x: int) -> int:
    """Undo MurmurHash3's finalizer step by step: its constants have inverses modulo 2³²."""
    x = undo_shift(x, 16)
    x = x * pow(0xC2B2AE35, -1, WORDS) % WORDS
    x = undo_shift(x, 13)
    x = x * pow(0x85EBCA6B, -1, WORDS) % WORDS
    return undo_shift(x, 16)


@pytest.mark.parametrize(("seed", "hashed"), [(0, 0), (1, 0x514E28B7), (0xFFFFFFFF, 0x81F16F39)])
def test_unscrambling_undoes_murmurs_finalizer(seed: int, hashed: int) -> None:
    """MurmurHash3_x86_32 of the empty input is the finalizer of its seed (SMHasher's vectors)."""
    assert unscramble(hashed) == seed


@settings(deadline=None)
@given(word, st.integers(0, 2**63 - 1), st.text())
def test_a_key_is_the_finalizer_of_the_streams_hash_and_the_counter(
    counter: int, seed: int, name: str
) -> None:
    base = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4])
    key = Stream(seed, name).key(counter)
    assert 0 <= key < WORDS
    assert unscramble(key) == (base + counter) % WORDS


@pytest.mark.parametrize("start", [0, 2**31, 2**32 - 50_000])
def test_keys_of_a_stream_never_meet(start: int) -> None:
    stream = Stream(3, "latents/critic")
    assert len({stream.key(counter) for counter in range(start, start + 100_000)}) == 100_000


@settings(deadline=None)
@given(word, word, st.integers(0, 2**63 - 1), st.text())
def test_a_key_belongs_to_one_counter(one: int, other: int, seed: int, name: str) -> None:
    stream = Stream(seed, name)
    assert (stream.key(one) == stream.key(other)) == (one == other)


def draw(stream: Stream, counter: int) -> list[float]:
    return torch.rand(4, generator=stream.at(counter)).tolist()


def test_streams_and_seeds_and_counters_differ() -> None:
    names = ["a", "b", "1a", "1/a"]
    drawn = [
        tuple(draw(Stream(seed, name), counter))
        for seed in (0, 1, 11, 2**32, 2**32 + 1)
        for name in names
        for counter in (0, 1)
    ]
    assert len(set(drawn)) == len(drawn)


def test_a_stream_has_no_history() -> None:
    stream = Stream(0, "a")
    first = draw(stream, 5)
    torch.rand(1000, generator=stream.at(6))
    assert draw(stream, 5) == first == draw(Stream(0, "a"), 5)
    before = torch.random.get_rng_state()
    draw(stream, 7)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_at_is_a_generator_of_that_key() -> None:
    stream = Stream(9, "x")
    by_hand = torch.Generator().manual_seed(stream.key(4))
    assert draw(stream, 4) == torch.rand(4, generator=by_hand).tolist()


def test_seed_global_is_manual_seed() -> None:
    stream = Stream(0, "global/critic")
    stream.seed_global(17)
    ours = torch.rand(5), torch.randn(5), torch.randperm(9)
    torch.manual_seed(stream.key(17))
    theirs = torch.rand(5), torch.randn(5), torch.randperm(9)
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize(("device", "index"), [("cuda:0", 0), ("cuda:1", 1), ("cuda", 1)])
def test_seed_global_seeds_its_own_device(
    device: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current device is the second of two; no CUDA is needed to see which one is seeded."""
    seeded: list[tuple[int, int]] = []
    fakes: Any = [
        SimpleNamespace(manual_seed=lambda key, n=n: seeded.append((n, key))) for n in range(2)
    ]
    monkeypatch.setattr(torch, "Generator", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "default_generators", fakes)
    stream = Stream(0, "a", device)
    stream.seed_global(3)
    assert seeded == [(index, stream.key(3))]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 200), st.integers(1, 100))
def test_order_is_permutations_end_to_end(size: int, start: int, count: int) -> None:
    whole = DataOrder(1, "order/critic", size).take(0, start + count).tolist()
    part = DataOrder(1, "order/critic", size).take(start, count)
    assert part.dtype == torch.int64
    assert part.tolist() == whole[start:]
    for epoch in range(len(whole) // size):
        assert Counter(whole[epoch * size : (epoch + 1) * size]) == Counter(range(size))


def test_order_has_no_history_and_shuffles_each_epoch() -> None:
    order = DataOrder(0, "a", 100)
    late = order.take(950, 60).tolist()
    epochs = [tuple(order.take(100 * epoch, 100).tolist()) for epoch in range(5)]
    assert order.take(950, 60).tolist() == late
    assert len({*epochs, tuple(range(100))}) == 6
    assert tuple(DataOrder(1, "a", 100).take(0, 100).tolist()) not in epochs
    assert tuple(DataOrder(0, "b", 100).take(0, 100).tolist()) not in epochs
