"""How many latents a generator is given at a time, and how often a run calibrates it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import LATENT, assert_same, trainer, weights
from helpers import Generator as Normalized
from torch import Tensor, nn

from gancore.isolation.randomness import Stream, kept
from gancore.report import Display
from gancore.scoring import sampling
from gancore.scoring.protocol import Protocol, RealSamples, Scores
from gancore.scoring.sampling import calibrated, generate
from gancore.training import Trainer, checkpoint, load_generator


class Made(nn.Module):
    """Makes samples of a shape, and keeps how many it was asked for each time."""

    latent = 3

    def __init__(self, *shape: int, of: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, shape[0])
        self.shape, self.of = shape, of
        self.asked: list[int] = []

    def forward(self, z: Tensor) -> Tensor:
        self.asked.append(len(z))
        ones = (1,) * (len(self.shape) - 1)
        return self.of(self.layer(z)).view(-1, self.shape[0], *ones).expand(-1, *self.shape)


def latents(count: int, seed: int = 0) -> Tensor:
    """Return latents in blocks of 256, each from its own place in the stream."""
    source = Stream(seed, "latents/samples")
    blocks = [
        torch.randn(256, 3, generator=source.at(number)) for number in range(-(-count // 256))
    ]
    return torch.cat(blocks)[:count]


def by_hand(generator: Made, z: Tensor) -> np.ndarray:
    """Return tanh(Wz + b), in NumPy."""
    weight, bias = (each.detach().double().numpy() for each in generator.layer.parameters())
    out: np.ndarray = np.tanh(z.double().numpy() @ weight.T + bias)
    return out


@pytest.mark.parametrize(
    ("shape", "count", "sizes"),
    [
        ((2,), 1, [1]),
        ((2,), 64, [64]),
        ((2,), 255, [255]),
        ((2,), 256, [256]),
        ((2,), 257, [256, 1]),
        ((2,), 1000, [256, 256, 256, 232]),
        ((8, 8, 8), 300, [256, 44]),  # 2⁹ numbers a sample
        ((8, 64, 128), 257, [256, 1]),  # 2¹⁶, so 2²⁴ a batch
        ((9, 64, 128), 130, [128, 2]),
        ((3, 512, 512), 21, [16, 5]),  # 2²⁴ is 21.3 of them
        ((1, 4096, 4096), 2, [1, 1]),
        ((2, 4096, 4096), 2, [1, 1]),
    ],
)
def test_a_batch_has_at_most_2_to_the_24_numbers(
    shape: tuple[int, ...], count: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one sample alone and, where two fit, one more beside it: never more than asked for."""
    if np.prod(shape) > 2**12:  # what is made of them takes its time
        monkeypatch.setattr(sampling, "to_uint8", lambda images: images[:, :, :1, :1].contiguous())
        monkeypatch.setattr(Tensor, "isfinite", lambda each: each[:, :1] == each[:, :1])
    generator = Made(*shape)
    generate(generator, count, seed=0)
    assert generator.asked == [1] + [2] * (count > 1 and sizes[0] > 1) + sizes


@pytest.mark.parametrize(("largest", "size"), [(2**24, 256), (23, 2), (1, 1)])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 600])
def test_samples_are_of_the_same_latents_in_whatever_batches(
    count: int, largest: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "LARGEST", largest)
    generator = Made(8)
    samples = generate(generator, count, seed=4)
    assert max(generator.asked) == min(size, count)
    np.testing.assert_allclose(samples, by_hand(generator, latents(count, 4)), atol=1e-6)
    assert torch.equal(generate(generator, count, seed=4), samples)
    few = generate(generator, 64, seed=4)[:count]
    torch.testing.assert_close(few, samples[:64], rtol=0, atol=1e-6)


own = torch.Generator()

NOISE: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": lambda h: h + torch.randn_like(h),
    "dropout": lambda h: F.dropout(h, 0.5, training=True),
    "NumPy": lambda h: h + torch.from_numpy(np.random.randn(*h.shape)),
    "Python": lambda h: h + random.gauss(),
    "seeded by itself": lambda h: torch.manual_seed(1) and h + torch.rand_like(h),
}

COUPLED: dict[str, Callable[[Tensor], Tensor]] = {
    "statistics of the batch": lambda h: F.batch_norm(h, None, None, training=True),
    "the others' mean": lambda h: h - h.mean(0),
    "the place": lambda h: h + torch.arange(len(h))[:, None],
    "no sample alone": lambda h: h.repeat(1 + (len(h) == 1), 1),
    "a generator of its own": lambda h: h + torch.rand(len(h), 8, generator=own),
}


