"""Sampling: calibrated statistics against NumPy, and samples that are the same each time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gancore.errors import InputError, NonFiniteError
from gancore.isolation.randomness import Stream
from gancore.scoring.sampling import calibrated, frozen_parts, generate, latent_size


class Generator(nn.Module):
    """Points or images: linear, batch normalization, reshape."""

    latent = 3

    def __init__(self, *shape: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.BatchNorm1d(8)
        self.shape = shape or (8,)

    def forward(self, z: Tensor) -> Tensor:
        hidden: Tensor = self.second(self.dropout(self.norm(self.first(z))))
        return hidden.reshape(len(z), *self.shape)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def latents(stream: str, batches: int, seed: int = 0) -> list[Tensor]:
    """Return the 256 latents of each batch, from the stream's documented name."""
    source = Stream(seed, f"latents/{stream}")
    return [torch.randn(256, 3, generator=source.at(number)) for number in range(batches)]


def test_calibrated_statistics_are_averages_over_4096_latents() -> None:
    generator = Generator()
    weight, bias = generator.first.weight.detach().numpy(), generator.first.bias.detach().numpy()
    batches = [z.numpy() @ weight.T + bias for z in latents("calibration", 16, seed=5)]
    norm = calibrated(generator, 5).norm
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean = np.mean([batch.mean(0) for batch in batches], axis=0)
    variance = np.mean([batch.var(0, ddof=1) for batch in batches], axis=0)
    np.testing.assert_allclose(norm.running_mean.numpy(), mean, atol=1e-5)
    np.testing.assert_allclose(norm.running_var.numpy(), variance, rtol=1e-4)


def test_old_statistics_leave_no_trace() -> None:
    generator = Generator()
    before = calibrated(generator, 0).state_dict()
    generator.norm.running_mean = torch.full((8,), 100.0)
    generator.norm.momentum = 0.7
    after = calibrated(generator, 0).state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    other = calibrated(generator, 1).state_dict()
    assert not torch.equal(other["norm.running_mean"], after["norm.running_mean"])


@pytest.mark.parametrize("training", [True, False])
def test_calibrated_leaves_the_generator_untouched(training: bool) -> None:
    generator = Generator().train(training)
    generator.dropout.eval()  # a mode of its own
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    modes = [module.training for module in generator.modules()]
    copy = calibrated(generator, 0)
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())
    assert [module.training for module in generator.modules()] == modes
    assert not any(module.training for module in copy.modules())
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_calibration_depends_on_generator_and_seed_alone() -> None:
    """Whatever torch's global generator has been used for, dropout included."""
    generator = Generator(dropout=0.5)
    one = calibrated(generator, 0).state_dict()
    torch.rand(1000)
    two = calibrated(generator, 0).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_generator_without_batch_norm_is_copied() -> None:
    plain = nn.Linear(3, 2)
    plain.latent = 3  # type: ignore[assignment]
    copy = calibrated(plain, 0)
    assert copy is not plain
    assert torch.equal(generate(copy, 9, seed=0), generate(plain, 9, seed=0))


def test_samples_are_those_of_their_stream() -> None:
    generator = Generator().eval()
    with torch.no_grad():
        by_hand = torch.cat([generator(z) for z in latents("samples", 2, seed=4)])
    ours = generate(generator, 300, seed=4)
    assert torch.equal(ours, by_hand[:300])
    assert ours.dtype == torch.float32
    assert not torch.equal(ours, generate(generator, 300, seed=3))


@pytest.mark.parametrize("count", [1, 255, 256, 257, 600])
def test_the_first_of_many_are_the_few(count: int) -> None:
    generator = Generator().eval()
    few = generate(generator, count, seed=1)
    assert few.shape == (count, 8)
    many = generate(generator, 700, seed=1)[:count]
    torch.testing.assert_close(few, many, rtol=0, atol=1e-6)  # a block of one row rounds otherwise


def test_generating_tells_its_progress() -> None:
    told: list[tuple[str, int, int]] = []
    generate(Generator().eval(), 600, seed=0, progress=lambda *each: told.append(each))
    assert told == [("sampling", done, 600) for done in (256, 512, 600)]


def test_images_are_rounded_uint8() -> None:
    generator = Generator(2, 2, 2).eval()
    images = generate(generator, 40, seed=0)
    assert (images.dtype, images.shape) == (torch.uint8, (40, 2, 2, 2))
    with torch.no_grad():
        raw = generator(latents("samples", 1)[0])[:40].double().numpy()
    assert np.array_equal(images.numpy(), np.clip(np.rint((raw + 1) * 127.5), 0, 255))


def test_generating_leaves_modes_gradients_and_global_numbers_alone() -> None:
    generator = Generator().train()
    state = torch.random.get_rng_state()
    samples = generate(generator, 10, seed=0)
    assert not samples.requires_grad
    assert generator.training
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert torch.is_grad_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_half_precision_points_come_back_as_float32() -> None:
    class Half(Generator):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z).bfloat16()

    assert generate(Half().eval(), 3, seed=0).dtype == torch.float32


