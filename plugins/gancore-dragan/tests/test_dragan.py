"""DRAGAN's penalty against hand-made mathematics, and its noise against its distribution."""

import numpy as np
import pytest
import torch
from penalties import Card, GradientPenaltyFunction, linear, normal
from scipy import stats
from torch import Tensor, nn

from gancore import CriticStep
from gancore.errors import PluginError
from gancore.losses import NonSaturating
from gancore.plugins import Plugins, load, wrap
from gancore_dragan import DRAGAN, dragan_penalty

SHAPES = [(1, 1), (1, 5), (7, 5), (1, 1, 8, 8), (2, 3, 32, 32)]
NOISES = ["authors", "gaussian"]


def noise_at(real: Tensor, seed: int = 0, **options) -> np.ndarray:
    """Return x̂ − x, as a critic that listens finds it."""
    seen = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.flatten(1).sum(1)

    dragan_penalty(critic, real, generator=torch.Generator().manual_seed(seed), **options)
    (x,) = seen
    return (x - real).numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("noise", NOISES)
def test_linear_critic(shape: tuple[int, ...], share: float, noise: str) -> None:
    w = normal(*shape[1:])
    norm = np.sqrt(np.sum(w.numpy() ** 2))
    found = dragan_penalty(
        linear(w), normal(*shape, seed=1), weight=3.0, target=share * norm, noise=noise
    )
    assert found.shape == ()
    assert found.item() == pytest.approx(3 * (norm - share * norm) ** 2, rel=1e-10, abs=1e-20)


def test_defaults_are_lambda_10_and_target_1() -> None:
    w = normal(4)
    found = dragan_penalty(linear(w), normal(6, 4))
    assert found.item() == pytest.approx(10 * (np.linalg.norm(w.numpy()) - 1) ** 2)


@pytest.mark.parametrize("noise", NOISES)
def test_quadratic_critic_has_its_gradient_at_the_noisy_point(noise: str) -> None:
    """D(x) = ‖x‖²/2 has the gradient x, so that the penalty tells where it was taken."""
    real = normal(5, 2, 3, 3)
    options = {"noise": noise, "scale": 0.3}
    x = real.numpy() + noise_at(real, seed=4, **options)
    norms = np.sqrt((x**2).sum((1, 2, 3)))
    found = dragan_penalty(
        lambda x: x.flatten(1).square().sum(1) / 2,
        real,
        weight=2.0,
        target=0.5,
        generator=torch.Generator().manual_seed(4),
        **options,
    )
    assert found.item() == pytest.approx(2 * np.mean((norms - 0.5) ** 2), rel=1e-12)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_authors_noise_is_a_product_of_uniforms_times_std(scale: float) -> None:
    real = 3 + 4 * normal(20_000, 1)
    share = noise_at(real, scale=scale)[:, 0] / (scale * np.std(real.numpy()))
    assert share.min() >= 0
    assert share.max() <= 1
    # P(α·u ≤ t) = t − t·ln t
    assert stats.kstest(share, lambda t: t - t * np.log(t)).pvalue > 0.01


def test_authors_noise_has_one_alpha_a_sample() -> None:
    real = normal(4000, 3, 16, 16)
    share = noise_at(real).reshape(4000, -1) / (0.5 * np.std(real.numpy()))
    d = share.shape[1]
    alpha = share.max(1) * (d + 1) / d  # of d uniform numbers up to α, the largest, unbiased
    assert stats.kstest(alpha, "uniform").statistic < 1.63 / np.sqrt(4000) + 1 / d
    # E[δᵢ²] = E[α²]·E[u²] = 1/9, E[δᵢδⱼ] = E[α²]·E[u]² = 1/12
    one, two = share[:, 0], share[:, 1]
    assert np.mean(one * one) == pytest.approx(1 / 9, abs=4 * np.std(one * one) / np.sqrt(4000))
    assert np.mean(one * two) == pytest.approx(1 / 12, abs=4 * np.std(one * two) / np.sqrt(4000))


@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_gaussian_noise_is_independent_of_the_data(scale: float) -> None:
    near = noise_at(normal(5000, 4), noise="gaussian", scale=scale)
    far = noise_at(100 + 50 * normal(5000, 4), noise="gaussian", scale=scale)
    assert stats.kstest(near.reshape(-1) / scale, "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(near.T) - np.eye(4)).max() < 4 / np.sqrt(5000)
    np.testing.assert_allclose(far, near, atol=1e-12)


@pytest.mark.parametrize("noise", NOISES)
def test_without_noise_it_is_at_the_data(noise: str) -> None:
    assert not noise_at(normal(3, 4), noise=noise, scale=0.0).any()


@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_drawn_anew(noise: str) -> None:
    real, found = normal(3, 4), []
    for seed in (0, None, 0):
        if seed is not None:
            torch.manual_seed(seed)
        value = dragan_penalty(lambda x: x.square().sum(1), real, noise=noise)
        found.append(value.item())
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    "options", [{}, {"weight": 3.0, "target": 0.2, "noise": "gaussian", "scale": 0.1}]
)
def test_hook_is_the_function(options: dict) -> None:
    torch.manual_seed(1)
    critic = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    real, fake = normal(3, 4), normal(3, 4, seed=1)
    torch.manual_seed(3)
    expected = dragan_penalty(critic, real, **options)
    torch.manual_seed(3)
    plugins = Plugins([wrap(NonSaturating()), wrap(DRAGAN(**options))])
    ((loaded, scale, value),) = plugins.answer_penalties("penalty", CriticStep(critic, real, fake))
    assert (loaded.name, scale) == ("dragan", 1)
    assert torch.equal(value, expected)


def test_wrong_noise() -> None:
    with pytest.raises(ValueError, match="'uniform', expected 'authors' or 'gaussian'"):
        dragan_penalty(linear(normal(4)), normal(3, 4), noise="uniform")  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="dragan: noise: expected 'authors' or 'gaussian'"):
        load("dragan", {"noise": "uniform"})


@pytest.mark.parametrize("option", ["weight", "target", "scale"])
@pytest.mark.parametrize("wrong", [-1.0, "3", True, float("inf"), float("nan"), [1.0]])
def test_wrong_numbers(option: str, wrong: object) -> None:
    with pytest.raises(PluginError, match=f"dragan: {option}: expected"):
        load("dragan", {option: wrong})


class TestDRAGAN(GradientPenaltyFunction, Card):
    name = "dragan"
    plugin = DRAGAN
    function = dragan_penalty
    samples = (0,)