@pytest.mark.parametrize("of", [*NOISE.values(), *COUPLED.values()], ids=[*NOISE, *COUPLED])
def test_noise_and_batches_that_matter_are_of_whole_blocks(
    of: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block seeded by its number, as the stream says; the numbers of the caller stay."""
    monkeypatch.setattr(sampling, "LARGEST", 64)  # 8 samples
    generator = Made(8, of=of)
    own.manual_seed(1)
    before = torch.get_rng_state()
    samples = generate(generator, 600, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert generator.asked[-3:] == [256, 256, 256]
    assert max(generator.asked[:-3]) <= 2
    if of is COUPLED["a generator of its own"]:
        return
    blocks = []
    for number, z in enumerate(latents(768, 2).split(256)):
        with torch.no_grad(), kept():
            Stream(2, "global/samples").seed_global(number)
            blocks.append(generator(z).float())
    assert torch.equal(samples, torch.cat(blocks)[:600])
    for count in [64, 1] if of in NOISE.values() else [64]:  # one alone tells of no others
        assert torch.equal(generate(generator, count, seed=2), samples[:count])


def test_what_is_tried_leaves_buffers_alone() -> None:
    class Counting(Made):
        def __init__(self) -> None:
            super().__init__(8)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, z: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(z)

    generator: Any = Counting()
    generate(generator, 300, seed=0)
    assert generator.calls == 2
    normalized = Normalized()  # in training mode: one sample alone can't be normalized
    generate(normalized, 300, seed=0)
    norm: Any = normalized.layers[1]
    assert norm.num_batches_tracked == 2


def test_a_sample_that_is_nan_asks_for_no_whole_blocks() -> None:
    generator = Made(8, of=lambda h: h / 0 - h / 0)
    assert generate(generator, 9, seed=0, broken=lambda text: None).isnan().all()
    assert generator.asked == [1, 2, 9]


class Watched(Normalized):
    """Keeps the sizes of its batches, by mode; copies keep theirs in the same lists."""

    asked: ClassVar[dict[bool, list[int]]] = {}

    def forward(self, z: Tensor) -> Tensor:
        self.asked.setdefault(self.training, []).append(len(z))
        return super().forward(z)


class Plain(Watched):
    """The same without normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(LATENT, 16), nn.Dropout(0.1))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[bool, list[int]]:
    sizes: dict[bool, list[int]] = {}
    monkeypatch.setattr(Watched, "asked", sizes)
    return sizes


def made(kind: type[nn.Module] = Watched, **changes: Any) -> Trainer:
    train = {"steps": 4, "batch_size": 8, "ema": 0.5, **changes.pop("train", {})}
    subject = trainer(
        **{"sample": {"count": 4, "every": 2}, "checkpoint": {"every": 1, "keep": 9}, **changes},
        train=train,
    )
    torch.manual_seed(0)
    return Trainer(
        kind(),
        subject.critic,
        subject.data,
        train=train,
        optimizer={"lr": 1e-2},
        device="cpu",
        **{name: getattr(subject.settings, name) for name in ("sample", "checkpoint", "score")},
    )


