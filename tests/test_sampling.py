"""Sampling: calibrated statistics against NumPy, and samples that are the same each time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gancore.errors import InputError
from gancore.randomness import Stream
from gancore.sampling import calibrated, generate, latent_size


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
    assert torch.equal(few, generate(generator, 700, seed=1)[:count])


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