def test_a_generator_says_how_long_its_noise_is() -> None:
    assert latent_size(Generator()) == 3
    with pytest.raises(InputError, match=r"Linear does not say .*attribute `latent`, an int"):
        latent_size(nn.Linear(3, 2))


class Frozen(nn.Module):
    """A part that stays frozen, in eval mode, then one that trains."""

    latent = 3

    def __init__(self, kind: Callable[..., nn.Module] = nn.BatchNorm1d) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), kind(8), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.Linear(8, 8), kind(8))
        norm: Any = self.body[1]
        norm.running_mean.fill_(3.0)
        norm.running_var.fill_(4.0)
        self.body.eval()

    def forward(self, z: Tensor) -> Tensor:
        if isinstance(self.body[1], nn.InstanceNorm1d):
            z = z[:, None]
        out: Tensor = self.head(self.body(z))
        return out.flatten(1)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_normalization_that_was_frozen_stays_and_the_rest_is_estimated(
    kind: Callable[..., nn.Module],
) -> None:
    """What the head sees is the frozen part's, without its dropout: (Wz + b − 3) / 2."""
    generator = Frozen(kind)
    copy: Any = calibrated(generator, 5)
    assert torch.equal(copy.body[1].running_mean, torch.full((8,), 3.0))
    assert torch.equal(copy.body[1].running_var, torch.full((8,), 4.0))
    weights = [each.detach().double().numpy() for each in generator.parameters()]
    batches = []
    for z in latents("calibration", 16, seed=5):
        hidden = (z.double().numpy() @ weights[0].T + weights[1] - 3) / np.sqrt(4 + 1e-5)
        batches.append(hidden @ weights[4].T + weights[5])
    mean = np.mean([batch.mean(0) for batch in batches], axis=0)
    np.testing.assert_allclose(copy.head[1].running_mean.numpy(), mean, atol=1e-5)
    assert generator.training
    assert not generator.body.training


def test_the_frozen_parts_may_be_named() -> None:
    """As a checkpoint names them, whatever the modes of the network that is filled."""
    generator = Frozen()
    names = frozen_parts(generator)
    assert names == ["body", "body.0", "body.1", "body.2"]
    expected = calibrated(generator, 0).state_dict()
    for mode in (True, False):
        found = calibrated(generator.train(mode), 0, frozen=names).state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    thawed = calibrated(generator, 0).state_dict()
    assert not torch.equal(thawed["body.1.running_mean"], expected["body.1.running_mean"])


def test_a_generator_all_of_whose_normalization_is_frozen_keeps_it() -> None:
    generator = Frozen()
    generator.head[1].eval()
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    after = calibrated(generator, 0).state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_instance_normalization_with_statistics_is_estimated_where_it_trains() -> None:
    """Over 8 channels of one number a sample: here their mean over 4,096 is the batches' mean."""
    generator = Frozen()
    generator.body = nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (2, 4)))
    norm = nn.InstanceNorm1d(2, track_running_stats=True, momentum=0.3)
    frozen_norm = nn.InstanceNorm1d(2, track_running_stats=True).eval()
    generator.head = nn.Sequential(norm, frozen_norm)
    copy: Any = calibrated(generator, 5)
    layer: Any = generator.body[0]
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    hidden = np.concatenate([z.numpy() @ weight.T + bias for z in latents("calibration", 16, 5)])
    mean = hidden.reshape(-1, 2, 4).mean((0, 2))
    np.testing.assert_allclose(copy.head[0].running_mean.numpy(), mean, atol=1e-5)
    assert copy.head[0].momentum == 0.3
    assert torch.equal(copy.head[1].running_mean, torch.zeros(2))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_momentum_is_left_and_batch_statistics_alone_need_no_estimate(
    momentum: float | None,
) -> None:
    generator = Generator()
    generator.norm = nn.BatchNorm1d(8, momentum=momentum)
    generator.second = nn.BatchNorm1d(8, track_running_stats=False)
    copy: Any = calibrated(generator, 0)
    assert copy.norm.momentum == momentum
    assert copy.second.running_mean is None
    assert generate(copy, 3, seed=0).isfinite().all()


class Broken(nn.Module):
    """Answers inf and nan where the latents' first number is large."""

    latent = 2

    def __init__(self, value: float, *shape: int) -> None:
        super().__init__()
        self.scale, self.value, self.shape = nn.Parameter(torch.ones(())), value, shape

    def forward(self, z: Tensor) -> Tensor:
        out = z.tanh().clone()
        out[z[:, 0] > 1, 1] = self.value
        return out.view(-1, *self.shape) * self.scale


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(2,), (1, 1, 2)])
def test_samples_that_are_not_finite_are_counted(value: float, shape: tuple[int, ...]) -> None:
    source = Stream(3, "latents/samples")
    drawn = [torch.randn(256, 2, generator=source.at(number)) for number in range(2)]
    wrong = int((torch.cat(drawn)[:300, 0] > 1).sum())
    generator = Broken(value, *shape).eval()
    with pytest.raises(NonFiniteError, match=f"^{wrong} of 300 generated samples hold inf or nan"):
        generate(generator, 300, seed=3)
    told: list[str] = []
    assert len(generate(generator, 300, seed=3, broken=told.append)) == 300
    assert len(told) == 1