def scored(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a section whose scores are a stand-in's, of samples that are really made."""
    real = RealSamples(name="real", split="all", samples=9)
    protocol = Protocol(reference=real, samples=20, seed=0, versions={})
    made = Scores(scores={"isc": 1.0}, protocol=protocol)
    monkeypatch.setattr("gancore.scoring.generator.score", lambda *_, **__: made)
    monkeypatch.setattr("gancore.training.session.check_scoring", lambda *_: None)
    monkeypatch.setattr("gancore.training.rehearsal.try_scoring", lambda *_: None)
    return {"metrics": ["isc"], "samples": 20, "every": 2}


@pytest.mark.parametrize(("kind", "passes"), [(Watched, 16), (Plain, 0)])
def test_a_step_is_calibrated_once(
    tmp_path: Path,
    asked: dict[bool, list[int]],
    monkeypatch: pytest.MonkeyPatch,
    kind: type[nn.Module],
    passes: int,
) -> None:
    """For its grid, its scores and its checkpoint together; the last step's final scores too."""

    class FromThere(Display):
        def advance(self, step: int, values: Any) -> None:
            if step == 1:
                asked.clear()

    section, shown = scored(monkeypatch), FromThere()
    whole = made(kind, score=section).run(tmp_path / "whole", display=shown)
    assert asked[True].count(256) == 2 * passes  # steps 2 and 4
    assert asked[False] == [1, 2, 20, 1, 2, 4] * 2  # scores and grid
    made(kind, score={**section, "every": None}).run(tmp_path / "late", display=shown)
    assert asked[True].count(256) == 2 * passes
    assert asked[False] == [1, 2, 4, 1, 2, 4, 1, 2, 20]
    asked.clear()
    loaded = load_generator(whole, generator=kind())
    assert not asked
    assert not loaded.training
    # a checkpoint without a grid has no statistics: they are estimated when it is read
    tensors = {step: checkpoint.load(whole.checkpoints / f"step-{step:06d}") for step in (1, 4)}
    assert "calibrated" not in tensors[1].tensors
    assert ("calibrated" in tensors[4].tensors) == (passes > 0)
    without = {key: each for key, each in tensors[4].tensors.items() if key != "calibrated"}
    checkpoint.save(whole.checkpoints, checkpoint.Checkpoint(5, without, tensors[4].state), keep=9)
    assert_same(weights(load_generator(whole, generator=kind())), weights(loaded))
    assert asked.get(True, []) == [256] * passes


@pytest.mark.parametrize("stop", [1, 2])
def test_an_interrupted_run_keeps_the_same_statistics(tmp_path: Path, stop: int) -> None:
    class Interruption(Exception):
        pass

    class Impatient(Display):
        def advance(self, step: int, values: Any) -> None:
            if step == stop + 1:
                raise Interruption

    whole = made().run(tmp_path / "whole")
    with pytest.raises(Interruption):
        made().run(tmp_path / "run", display=Impatient())
    run = made().run(tmp_path / "run", resume=True)
    for step in (1, 2, 3, 4):
        one, other = (
            checkpoint.load(each.checkpoints / f"step-{step:06d}") for each in (run, whole)
        )
        assert one.tensors.keys() == other.tensors.keys()
        assert ("calibrated" in one.tensors) == (step % 2 == 0)
        for name, tensors in one.tensors.items():
            assert_same(dict(tensors), dict(other.tensors[name]))
    for name in ("step-000002.png", "step-000004.png"):
        pictures = [(each.path / "samples" / name).read_bytes() for each in (run, whole)]
        assert pictures[0] == pictures[1]


def test_the_statistics_of_a_part_that_has_two_names(tmp_path: Path) -> None:
    class Shared(Normalized):
        def __init__(self) -> None:
            super().__init__()
            self.alias = self.layers[1]

    subject = made(Shared)
    run = subject.run(tmp_path / "run")
    assert_same(weights(load_generator(run, generator=Shared())), weights(subject.sampler()))


def test_statistics_that_do_not_fit_are_told(tmp_path: Path) -> None:
    run = made().run(tmp_path / "run")
    found = checkpoint.latest(run.checkpoints)
    assert found is not None
    for odd in (
        {"layers.9.running_mean": torch.zeros(2)},
        {"layers.1.running_mean": torch.ones(3)},
    ):
        tensors = {**found.tensors, "calibrated": odd}
        checkpoint.save(run.checkpoints, checkpoint.Checkpoint(9, tensors, found.state), keep=2)
        with pytest.raises(
            checkpoint.CheckpointError, match=r"do not fit: .*layers\.[19]\.running"
        ):
            load_generator(run, generator=Normalized())


def test_progress_of_what_takes_longer_than_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch takes 0.3 s here: after the seventh of sixteen more than two are over."""
    clock = iter(0.3 * tick for tick in range(99))
    monkeypatch.setattr("gancore.scoring.sampling.time.perf_counter", lambda: next(clock))
    told: list[tuple[str, int, int]] = []
    calibrated(Normalized(), 0, progress=lambda *each: told.append(each))
    assert told == [("calibrating", number, 16) for number in range(7, 17)]
    monkeypatch.setattr("gancore.scoring.sampling.time.perf_counter", lambda: 0.0)
    calibrated(Normalized(), 0, progress=lambda *each: told.append(each))
    assert len(told) == 10


def test_a_run_tells_the_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Told(Display):
        lines: ClassVar[list[str]] = []

        def count(self, what: str, done: int, total: int) -> None:
            self.lines.append(f"{what} {done}/{total}")

    monkeypatch.setattr(sampling, "PATIENCE", -1.0)
    made(train={"steps": 1}).run(tmp_path / "run", display=Told())
    assert Told.lines == [f"calibrating {number}/16" for number in range(1, 17)]
